"""Measures how the Triton kernels of attention should divide their work on this GPU, and writes the table of tiles.

    python tests/benchmarks/tune_tiles.py [--lengths 16 40 128 512 2048] [--out FILE] [--seconds 300]

For each length every candidate tile runs once per kernel, all kernels in one forward and backward pass; their times
come from CUDA events around each launch. The fastest tile of each kernel goes into the table, under the condition that
kernels which share the scores' gradients have tiles of as many keys. Then a few sizes of the memory for scores are
tried. Workers compile all candidates first, because that takes longer than running them. Nothing is written for lengths
that were not reached in time. Without --out the project's own table is replaced.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from attention_speed import WIDTH, Case

from xlnet.model.kernels import tiles, triton_passes
from xlnet.model.kernels.tiles import SCORES, Tile, Tiling
from xlnet.training.detect import detect

# Measured length: the greatest mean length that its tiles are for.
CLASSES: dict[int, int | None] = {16: 24, 40: 64, 128: 256, 512: 1024, 2048: None}
KERNELS = ("position_scores", "forward", "backward_keys", "backward_queries", "backward_distances")
MEMORY = (16, 32, 64, 128, 256)  # MiB of scores at once; less may stay in the GPU's cache
COMPILERS = 12


def candidates(length: int) -> list[Tile]:
    """Return the tiles to try for texts of this length."""
    if length < 64:
        sizes, warps, stages = [(16, 16), (32, 32), (16, 32), (32, 16), (64, 32)], (1, 2, 4), (2,)
    else:
        sizes, warps, stages = [(64, 64), (64, 32), (32, 64), (128, 64), (128, 32), (32, 32)], (4, 8), (2, 3)
    found = [Tile(*size, *rest) for size in sizes for rest in itertools.product(warps, stages)]
    return found + [tile._replace(turn=True) for tile in found if tile.queries == tile.keys]


@contextmanager
def using(tiling: Tiling) -> Iterator[None]:
    """Divide the work as told."""
    usual = triton_passes.plan
    triton_passes.plan = lambda *_: tiling
    try:
        yield
    finally:
        triton_passes.plan = usual


@contextmanager
def watched(on_gpu: bool) -> Iterator[Callable[[], dict[str, float]]]:
    """Time each kernel; the returned function waits for the GPU and returns milliseconds since its last call."""
    spans: list[tuple[str, Any, Any]] = []
    usual = triton_passes.KernelPass.launch

    def now() -> Any:
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def launch(self: Any, kernel: Any, *arguments: Any, **constants: Any) -> None:
        begun = now()
        usual(self, kernel, *arguments, **constants)
        spans.append((kernel.__name__, begun, now()))

    def told() -> dict[str, float]:
        if on_gpu:
            torch.cuda.synchronize()
        sums: dict[str, float] = defaultdict(float)
        for name, begun, ended in spans:
            sums[name] += begun.elapsed_time(ended) if on_gpu else 1000 * (ended - begun)
        spans.clear()
        return dict(sums)

    triton_passes.KernelPass.launch = launch  # type: ignore[method-assign]
    try:
        yield told
    finally:
        triton_passes.KernelPass.launch = usual  # type: ignore[method-assign]


def measured(case: Case, tiling: Tiling, rounds: int) -> dict[str, float]:
    """Milliseconds of each kernel in a forward and backward pass; empty if a kernel cannot run."""
    try:
        with using(tiling), watched(case.device.torch.type == "cuda") as told:
            case.run("triton")
            told()
            found = []
            for _ in range(rounds):
                case.run("triton")
                found.append(told())
    except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError, RuntimeError) as error:
        print(f"  {tiling.tiles['']}: {str(error).splitlines()[0][:100]}", file=sys.stderr, flush=True)
        return {}
    return {name: statistics.median(one.get(name, 0.0) for one in found) for name in found[0]}


def chosen(times: dict[Tile, dict[str, float]]) -> dict[str, Tile]:
    """Return the tiles with the least time in all."""

    def best(kernel: str, keys: int | None = None, turns: bool | None = None) -> tuple[float, Tile]:
        able = [
            (found[kernel], tile)
            for tile, found in times.items()
            if kernel in found and keys in (None, tile.keys) and turns in (None, tile.turn)
        ]
        return min(able, default=(float("inf"), Tile(0, 0, 0, 0)))

    def scored(reader: tuple[float, Tile]) -> float:  # each pass computes scores by distance unless the reader does
        return reader[0] + (0.0 if reader[1].turn else best("position_scores")[0] / 2)

    def reading(kernel: str, keys: int | None = None) -> tuple[float, Tile]:
        return min((best(kernel, keys, turns) for turns in (False, True)), key=scored)

    def of_gradients(keys: int) -> list[tuple[float, Tile]]:
        distances = min(best("backward_distances", keys, True), best("backward_distances", None, False))
        return [reading("backward_keys", keys), best("backward_queries", keys), distances]

    keys = min(
        {tile.keys for tile in times},
        key=lambda keys: scored(of_gradients(keys)[0]) + sum(time for time, _ in of_gradients(keys)[1:]),
    )
    parts = [best("position_scores"), reading("forward"), *of_gradients(keys)]
    return {kernel: tile for kernel, (_, tile) in zip(KERNELS, parts, strict=True)}


def compile_one(work: tuple[int, Tile]) -> None:
    """Compile a candidate's kernels, which leaves them in Triton's cache for the other processes."""
    length, tile = work
    measured(Case(length, length, 0.1, detect()), Tiling({"": tile}, SCORES), 0)


def tuned(length: int, tokens: int, rounds: int, compilers: int) -> dict[str, Any]:
    """Return the table's entry for one length, and what was measured."""
    device, tried = detect(), candidates(length)
    if compilers > 1:
        with multiprocessing.get_context("spawn").Pool(compilers) as pool:
            pool.map(compile_one, [(length, tile) for tile in tried], chunksize=1)
    case = Case(length, tokens, 0.1, device)
    times = {}
    for tile in tried:
        found = measured(case, Tiling({"": tile}, SCORES), rounds)
        if found and tile.turn:  # then the kernels that read scores by distance have computed them themselves
            readers = Tiling({"": tile._replace(turn=False), "position_scores": tile}, SCORES)
            found |= {name: time for name, time in measured(case, readers, rounds).items() if name == "position_scores"}
        if found:
            times[tile] = found
    kernels = chosen(times)
    on_gpu = case.device.torch.type == "cuda"
    major, minor = torch.cuda.get_device_capability() if on_gpu else (8, 0)
    capability = 10 * major + minor
    usual = tiles.plan(WIDTH, case.device.precision == torch.float32, length, (major, minor))
    before = sum(measured(case, usual, rounds).values())
    totals = {
        size: sum(measured(case, Tiling({"": kernels["forward"], **kernels}, size << 20), rounds).values())
        for size in MEMORY
    }
    size = min(totals, key=lambda size: (totals[size] or float("inf"), -size))
    return {
        "entry": {
            "capability": capability,
            "width": WIDTH,
            "mean_length": CLASSES.get(length, length),
            "scores_mib": size,
            "tiles": {"": list(kernels["forward"]), **{name: list(tile) for name, tile in kernels.items()}},
        },
        "milliseconds": {"before": before, **{f"with {size} MiB": total for size, total in totals.items()}},
        "kernels": {str(list(tile)): found for tile, found in times.items()},
    }


def write(found: list[dict[str, Any]], path: Path) -> None:
    """Replace the table's entries for the same GPUs, head widths and lengths, or add them."""
    entries = json.loads(tiles.TABLE.read_text(encoding="utf-8"))["entries"]

    def about_whom(entry: dict[str, Any]) -> tuple[float, ...]:
        return entry["width"], entry["mean_length"] or float("inf"), -entry["capability"]

    replaced = {about_whom(one["entry"]) for one in found}
    entries = [entry for entry in entries if about_whom(entry) not in replaced] + [one["entry"] for one in found]
    entries.sort(key=about_whom)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    about = f"Measured on {name} with Triton {triton.__version__}. Tiles: queries, keys, warps, stages, turn"
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    path.write_text(f'{{\n  "about": {json.dumps(about)},\n  "entries": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the table, and print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 16, 40, 128])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compilers", type=int, default=COMPILERS)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--out", type=Path, default=tiles.TABLE)
    given = parser.parse_args(arguments)
    begun, found = time.perf_counter(), []
    for length in given.lengths:
        gone = time.perf_counter() - begun
        if found and gone + gone / len(found) > given.seconds:
            break
        found.append(tuned(length, given.tokens, given.rounds, given.compilers))
        write(found, given.out)
        print(json.dumps(found[-1]), flush=True)


if __name__ == "__main__":
    main()
