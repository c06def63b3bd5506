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
# Bytes that a thread may keep outside of its registers, and shared memory that a block may have.
STACK, SHARED = {"_forward": 0, "_backward_queries": 64, "_backward_keys": 96, "_backward_distances": 320}, 160 * 1024


def test_the_kernels_are_right_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", STACK)
def test_the_kernels_compile_and_stay_in_registers(name, capability):
    """Ahead of time, for bfloat16 heads of 64: no GPU is needed to see what the compiler makes of them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from xlnet.model.kernels import triton_attention

    rows, warps = triton_attention.tile(64, name == "_forward", divmod(capability, 10))
    kernel = getattr(triton_attention, name)
    constants = {"N": 12, "H": 64, "M": rows, "SEGMENTS": True, "DROPOUT": True, "PRECISION": "tf32"}
    types = {argument: _type(argument, constants) for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if types[argument].startswith("*") or argument.endswith("_row")
    }
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": 2},
    )
    assert compiled.metadata.shared <= SHARED
    assert _stack(compiled.asm["cubin"]) <= STACK[name]


def _type(argument, constants):
    if argument in constants:
        return "constexpr"
    kinds = {
        "*bf16": ("q", "k", "v", "r", "dout", "out", "dq", "dk", "dv"),
        "*fp32": ("content_bias", "position_bias", "segment_bias", "change", "log_sums", "deltas", "partial"),
        "*i32": ("ids", "offsets", "blocks", "starts"),
        "*i64": ("mask_key",),
        "fp32": ("scale", "drop_scale"),
        "u32": ("threshold",),
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
def test_the_device_gives_the_same_bits_twice():
    from test_attention import run, tensors

    given = tensors([200, 33, 512], dtype=torch.bfloat16)
    first, second = (run("triton", given, [200, 33, 512], 0.1, device="cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
