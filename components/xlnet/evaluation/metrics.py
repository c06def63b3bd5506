"""Metrics with bootstrap intervals, for classes and for values.

Every metric of classes is a function of the confusion matrix, so that drawing rows with replacement
is drawing the matrix from a multinomial distribution: exact, and independent of the number of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLASSIFICATION = ("accuracy", "macro_f1", "mcc")
REGRESSION = ("pearson", "spearman")


@dataclass(frozen=True)
class Figure:
    """A metric's value and its interval."""

    value: float
    low: float
    high: float


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class]."""
    flat = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of rows on the diagonal: [..., C, C] → [...]."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur, as truth or as prediction: [..., C, C] → [...]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    marked = confusion.sum(-1) + confusion.sum(-2)
    occurs = marked > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(marked, 1), 0.0)
    return f1.sum(-1) / occurs.sum(-1)


def mcc(confusion: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 where undefined: [..., C, C] → [...]."""
    matrix = confusion.astype(np.float64)
    true, predicted = matrix.sum(-1), matrix.sum(-2)
    total = matrix.sum((-2, -1))
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * total - (true * predicted).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; 0 where one side is constant: it tells nothing of the other."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.where(spread > 0, (x * y).sum(-1) / np.where(spread > 0, spread, 1.0), 0.0)


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank: [rows]."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of the ranks: [rows] or [samples, rows]."""
    if x.ndim == 1:
        return pearson(ranks(x), ranks(y))
    return np.array([pearson(ranks(a), ranks(b)) for a, b in zip(x, y, strict=True)])


OF_CONFUSION: dict[str, Callable[[np.ndarray], np.ndarray]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
OF_VALUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"pearson": pearson, "spearman": spearman}


def classification_figures(confusion: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, Figure]:
    """Accuracy, macro-F1 and MCC with percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13)."""
    rows = int(confusion.sum())
    draws = np.random.default_rng(seed).multinomial(rows, confusion.ravel() / rows, resamples)
    samples = draws.reshape(resamples, *confusion.shape)
    return {name: _figure(float(f(confusion)), f(samples), confidence) for name, f in OF_CONFUSION.items()}


def regression_figures(
    labels: np.ndarray, predictions: np.ndarray, confidence: float, resamples: int, seed: int
) -> dict[str, Figure]:
    """Pearson's and Spearman's correlation with percentile bootstrap intervals."""
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


def _figure(value: float, samples: np.ndarray, confidence: float) -> Figure:
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Figure(value, float(low), float(high))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """False and true positive rates by falling threshold, the thresholds, and the area under the curve.

    Args:
        labels: 0 or 1, [rows].
        scores: of class 1, [rows].
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
