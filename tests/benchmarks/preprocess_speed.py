"""Preprocess against transformers' fast tokenizer on the same rows and cores.

    python tests/benchmarks/preprocess_speed.py [--repeats 5] [--json FILE]

Ours is the whole step: reading twice, hashing, splitting, tokenising, writing Arrow, lineage. Theirs is
the tokenizer's batched call alone, on rows that are in memory already. Interleaved; medians.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
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


def main() -> None:
    """Print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not SHARED.is_dir():
        sys.exit("the data sets beside the project are missing: nothing to measure")
    results = [measure(name, arguments.repeats) for name in SETS]
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
