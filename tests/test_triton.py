"""The Triton kernels: right under the interpreter, and compiled for the devices they are meant for.

On a GPU: pytest -m gpu tests/test_triton.py
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed; pip install triton")

HERE = Path(__file__).parent
KERNELS = ("prepare", "position_scores", "forward", "backward_keys", "backward_queries", "backward_distances")
# Bytes that a thread may keep outside of its registers, and shared memory that a block may have: what an A100 and an
# H100 have, and what an L4 has.
STACK, SHARED = 96, {(8, 0): 160 * 1024, (8, 9): 99 * 1024, (9, 0): 224 * 1024}


def test_the_kernels_are_right_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("capability", SHARED, ids=str)
@pytest.mark.parametrize(("width", "mean_length"), [(64, 10), (64, 40), (64, 300), (128, 300)])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compile_and_stay_in_registers(name, width, mean_length, capability):
    from xlnet.model.kernels import triton_attention, triton_passes

    chosen = triton_passes.tile(name, width, False, mean_length, capability)
    assert_compiles(getattr(triton_attention, name), width, chosen, capability)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("name", KERNELS[1:])
def test_the_kernels_of_both_streams_compile_and_stay_in_registers(name, capability):
    from xlnet.model.kernels import triton_streams, triton_streams_passes

    chosen = triton_streams_passes.stream_tile(name, 64, False, 896, capability)
    assert_compiles(getattr(triton_streams, name), 64, chosen, capability)


def assert_compiles(kernel, width, chosen, capability):
    """Ahead of time, for bfloat16: no GPU is needed to see what the compiler makes of them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from xlnet.model.kernels import triton_passes

    known = {"N": 12, "H": width, "M": chosen.queries, "K": chosen.keys, "P": triton_passes.PITCH}
    known |= {"SEGMENTS": True, "DROPOUT": True, "BACKWARD": True, "PRECISION": "tf32"}
    constants = {name: value for name, value in known.items() if name in kernel.arg_names}
    types = {argument: _type(argument, constants) for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if types[argument].startswith("*") or argument.endswith("_row") or argument == "area"
    }
    major, minor = capability
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options={"num_warps": chosen.warps, "num_stages": chosen.stages},
    )
    assert compiled.metadata.shared <= SHARED[capability]
    assert _stack(compiled.asm["cubin"]) <= STACK


def _type(argument, constants):
    if argument in constants:
        return "constexpr"
    if argument.endswith("_bias"):
        return "*fp32"
    kinds = {
        "*bf16": ("q", "k", "v", "r", "q_content", "q_position", "dout", "out", "dq", "dk", "dv", "dscores"),
        "*fp16": ("scores",),
        "*fp32": ("change", "log_sums", "deltas", "partial", "by_segment"),
        "*i32": ("ids", "offsets", "blocks", "starts", "query_ids", "key_ids", "places", "sees", "order"),
        "*i64": ("mask_key", "squares"),
        "fp32": ("scale", "drop_scale"),
    }
    return next((kind for kind, names in kinds.items() if argument in names), "i32")


def _stack(binary):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


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
