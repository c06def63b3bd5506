"""The training loss, the validation metrics, and how two validation results are compared."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.evaluation import metrics


def losses(logits_BC: Tensor, labels_B: Tensor, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Return each row's loss, [B]: cross-entropy for classes, squared error for values."""
    if task == "regression":
        return F.mse_loss(logits_BC[:, 0].float(), labels_B, reduction="none")
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)


def validation_metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Return a split's mean loss, and its accuracy (classes) or Pearson's r (values; omitted if one side is constant).

    Args:
        logits: float32 [rows, C].
        labels: class indices or values, [rows].
    """
    value = losses(torch.from_numpy(logits).double(), _targets(labels, task), task).mean().item()
    if task == "regression":
        pearson = float(metrics.pearson(logits[:, 0].astype(np.float64), labels.astype(np.float64)))
        return {"validation_loss": value} | ({"validation_pearson": pearson} if math.isfinite(pearson) else {})
    return {"validation_loss": value, "validation_accuracy": float((logits.argmax(1) == labels).mean())}


def better(new: dict[str, float], old: dict[str, float]) -> bool:
    """Whether ``new`` is better: it has higher accuracy (on a tie, lower loss), or lower squared error."""
    if not old:
        return True
    if "validation_accuracy" in new and new["validation_accuracy"] != old["validation_accuracy"]:
        return new["validation_accuracy"] > old["validation_accuracy"]
    return new["validation_loss"] < old["validation_loss"]


def _targets(labels: np.ndarray, task: str) -> Tensor:
    return torch.from_numpy(labels.astype(np.float32 if task == "regression" else np.int64))
