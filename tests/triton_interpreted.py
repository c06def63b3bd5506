"""The Triton kernels under Triton's interpreter: run by test_triton.py in a process with TRITON_INTERPRET=1."""

import pytest
import test_attention
import test_streams
import torch
from torch.nn import functional as F

from xlnet.model import dropout as plain
from xlnet.model.dropout import Dropout
from xlnet.model.kernels import tiles, triton_fused, triton_passes, triton_streams_passes
from xlnet.model.layout import Capacity, Layout


@pytest.mark.parametrize(
    ("width", "lengths", "probability", "with_segments", "spare"),
    [
        (16, [1], 0.0, True, 0),
        (16, [7, 33], 0.3, True, 5),
        (32, [31, 32, 2], 0.3, False, 0),
        (64, [65, 1], 0.3, True, 0),
        (128, [34], 0.0, True, 1),
    ],
)
def test_attention_equals_the_reference(width, lengths, probability, with_segments, spare):
    test_attention.compare("triton", lengths, width, probability, with_segments, torch.float32, 1e-5, spare=spare)


def test_attention_in_half_precision():
    """float16: the interpreter multiplies bfloat16 as the integers it keeps them in."""
    test_attention.compare("triton", [33, 7], 16, 0.3, True, torch.float16, 1e-2)


def use(monkeypatch, module, tile):
    """Take one tile for all kernels of a module's passes."""
    monkeypatch.setattr(module, "plan", lambda *_: tiles.Tiling({"": tile}, 1 << 20))


def test_tiles_of_64(monkeypatch):
    """What longer texts in bfloat16 use."""
    use(monkeypatch, triton_passes, tiles.Tile(64, 64, 4, 1))
    test_attention.compare("triton", [70, 20], 16, 0.3, True, torch.float32, 1e-5)


@pytest.mark.parametrize(
    ("size", "lengths", "spare"), [(16, [7, 33, 16, 1], 5), (16, [17], 0), (32, [31, 32, 65, 2], 0), (64, [70, 20], 3)]
)
def test_scores_that_move_in_registers(monkeypatch, size, lengths, spare):
    use(monkeypatch, triton_passes, tiles.Tile(size, size, 4, 1, turn=True))
    test_attention.compare("triton", lengths, 16, 0.3, True, torch.float32, 1e-5, spare=spare)


@pytest.mark.parametrize("kernel", ["forward", "backward_keys", "backward_queries", "backward_distances"])
def test_each_kernel_may_move_scores_by_itself(monkeypatch, kernel):
    chosen = {"": tiles.Tile(16, 16, 4, 1), kernel: tiles.Tile(16, 16, 4, 1, turn=True)}
    monkeypatch.setattr(triton_passes, "plan", lambda *_: tiles.Tiling(chosen, 1 << 20))
    test_attention.compare("triton", [18, 5], 16, 0.3, True, torch.float32, 1e-5, spare=2)


def test_a_layout_with_room_for_more(monkeypatch):
    """Texts change in place; behind the last one lie tokens of none, for which nothing comes out."""
    lengths, filler = [20, 3, 37], 9
    layout = Layout.with_capacity(Capacity(sum(lengths) + filler, 7, 45), torch.device("cpu"))
    given = test_attention.tensors(lengths, width=16, dtype=torch.float32, spare=45 - 37)
    expected = test_attention.run("reference", given, lengths, 0.3)
    behind = test_attention.tensors([filler], width=16, dtype=torch.float32, seed=1)
    others = [Layout.of(texts) for texts in ([45, 1], lengths)]
    monkeypatch.setattr(Layout, "of", lambda *_: layout)
    longer = [torch.cat([given[0], behind[0]]), *given[1:6], torch.cat([given[6], behind[6]])]
    for other in others:
        layout.refill(other)
        got = test_attention.run("triton", longer, lengths, 0.3)
    assert not got[0][-filler:].any()
    assert not got[1][-filler:].any()
    got[0], got[1] = got[0][:-filler], got[1][:-filler]
    test_attention.assert_close(got, expected, 1e-5)


@pytest.mark.parametrize(
    ("width", "shape", "probability", "with_segments"),
    [
        (16, (1, 1, 1, 0), 0.0, True),
        (16, (2, 8, 3, 6), 0.3, True),
        (32, (1, 33, 5, 0), 0.3, False),
        (64, (2, 17, 2, 31), 0.3, True),
        (128, (1, 5, 0, 2), 0.0, True),
    ],
)
def test_both_streams_equal_the_reference(width, shape, probability, with_segments):
    test_streams.compare("triton", shape, width, probability, with_segments, torch.float32, 1e-5)


def test_both_streams_in_half_precision():
    test_streams.compare("triton", (2, 9, 4, 5), 16, 0.3, True, torch.float16, 1e-2)


def test_both_streams_with_tiles_of_64(monkeypatch):
    use(monkeypatch, triton_streams_passes, tiles.Tile(64, 64, 4, 1, turn=True))  # which these kernels ignore
    test_streams.compare("triton", (1, 65, 9, 20), 16, 0.3, True, torch.float32, 1e-5)


def check(got, expected, *given):
    """Output and gradients of two functions agree."""
    results = []
    for work, dtype in ((got, torch.float32), (expected, torch.float64)):
        leaves = [x.detach().clone().to(dtype).requires_grad_() for x in given]
        out = work(*leaves)
        out.backward(torch.linspace(-1, 2, out.numel(), dtype=dtype).view(out.shape))
        results.append([out, *(x.grad for x in leaves)])
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (5, 100), (3, 1100)])
def test_fused(rows, width, probability):
    torch.manual_seed(0)
    noise = Dropout.seeded(probability, torch.tensor([99])) if probability else None
    x, residual, weight, bias = (
        torch.randn(rows, width),
        torch.randn(rows, width),
        torch.randn(width),
        torch.randn(width),
    )
    if noise is not None:
        check(lambda x: triton_fused.dropout(x, noise), lambda x: plain.dropout(x, noise), x)
    check(lambda x: triton_fused.gelu_dropout(x, noise), lambda x: plain.dropout(F.gelu(x), noise), x)
    check(
        lambda *t: triton_fused.dropout_add_norm(*t, 1e-6, noise),
        lambda x, r, w, b: F.layer_norm(r + plain.dropout(x, noise), (width,), w, b, 1e-6),
        *(x, residual, weight, bias),
    )


def test_layer_norm_of_hidden_states_in_bfloat16():
    """Statistics are float32: the result is that of the same numbers in float32, rounded once."""
    torch.manual_seed(0)
    noise = Dropout.seeded(0.3, torch.tensor([99]))
    x, residual, weight, bias = torch.randn(5, 100), torch.randn(5, 100), torch.randn(100), torch.randn(100)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [t.bfloat16().to(dtype) if t.dim() == 2 else t.clone() for t in (x, residual, weight, bias)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = triton_fused.dropout_add_norm(*leaves, 1e-6, noise)
        out.backward(torch.linspace(-1, 2, 500).view(5, 100).bfloat16().to(dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, exact in zip(*results, strict=True):
        assert torch.allclose(mine.float(), exact.to(mine.dtype).float(), rtol=2**-7, atol=1e-6)
    assert [tensor.dtype for tensor in results[0][:3]] == [torch.bfloat16] * 3
    assert [tensor.dtype for tensor in results[0][3:]] == [torch.float32] * 2
