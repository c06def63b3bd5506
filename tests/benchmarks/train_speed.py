"""Training speed against transformers' XLNet: same weights, same rows, interleaved.

    python tests/benchmarks/train_speed.py sst2                # CPU: 4 layers of base width, or a GPU: base
    python tests/benchmarks/train_speed.py imdb --json FILE --plot FILE.png

Prints real tokens per second (on a CPU, which others may use, per second of the process's own processor time; with
``--wall`` by the clock), the ratio ours / theirs with its spread over the rounds, the share of the device's own matrix
rate (or on a GPU of the ceiling) in useful operations, losses side by side without dropout, and each one's peak memory.
Each has a process of its own, and they take turns update by update. `contenders.py` says who runs.

Useful operations per token and layer, forward: 24 d^2 linear and 6 L d attention. In the last layer only keys and
values, 4 d^2, are needed of every token; the rest is needed once per text. Training takes three times that.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import xlnet  # noqa: F401  # isort: skip  # before torch: it sets how soon a thread without work sleeps

import torch
from contenders import KINDS, make
from real_rows import SETS, VOCABULARY, Sample, sample

from xlnet.model.config import XLNetConfig
from xlnet.model.weights import split_qkv
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training.detect import choose, detect
from xlnet.training.device import Device
from xlnet.training.precision import on_cpu

SHAPES = {"small": (4, 256, 4, 1024), "base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}


def useful(lengths: list[int], layers: int, width: int) -> float:
    """Floating-point operations of forward and backward that any exact XLNet needs."""
    inner = sum(length * (24 * width**2 + 6 * length * width) for length in lengths)
    last = sum(length * (4 * width**2 + 6 * width) + 20 * width**2 for length in lengths)
    return 3.0 * ((layers - 1) * inner + last)


def matrix_rate(device: Device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of one large product in the type that training uses."""
    size = 2048 if device.torch.type == "cpu" else 8192
    a = torch.randn(size, size, device=device.torch, dtype=device.precision)
    return 2 * size**3 / min(timed(device, lambda: a @ a, clock) for _ in range(3))


def timed(device: Device, work: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the work takes on the device; on a CPU that others use, take the process's own processor time."""
    device.synchronise()
    begun = clock()
    work()
    device.synchronise()
    return clock() - begun


def clock_of(device: Device, wall: bool) -> Callable[[], float]:
    """The wall's clock for a GPU, and on request; otherwise this process's processor time."""
    return time.process_time if device.torch.type == "cpu" and not wall else time.perf_counter


def device_of(kind: str, arguments: argparse.Namespace) -> Device:
    """A contender's device. On a CPU only ours sets how memory is allocated, so theirs must not come from `detect`."""
    precision = "float32" if kind == "ours float32" else arguments.precision
    if choose(arguments.device) != "cpu":
        return detect(arguments.device, precision)
    precision = on_cpu(precision, "classify", SHAPES[arguments.shape][1])
    return detect("cpu", precision) if kind.startswith("ours") else Device(precision)


def serve(orders: Connection, kind: str, rows: Sample, arguments: argparse.Namespace, config: XLNetConfig) -> None:
    """Run a contender in a process of its own: answer each update's number with its seconds, and the end with MiB."""
    torch.manual_seed(0)
    device = device_of(kind, arguments)
    clock = clock_of(device, arguments.wall)
    one = make(kind, config, split_qkv(XLNetClassifier(config).state_dict()), device)
    plan = one.batches(rows, arguments.rows, arguments.steps)
    orders.send([int(rows.lengths[chosen].sum()) for chosen in plan])
    while (step := orders.recv()) is not None:
        orders.send(timed(device, lambda: one.step(rows, plan[step]), clock))
    orders.send(peak_of_this_process(device))


def rounds(rows: Sample, arguments: argparse.Namespace, config: XLNetConfig, device: Device) -> dict[str, Any]:
    """Time every contender on the same rows, one after the other in each round."""
    running: dict[str, Connection] = {}
    counts: dict[str, list[int]] = {}
    for kind in arguments.contenders:
        running[kind], theirs = multiprocessing.Pipe()
        given = theirs, kind, rows, arguments, config
        multiprocessing.get_context("spawn").Process(target=serve, args=given, daemon=True).start()
        theirs.close()  # so that the end of a contender is noticed
        counts[kind] = running[kind].recv()
    count, clock = arguments.steps, clock_of(device, arguments.wall)
    speeds: dict[str, list[float]] = {kind: [] for kind in running}
    rates: list[float] = []
    for number in range(arguments.rounds + 1):  # the first warms up
        rates.append(matrix_rate(device, clock))
        seconds, tokens = dict.fromkeys(running, 0.0), dict.fromkeys(running, 0)
        for step in range(count):  # one update each in turn: a slow moment of the machine meets all of them
            for kind, orders in running.items():
                if kind == "seed" and step != number % count:
                    continue  # all its batches cost the same: one a round tells what each does
                orders.send(step)
                seconds[kind] += orders.recv()
                tokens[kind] += sum(counts[kind]) // count if kind == "seed" else counts[kind][step]
        for kind in running:
            speeds[kind].append(tokens[kind] / seconds[kind])
            print(f"  round {number}: {kind:12} {speeds[kind][-1]:12,.0f} tokens/s", file=sys.stderr, flush=True)
    lengths = rows.lengths.tolist()
    per_token = useful(lengths, config.n_layer, config.d_model) / sum(lengths)
    rate = statistics.median(rates)
    found = {kind: figures(values[1:], speeds["ours"][1:], per_token, rate) for kind, values in speeds.items()}
    for kind, orders in running.items():
        orders.send(None)
        found[kind]["peak_mib"] = orders.recv()
    return found | {"matrix_rate": rate}


def figures(values: list[float], ours: list[float], per_token: float, rate: float) -> dict[str, Any]:
    """One contender's figures from its speed in each round, and ours in the same rounds."""
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, values, strict=True))
    speed = statistics.median(values)
    return {
        "tokens_per_second": speed,
        "ours_is_times_faster": [statistics.median(ratios), ratios[0], ratios[-1]],
        "share_of_matrix_rate": speed * per_token / rate,
    }


def losses(rows: Sample, arguments: argparse.Namespace, config: XLNetConfig) -> list[tuple[float, float]]:
    """Ours and theirs without dropout, in float32, on the same rows in the same order."""
    torch.manual_seed(0)
    still = replace(config, dropout=0.0, summary_last_dropout=0.0)
    weights = split_qkv(XLNetClassifier(still).state_dict())
    device = detect(arguments.device, "float32")
    pair = [make(kind, still, weights, device) for kind in ("ours", "hf")]
    plan = pair[1].batches(rows, min(arguments.rows, 8), arguments.compare)
    return [tuple(one.step(rows, chosen).item() for one in pair) for chosen in plan]


def peak_of_this_process(device: Device) -> float:
    """MiB: the most that this process, or on a GPU torch, has taken."""
    if device.torch.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # a child's ru_maxrss begins with its parent's
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [f"{'':12} {'tokens/s':>10} {'ours is … times faster':>26} {'of matrix rate':>15} {'peak MiB':>9}"]
    for kind, row in result["contenders"].items():
        middle, low, high = row["ours_is_times_faster"]
        spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        share = f"{row['share_of_matrix_rate']:.0%}"
        lines.append(f"{kind:12} {row['tokens_per_second']:10,.0f} {spread:>26} {share:>15} {row['peak_mib']:9,.0f}")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars of tokens per second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result["contenders"])
    figure, axes = pyplot.subplots(figsize=(6, 0.6 * len(names) + 1.2), layout="constrained")
    speeds = [result["contenders"][name]["tokens_per_second"] for name in names]
    bars = axes.barh(names[::-1], speeds[::-1], color=["#7a7a7a"] * (len(names) - 1) + ["#1f6feb"])
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds[::-1]], padding=3)
    axes.set_xlabel("real tokens per second")
    axes.set_title(f"{result['set']}, {result['model']}, {result['device']}")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--contenders", nargs="+", choices=KINDS, default=["ours", "hf", "seed"])
    parser.add_argument("--rows", type=int, default=32, help="rows per update")
    parser.add_argument("--steps", type=int, default=4, help="updates per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--layers", type=int, help="default: 4 on a CPU, all on a GPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--wall", action="store_true", help="on a CPU that nobody else uses: seconds by the clock")
    parser.add_argument("--compare", type=int, default=5, help="updates whose losses are compared")
    parser.add_argument("--folder", type=Path, help="rows written by real_rows.py")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    device = device_of("ours", arguments)
    layers, width, heads, inner = SHAPES[arguments.shape]
    arguments.layers = layers = arguments.layers or (4 if device.torch.type == "cpu" else layers)
    config = XLNetConfig(VOCABULARY, layers, width, heads, 64, inner, classes=("0", "1"))
    rows = sample(arguments.set, arguments.rows * arguments.steps, arguments.folder)
    figures = rounds(rows, arguments, config, device)
    result: dict[str, Any] = {
        "set": arguments.set,
        "model": f"{layers} layers of {arguments.shape}",
        "device": f"{device.name}, {device.precision}",
        "rows_per_update": arguments.rows,
        "mean_length": float(rows.lengths.mean()),
    }
    result["matrix_rate"] = figures.pop("matrix_rate")
    result["contenders"] = figures
    result["losses"] = losses(rows, arguments, config)
    print(f"{arguments.set}: {result['model']}, {arguments.rows} rows per update, {device.name}, {device.precision}")
    print(f"mean length {result['mean_length']:.1f}; matrix rate {result['matrix_rate'] / 1e9:,.0f} GFLOP/s")
    print(table(result))
    print("losses, ours and theirs: " + "  ".join(f"{a:.6f} {b:.6f}" for a, b in result["losses"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
