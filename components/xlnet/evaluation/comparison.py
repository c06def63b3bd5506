"""Compares a challenger with the champion on the same rows with a paired bootstrap.

The challenger wins if the metric's difference on all rows exceeds the margin *and* the lower end of the difference's
interval is above zero. The margin says how large an improvement must be to justify a change; the interval shows that
the difference is not chance. Equal predictions therefore never win. A model whose metric cannot be computed (a
correlation with a constant) never wins.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from xlnet.errors import UserError
from xlnet.evaluation import metrics
from xlnet.recipe import EvaluationRecipe

LANGUAGE = ("bits_per_byte",)  # metrics that can decide between language models


@dataclass(frozen=True)
class RowPredictions:
    """One model's predictions for the test rows."""

    labels: np.ndarray  # class indices, or true values: [rows]
    predictions: np.ndarray  # class indices, or predicted values: [rows]
    classes: int  # number of classes; 0 for regression


@dataclass(frozen=True)
class ModelComparison:
    """The outcome of a comparison, with its figures."""

    metric: str
    challenger: float
    champion: float
    difference: float
    low: float
    high: float
    wins: bool
    reason: str

    @property
    def figures(self) -> str:
        """Format as ``"accuracy 0.8100 against 0.7900, difference +0.0200 [+0.0100, +0.0300]"``."""
        interval = f"difference {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.metric} {self.challenger:.4f} against {self.champion:.4f}, {interval}"


def primary_metric(recipe: EvaluationRecipe, task: str) -> str:
    """Return the metric that decides: the recipe's, else accuracy (classes), Pearson's r (values) or bits per byte.

    Raises:
        UserError: the recipe's metric does not exist for this task.
    """
    allowed = {"classification": metrics.CLASSIFICATION, "pretrain": LANGUAGE}.get(task, metrics.REGRESSION)
    usual = {"classification": "accuracy", "pretrain": LANGUAGE[0]}.get(task, "pearson")
    primary = recipe.metric if recipe.metric != "auto" else usual
    if primary not in allowed:
        raise UserError(f"evaluation.metric is '{primary}'; allowed for {task}: auto, {', '.join(allowed)}")
    return primary


def refuse_selection(select_by: str, task: str) -> None:
    """Raise UserError if the metric to select by does not exist for the task."""
    allowed = {"classification": metrics.CLASSIFICATION, "pretrain": ()}.get(task, metrics.REGRESSION)
    if select_by not in ("auto", "loss", *allowed):
        raise UserError(f"training.select_by is '{select_by}'; allowed for {task}: auto, loss, {', '.join(allowed)}")


def score(one: RowPredictions, metric: str) -> float:
    """Compute a metric over all rows; a correlation is nan if one side is constant or not finite."""
    if one.classes:
        matrix = metrics.confusion_matrix(one.labels, one.predictions, one.classes)
        return float(metrics.OF_CONFUSION[metric](metrics.Counts.of(matrix)))
    labels, predictions = one.labels.astype(np.float64), one.predictions.astype(np.float64)
    if not all(np.isfinite(side).all() and np.ptp(side) > 0 for side in (labels, predictions)):
        return math.nan
    return float(metrics.OF_VALUES[metric](labels, predictions))


def compare(
    challenger: RowPredictions, champion: RowPredictions, metric: str, recipe: EvaluationRecipe
) -> ModelComparison:
    """Bootstrap the paired difference challenger − champion (Koehn 2004).

    Raises:
        ValueError: the two models did not predict the same rows.
    """
    if not np.array_equal(challenger.labels, champion.labels):
        raise ValueError("challenger and champion were not judged on the same rows")
    ours, theirs = score(challenger, metric), score(champion, metric)
    difference = ours - theirs
    if math.isnan(difference):
        return _unknown(metric, ours, theirs)
    samples = _differences(challenger, champion, metric, recipe)
    tail = (1 - recipe.confidence) / 2
    low, high = (float(x) for x in np.quantile(samples, [tail, 1 - tail]))
    found = ModelComparison(metric, ours, theirs, difference, low, high, difference > recipe.margin and low > 0, "")
    if np.array_equal(challenger.predictions, champion.predictions):
        reason = "it predicts the same as the champion"
    elif found.wins:
        reason = "it beats the champion"
    elif difference <= recipe.margin:
        reason = f"it does not beat the champion by more than the margin {recipe.margin:g}"
    else:
        reason = "it is better than the champion by no more than chance allows"
    return replace(found, reason=f"{reason}: {found.figures}")


def _unknown(metric: str, ours: float, theirs: float) -> ModelComparison:
    """If only one model's metric can be computed, that model wins."""
    wins = not math.isnan(ours)
    whose = "the champion's" if wins else "the challenger's"
    reason = f"it {'beats' if wins else 'does not beat'} the champion: {whose} {metric} cannot be computed"
    return ModelComparison(metric, ours, theirs, math.nan, math.nan, math.nan, wins, reason)


def _differences(one: RowPredictions, other: RowPredictions, metric: str, recipe: EvaluationRecipe) -> np.ndarray:
    generator = np.random.default_rng(recipe.seed)
    if one.classes:
        return _classification_differences(one, other, metric, recipe.resamples, generator)
    rows, found = len(one.labels), []
    for _ in range(recipe.resamples):
        draw = generator.integers(0, rows, rows)
        pair = [score(RowPredictions(x.labels[draw], x.predictions[draw], 0), metric) for x in (one, other)]
        found.append(pair[0] - pair[1])
    return np.nan_to_num(np.array(found), nan=0.0)  # a sample without a metric counts for neither model


def _classification_differences(
    one: RowPredictions, other: RowPredictions, metric: str, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw counts of the (truth, challenger, champion) combinations that occur, instead of rows."""
    classes = one.classes
    joint = (one.labels.astype(np.int64) * classes + one.predictions) * classes + other.predictions
    cells, counts = np.unique(joint, return_counts=True)
    label, ours, theirs = cells // classes**2, cells // classes % classes, cells % classes
    f, found = metrics.OF_CONFUSION[metric], []
    for draws in metrics.multinomial(counts, resamples, generator, classes):
        scores = [f(metrics.Counts.of_cells(draws, label, predicted, classes)) for predicted in (ours, theirs)]
        found.append(scores[0] - scores[1])
    return np.concatenate(found)
