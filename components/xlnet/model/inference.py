"""Logits of many rows, without gradients."""

import numpy as np
import torch

from xlnet.data.batches import Batch, Rows, evaluation_batches
from xlnet.model.layout import Layout
from xlnet.model.xlnet import XLNetClassifier

BATCH_TOKENS = 8192


def predict_logits(
    model: XLNetClassifier, split: Rows, batch_tokens: int = BATCH_TOKENS, segments: bool = True
) -> np.ndarray:
    """Compute the logits of every row, in row order: float32 [rows, C].

    The model is in evaluation mode during the call, and in its previous mode afterwards. ``segments`` is False for a
    model that was trained without segment ids.
    """
    logits = np.empty((len(split.lengths), model.config.outputs), np.float32)
    was_training = model.training
    model.eval()
    try:
        for batch in evaluation_batches(split, batch_tokens):
            logits[batch.index_S] = batch_logits(model, batch, segments)
    finally:
        model.train(was_training)
    return logits


@torch.inference_mode()
def batch_logits(model: XLNetClassifier, batch: Batch, segments: bool = True) -> np.ndarray:
    """Compute the logits of one batch: float32 [S, C]."""
    device = next(model.parameters()).device
    logits = model(
        torch.from_numpy(batch.input_ids_T).to(device),
        torch.from_numpy(batch.segment_ids_T).to(device) if segments else None,
        Layout.of(batch.lengths_S, device),
    )
    return logits.float().cpu().numpy()
