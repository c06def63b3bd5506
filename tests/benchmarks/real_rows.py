"""Real tokenised rows for the benchmarks: a seeded sample of SST-2 or IMDB, or of a file written earlier.

python tests/benchmarks/real_rows.py sst2 imdb --rows 2048 --out FOLDER   # to carry to another machine
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = {
    "sst2": {"train": "sst2/train.tsv.gz", "text": 1, "label": 0, "header": "yes", "max_length": 128},
    "imdb": {"train": "imdb/train.csv.gz", "text": "review", "label": "sentiment", "max_length": 512},
}
VOCABULARY = 32_000


@dataclass(frozen=True)
class Sample:
    """Rows as :class:`xlnet.data.batches.Rows` has them."""

    tokens: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    boundaries: np.ndarray
    labels: np.ndarray
    max_length: int


def sample(name: str, rows: int, folder: Path | None = None) -> Sample:
    """Seeded random rows of a set, from ``folder/NAME.npz`` if it is given."""
    if folder is not None:
        with np.load(folder / f"{name}.npz") as stored:
            lengths, tokens, labels = (stored[key] for key in ("lengths", "tokens", "labels"))
        lengths = lengths[:rows]
        return _sample(lengths, tokens[: lengths.sum()], labels[:rows], int(SETS[name]["max_length"]))
    from xlnet import recipe as recipes
    from xlnet.data.readers import Row, read_rows
    from xlnet.data.storage import list_sources
    from xlnet.data.tokenizer import load_tokenizer

    fields = dict(SETS[name])
    recipe = recipes.Recipe().replace(data={**fields, "train": str(SHARED / str(fields["train"]))})
    (source,) = list_sources("data.train", recipe.data.train)
    texts = [row for row in read_rows(source, recipe.data) if isinstance(row, Row)]
    chosen = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:rows]]
    encoded = load_tokenizer("xlnet-base-cased").encode([row.text for row in chosen], None, recipe.data.max_length)
    classes = sorted({row.label for row in texts})
    labels = np.array([classes.index(row.label) for row in chosen], np.int32)
    lengths = np.array([len(ids) for ids in encoded.input_ids], np.int64)
    return _sample(lengths, np.concatenate(encoded.input_ids).astype(np.int32), labels, recipe.data.max_length)


def _sample(lengths: np.ndarray, tokens: np.ndarray, labels: np.ndarray, max_length: int) -> Sample:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sample(tokens, offsets, lengths, (lengths - 1).astype(np.int32), labels, max_length)


def main() -> None:
    """Write samples to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        rows = sample(name, arguments.rows)
        path = arguments.out / f"{name}.npz"
        np.savez_compressed(path, lengths=rows.lengths, tokens=rows.tokens, labels=rows.labels)
        print(f"{path}: {len(rows.lengths):,} rows, {rows.lengths.mean():.1f} tokens each")


if __name__ == "__main__":
    main()
