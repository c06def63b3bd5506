"""The Triton kernels: right under the interpreter, and compiled for the devices they are meant for.

On a GPU: pytest -m gpu tests/test_triton.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed; pip install triton")

from xlnet.model.kernels import (  # noqa: E402
    tiles,
    triton_attention,
    triton_passes,
    triton_streams,
    triton_streams_passes,
)

HERE = Path(__file__).parent
# Bytes that a thread may keep outside of its registers, and shared memory that a block may have: what an A100 and an
# H100 have, and what an L4 has.
STACK, SHARED = 96, {(8, 0): 160 * 1024, (8, 9): 99 * 1024, (9, 0): 224 * 1024}


def test_the_kernels_are_right_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-3000:]


spec = importlib.util.spec_from_file_location("kernel_resources", HERE / "benchmarks" / "kernel_resources.py")
assert spec
assert spec.loader
resources = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resources)
KERNELS = resources.KERNELS


@pytest.mark.parametrize("capability", SHARED, ids=str)
@pytest.mark.parametrize(("width", "mean_length"), [(64, 10), (64, 40), (64, 300), (128, 300)])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compile_and_stay_in_registers(name, width, mean_length, capability):
    chosen = tiles.plan(width, False, mean_length, capability).tile(name)
    assert_compiles(getattr(triton_attention, name), width, chosen, capability)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("name", KERNELS[1:])
def test_the_kernels_of_both_streams_compile_and_stay_in_registers(name, capability):
    chosen = triton_streams_passes.stream_plan(64, False, 896, capability).tile(name)
    assert_compiles(getattr(triton_streams, name), 64, chosen, capability)


@pytest.mark.parametrize(
    "module", [triton_attention, triton_streams], ids=lambda module: module.__name__.split(".")[-1]
)
@pytest.mark.parametrize("name", ["forward", "backward_keys"])
def test_scores_are_not_read_one_by_one(name, module):
    """Which the compiler does unless it knows that the rows of a tile are aligned."""
    chosen = tiles.plan(64, False, 300, (9, 0)).tile(name)._replace(queries=32)
    assert resources.compiled(getattr(module, name), 64, chosen, (9, 0)).singles == 0


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("name", KERNELS[1:])
def test_kernels_that_move_scores_in_registers_compile(name, capability):
    used = resources.compiled(getattr(triton_attention, name), 64, tiles.Tile(32, 32, 4, 2, turn=True), capability)
    assert used.stack <= STACK
    assert used.singles == 0


def test_the_table_of_tiles_holds_what_the_kernels_need():
    for entry in tiles.table():
        plan = tiles.plan(entry["width"], False, entry["mean_length"] or 1e9, (9, 0))
        assert set(plan.tiles) <= {"", *KERNELS}
        assert plan.tile("backward_keys").keys == plan.tile("backward_queries").keys, "they share squares of gradients"
        for name in KERNELS[1:]:
            chosen = plan.tile(name)
            assert triton_passes.PITCH % chosen.keys == 0
            assert chosen.queries == chosen.keys or not chosen.turn
        if plan.tile("backward_distances").turn:
            assert plan.tile("backward_distances").keys == plan.tile("backward_keys").keys


def assert_compiles(kernel, width, chosen, capability):
    """Ahead of time, for bfloat16: no GPU is needed to see what the compiler makes of them."""
    used = resources.compiled(kernel, width, chosen, capability)
    assert used.shared <= SHARED[capability]
    assert used.stack <= STACK


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[1], [7, 33], [65, 130, 1, 2], [512, 300, 17]], ids=str)
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_on_the_device(width, lengths, probability, dtype):
    from test_attention import compare

    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    compare("triton", lengths, width, probability, True, dtype, tolerance, device="cuda", spare=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("lengths", [[1], [65, 130, 1, 2], [512, 300, 17]], ids=str)
@pytest.mark.parametrize(
    ("size", "warps", "dtype"),
    [(32, 4, torch.float32), *((size, warps, torch.bfloat16) for size, warps in ((16, 1), (32, 2), (64, 4), (64, 8)))],
    ids=str,
)
def test_scores_that_move_in_registers_on_the_device(size, warps, dtype, lengths, monkeypatch):
    from test_attention import compare

    chosen = tiles.Tiling({"": tiles.Tile(size, size, warps, 2, turn=True)}, 1 << 20)
    monkeypatch.setattr(triton_passes, "plan", lambda *_: chosen)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    compare("triton", lengths, 64, 0.3, True, dtype, tolerance, device="cuda", spare=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(2, 8, 3, 6), (3, 17, 1, 1), (2, 97, 60, 0), (2, 512, 85, 384)], ids=str)
@pytest.mark.parametrize("width", [16, 64, 128])
def test_both_streams_on_the_device(width, shape, probability, dtype):
    from test_streams import compare

    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    compare("triton", shape, width, probability, True, dtype, tolerance, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_both_streams_give_the_same_bits_twice_on_the_device():
    from test_streams import run, tensors

    given = tensors((3, 200, 33, 100), width=64, dtype=torch.bfloat16)
    first, second = (run("triton", given, (3, 200, 33, 100), 0.1, device="cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_gives_the_same_bits_twice():
    from test_attention import run, tensors

    given = tensors([200, 33, 512], dtype=torch.bfloat16)
    first, second = (run("triton", given, [200, 33, 512], 0.1, device="cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
