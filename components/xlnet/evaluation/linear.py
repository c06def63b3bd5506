"""The TF-IDF baseline: a linear model of word and character n-grams, fitted on the same training rows.

It is logistic regression for classes, and ridge regression for values. A pair of texts has features of each text, of
what both share, and of their difference. Only this module loads scikit-learn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlnet.data.dataset import Split

HASHED = 1 << 20  # columns that n-grams of one kind are hashed to, so that memory does not grow with the vocabulary
CHUNK = 2048  # rows whose n-grams are counted at once
MOST_WEIGHTS = 4_000_000  # maximum columns × outputs, so that a fit takes at most about 700 MB
INVERSE_PENALTY = 10.0  # LogisticRegression's C: at least as good as 1 on held-out rows of SST-2 and IMDB
RIDGE = 1.0
ITERATIONS = 200
LARGE_FIT = 300_000_000  # nonzero counts × outputs from which the fit streams over the rows (SGD)
PASSES = 10  # of SGD over the rows


@dataclass(frozen=True)
class Effort:
    """How much of the training texts the linear model uses."""

    characters: bool = True  # count n-grams of characters too, not only of words
    every: int = 1  # use one training row in this many

    def __str__(self) -> str:
        kinds = "words and characters" if self.characters else "words"
        return kinds if self.every == 1 else f"{kinds}, one train row in {self.every}"


def predict(train: Split, test: Split, classes: int, effort: Effort) -> np.ndarray:
    """Fit the linear model on the training rows. Answer the test rows: class indices, or values if ``classes`` is 0."""
    chosen = np.arange(0, len(train), effort.every)
    labels = train.labels[chosen]
    if np.ptp(labels) == 0:
        return np.full(len(test), labels[0])
    features = Features(effort.characters, MOST_WEIGHTS // max(1, classes if classes > 2 else 1))
    rows = features.fit(_texts(train, chosen))
    model = _fitted(rows, labels, classes)
    found = [model.predict(some) for some in features.of(_texts(test, np.arange(len(test))))]
    return np.concatenate(found)


def _fitted(rows: Any, labels: np.ndarray, classes: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier

    if not classes:
        return Ridge(RIDGE, solver="sag" if rows.nnz > LARGE_FIT else "auto", random_state=0).fit(rows, labels)
    if rows.nnz * (classes if classes > 2 else 1) > LARGE_FIT:
        penalty = 1.0 / (INVERSE_PENALTY * rows.shape[0])
        model = SGDClassifier("log_loss", alpha=penalty, max_iter=PASSES, tol=None, average=True, random_state=0)
        return model.fit(rows, labels)
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS).fit(rows, labels)


class Features:
    """Turns texts, or pairs of texts, into TF-IDF rows: sparse float32 [rows, columns]."""

    def __init__(self, characters: bool, most: int) -> None:
        """Count n-grams of words, and of characters if ``characters``; keep the ``most`` frequent columns."""
        from sklearn.feature_extraction.text import HashingVectorizer

        common: dict[str, Any] = {"n_features": HASHED, "alternate_sign": False, "norm": None, "dtype": np.float32}
        self.kinds = [HashingVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **common)]
        if characters:
            self.kinds.append(HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common))
        self.most = most // len(self.kinds)

    def fit(self, texts: Iterator[tuple[list[str], list[str] | None]]) -> Any:
        """Choose columns and their weights from the training rows, and return these rows."""
        from scipy import sparse

        chunks = [(self._counts(one), self._counts(two) if two is not None else None) for one, two in texts]
        self.columns, self.weights = [], []
        for kind in range(len(self.kinds)):
            counts = sparse.vstack([side[kind] for pair in chunks for side in pair if side is not None], "csr")
            seen_in = np.bincount(counts.indices, minlength=HASHED)
            kept = np.flatnonzero(seen_in >= (2 if counts.shape[0] > 1000 else 1))
            kept = np.sort(kept[np.argsort(-seen_in[kept], kind="stable")[: self.most]])
            self.columns.append(kept)
            self.weights.append((np.log((1 + counts.shape[0]) / (1 + seen_in[kept])) + 1).astype(np.float32))
        return sparse.vstack([self._joined(*pair) for pair in chunks], "csr")

    def of(self, texts: Iterator[tuple[list[str], list[str] | None]]) -> Iterator[Any]:
        """Yield the rows of other texts, chunk by chunk."""
        for one, two in texts:
            yield self._joined(self._counts(one), self._counts(two) if two is not None else None)

    def _counts(self, texts: list[str]) -> list[Any]:
        return [kind.transform(texts) for kind in self.kinds]

    def _joined(self, one: list[Any], two: list[Any] | None) -> Any:
        from scipy import sparse

        ours = self._weighted(one)
        if two is None:
            return sparse.hstack(ours, "csr")
        theirs = self._weighted(two)
        shared = [a.multiply(b).sqrt() for a, b in zip(ours, theirs, strict=True)]
        apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        likeness = [np.asarray(a.multiply(b).sum(1)) for a, b in zip(ours, theirs, strict=True)]
        lengths = np.stack([np.diff(ours[0].indptr), np.diff(theirs[0].indptr)], 1)
        ratio = (lengths.min(1) / np.maximum(lengths.max(1), 1))[:, None]
        dense = sparse.csr_array(np.concatenate([*likeness, ratio], 1).astype(np.float32))
        return sparse.hstack([*ours, *theirs, *shared, *apart, dense], "csr")

    def _weighted(self, counts: Sequence[Any]) -> list[Any]:
        """Compute TF-IDF with 1 + log(count), and scale each row to length 1."""
        from sklearn.preprocessing import normalize

        found = []
        for rows, columns, weights in zip(counts, self.columns, self.weights, strict=True):
            some = rows[:, columns]
            some.data = np.log(some.data) + 1
            found.append(normalize(some.multiply(weights).tocsr(), copy=False))
        return found


def _texts(split: Split, rows: np.ndarray) -> Iterator[tuple[list[str], list[str] | None]]:
    table = split.table()
    pairs = table["text_pair"].null_count < len(table)
    for first in range(0, len(rows), CHUNK):
        some = table.select(["text", "text_pair"]).take(rows[first : first + CHUNK])
        seconds = [text or "" for text in some["text_pair"].to_pylist()] if pairs else None
        yield some["text"].to_pylist(), seconds
