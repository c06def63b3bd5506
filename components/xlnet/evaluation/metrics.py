"""Metrics with bootstrap intervals, for classification and regression.

Every classification metric is a function of the confusion matrix. So drawing rows with replacement is the same as
drawing the matrix from a multinomial distribution: this is exact, and its cost does not depend on the number of rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CLASSIFICATION = ("accuracy", "macro_f1", "mcc")
REGRESSION = ("pearson", "spearman")
BATCH_VALUES = 2_000_000  # numbers in one batch of draws, so that memory does not depend on the number of draws


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its confidence interval."""

    value: float
    low: float
    high: float


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count rows: [true class, predicted class]."""
    flat = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes)


class Counts(NamedTuple):
    """The sums of a confusion matrix that the metrics need: counts by class, [..., C] each."""

    hits: np.ndarray
    true: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, confusion: np.ndarray) -> "Counts":
        """Sum a confusion matrix [..., C, C]."""
        return cls(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2))

    @classmethod
    def of_cells(cls, draws: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: int) -> "Counts":
        """Sum matrices given by their nonzero cells: counts [samples, K], true and predicted class of each cell [K]."""
        hits = np.where(true == predicted, true, classes)
        kinds = (_by_class(draws, of, classes + 1)[:, :classes] for of in (hits, true, predicted))
        return cls(*kinds)


def _by_class(draws: np.ndarray, of: np.ndarray, classes: int) -> np.ndarray:
    """Sum the cells of each class: [samples, K] → [samples, classes]."""
    order = np.argsort(of, kind="stable")
    present, first = np.unique(of[order], return_index=True)
    sums = np.zeros((len(draws), classes), draws.dtype)
    sums[:, present] = np.add.reduceat(draws[:, order], first, axis=1)
    return sums


def accuracy(counts: Counts) -> np.ndarray:
    """Share of rows that are predicted correctly: [...]."""
    return counts.hits.sum(-1) / counts.true.sum(-1)


def macro_f1(counts: Counts) -> np.ndarray:
    """Mean F1 over the classes that occur as truth or as prediction: [...]."""
    marked = counts.true + counts.predicted
    occurs = marked > 0
    f1 = np.where(occurs, 2 * counts.hits / np.maximum(marked, 1), 0.0)
    return f1.sum(-1) / occurs.sum(-1)


def mcc(counts: Counts) -> np.ndarray:
    """Matthews' correlation coefficient for any number of classes (Gorodkin 2004), 0 if it is undefined: [...]."""
    hits, true, predicted = (x.astype(np.float64) for x in counts)
    total = true.sum(-1)
    covariance = hits.sum(-1) * total - (true * predicted).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; nan if one side is constant or not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        varies = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)
        x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
        spread = np.sqrt((x**2).sum(-1)) * np.sqrt((y**2).sum(-1))
        known = varies & (spread > 0) & np.isfinite(spread)
        return np.where(known, (x * y).sum(-1) / np.where(known, spread, 1.0), np.nan)


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank: [rows]."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of the ranks: [rows] or [samples, rows]."""
    if x.ndim == 1:
        return pearson(ranks(x), ranks(y))
    return np.array([pearson(ranks(a), ranks(b)) for a, b in zip(x, y, strict=True)])


OF_CONFUSION: dict[str, Callable[[Counts], np.ndarray]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
OF_VALUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"pearson": pearson, "spearman": spearman}


def classification_figures(confusion: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, Estimate]:
    """Compute accuracy, macro-F1 and MCC with percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13)."""
    classes, flat = len(confusion), confusion.ravel()
    # Empty cells draw no random number. The last cell takes the rows that the others leave.
    cells = np.union1d(np.flatnonzero(flat), [flat.size - 1])
    true, predicted = np.divmod(cells, classes)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in OF_CONFUSION}
    for draws in multinomial(flat[cells], resamples, np.random.default_rng(seed), classes):
        counts = Counts.of_cells(draws, true, predicted, classes)
        for name, f in OF_CONFUSION.items():
            samples[name].append(f(counts))
    whole = Counts.of(confusion)
    return {
        name: _figure(float(f(whole)), np.concatenate(samples[name]), confidence) for name, f in OF_CONFUSION.items()
    }


def multinomial(
    counts: np.ndarray, resamples: int, generator: np.random.Generator, classes: int
) -> Iterator[np.ndarray]:
    """Draw all rows with replacement; yield counts by cell, in batches of bounded size: [samples, K]."""
    rows = int(counts.sum())
    batch = max(1, BATCH_VALUES // (len(counts) + 4 * classes))
    for start in range(0, resamples, batch):
        yield generator.multinomial(rows, counts / rows, min(batch, resamples - start))


def regression_figures(
    labels: np.ndarray, predictions: np.ndarray, confidence: float, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Compute Pearson's and Spearman's correlation with percentile bootstrap intervals."""
    generator = np.random.default_rng(seed)
    labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    samples: dict[str, list[float]] = {name: [] for name in OF_VALUES}
    for _ in range(resamples):
        rows = generator.integers(0, len(labels), len(labels))
        for name, f in OF_VALUES.items():
            samples[name].append(float(f(labels[rows], predictions[rows])))
    return {
        name: _figure(float(f(labels, predictions)), np.array(samples[name]), confidence)
        for name, f in OF_VALUES.items()
    }


def _figure(value: float, samples: np.ndarray, confidence: float) -> Estimate:
    samples = samples[np.isfinite(samples)]  # ignore draws whose correlation cannot be computed
    if not len(samples):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return false and true positive rates by falling threshold, the thresholds, and the area under the curve.

    Args:
        labels: 0 or 1, [rows].
        scores: scores of class 1, [rows].
    """
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits = np.cumsum(labels)[last]
    false = last + 1 - hits
    tpr = np.concatenate([[0.0], hits / max(1, hits[-1])])
    fpr = np.concatenate([[0.0], false / max(1, false[-1])])
    thresholds = np.concatenate([[1.0 + scores[0]], scores[last]])
    both = 0 < hits[-1] < len(labels)
    area = float(np.trapezoid(tpr, fpr)) if both else float("nan")
    return fpr, tpr, thresholds, area
