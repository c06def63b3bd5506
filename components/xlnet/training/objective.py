"""The training loss, the validation metrics, and how two validation results are compared."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.errors import UserError
from xlnet.evaluation import metrics
from xlnet.recipe import TrainingRecipe
from xlnet.recipe.checks import refuse_unknown_classes


def losses(
    logits_BC: Tensor, labels_B: Tensor, task: str, label_smoothing: float = 0.0, deviation: float = 1.0
) -> Tensor:
    """Return each row's loss, [B]: cross-entropy for classes, squared error for values.

    The squared error is divided by the train labels' variance, ``deviation ** 2``, so always answering
    their mean gives 1.
    """
    if task == "regression":
        return ((logits_BC[:, 0].float() - labels_B) / deviation).square()
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)


def label_scale(labels: np.ndarray, task: str) -> tuple[float, float]:
    """Return mean and deviation of a regression's train labels, by which the head's values are standardised.

    For classes they are 0 and 1, which change nothing. If all labels are equal, the deviation is 1.
    """
    if task != "regression" or not len(labels):
        return 0.0, 1.0
    values = labels.astype(np.float64)
    return float(values.mean()), float(values.std()) if np.ptp(values) > 0 else 1.0


def class_weights(recipe: TrainingRecipe, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray | None:
    """Return each class's weight in the loss, scaled so that the mean over the train rows is 1: float32 [C].

    Args:
        recipe: says how classes are weighted.
        labels: class indices of the train rows.
        classes: class names in index order; empty for values.

    Returns:
        None if all rows count alike.

    Raises:
        UserError: a weight is given for a class that does not exist, or the labels are values.
    """
    given = recipe.class_weights
    if given == "none":
        return None
    if not classes:
        raise UserError("training.class_weights needs classes; leave it out where data.task is 'regression'")
    counts = np.bincount(labels, minlength=len(classes))
    if isinstance(given, str):
        weights = 1.0 / np.maximum(counts, 1)
    else:
        refuse_unknown_classes(given, classes)
        weights = np.array([given.get(name, 1.0) for name in classes])
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def validation_metrics(
    logits: np.ndarray, labels: np.ndarray, task: str, select_by: str = "auto", deviation: float = 1.0
) -> dict[str, float]:
    """Return a split's mean loss, its accuracy (classes) or Pearson's r (values), and the metric to select by.

    A correlation is left out if one side is constant.

    Args:
        logits: float32 [rows, C].
        labels: class indices or values, [rows].
        task: ``"classification"`` or ``"regression"``.
        select_by: ``training.select_by``.
        deviation: deviation of the train labels, see :func:`losses`.
    """
    targets = torch.from_numpy(labels.astype(np.float32 if task == "regression" else np.int64))
    value = losses(torch.from_numpy(logits).double(), targets, task, 0.0, deviation).mean().item()
    if task == "regression":
        given, truth = logits[:, 0].astype(np.float64), labels.astype(np.float64)
        names = {"pearson", *({select_by} & set(metrics.OF_VALUES))}
        scores = {f"validation_{name}": float(metrics.OF_VALUES[name](given, truth)) for name in sorted(names)}
        return {"validation_loss": value} | {name: score for name, score in scores.items() if math.isfinite(score)}
    counts = metrics.Counts.of(metrics.confusion_matrix(labels, logits.argmax(1), logits.shape[1]))
    names = {"accuracy", *({select_by} & set(metrics.OF_CONFUSION))}
    scores = {f"validation_{name}": float(metrics.OF_CONFUSION[name](counts)) for name in sorted(names)}
    return {"validation_loss": value} | scores


def better(new: dict[str, float], old: dict[str, float], select_by: str = "auto", margin: float = 0.0) -> bool:
    """Whether ``new`` is better: its metric ``select_by`` is higher by ``margin``, or equal with a lower loss.

    A metric that cannot be computed, such as a correlation with a constant, is worse than any that can.
    """
    if not old:
        return True
    name = _deciding(new, select_by)
    ours, theirs = (-math.inf if name == "loss" else x.get(f"validation_{name}", -math.inf) for x in (new, old))
    if margin:
        return ours > theirs + margin
    return ours > theirs or (ours == theirs and new["validation_loss"] < old["validation_loss"])


def standard_error(scores: dict[str, float], rows: int, select_by: str = "auto") -> float:
    """Return the approximate standard error of the metric that decides, on ``rows`` rows; 0 for a loss."""
    name = _deciding(scores, select_by)
    value = scores.get(f"validation_{name}", 0.0)
    if name == "loss":
        return 0.0
    spread = math.sqrt(value * (1 - value)) if name in ("accuracy", "macro_f1") else 1 - value * value
    return spread / math.sqrt(rows)


def _deciding(scores: dict[str, float], select_by: str) -> str:
    return select_by if select_by != "auto" else "accuracy" if "validation_accuracy" in scores else "pearson"
