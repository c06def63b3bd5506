"""Candidate against champion on the same rows: a paired bootstrap.

The rule: the candidate wins when the metric's difference on all rows exceeds the margin *and* the
lower end of the difference's interval is above zero. The margin says how much better is worth a
change, the interval that the difference is not luck. Equal predictions therefore never win.
"""

from dataclasses import dataclass

import numpy as np

from xlnet.evaluation import metrics
from xlnet.recipe import EvaluationRecipe


@dataclass(frozen=True)
class Predictions:
    """What one model says about the test rows.

    Attributes:
        labels: class indices, or true values: [rows].
        predictions: class indices, or predicted values: [rows].
        classes: number of classes; 0 for regression.
    """

    labels: np.ndarray
    predictions: np.ndarray
    classes: int


@dataclass(frozen=True)
class Comparison:
    """The outcome, and the figures behind it."""

    metric: str
    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    wins: bool
    reason: str


def primary_metric(recipe: EvaluationRecipe, task: str) -> str:
    """The metric that decides: the recipe's, or accuracy or Pearson's r."""
    if recipe.metric != "auto":
        return recipe.metric
    return "accuracy" if task == "classification" else "pearson"


def score(one: Predictions, metric: str) -> float:
    """A metric over all rows."""
    if one.classes:
        matrix = metrics.confusion_matrix(one.labels, one.predictions, one.classes)
        return float(metrics.OF_CONFUSION[metric](metrics.Counts.of(matrix)))
    return float(metrics.OF_VALUES[metric](one.labels.astype(np.float64), one.predictions.astype(np.float64)))


def compare(candidate: Predictions, champion: Predictions, metric: str, recipe: EvaluationRecipe) -> Comparison:
    """Paired bootstrap of the difference candidate − champion (Koehn 2004).

    Raises:
        ValueError: the two do not speak of the same rows.
    """
    if not np.array_equal(candidate.labels, champion.labels):
        raise ValueError("candidate and champion were not judged on the same rows")
    ours, theirs = score(candidate, metric), score(champion, metric)
    difference = ours - theirs
    samples = _differences(candidate, champion, metric, recipe)
    tail = (1 - recipe.confidence) / 2
    low, high = (float(x) for x in np.quantile(samples, [tail, 1 - tail]))
    wins = difference > recipe.margin and low > 0
    figures = f"{metric} {ours:.4f} against {theirs:.4f}, difference {difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    if np.array_equal(candidate.predictions, champion.predictions):
        reason = f"predicts the same as the champion: {figures}"
    elif wins:
        reason = f"beats the champion: {figures}"
    elif difference <= recipe.margin:
        reason = f"does not beat the champion by more than the margin {recipe.margin:g}: {figures}"
    else:
        reason = f"beats the champion by no more than luck allows: {figures}"
    return Comparison(metric, ours, theirs, difference, low, high, wins, reason)


def _differences(one: Predictions, other: Predictions, metric: str, recipe: EvaluationRecipe) -> np.ndarray:
    generator = np.random.default_rng(recipe.seed)
    if one.classes:
        return _classification_differences(one, other, metric, recipe.resamples, generator)
    rows, found = len(one.labels), []
    for _ in range(recipe.resamples):
        draw = generator.integers(0, rows, rows)
        pair = [score(Predictions(x.labels[draw], x.predictions[draw], 0), metric) for x in (one, other)]
        found.append(pair[0] - pair[1])
    return np.array(found)


def _classification_differences(
    one: Predictions, other: Predictions, metric: str, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw the joint table of (truth, candidate, champion) cells that occur, instead of rows."""
    classes = one.classes
    joint = (one.labels.astype(np.int64) * classes + one.predictions) * classes + other.predictions
    cells, counts = np.unique(joint, return_counts=True)
    label, ours, theirs = cells // classes**2, cells // classes % classes, cells % classes
    f, found = metrics.OF_CONFUSION[metric], []
    for draws in metrics.multinomial(counts, resamples, generator, classes):
        scores = [f(metrics.Counts.of_cells(draws, label, predicted, classes)) for predicted in (ours, theirs)]
        found.append(scores[0] - scores[1])
    return np.concatenate(found)
