"""How fast 1 to 256 devices train: the tables of docs/scaling.md, and a check of their arithmetic on this machine.

python tests/benchmarks/scaling.py                  # print the tables
python tests/benchmarks/scaling.py --write          # put them into docs/scaling.md
python tests/benchmarks/scaling.py --check          # one and two gloo processes: predicted and measured

The model is that of ``xlnet-pipeline plan``: xlnet_pipeline.planning.estimate for a device, and
xlnet_pipeline.planning.network for what they exchange.
"""

import argparse
import os
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


def check(runs: int, steps: int) -> None:
    """Measure one and two processes taking turns, and predict the second from the first."""
    import multiprocessing
    import tempfile

    from ranks_speed import SETTINGS, xlnet

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=exchange, args=(rank, queue)) for rank in (0, 1)]
    for one in ranks:
        one.start()
    small, bucket = queue.get(timeout=120)
    for one in ranks:
        one.join()
    net = network.Links(2, 1, network.BUCKET / (bucket - small) / 1e9, 0.0, small / 2)
    print(
        f"load {os.getloadavg()[0]:.1f}; gloo: {1e6 * small:.0f} us for 4 bytes, {1e3 * bucket:.1f} ms for a bucket",
        flush=True,
    )
    data = ["data.train=demo:uci_sentences", "data.format=tsv", "data.header=no", "data.text=0", "data.label=1"]
    model = PRESETS["small"]().model
    table = 32_000 * model.d_model
    with tempfile.TemporaryDirectory() as folder:
        xlnet("preprocess", data, "--out", f"{folder}/dataset")
        for batch in (512, 2048):
            ours = [one for one in SETTINGS if "batch_tokens" not in one]
            given = [*ours, f"training.batch_tokens={batch}", f"training.steps={steps * 2048 // batch}"]
            rates: dict[int, list[float]] = {1: [], 2: []}
            for run in range(runs):
                for count in (1, 2):
                    out = f"{folder}/{batch}-{run}-{count}"
                    facts, _ = xlnet("train", given, "--dataset", f"{folder}/dataset", "--out", out, ranks=count)
                    rates[count].append(facts["tokens_per_second"])
                    print(f"  {batch} tokens, {count} process(es): {rates[count][-1]:,.0f} tokens/s", flush=True)
            one = batch / max(rates[1])
            dense = estimate.parameters(model, 32_000, 2) - table
            gradients = network.Gradients(dense, table, batch // 2, model.d_model)
            predicted = one / (one / 2 + network.waited(gradients, net, 0.0))
            ratios = sorted(two / single for single, two in zip(rates[1], rates[2], strict=True))
            shown = f"{max(rates[2]) / max(rates[1]):.2f} (pairs: {ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(
                f"{batch} tokens: one {batch / one:,.0f} tokens/s, two {predicted:.2f} times; measured {shown}",
                flush=True,
            )


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
