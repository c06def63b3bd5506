"""Every attention against the readable one: output and every gradient, on the shapes that hurt."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import test_streams
import torch

from xlnet.errors import RunError, UserError
from xlnet.model import attention
from xlnet.model.attention import IMPLEMENTATIONS, implementation, relative_attention, takes_last_queries
from xlnet.model.dropout import Dropout
from xlnet.model.kernels import build
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments, split_heads

NAMES = ("output", "qkv", "r", "content bias", "position bias", "segment bias", "segment embedding")
LENGTHS = [[1], [7], [33, 1, 2], [65, 130], [48, 96, 49], [15, 16, 17], [300]]


def tensors(lengths, heads=3, width=64, dtype=torch.float64, spare=0, seed=0):
    """Random inputs of an attention over texts of these lengths; the last third of a text is another segment."""
    torch.manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    table = random(2 * (max(lengths) + spare), heads, width)
    biases = [random(heads, width) for _ in range(3)]
    segments = torch.cat([(torch.arange(n) >= 2 * n // 3).int() + (torch.arange(n) == n - 1).int() for n in lengths])
    return [random(sum(lengths), 3, heads, width), table, *biases, random(2, heads, width), segments]


def run(impl, given, lengths, probability=0.0, with_segments=True, device="cpu", only_last=False):
    """Output and all gradients, as float64 on the CPU; ``only_last`` wants each text's last output only."""
    *leaves, ids = (x.detach().to(device).requires_grad_(x.is_floating_point()) for x in given)
    qkv, table, content, position, segment, embed = leaves
    dropout = Dropout.seeded(probability, torch.tensor([987654321], device=device)) if probability else None
    layout = Layout.of(lengths, device)
    q, k, v = split_heads(qkv)
    asks_last = only_last and takes_last_queries(impl, k, k.shape[-1], layout)
    out = relative_attention(
        q[layout.last_S] if asks_last else q,
        k,
        v,
        Positions(table, content, position),
        Segments(ids, segment, embed) if with_segments else None,
        layout,
        dropout,
        impl,
    )
    if only_last and not asks_last:
        out = out[layout.last_S]
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out))
    return [None if x is None else x.double().cpu() for x in (out.detach(), *(leaf.grad for leaf in leaves))]


def assert_close(got, expected, tolerance):
    """Relative to the largest value; a gradient that is nothing but rounding counts against 1."""
    for name, mine, theirs in zip(NAMES, got, expected, strict=True):
        assert (mine is None) == (theirs is None), name
        if theirs is not None:
            error = (mine - theirs).abs().max().item() / max(theirs.abs().max().item(), 1.0)
            assert error <= tolerance, f"{name}: {error:.2e}"


def compare(impl, lengths, width, probability, with_segments, dtype, tolerance, device="cpu", spare=0, only_last=False):
    given = tensors(lengths, width=width, dtype=dtype, spare=spare)
    exact = [x.double() if x.is_floating_point() else x for x in given]
    expected = run("reference", exact, lengths, probability, with_segments, only_last=only_last)
    got = run(impl, given, lengths, probability, with_segments, device, only_last)
    assert_close(got, expected, tolerance)


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("width", [16, 64, 128])
def test_native_equals_the_reference(width, lengths, probability, with_segments):
    compare("native", lengths, width, probability, with_segments, torch.float32, 1e-5, spare=len(lengths))


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("lengths", [*LENGTHS, [1, 1, 1]], ids=str)
@pytest.mark.parametrize("width", [16, 64])
def test_native_asks_for_the_last_tokens_only(width, lengths, with_segments):
    compare("native", lengths, width, 0.3, with_segments, torch.float32, 1e-5, spare=2, only_last=True)


@pytest.mark.parametrize("level", [*build.LEVELS])
def test_every_level_of_processor_computes_the_same(level, tmp_path, monkeypatch):
    """Blocks and tiles differ between levels, and with them every size of a buffer."""
    better = list(build.LEVELS)
    if better.index(level) < better.index(build.level()):
        pytest.skip(f"this processor has level {build.level()}")
    target = tmp_path / "kernels.so"
    build._compile(build._compiler(), level, target)
    kernels = ctypes.CDLL(str(target))
    monkeypatch.setattr(build, "library", lambda: kernels)
    for lengths in (*LENGTHS, [289], [513, 3]):
        for width in (16, 64):
            compare("native", lengths, width, 0.3, True, torch.float32, 1e-5, spare=1)
        compare("native", lengths, 16, 0.3, True, torch.float32, 1e-5, spare=1, only_last=True)
    for shape in (*test_streams.SHAPES, (1, 289, 49, 100), (3, 64, 64, 64)):
        test_streams.compare("native", shape, 16, 0.3, True, torch.float32, 1e-5)
    test_streams.compare("native", (2, 33, 7, 31), 128, 0.3, True, torch.float32, 1e-5)


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("width", [5, 8, 64])
def test_sdpa_equals_the_reference(width, lengths, probability, with_segments):
    compare("sdpa", lengths, width, probability, with_segments, torch.float32, 1e-5, spare=3)


@pytest.mark.parametrize("probability", [1e-11, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("impl", ["reference", "sdpa", "native"])
def test_dropout_of_almost_nothing_and_almost_everything(impl, probability):
    compare(impl, [1, 33, 2], 16, probability, True, torch.float32, 1e-4)


@pytest.mark.parametrize("impl", ["sdpa", "native"])
def test_texts_that_are_all_equal_and_scores_that_are_huge(impl):
    """One key takes all the weight, or all share it."""
    for scale in (0.0, 300.0):
        given = [x.detach() * scale if x.is_floating_point() else x for x in tensors([4, 4, 4], width=16)]
        given[0] = given[0].expand_as(given[0]).clone()
        given[0][:] = given[0][:1]
        exact = run("reference", given, [4, 4, 4], 0.3)
        got = run(impl, [x.float() if x.is_floating_point() else x for x in given], [4, 4, 4], 0.3)
        assert all(torch.isfinite(x).all() for x in got)
        assert (got[0] - exact[0]).abs().max() <= 1e-4 * max(1.0, exact[0].abs().max().item())


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[1], [7, 7], [33, 33, 33], [65]], ids=str)
def test_padded_equals_the_reference(lengths, probability, with_segments, monkeypatch):
    """Also its dropout mask, where no text is shorter than the rectangle."""

    def rectangle(lengths, device):
        return Layout.padded(torch.ones(sum(lengths), dtype=torch.bool), lengths[0])

    given = tensors(lengths, dtype=torch.float32, spare=2)
    expected = run(
        "reference", [x.double() if x.is_floating_point() else x for x in given], lengths, probability, with_segments
    )
    monkeypatch.setattr(Layout, "of", rectangle)
    assert_close(run("auto", given, lengths, probability, with_segments), expected, 1e-5)


def test_native_takes_bfloat16():
    compare("native", [33, 7], 64, 0.3, True, torch.bfloat16, 2e-2)


def test_native_gives_the_same_bits_with_any_number_of_threads():
    given = tensors([70, 5, 120, 33], dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run("native", given, [70, 5, 120, 33], 0.2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_reference_equals_transformers_arithmetic_by_hand():
    """One query, two keys of the same text, written out from the paper's formula."""
    given = tensors([2], heads=1, width=4)
    qkv, table, content, position, segment, embed, ids = given
    q, k, v = (qkv[:, i, 0] for i in range(3))
    differs = (ids[0] != ids[1]).long()
    scores = torch.stack(
        [
            (q[0] + content[0]) @ k[j]
            + (q[0] + position[0]) @ table[2 + j, 0]  # row L + j - i: distance i - j
            + (q[0] + segment[0]) @ embed[differs if j else 0, 0]
            for j in range(2)
        ]
    )
    expected = (scores / 2).softmax(0) @ v
    got = relative_attention(
        *qkv.unbind(1),
        Positions(table, content, position),
        Segments(ids, segment, embed),
        Layout.of([2]),
        None,
        "reference",
    )
    assert torch.allclose(got[0, 0], expected)


def test_no_text_sees_another():
    given = tensors([20, 30], dtype=torch.float32)
    alone = [given[0][20:], given[1][20:-20], *given[2:6], given[6][20:]]
    for impl in ("reference", "sdpa", "native"):
        both = run(impl, given, [20, 30])[0][20:]
        # The second text's distances lie in the middle of a longer table.
        table = torch.zeros(60, 3, 64)
        table[:] = given[1]
        single = run(impl, [alone[0], table, *alone[2:]], [30])[0]
        assert torch.allclose(both, single, atol=1e-6), impl


# ---- choosing ---------------------------------------------------------------------------------------


def test_auto_takes_the_compiled_kernels_on_a_cpu_without_a_word(capsys):
    attention.CHOICE.known.clear()
    assert implementation("auto", "cpu", "torch.float32", 64) == "native"
    assert capsys.readouterr().err == ""


def test_auto_warns_once_of_a_slower_attention(capsys):
    attention.CHOICE.known.clear()
    for _ in range(3):
        assert implementation("auto", "cpu", "torch.float32", 8) == "sdpa"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: attention on cpu is the slower 'sdpa'")
    assert "multiple of 16 wide, and these are 8" in said


def test_an_implementation_that_cannot_run_says_why():
    with pytest.raises(UserError, match=r"'flash'; allowed: auto, reference, sdpa, padded, native, triton"):
        implementation("flash", "cpu", "torch.float32", 64)
    with pytest.raises(UserError, match=r"'native' cannot run here: heads must be a multiple of 16 wide.*take 'auto'"):
        implementation("native", "cpu", "torch.float32", 8)
    with pytest.raises(
        UserError, match=r"'triton' cannot run here: it is for CUDA devices, and the tensors are on cpu"
    ):
        implementation("triton", "cpu", "torch.float32", 64)
    with pytest.raises(UserError, match=r"heads are 48 wide; allowed: 16, 32, 64, 128"):
        implementation("triton", "cuda", "torch.float32", 48)
    assert set(IMPLEMENTATIONS) == {"auto", "reference", "sdpa", "padded", "native", "triton"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"XLNET_NATIVE_KERNELS": "0"}, "XLNET_NATIVE_KERNELS is 0"), ({"CXX": "no-such-compiler"}, "cannot be started")],
)
def test_without_a_compiler_attention_still_runs(environment, reason, tmp_path):
    """A fresh process without compiled kernels: the portable one, and the reason when asked for the other."""
    program = (
        "from xlnet.model.attention import implementation as f; from xlnet.errors import UserError\n"
        "print(f('auto', 'cpu', 'torch.float32', 64))\n"
        "try: f('native', 'cpu', 'torch.float32', 64)\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sdpa\n")
    assert reason in done.stdout


def test_a_compiler_that_fails_is_reported(tmp_path, monkeypatch):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no arithmetic today' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    build.library.cache_clear()
    with pytest.raises(build.Unbuildable, match="no arithmetic today"):
        build.library()
    build.library.cache_clear()


# ---- bad input --------------------------------------------------------------------------------------


def test_bad_shapes_are_refused():
    q, k, v = torch.randn(3, 10, 2, 16)
    positions = Positions(torch.randn(20, 2, 16), torch.randn(2, 16), torch.randn(2, 16))
    with pytest.raises(RunError, match=r"10 tokens were given, but the packed texts' lengths add up to 9"):
        relative_attention(q, k, v, positions, None, Layout.of([4, 5]))
    with pytest.raises(RunError, match=r"a text of 11 tokens is longer than the position table, which reaches 10"):
        relative_attention(*torch.randn(3, 11, 2, 16), positions, None, Layout.of([11]))
    with pytest.raises(RunError, match=r"differ in type: torch\.bfloat16, torch\.float32"):
        relative_attention(q.bfloat16(), k, v, positions, None, Layout.of([10]))
    with pytest.raises(RunError, match=r"differ in shape: \(10, 2, 16\), \(10, 2, 16\), \(9, 2, 16\)"):
        relative_attention(q, k, v[:9], positions, None, Layout.of([10]))
    with pytest.raises(RunError, match="at least one text"):
        Layout.of([])
    with pytest.raises(RunError, match=r"no empty one; its lengths are \[3, 0\]"):
        Layout.of(np.array([3, 0]))
