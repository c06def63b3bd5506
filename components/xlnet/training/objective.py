"""What training minimises, and how a validation result is compared with another."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.evaluation import metrics


def losses(logits_BC: Tensor, labels_B: Tensor, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Of each row, [B]: cross-entropy for classes, squared error for values."""
    if task == "regression":
        return F.mse_loss(logits_BC[:, 0].float(), labels_B, reduction="none")
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)


def validation_metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Loss, and accuracy (classes) or Pearson's r (values; left out if one side is constant), over a whole split.

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
    """Whether ``new`` is the better validation: higher accuracy (then lower loss), or lower squared error."""
    if not old:
        return True
    if "validation_accuracy" in new and new["validation_accuracy"] != old["validation_accuracy"]:
        return new["validation_accuracy"] > old["validation_accuracy"]
    return new["validation_loss"] < old["validation_loss"]


def _targets(labels: np.ndarray, task: str) -> Tensor:
    return torch.from_numpy(labels.astype(np.float32 if task == "regression" else np.int64))
