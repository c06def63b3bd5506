"""How fast 1 to 256 devices train: the tables of docs/scaling.md, and a check of their arithmetic on this machine.

python tests/benchmarks/scaling.py                  # print the tables
python tests/benchmarks/scaling.py --write          # put them into docs/scaling.md
python tests/benchmarks/scaling.py --check          # one and two gloo processes: predicted and measured

The model is that of ``xlnet-pipeline plan``: xlnet_pipeline.planning.estimate for a device, and
xlnet_pipeline.planning.network for what they exchange.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xlnet.recipe import PRESETS
from xlnet_pipeline.placement.machines import MACHINES, Machine
from xlnet_pipeline.planning import estimate, network
from xlnet_pipeline.planning.workload import Workload

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FAMILIES = ("cpu", "t4", "l4", "a100-40g", "a100-80g", "h100", "h200", "v5e", "v6e")
LENGTH, TOKENS, CPU_TOKENS = 512, 16_384, 4096  # of a row; of one device in an update
FIXED = 131_072  # tokens of an update that all devices share
CHECKED, BUSY = (512, 2048, 8192), 0.1  # tokens of an update; processors that other processes may take meanwhile


def work(tokens: int) -> Workload:
    """Full rows of LENGTH tokens."""
    return Workload(10**6, LENGTH, LENGTH, LENGTH, 32_000, 2, 1000, tokens, "modelled")


def placed(family: str, devices: int) -> tuple[Machine, int] | None:
    """The largest machine of a family that so many devices fill, and how many of it; None if there is none."""
    sizes = {row.chips: row for row in MACHINES.values() if row.family == family}
    if family.startswith("v"):  # plan joins no slices
        return (sizes[devices], 1) if devices in sizes else None
    chips = max(count for count in sizes if count <= devices)
    return sizes[chips], devices // chips


def rate(preset: str, family: str, devices: int, fixed: int = 0) -> float | None:
    """Tokens a second; None if no machines have so many devices, or if they would get less than one row each."""
    place = placed(family, devices)
    if place is None or 0 < fixed < LENGTH * devices:
        return None
    tokens = fixed or devices * (CPU_TOKENS if family == "cpu" else TOKENS)
    seconds = estimate.step_seconds(PRESETS[preset]().model, work(tokens), place[0], place[0].peak, place[1])
    return tokens / seconds


def lines(preset: str, fixed: int = 0) -> Iterator[str]:
    """A Markdown table: tokens a second of one device, and the share of so many times that."""
    yield f"| | {' | '.join(map(str, DEVICES))} |"
    yield f"| --- |{' --- |' * len(DEVICES)}"
    for family in FAMILIES:
        one = rate(preset, family, 1, fixed)
        assert one
        shares = (rate(preset, family, count, fixed) for count in DEVICES[1:])
        cells = (
            "-" if two is None else f"{100 * two / one / count:.0f} %"
            for count, two in zip(DEVICES[1:], shares, strict=True)
        )
        yield f"| {family} | {one:,.0f} | {' | '.join(cells)} |"


def tables() -> dict[str, str]:
    """Name → table."""
    found = {preset: "\n".join(lines(preset)) for preset in PRESETS}
    return {**found, "base-fixed": "\n".join(lines("base", FIXED)), "bytes": "\n".join(sizes())}


def sizes() -> Iterator[str]:
    """What one update exchanges."""
    yield "| | parameters | embedding table | gradients | buckets |"
    yield "| --- | --- | --- | --- | --- |"
    for preset, make in PRESETS.items():
        model = make().model
        numbers, table = estimate.parameters(model, 32_000, 2), 32_000 * model.d_model
        buckets = -(-(numbers - table) * network.NUMBER // network.BUCKET)
        yield f"| {preset} | {numbers / 1e6:.1f} M | {table / 1e6:.1f} M | {numbers * 4 / 1e6:,.0f} MB | {buckets} |"


def filled(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in tables().items():
        start = text.index(f"<!-- {name} -->\n") + len(f"<!-- {name} -->\n")
        text = f"{text[:start]}{table}\n{text[text.index('<!-- end -->', start) :]}"
    return text


# The check, with two gloo processes. -------------------------------------------------------------------------------


def exchange(rank: int, queue: object) -> None:
    """Measure what gloo reaches between two processes: seconds for four bytes, and GB/s for a bucket."""
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for count in (1, network.BUCKET // 4):
        numbers = torch.ones(count)
        seconds = []
        for _ in range(30):
            began = time.perf_counter()
            dist.all_reduce(numbers)
            seconds.append(time.perf_counter() - began)
        found.append(min(seconds))  # what the machine can do, whatever else it does
    if rank == 0:
        queue.put(found)  # type: ignore[attr-defined]
    dist.destroy_process_group()


def gloo() -> tuple[network.Links, float, float]:
    """Measure how two processes of this machine are connected; also the seconds for four bytes and for a bucket."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=exchange, args=(rank, queue)) for rank in (0, 1)]
    for one in ranks:
        one.start()
    small, bucket = queue.get(timeout=120)
    for one in ranks:
        one.join()
    return network.Links(2, 1, network.BUCKET / (bucket - small) / 1e9, 0.0, small / 2), small, bucket


def trained(batch: int, steps: int, ranks: int, folder: str) -> tuple[float, float]:
    """Train; the median seconds of an update in the second half, and the processors that others used meanwhile."""
    from ranks_speed import SETTINGS, xlnet

    shutil.rmtree(f"{folder}/model", ignore_errors=True)
    given = [*(one for one in SETTINGS if "batch_tokens" not in one), f"training.batch_tokens={batch}"]
    busy, ours, began = *processor_seconds(), time.perf_counter()
    out = ("--dataset", f"{folder}/dataset", "--out", f"{folder}/model")
    xlnet("train", [*given, f"training.steps={steps}"], *out, ranks=ranks)
    seconds = time.perf_counter() - began
    busy, ours = (after - before for after, before in zip(processor_seconds(), (busy, ours), strict=True))
    names = "history.jsonl", "logs/speed.jsonl"
    lines, speeds = (Path(folder, "model", name).read_text().splitlines() for name in names)
    read = zip((line for line in map(json.loads, lines) if "tokens" in line), map(json.loads, speeds), strict=True)
    ends = [line["tokens"] / speed["tokens_per_second"] for line, speed in read]
    updates = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(updates[len(updates) // 2 :]), max(0.0, busy - ours) / seconds


def processor_seconds() -> tuple[float, float]:
    """Processor time of the whole machine since it started, and of the processes that this one has waited for."""
    user, nice, system, _, _, interrupts, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK"), mine.ru_utime + mine.ru_stime


def check(runs: int, steps: int) -> None:
    """Measure one and two processes taking turns, and predict the second from the first.

    Two processes need all of two processors, one needs either of them: what else runs slows down only the two. So
    rounds in which it took more than BUSY processors are repeated.
    """
    from ranks_speed import xlnet

    net, small, bucket = gloo()
    print(f"gloo: {1e6 * small:.0f} us for 4 bytes, {1e3 * bucket:.1f} ms for a bucket", flush=True)
    data = ["data.train=demo:uci_sentences", "data.format=tsv", "data.header=no", "data.text=0", "data.label=1"]
    model = PRESETS["small"]().model
    table = 32_000 * model.d_model
    dense = estimate.parameters(model, 32_000, 2) - table
    with tempfile.TemporaryDirectory() as folder:
        xlnet("preprocess", data, "--out", f"{folder}/dataset")
        for batch in CHECKED:
            count, rounds = max(20, steps * 2048 // batch), []
            for _ in range(3 * runs):
                kinds = (batch, 1), (batch // 2, 1), (batch, 2)
                found = [trained(tokens, count, ranks, folder) for tokens, ranks in kinds]
                others = max(busy for _, busy in found)
                one, half, two = (seconds for seconds, _ in found)
                print(
                    f"  {batch} tokens: {1e3 * one:.0f} ms, half of them {1e3 * half:.0f} ms, two processes "
                    f"{1e3 * two:.0f} ms; others took {others:.2f} processors",
                    flush=True,
                )
                rounds += [(one, half, two)] if others <= BUSY else []
                if len(rounds) == runs:
                    break
            if not rounds:
                sys.exit("other processes were busy in every round: stop them, and type the same again")
            exchanged = network.waited(network.Gradients(dense, table, batch // 2, model.d_model), net, 0.0)
            expected = statistics.median(one / (half + exchanged) for one, half, _ in rounds)
            ratios = sorted(one / two for one, _, two in rounds)
            said = f"predicted {expected:.2f} times ({1e3 * exchanged:.0f} ms for the exchange)"
            measured = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{batch} tokens, {len(rounds)} rounds: {said}, measured {measured}", flush=True)


def main() -> None:
    """Print, write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    parser.add_argument("--check", action="store_true", help="compare with one and two processes here")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    if given.check:
        check(given.runs, given.steps)
    elif given.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, table in tables().items():
            print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
