"""Logits of many rows, without gradients."""

import numpy as np
import torch

from xlnet.data.batches import Batch, Rows, evaluation_batches
from xlnet.model.layout import Layout
from xlnet.model.prepared import PreparedClassifier
from xlnet.model.xlnet import XLNetClassifier

# Activations of a batch stay below 32 MiB for a width of 768: glibc gives larger memory back to the system after each
# product, and the kernel clears its pages again for the next.
BATCH_TOKENS = 2048


def predict_logits(model: XLNetClassifier | PreparedClassifier, split: Rows, segments: bool = True) -> np.ndarray:
    """Compute the logits of every row, in row order: float32 [rows, C].

    Nothing is dropped, also if the model is in training mode. ``segments`` is False for a model that was trained
    without segment ids.
    """
    prepared = model if isinstance(model, PreparedClassifier) else PreparedClassifier(model)
    logits = np.empty((len(split.lengths), prepared.config.outputs), np.float32)
    for batch in evaluation_batches(split, BATCH_TOKENS):
        logits[batch.index_S] = _batch_logits(prepared, batch, segments)
    return logits


def _batch_logits(model: PreparedClassifier, batch: Batch, segments: bool) -> np.ndarray:
    """Compute the logits of one batch: float32 [S, C]."""
    logits = model(
        torch.from_numpy(batch.input_ids_T).to(model.device),
        torch.from_numpy(batch.segment_ids_T).to(model.device) if segments else None,
        Layout.of(batch.lengths_S, model.device),
    )
    return logits.float().cpu().numpy()
