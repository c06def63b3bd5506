"""What training minimises, and how a validation result is compared with another."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def losses(logits_BC: Tensor, labels_B: Tensor, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Of each row, [B]: cross-entropy for classes, squared error for values."""
    if task == "regression":
        return F.mse_loss(logits_BC[:, 0].float(), labels_B, reduction="none")
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=label_smoothing)


def validation_metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Loss, and accuracy (classes) or Pearson's r (values), over a whole split.

    Args:
        logits: float32 [rows, C].
        labels: class indices or values, [rows].
    """
    value = losses(torch.from_numpy(logits).double(), _targets(labels, task), task).mean().item()
    if task == "regression":
        predicted = logits[:, 0].astype(np.float64)
        constant = predicted.std() == 0 or labels.std() == 0
        pearson = 0.0 if constant else float(np.corrcoef(predicted, labels)[0, 1])
        return {"validation_loss": value, "validation_pearson": pearson}
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
