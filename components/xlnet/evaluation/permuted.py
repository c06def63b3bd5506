"""Measures how well a language model predicts tokens in permuted orders."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet.data.dataset import Split
from xlnet.data.permutation import SegmentBatch
from xlnet.data.segments import Segments
from xlnet.model.language_model import Text, XLNetLanguageModel
from xlnet.model.token_loss import token_losses

BATCH_TOKENS = 8192  # of a validation batch


def permutation_loss(
    model: XLNetLanguageModel,
    split: Split,
    shapes: Segments,
    tensor: Callable[[np.ndarray], Tensor] = torch.from_numpy,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    goes_on: Callable[[], bool] = lambda: True,
) -> float | None:
    """Return the mean cross-entropy of the predicted tokens, the same targets each time; None if told to stop."""
    was_training, memory, total, count = model.training, None, 0.0, 0.0
    model.eval()
    try:
        for batch in shapes.evaluation(split, BATCH_TOKENS):
            if not goes_on():
                return None
            text, weights_BP = moved(batch, tensor)
            earlier = None if batch.is_first or memory is None else memory[:, : len(batch.index_B)]
            with torch.no_grad(), autocast():
                hidden_BPD, memory = model(replace(text, memory=earlier), *model.recurrence)
                table, bias = model.transformer.word_embedding.weight, model.lm_loss.bias
                losses_P = token_losses(hidden_BPD.flatten(0, 1), table, bias, text.targets_BP.flatten())
            total += float((losses_P * weights_BP.flatten()).sum())
            count += float(batch.weights_BP.sum())
    finally:
        model.train(was_training)
    return total / count


def moved(batch: SegmentBatch, tensor: Callable[[np.ndarray], Tensor]) -> tuple[Text, Tensor]:
    """Return a batch as the model takes it, and the weight of each target: [B, P]."""
    text = Text(
        tensor(batch.input_ids_BL),
        tensor(batch.segment_ids_BL),
        tensor(batch.order_BL),
        tensor(batch.place_BP),
    )
    return text, tensor(batch.weights_BP)
