"""All that has to be measured on a GPU, in three calls of ten minutes; a part that fails or is late costs only itself.

    python tests/benchmarks/real_rows.py sst2 imdb --out .gpu       # also copy wikitext2/valid.txt to .gpu/wikitext2
    python tests/benchmarks/gpu_session.py --call 1 --rows .gpu --out $OUT    # on the GPU machine; then --call 2 and 3
    python tests/benchmarks/gpu_session.py --table $OUT/results.jsonl         # the figures as Markdown
    python tests/benchmarks/gpu_session.py --smoke                            # tiny, on a CPU

The first call checks the kernels, compares attention with flash attention, tunes the tiles and compares again; copy the
tiles.json that it leaves in --out over components/xlnet/model/kernels/tiles.json before the second call. The second
measures whole updates, the third pretraining, transformers' speed on the same rows, and the tests of training on a GPU.
Each part is a process of its own with a time limit, and its result is appended to results.jsonl when it ends.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SOURCES = (CHECKOUT / "components", CHECKOUT / "pipeline", CHECKOUT / "tests", HERE)
CALL = 570.0  # seconds of a call, less what its start and its end take


class Part(NamedTuple):
    """One measurement.

    Attributes:
        seconds: its time limit.
        command: the program and its arguments, or the name of a function here.
        environment: variables to set.
    """

    seconds: float
    command: list[str]
    environment: Mapping[str, str] = MappingProxyType({})


def _tests(*arguments: str) -> list[str]:
    return ["-m", "pytest", "-q", "-x", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", *arguments]


def _update(name: str, *arguments: str) -> list[str]:
    return ["update", name, *arguments]


NO_GRAPHS, FLOAT_HIDDEN = {"XLNET_CUDA_GRAPHS": "0"}, {"XLNET_HIDDEN_STATES": "float32"}
CALLS: dict[int, dict[str, Part]] = {
    1: {
        "device": Part(40, ["device"]),
        "kernel tests": Part(150, _tests("tests/test_triton.py")),
        "attention before": Part(45, ["attention"]),
        "tiles": Part(260, ["tiles"]),
        "attention after": Part(45, ["attention"]),
    },
    2: {
        "base, full rows": Part(60, _update("full", "--rows-per-update", "32")),
        "base, full rows, float32 hidden states": Part(60, _update("full", "--rows-per-update", "32"), FLOAT_HIDDEN),
        "base, full rows, no graph": Part(60, _update("full", "--rows-per-update", "32"), NO_GRAPHS),
        "base, IMDB": Part(60, _update("imdb", "--rows-per-update", "64")),
        "base, SST-2": Part(60, _update("sst2", "--rows-per-update", "32")),
        "base, SST-2, 256 rows": Part(60, _update("sst2", "--rows-per-update", "256")),
        "base, SST-2, no graph": Part(60, _update("sst2", "--rows-per-update", "32"), NO_GRAPHS),
        "large, full rows": Part(80, _update("full", "--rows-per-update", "16", "--shape", "large")),
        "base, full rows, profile": Part(60, _update("full", "--rows-per-update", "32", "--profile")),
    },
    3: {
        "training tests": Part(240, _tests("tests/test_gpu.py")),
        "pretraining": Part(120, ["pretrain_speed.py", "--rows", "16", "--rounds", "3"]),
        "IMDB beside transformers": Part(
            90, ["train_speed.py", "imdb", "--rows", "64", "--rounds", "3", "--contenders", "ours", "hf"]
        ),
        "SST-2 beside transformers": Part(
            90, ["train_speed.py", "sst2", "--rounds", "3", "--contenders", "ours", "hf"]
        ),
        "large, IMDB": Part(60, _update("imdb", "--rows-per-update", "32", "--shape", "large")),
    },
}
SMOKE = {
    "attention": Part(60, ["attention"]),
    "update": Part(60, _update("full", "--rows-per-update", "2")),
    "tiles": Part(60, ["tiles"], {"TRITON_INTERPRET": "1"}),
    "device": Part(60, ["device"]),
}


def device(_: argparse.Namespace) -> dict[str, Any]:
    """Versions, and the two rates that everything is compared with."""
    import torch
    import transformers
    import triton
    from train_speed import matrix_rate, timed

    from xlnet.training.detect import detect

    found = detect()
    x = torch.ones(1 << (30 if found.kind == "cuda" else 20), dtype=torch.uint8, device=found.torch)
    copied = min(timed(found, x.clone) for _ in range(5))
    return {
        "device": found.name,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "matrix_rate": matrix_rate(found),
        "copied_bytes_per_second": 2 * len(x) / copied,
    }


def repeated(work: Callable[[], object], device: Any, repeats: int) -> float:
    """Seconds of the work on the device; on a GPU its launches are recorded first, so that the host costs nothing."""
    import torch
    from train_speed import timed

    once: Callable[[], object] = work
    if device.kind == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        once = graph.replay

    def several() -> None:
        for _ in range(repeats):
            once()

    several()
    return statistics.median(timed(device, several) / repeats for _ in range(5))


def attention(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of attention, forward and backward, beside flash attention without positions or segments."""
    from attention_speed import Case

    from xlnet.training.detect import detect

    found, here = {}, detect()
    lengths, tokens, repeats = ((32, 64), 64, 1) if arguments.smoke else ((128, 512, 2048), 32_768, 10)
    names = ("auto", "flash") if here.kind == "cuda" else ("auto", "hf")
    for length in lengths:
        for dropout in (0.0, 0.1):
            case = Case(length, tokens, dropout, here)
            times = {}
            for name in names:

                def work(case: Any = case, name: str = name) -> None:
                    for tensor in (case.qkv, case.r, case.embed, *case.biases):
                        tensor.grad = None
                    case.run(name)

                times[name] = 1000 * repeated(work, here, repeats)
            times["ours / flash"] = times["auto"] / times[names[1]]
            found[f"{length}, dropout {dropout:g}"] = times
    return found


def tiles(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tune the tiles, in place and beside the results."""
    import tune_tiles

    from xlnet.model.kernels import tiles as table

    out = arguments.out / "tiles.json"
    if arguments.smoke:
        tune_tiles.candidates = lambda _: [tune_tiles.Tile(16, 16, 1, 2)]
        tune_tiles.MEMORY = (16,)
        tune_tiles.main(["--lengths", "16", "--tokens", "16", "--rounds", "1", "--compilers", "1", "--out", str(out)])
    else:
        try:
            tune_tiles.main(["--seconds", "230", "--out", str(table.TABLE)])
        finally:
            out.write_bytes(table.TABLE.read_bytes())
    return json.loads(out.read_text(encoding="utf-8"))


def update(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of whole updates, and their share of what the matrix rate would allow."""
    import numpy as np
    import torch
    from contenders import Ours
    from real_rows import VOCABULARY, _sample, sample
    from train_speed import SHAPES, matrix_rate, peak_of_this_process, timed, useful

    from xlnet.model.config import XLNetConfig
    from xlnet.model.weights import split_qkv
    from xlnet.model.xlnet import XLNetClassifier
    from xlnet.training.detect import detect

    count, size, here = 4, arguments.rows_per_update, detect()
    if arguments.set == "full":
        length = 16 if arguments.smoke else 512
        tokens = np.random.default_rng(0).integers(10, VOCABULARY, count * size * length).astype(np.int32)
        rows = _sample(np.full(count * size, length), tokens, np.arange(count * size, dtype=np.int32) % 2, length)
    else:
        rows = sample(arguments.set, count * size, arguments.rows)
    layers, width, heads, inner = (2, 64, 1, 128) if arguments.smoke else SHAPES[arguments.shape]
    config = XLNetConfig(VOCABULARY, layers, width, heads, 64, inner, classes=("0", "1"))
    torch.manual_seed(0)
    one = Ours(config, split_qkv(XLNetClassifier(config).state_dict()), here)
    plan = one.batches(rows, size, count)
    losses, times = [one.step(rows, chosen).item() for chosen in plan], []

    def epoch() -> None:
        for chosen in plan:
            one.step(rows, chosen)

    for _ in range(2 if arguments.smoke else 8):
        times.append(timed(here, epoch))
    lengths = rows.lengths[: count * size].tolist()
    speed, rate = sum(lengths) / statistics.median(times), matrix_rate(here)
    found: dict[str, Any] = {
        "tokens_per_second": speed,
        "share_of_ceiling": speed * useful(lengths, layers, width) / sum(lengths) / rate,
        "milliseconds_per_update": 1000 * statistics.median(times) / count,
        "slowest_and_fastest": [1000 * max(times) / count, 1000 * min(times) / count],
        "peak_mib": peak_of_this_process(here),
        "matrix_rate": rate,
        "losses": losses,
        "replays_a_graph": getattr(here, "_graph", None) is not None,
        "hidden_type": str(one.model.transformer.hidden_type),
    }
    if arguments.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            epoch()
            here.synchronise()
        kernels = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)[:30]
        found["kernels"] = {row.key[:80]: [row.count, row.self_device_time_total / 1000 / count] for row in kernels}
    return found


FUNCTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "device": device, "attention": attention, "tiles": tiles, "update": update,
}  # fmt: skip


def commanded(part: Part, given: argparse.Namespace, report: Path) -> list[str]:
    """Return the command line of a part; a measurement writes JSON to ``report``."""
    first, *rest = part.command
    if first in FUNCTIONS:
        rows = ["--rows", str(given.rows)] if given.rows else []
        own = ["--function", first, *rest, "--out", str(given.out), *rows, *(["--smoke"] if given.smoke else [])]
        return [sys.executable, str(Path(__file__).resolve()), *own, "--report", str(report)]
    if first.endswith(".py"):
        folder = ["--folder", str(given.rows)] if given.rows else []
        return [sys.executable, str(HERE / first), *rest, *folder, "--json", str(report)]
    return [sys.executable, *part.command]


def measure(name: str, part: Part, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own, which is ended after these seconds; append its result."""
    paths = os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **part.environment}
    report = given.out / "report.json"
    report.unlink(missing_ok=True)
    begun = time.perf_counter()
    with (given.out / "log.txt").open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"== {name}\n")
        log.flush()
        begins = log.tell()
        process = subprocess.Popen(
            commanded(part, given, report),
            env=environment,
            cwd=CHECKOUT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            status: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "too late"
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers and contenders that it started
            process.wait()
        log.seek(begins)
        told = log.read()
    result = json.loads(report.read_text(encoding="utf-8")) if report.is_file() and status == 0 else None
    line = {"part": name, "seconds": round(time.perf_counter() - begun, 1), "status": status, "result": result}
    if result is None:
        line["told"] = told[-1500:]
    with (given.out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name}: {'done' if status == 0 else status} after {line['seconds']} s", flush=True)
    return line


def run(parts: dict[str, Part], given: argparse.Namespace, seconds: float = CALL) -> None:
    """Run the parts in order; a part that no time is left for is named and left out."""
    ends = time.monotonic() + seconds
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        left = ends - time.monotonic()
        if left < min(20.0, part.seconds):
            print(f"{name}: left out, no time", flush=True)
            continue
        measure(name, part, given, min(part.seconds, left))


def table(results: Path) -> str:
    """Return the results as Markdown."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    updates = ["| update | tokens/s | of the ceiling | ms | peak GiB | graph |", "|---|---:|---:|---:|---:|---|"]
    attentions = ["| attention | length | ours, ms | the other, ms | ratio |", "|---|---|---:|---:|---:|"]
    others = ["| part | status | seconds | |", "|---|---|---:|---|"]
    for line in lines:
        name, result = line["part"], line["result"] or {}
        if "tokens_per_second" in result:
            speed, share = f"{result['tokens_per_second']:,.0f}", f"{result['share_of_ceiling']:.0%}"
            rest = f"{result['milliseconds_per_update']:.1f} | {result['peak_mib'] / 1024:.1f}"
            updates.append(f"| {name} | {speed} | {share} | {rest} | {'yes' if result['replays_a_graph'] else 'no'} |")
        elif all("ours / flash" in row for row in result.values() if isinstance(row, dict)) and "attention" in name:
            for length, times in result.items():
                ours, other, ratio = times.values()
                attentions.append(f"| {name} | {length} | {ours:.3f} | {other:.3f} | {ratio:.2f} |")
        else:
            flat = ", ".join(f"{key} {value}" for key, value in result.items() if isinstance(value, str | int | float))
            others.append(f"| {name} | {line['status']} | {line['seconds']} | {flat} |")
        for contender, row in (result.get("contenders") or {}).items():
            middle, low, high = row["ours_is_times_faster"]
            about = f"{row['tokens_per_second']:,.0f} tokens/s; ours is {middle:.2f} ({low:.2f} to {high:.2f}) × it"
            others.append(f"| {name}: {contender} | | | {about} |")
    return "\n\n".join("\n".join(rows) for rows in (updates, attentions, others) if len(rows) > 2) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run a call's parts, one part's function, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--call", type=int, choices=CALLS)
    parser.add_argument("--parts", nargs="+", help="these parts only")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument("--rows", type=Path, help="folder of sst2.npz, imdb.npz and wikitext2/valid.txt")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".gpu-results")))
    parser.add_argument("--seconds", type=float, default=CALL)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--function", choices=FUNCTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("set", nargs="?", choices=("full", "imdb", "sst2"), help=argparse.SUPPRESS)
    parser.add_argument("--rows-per-update", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=("base", "large"), default="base", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.table:
        print(table(given.table), end="")
    elif given.function:
        given.report.write_text(json.dumps(FUNCTIONS[given.function](given)), encoding="utf-8")
    else:
        calls = [CALLS[given.call]] if given.call else CALLS.values()
        parts = SMOKE if given.smoke else {name: part for call in calls for name, part in call.items()}
        run({name: part for name, part in parts.items() if name in (given.parts or parts)}, given, given.seconds)
        print(table(given.out / "results.jsonl"), end="")


if __name__ == "__main__":
    main()
