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
from xlnet.data.segments import CorpusSegments
from xlnet.model.language_model import Text, XLNetLanguageModel
from xlnet.model.token_loss import token_losses

BATCH_TOKENS = 8192  # tokens of a validation batch


def segment_losses(
    model: XLNetLanguageModel,
    split: Split,
    shapes: CorpusSegments,
    tensor: Callable[[np.ndarray], Tensor] = torch.from_numpy,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    goes_on: Callable[[], bool] = lambda: True,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return each segment's summed cross-entropy in nats, and its predicted tokens: [segments]; None if told to stop.

    Each call predicts the same targets.

    Args:
        model: a language model, in training or evaluation mode; its mode is restored.
        split: the documents.
        shapes: how documents become segments.
        tensor: puts an array on the model's device.
        autocast: the context of the forward pass.
        goes_on: called before each batch; returns False to stop.
    """
    was_training = model.training
    memory: Tensor | None = None
    losses, counts = [], []
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
            losses.append((losses_P.view_as(weights_BP) * weights_BP).sum(1).double().cpu().numpy())
            counts.append(batch.weights_BP.sum(1))
    finally:
        model.train(was_training)
    return np.concatenate(losses), np.concatenate(counts)


def moved(batch: SegmentBatch, tensor: Callable[[np.ndarray], Tensor]) -> tuple[Text, Tensor]:
    """Put a batch on the model's device; return the model's input, and the weight of each target: [B, P]."""
    text = Text(
        tensor(batch.input_ids_BL),
        tensor(batch.segment_ids_BL),
        tensor(batch.order_BL),
        tensor(batch.place_BP),
        first_text=batch.first_text,
        backward=batch.backward,
    )
    return text, tensor(batch.weights_BP)
