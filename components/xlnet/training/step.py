"""The parts of one weight update. Nothing here waits for the device."""

import torch
from torch import Tensor

from xlnet.model.dropout import Dropouts
from xlnet.model.layout import Layout
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training import objective
from xlnet.training.device import Device
from xlnet.training.inputs import Inputs
from xlnet.training.optim import AdamW


def forward(model: XLNetClassifier, inputs: Inputs, texts: int, recipe: TrainingRecipe, device: Device) -> Tensor:
    """Return these texts' share of the mean loss over the update's ``texts`` texts: a scalar on the device."""

    def losses(inputs: Inputs) -> Tensor:
        hidden_T = hide_tokens(inputs.layout, recipe.token_dropout)
        with device.autocast():
            logits_SC = model(inputs.input_ids_T, inputs.segment_ids_T, inputs.layout, hidden_T)
            kind = model.config.task, recipe.label_smoothing, model.config.value_deviation
            losses_S = objective.losses(logits_SC, inputs.labels_S, *kind)
        return (losses_S * inputs.weights_S).sum()

    return device.compute(losses, model, inputs) / texts


def optimise(model: XLNetClassifier, optimizer: AdamW, recipe: TrainingRecipe) -> Tensor:
    """Update the weights and clear the gradients; return the gradient norm before clipping, on the device."""
    norm = torch.nn.utils.get_total_norm(gradients(model))
    # The fused kernel divides each gradient by this when it reads it, so clipping needs no extra pass over memory.
    optimizer.grad_scale = (norm / recipe.clip_norm).clamp(min=1.0) if recipe.clip_norm else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def gradients(model: XLNetClassifier) -> list[Tensor]:
    """Return every parameter's gradient. Sparse gradients are coalesced, and only their stored rows are returned."""
    table = model.transformer.word_embedding.weight
    if table.grad is not None and table.grad.is_sparse:
        table.grad = table.grad.coalesce()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [gradient.values() if gradient.is_sparse else gradient for gradient in found]


def hide_tokens(layout: Layout, share: float) -> Tensor | None:
    """Choose a random share of tokens to mask, never a text's final <sep> <cls>: bool [T], True for masked tokens."""
    if share == 0:
        return None
    device = layout.offsets_S1.device
    noise = Dropouts(1, device, on=True).next(share, layout.first_token)
    rows_T = torch.arange(layout.tokens, device=device)
    hidden_T = ~noise.keep(rows_T, torch.zeros_like(rows_T)) if noise else torch.zeros_like(rows_T, dtype=torch.bool)
    for final_S in (layout.last_S, (layout.last_S - 1).clamp(min=0)):
        hidden_T.index_fill_(0, final_S, False)  # unlike an assignment, this copies nothing from the host
    return hidden_T
