"""Preprocess against transformers' fast tokenizer on the same rows and cores.

    python tests/benchmarks/preprocess_speed.py [--repeats 5] [--json FILE]
    python tests/benchmarks/preprocess_speed.py --processes 2 [--sets sst2]

Ours is the whole step: reading twice, hashing, splitting, tokenising, writing Arrow, lineage. Theirs is
the tokenizer's batched call alone, on rows that are in memory already. Interleaved; medians.

With ``--processes N`` ours alone, with one process on one core and with N. Processor time tells the ratio that N idle
cores would give, whatever else runs: N times the time of one process, divided by the time of all. The time of the
process that reads bounds it: more processes than ``most`` would wait for it.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BATCH_ROWS = 1000  # the default of datasets' batched map
SETS = {
    "sst2": {"train": "sst2/train.tsv.gz", "text": 1, "label": 0, "header": "yes", "max_length": 128},
    "imdb": {"train": "imdb/train.csv.gz", "text": "review", "label": "sentiment", "max_length": 512},
}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, its output swallowed."""
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - begun


def measure(name: str, repeats: int) -> dict[str, float | str]:
    """Rows per second of both, and their ratio with its spread."""
    from transformers import AutoTokenizer

    from xlnet import recipe as recipes
    from xlnet.data.preprocess import preprocess
    from xlnet.data.readers import Row, read_rows
    from xlnet.data.storage import list_sources
    from xlnet.data.tokenizer import SHIPPED

    fields = dict(SETS[name])
    recipe = recipes.Recipe().replace(data={**fields, "train": str(SHARED / str(fields["train"]))})
    sources = list_sources("data.train", recipe.data.train)
    texts = [row.text for source in sources for row in read_rows(source, recipe.data) if isinstance(row, Row)]
    theirs = AutoTokenizer.from_pretrained(SHIPPED / "xlnet-base-cased")

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            preprocess(recipe.part("data"), "", f"{folder}/out")

    def tokenizer_alone() -> None:
        for start in range(0, len(texts), BATCH_ROWS):
            theirs(texts[start : start + BATCH_ROWS], truncation=True, max_length=recipe.data.max_length)

    pairs = [(seconds(ours), seconds(tokenizer_alone)) for _ in range(repeats)]
    ratios = sorted(their_time / our_time for our_time, their_time in pairs)
    return {
        "set": name,
        "rows": len(texts),
        "ours_rows_per_second": len(texts) / statistics.median(pair[0] for pair in pairs),
        "transformers_rows_per_second": len(texts) / statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


STEP = """
import json, os, resource, sys, time
from xlnet.data.preprocess import preprocess
begun = time.perf_counter()
facts = preprocess(sys.argv[1], "", sys.argv[2])
wall = time.perf_counter() - begun
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
seconds = [one.ru_utime + one.ru_stime for one in used]
print(json.dumps([wall, *seconds, facts["dataset_digest"], [one.ru_maxrss >> 10 for one in used]]))
"""


def step(name: str, count: int) -> tuple[float, float, float, str, list[int]]:
    """Run the step in a program of its own: seconds by the clock, of its process and of the others; digest; MiB."""
    from xlnet import recipe as recipes

    fields = dict(SETS[name])
    recipe = recipes.Recipe().replace(data={**fields, "train": str(SHARED / str(fields["train"]))})
    environment = {**os.environ, "XLNET_PROCESSES": str(count), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", STEP, recipe.part("data"), f"{folder}/out"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    wall, own, others, digest, memory = json.loads(done.stdout.splitlines()[-1])
    return wall, own, others, digest, memory


def scaling(name: str, count: int, repeats: int) -> None:
    """Print what several processes give over one."""
    pairs = [(step(name, 1), step(name, count)) for _ in range(repeats)]
    assert len({one[3] for pair in pairs for one in pair}) == 1, "the bytes differ"
    ratios = sorted(count * (one[1] + one[2]) / (many[1] + many[2]) for one, many in pairs)
    clock = statistics.median(one[0] / many[0] for one, many in pairs)
    most = statistics.median(many[2] / many[1] for _, many in pairs)
    memory = [max(one[4][i] for pair in pairs for one in pair) for i in (0, 1)]
    print(
        f"{name:<6}{count} processes: {statistics.median(ratios):.2f} times one, by processor time "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {clock:.2f} by the clock at load {os.getloadavg()[0]:.0f}; "
        f"most {most:.0f}; {memory[0]} MiB, and at most {memory[1]} in each other"
    )


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, metavar="N", help="measure ours with one process and with N")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not SHARED.is_dir():
        sys.exit("the data sets beside the project are missing: nothing to measure")
    if arguments.processes:
        for name in arguments.sets:
            scaling(name, arguments.processes, arguments.repeats)
        return
    results = [measure(name, arguments.repeats) for name in arguments.sets]
    print(f"{'set':<6}{'rows':>8}{'ours rows/s':>14}{'transformers':>14}{'ratio':>8}")
    for result in results:
        print(
            f"{result['set']:<6}{result['rows']:>8,}{result['ours_rows_per_second']:>14,.0f}"
            f"{result['transformers_rows_per_second']:>14,.0f}{result['ratio']:>8.2f}"
            f"  ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
