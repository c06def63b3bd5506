"""Validation, divided among all ranks; every row is counted exactly once."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch

from xlnet.data.batches import PaddedBatch, Rows
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training.device import Device

BATCH_TOKENS = 8192


def validation_logits(
    model: XLNetClassifier, split: Rows, device: Device, goes_on: Callable[[], bool]
) -> np.ndarray | None:
    """Return the logits of every row, in row order, on every rank: float32 [rows, C].

    Args:
        model: a model in training mode, which is restored afterwards.
        split: the rows of the validation split.
        device: its ranks take turns, one batch each.
        goes_on: called before each turn; False ends the validation, and must be so on every rank.

    Returns:
        The logits; None if the validation ended early.
    """
    ranks = device.ranks
    logits = np.zeros((len(split.lengths), model.config.outputs), np.float32)
    model.eval()
    try:
        batches = device.shapes.evaluation(split, BATCH_TOKENS)
        while turn := list(islice(batches, ranks.parts)):
            if not goes_on():
                return None
            # In the last turn a rank may have no batch. If weights are sharded, it must still join collective calls.
            batch = turn[min(ranks.part, len(turn) - 1)]
            found = _logits(model, batch, device)
            if ranks.part < len(turn):
                index = batch.index_B if isinstance(batch, PaddedBatch) else batch.index_S
                logits[index] = found[: len(index)]
    finally:
        model.train()
    return ranks.sum(torch.from_numpy(logits)).numpy()


def _logits(model: XLNetClassifier, batch: object, device: Device) -> np.ndarray:
    with torch.no_grad():
        inputs = device.move(batch)  # type: ignore[arg-type]
        found = model(inputs.input_ids_T, inputs.segment_ids_T, inputs.layout)
        device.step()
        return found.float().cpu().numpy()
