"""Preprocess a large generated input on one machine and in shards: equal digests, time and peak memory of each step.

    python tests/benchmarks/large_input.py --gigabytes 0.1 1 10 [--shards 8] [--folder FOLDER] [--json FILE]

The rows are drawn with a seed from the words of the shipped demo: reviews of 20 to 400 words in CSV files of 256 MB.
Each step is a program of its own and of one process, as on a cluster with small pods; the shards run one after another.
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GIGABYTE = 1 << 30
FILE_BYTES = 256 << 20
DEMO = Path(__file__).resolve().parents[2] / "components" / "xlnet" / "demo" / "uci_sentences"
# Runs a command of ours and writes seconds, processor seconds, and the peak of resident memory in MB.
MEASURED = """
import json, resource, sys, time
from xlnet.__main__ import main
begun = time.perf_counter()
status = main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
figures = [time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
open(sys.argv[1], "w").write(json.dumps(figures))
sys.exit(status)
"""


def generate(folder: Path, size: int) -> int:
    """Write rows of about ``size`` bytes in all; return their number."""
    words = [word for file in sorted(DEMO.glob("*.txt")) for word in file.read_text(encoding="utf-8").split()]
    drawn = random.Random(0)
    written = rows = 0
    while written < size:
        path = folder / f"{written // FILE_BYTES:05}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["text", "label"])
            while file.tell() < FILE_BYTES and written + file.tell() < size:
                batch = drawn.choices(words, k=20_000)
                while len(batch) > 400:
                    length = drawn.randint(20, 400)
                    out.writerow([" ".join(batch[:length]), drawn.choice(("good", "bad"))])
                    batch, rows = batch[length:], rows + 1
            written += file.tell()
    return rows


def measured(folder: Path, *arguments: str) -> tuple[list[float], str]:
    """Run ``python -m xlnet`` with these arguments; return the figures of MEASURED and what it printed."""
    figures = folder / "figures.json"
    command = [sys.executable, "-c", MEASURED, str(figures), *arguments]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(figures.read_text()), shown


def facts_of(shown: str) -> dict[str, object]:
    """Read the facts that a command prints at its end."""
    found: dict[str, object] = json.loads(shown[shown.index("\n{") :])
    return found


def measure(folder: Path, size: int, shards: int) -> list[list[object]]:
    """Return a line for each step: name, seconds, processor seconds, peak of memory in MB."""
    rows = folder / "rows"
    rows.mkdir()
    print(f"{generate(rows, size):,} rows, {sum(one.stat().st_size for one in rows.iterdir()):,} bytes", flush=True)
    given = ["--set", f"data.train={rows}", "--set", "data.max_length=512"]
    lines: list[list[object]] = []

    def step(name: str, *arguments: str) -> dict[str, object]:
        figures, shown = measured(folder, *arguments)
        lines.append([name, *(round(one, 1) for one in figures)])
        print(*lines[-1], flush=True)
        return facts_of(shown)

    survey = str(folder / "survey")
    keys = step("survey", "survey", *given, "--shards", str(shards), "--out", survey)["keys"]
    assert isinstance(keys, list)
    tokens = []
    for number, key in enumerate(keys):
        out = str(folder / f"tokens-{number}")
        step(f"tokenise {number}", "tokenise", *given, "--survey", survey, "--shard", key, "--out", out)
        tokens.append(out)
    whole = str(folder / "joined")
    joined = step("join", "preprocess", *given, "--survey", survey, "--tokens", *tokens, "--out", whole)
    for place in (*tokens, survey, whole):
        shutil.rmtree(place)
    one = step("one machine", "preprocess", *given, "--out", str(folder / "one"))
    assert joined["dataset_digest"] == one["dataset_digest"], "the datasets differ"
    print(f"equal: {one['dataset_digest']}", flush=True)
    return lines


def main() -> None:
    """Measure inputs of the sizes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--folder", help="where to write; default: a temporary directory")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    os.environ.setdefault("XLNET_PROCESSES", "1")
    found = {}
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(f"{gigabytes:g} GB", flush=True)
            found[gigabytes] = measure(Path(folder), int(gigabytes * GIGABYTE), options.shards)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    for gigabytes, lines in found.items():
        print(f"\n{gigabytes:g} GB\n\n| step | s | processor s | peak MB |\n| --- | --: | --: | --: |")
        for line in lines:
            print("|", " | ".join(map(str, line)), "|")


if __name__ == "__main__":
    main()
