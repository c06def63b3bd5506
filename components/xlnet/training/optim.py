"""AdamW with the options of the XLNet paper: warm-up, linear decay, layer-wise learning rates.

Source: Yang et al. 2019, appendix A.4 (hyper-parameters for fine-tuning); Loshchilov & Hutter 2019 (AdamW).
"""

import re

import torch
from torch import nn

from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe


def make_optimizer(model: XLNetClassifier, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW over one group per (layer, decayed or not).

    A layer's learning rate is ``learning_rate * layer_decay ** depth``, with depth 0 at the head and
    the embeddings deepest. Biases and layer norms are not decayed.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = not (name.endswith("bias") or "layer_norm" in name)
        groups.setdefault((_depth(name, model.config.n_layer), decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "depth_factor": recipe.layer_decay**depth,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
            }
            for (depth, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
    )


def _depth(name: str, n_layer: int) -> int:
    if match := re.match(r"transformer\.layer\.(\d+)\.", name):
        return n_layer - int(match.group(1))
    return n_layer + 1 if name.startswith("transformer.") else 0


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step counted from 0: up linearly, then down linearly to 0."""
    warmup_steps = round(steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, recipe: TrainingRecipe) -> float:
    """Set every group's learning rate for a step counted from 0; return the head's."""
    rate = recipe.learning_rate * learning_rate_factor(step, steps, recipe.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["depth_factor"]
    return rate
