"""AdamW with the options of the XLNet paper: warm-up, linear decay, layer-wise learning rates.

Source: Yang et al. 2019, appendix A.4 (hyper-parameters for fine-tuning); Loshchilov & Hutter 2019 (AdamW).
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from xlnet.model.kernels import native_fused
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused where possible, with the same update for an embedding table that has a sparse gradient.

    A batch has gradients for a small part of the vocabulary. Rows that never had a gradient have zero moments and need
    only weight decay, so the result equals that of the dense update.
    """

    # step() divides all gradients by this number. It is how torch undoes loss scaling; here it clips gradients.
    grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters; sparse gradients must be coalesced."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, parameter.grad, group)
                    parameter.grad = None
        if self.grad_scale is not None and not self.defaults["fused"]:
            everything = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(everything, self.grad_scale)
            self.grad_scale = None
        return super().step(closure)

    def start(self) -> None:
        """Create the optimizer state that parameters lack, as their first update would."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    zeros = torch.zeros(parameter.shape)  # made on the host, so that no device program is needed
                    moments = {name: zeros.to(parameter.device, copy=True) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def _update_rows(self, table_VD: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table_VD]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table_VD), torch.zeros_like(table_VD)
            state["seen"] = torch.zeros(len(table_VD), dtype=torch.uint8)
        # Restoring an optimizer changes the type of ``seen``. If it is missing, any row may have moments.
        state["seen"] = state.get("seen", torch.ones(len(table_VD))).to(torch.uint8)
        state["step"] += 1
        native_fused.adamw_rows(
            table_VD,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["seen"],
            gradient,
            rate=group["lr"],
            decay=group["weight_decay"],
            betas=group["betas"],
            epsilon=group["eps"],
            step=int(state["step"]),
            gradient_scale=1.0 if self.grad_scale is None else 1 / float(self.grad_scale),
        )


def make_optimizer(model: XLNetClassifier, recipe: TrainingRecipe) -> AdamW:
    """Make an AdamW optimizer with one parameter group per (layer, with or without weight decay).

    A layer's learning rate is ``learning_rate * layer_decay ** depth``. The head has depth 0; the embeddings have the
    greatest depth. Biases and layer norms have no weight decay.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = not (name.endswith("bias") or "layer_norm" in name)
        groups.setdefault((_depth(name, model.config.n_layer), decayed), []).append(parameter)
    return AdamW(
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
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )


def _depth(name: str, n_layer: int) -> int:
    if match := re.match(r"transformer\.layer\.(\d+)\.", name):
        return n_layer - int(match.group(1))
    return n_layer + 1 if name.startswith("transformer.") else 0


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return a step's share of the peak learning rate: linear warm-up, then linear decay to 0. Steps count from 0."""
    warmup_steps = round(steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, recipe: TrainingRecipe) -> None:
    """Set every group's learning rate for a step, counted from 0."""
    rate = recipe.learning_rate * learning_rate_factor(step, steps, recipe.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["depth_factor"]
