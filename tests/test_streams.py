"""Every two-stream attention against the readable one: output and every gradient, on the shapes that hurt."""

import pytest
import torch
from torch.nn import functional as F

from xlnet.errors import RunError, UserError
from xlnet.model import streams
from xlnet.model.dropout import Dropout
from xlnet.model.positions import Positions
from xlnet.model.streams import stream_attention
from xlnet.model.visibility import NEVER, StreamSegments, Visibility

NAMES = ("output", "q", "k", "v", "r", "content bias", "position bias", "segment bias", "segment embedding")
# texts, content tokens, predicted positions, memory: odd ones, single ones, none, more memory than content
SHAPES = [(2, 8, 3, 6), (1, 1, 1, 0), (3, 17, 1, 1), (1, 50, 9, 21), (2, 97, 60, 0), (5, 48, 3, 63), (1, 5, 0, 2)]


def visibility_of(shape, seed=0):
    """What queries see, and segments: drawn orders with ties, half of the last text padding, targets in no order."""
    texts, length, predicted, memory = shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(texts)]).int()
    order[:, : length // 3] = order[:, : length // 3].clamp(max=length // 2)
    order[-1, length - length // 2 :] = NEVER
    place = torch.stack([torch.randperm(length, generator=generator)[:predicted] for _ in range(texts)])
    ids = torch.randint(3, (texts, length), generator=generator).int()
    queries = torch.cat([ids, ids.gather(1, place)], 1)
    return Visibility.of(order, place, memory), queries, F.pad(ids, (memory, 0))


def tensors(shape, heads=3, width=16, dtype=torch.float64, seed=0):
    """Random inputs of an attention."""
    torch.manual_seed(seed)
    texts, length, predicted, memory = shape
    keys, queries = memory + length, length + predicted

    def random(*size):
        return torch.randn(*size, dtype=torch.float64).to(dtype)

    inputs = [random(texts, queries, heads, width), *(random(texts, keys, heads, width) for _ in range(2))]
    return [*inputs, random(length + keys, heads, width), *(random(heads, width) for _ in range(3)),
            random(2, heads, width)]  # fmt: skip


def run(impl, given, shape, probability=0.0, with_segments=True, device="cpu"):
    """Output and all gradients, as float64 on the CPU."""
    leaves = [x.detach().to(device).requires_grad_() for x in given]
    q, k, v, table, content, position, segment, embed = leaves
    visibility, queries, keys = visibility_of(shape)
    visibility = Visibility(*(x.to(device) for x in visibility[:3]), visibility.length)
    segments = StreamSegments(queries.to(device), keys.to(device), segment, embed) if with_segments else None
    noise = Dropout.seeded(probability, torch.tensor([987654321], device=device)) if probability else None
    out = stream_attention(q, k, v, Positions(table, content, position), segments, visibility, noise, impl)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out))
    return [None if x is None else x.double().cpu() for x in (out.detach(), *(leaf.grad for leaf in leaves))]


def assert_close(got, expected, tolerance):
    """Relative to the largest value; a gradient that is nothing but rounding counts against 1."""
    for name, mine, theirs in zip(NAMES, got, expected, strict=True):
        assert (mine is None) == (theirs is None), name
        if theirs is not None:
            assert torch.isfinite(mine).all(), name
            error = (mine - theirs).abs().max().item() / max(theirs.abs().max().item(), 1.0)
            assert error <= tolerance, f"{name}: {error:.2e}"


def compare(impl, shape, width, probability, with_segments, dtype, tolerance, device="cpu"):
    given = tensors(shape, width=width, dtype=dtype)
    expected = run("reference", [x.double() for x in given], shape, probability, with_segments)
    assert_close(run(impl, given, shape, probability, with_segments, device), expected, tolerance)


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("impl", "width"), [("dense", 5), ("dense", 64), ("native", 16), ("native", 64)])
def test_every_implementation_equals_the_reference(impl, width, shape, probability, with_segments):
    compare(impl, shape, width, probability, with_segments, torch.float32, 1e-5)


@pytest.mark.parametrize("probability", [1e-11, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("impl", ["reference", "dense", "native"])
def test_dropout_of_almost_nothing_and_almost_everything(impl, probability):
    compare(impl, (2, 33, 5, 3), 16, probability, True, torch.float32, 1e-4)


@pytest.mark.parametrize("impl", ["dense", "native"])
@pytest.mark.parametrize("scale", [0.0, 300.0])
def test_scores_that_are_equal_or_huge(impl, scale):
    given = [x * scale for x in tensors((2, 9, 4, 5))]
    expected = run("reference", given, (2, 9, 4, 5), 0.3)
    assert_close(run(impl, [x.float() for x in given], (2, 9, 4, 5), 0.3)[:1] + expected[1:], expected, 1e-4)


@pytest.mark.parametrize("impl", ["dense", "native"])
def test_a_query_that_sees_nothing_gets_zeros(impl):
    """The first of the order without memory; and it gives no key a gradient."""
    visibility = Visibility.of(torch.tensor([[2, 0, 1]]).int(), torch.tensor([[1]]))
    q, k, table = torch.randn(1, 4, 1, 16), torch.randn(1, 3, 1, 16), torch.randn(6, 1, 16)
    leaves = [x.requires_grad_() for x in (q, k, table)]
    out = stream_attention(q, k, k, Positions(table, *torch.randn(2, 1, 16)), None, visibility, None, impl)
    assert not out[0, 3].any()
    out[0, 3].sum().backward()
    assert not any(leaf.grad.any() for leaf in leaves)


def test_native_gives_the_same_bits_with_any_number_of_threads_and_twice():
    given = tensors((5, 70, 11, 33), width=64, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run("native", given, (5, 70, 11, 33), 0.2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_native_takes_bfloat16():
    compare("native", (2, 33, 7, 5), 64, 0.3, True, torch.bfloat16, 2e-2)


def test_auto_takes_the_compiled_kernels_and_warns_once_without_them(capsys):
    streams.CHOICE.known.clear()
    assert streams.CHOICE.name("auto", "cpu", "torch.float32", 64) == "native"
    assert capsys.readouterr().err == ""
    for _ in range(3):
        assert streams.CHOICE.name("auto", "cpu", "torch.float32", 8) == "dense"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: two-stream attention on cpu is the slower 'dense'")


def test_bad_shapes_are_refused():
    q, k = torch.randn(1, 4, 2, 16), torch.randn(1, 3, 2, 16)
    visibility = Visibility.of(torch.tensor([[0, 1, 2]]).int(), torch.tensor([[1]]))
    positions = Positions(torch.randn(6, 2, 16), torch.randn(2, 16), torch.randn(2, 16))
    with pytest.raises(UserError, match=r"'flash'; allowed: auto, reference, dense, native, triton"):
        stream_attention(q, k, k, positions, None, visibility, None, "flash")
    narrow, q8, k8 = Positions(*(x[..., :8] for x in positions)), q[..., :8], k[..., :8]
    with pytest.raises(UserError, match=r"'native' cannot run here: heads must be a multiple of 16 wide"):
        stream_attention(q8, k8, k8, narrow, None, visibility, None, "native")
    with pytest.raises(RunError, match="do not match"):
        stream_attention(q, k[:, :2], k, positions, None, visibility)
    with pytest.raises(RunError, match="visibility describes"):
        stream_attention(q[:, :3], k, k, positions, None, visibility)
    with pytest.raises(RunError, match="6 are needed"):
        stream_attention(q, k, k, Positions(torch.randn(5, 2, 16), *positions[1:]), None, visibility)
