"""One update of the weights: forward, backward, clip, optimise. Nothing here waits for the device."""

import torch
from torch import Tensor

from xlnet.model.layout import Layout
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training import objective
from xlnet.training.device import Device, Inputs
from xlnet.training.optim import AdamW


def update(
    model: XLNetClassifier, optimizer: AdamW, inputs: Inputs, recipe: TrainingRecipe, device: Device
) -> tuple[Tensor, Tensor]:
    """Train on one batch; return its loss and the gradient's norm before clipping, both on the device."""
    hidden_T = hide_tokens(inputs.layout, recipe.token_dropout)
    with device.autocast():
        logits_SC = model(inputs.input_ids_T, inputs.segment_ids_T, inputs.layout, hidden_T)  # forward
        loss = objective.loss(logits_SC, inputs.labels_S, model.config.task, recipe.label_smoothing)
    loss.backward()  # backward
    norm = torch.nn.utils.get_total_norm(gradients(model))
    # The fused kernel divides each gradient by this while it reads it: clipping costs no pass of its own.
    optimizer.grad_scale = (norm / recipe.clip_norm).clamp(min=1.0) if recipe.clip_norm else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def gradients(model: XLNetClassifier) -> list[Tensor]:
    """Every parameter's gradient; of a sparse one, which is coalesced here, the rows that are there."""
    table = model.transformer.word_embedding.weight
    if table.grad is not None and table.grad.is_sparse:
        table.grad = table.grad.coalesce()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [gradient.values() if gradient.is_sparse else gradient for gradient in found]


def hide_tokens(layout: Layout, share: float) -> Tensor | None:
    """Which tokens are replaced by the mask embedding: a random share, never a text's final <sep> <cls>; bool [T]."""
    if share == 0:
        return None
    hidden_T = torch.rand(layout.tokens, device=layout.offsets_S1.device) < share
    hidden_T[layout.last_S] = False
    hidden_T[(layout.last_S - 1).clamp(min=0)] = False
    return hidden_T
