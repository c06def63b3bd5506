"""Registers, spilled bytes and shared memory of the Triton kernels, compiled for a GPU that need not be there.

    python tests/benchmarks/kernel_resources.py                        # every kernel with its own tile, as a table
    python tests/benchmarks/kernel_resources.py --capability 80 --kernels backward_keys --warps 4 8

`--queries`, `--keys`, `--warps` and `--stages` take several values each and compile every combination of them. Stack
is what a thread keeps outside of its registers, in bytes; a kernel that spills reads and writes it in its inner loop.
Single accesses are instructions that read or write one score; a kernel should access eight at a time.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xlnet.model.kernels import tiles, triton_attention, triton_passes, triton_streams, triton_streams_passes
from xlnet.model.kernels.tiles import Tile

KERNELS = ("prepare", "position_scores", "forward", "backward_keys", "backward_queries", "backward_distances")
TYPES = {
    "*bf16": ("q", "k", "v", "r", "q_content", "q_position", "dout", "out", "dq", "dk", "dv", "dscores"),
    "*fp16": ("scores",),
    "*fp32": ("change", "log_sums", "deltas", "partial", "by_segment"),
    "*i32": ("ids", "offsets", "blocks", "starts", "query_ids", "key_ids", "places", "sees", "order"),
    "*i64": ("mask_key", "squares"),
    "fp32": ("scale", "drop_scale"),
}


class Resources(NamedTuple):
    """What one thread and one program take."""

    registers: int
    stack: int
    shared: int
    singles: int  # instructions that read or write a single number of two bytes in global memory


def compiled(kernel: Any, width: int, tile: Tile, capability: tuple[int, int]) -> Resources:
    """Compile a kernel for bfloat16 heads of this width, with segments and dropout."""
    known = {"N": 12, "H": width, "M": tile.queries, "K": tile.keys, "P": triton_passes.PITCH}
    known |= {"SEGMENTS": True, "DROPOUT": True, "BACKWARD": True, "TURN": tile.turn, "PRECISION": "tf32"}
    known = {name: value for name, value in known.items() if name in kernel.arg_names}
    types = {argument: _type(argument, known) for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if types[argument].startswith("*") or argument.endswith("_row") or argument == "area"
    }
    major, minor = capability
    made = triton.compile(
        ASTSource(kernel, types, known, aligned),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    usage = _usage(made.asm["cubin"])
    singles = len(re.findall(r"(?:ld|st)\.global\S*\.b16", made.asm["ptx"]))
    return Resources(int(usage["REG"]), int(usage["STACK"]), made.metadata.shared, singles)


def _type(argument: str, constants: dict[str, Any]) -> str:
    if argument in constants:
        return "constexpr"
    if argument.endswith("_bias"):
        return "*fp32"
    return next((kind for kind, names in TYPES.items() if argument in names), "i32")


def _usage(binary: bytes) -> dict[str, str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(REG|STACK):(\d+)", told))


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[90, 80], help="90 is 9.0")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--width", type=int, nargs="+", default=[64])
    parser.add_argument("--mean-length", type=float, nargs="+", default=[16.0, 40.0, 512.0])
    parser.add_argument("--streams", action="store_true", help="the kernels of two-stream attention")
    for name in Tile._fields[:-1]:
        parser.add_argument(f"--{name}", type=int, nargs="+", help="in place of the kernel's own")
    parser.add_argument("--turn", type=int, nargs="+", choices=(0, 1), help="move scores in registers")
    arguments = parser.parse_args()
    module: Any = triton_streams if arguments.streams else triton_attention
    choose: Any = triton_streams_passes.stream_plan if arguments.streams else tiles.plan
    print(f"Triton {triton.__version__}")
    columns = ("capability", "kernel", "head", "mean length", "queries × keys, warps, stages")
    columns += ("registers", "stack", "single accesses", "shared KiB")
    print("|", " | ".join(columns), "|")
    print("|---|---|---:|---:|---|---:|---:|---:|---:|")
    sweep = itertools.product(arguments.capability, arguments.kernels, arguments.width, arguments.mean_length)
    for capability, name, width, mean_length in sweep:
        if not hasattr(module, name):
            continue
        whole = divmod(capability, 10)
        own = choose(width, False, mean_length, whole).tile(name)
        for changed in itertools.product(*(getattr(arguments, field) or [None] for field in Tile._fields)):
            tile = Tile(*(given or mine for given, mine in zip(changed, own, strict=True)))
            used = compiled(getattr(module, name), width, tile, whole)
            shape = f"{tile.queries} × {tile.keys}, {tile.warps}, {tile.stages}" + ", turn" * tile.turn
            row = (capability / 10, name, width, f"{mean_length:g}", shape, used.registers, used.stack, used.singles)
            print("|", " | ".join(map(str, row)), f"| {used.shared / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
