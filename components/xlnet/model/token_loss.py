"""Cross-entropy over a large vocabulary, in chunks: the logits of all positions are never held at once.

Shapes: P positions, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 22  # logits held at once


def token_losses(hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_P: Tensor) -> Tensor:
    """Return each position's cross-entropy, without gradients: float32 [P]."""
    with torch.no_grad():
        parts = [
            torch.nn.functional.cross_entropy(
                torch.addmm(bias_V, hidden_PD[part], weight_VD.T).float(), target_P[part], reduction="none"
            )
            for part in _chunks(hidden_PD, weight_VD)
        ]
    return torch.cat(parts) if parts else hidden_PD.new_zeros(0)


def token_loss(
    hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_P: Tensor, factor_P: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Return the sum of the positions' cross-entropies, each times its factor: a scalar.

    The gradients are computed on the way, chunk by chunk, as the logits are there only then.
    """
    return _TokenLoss.apply(hidden_PD, weight_VD, bias_V, target_P, factor_P, smoothing)


def _chunks(hidden_PD: Tensor, weight_VD: Tensor) -> list[slice]:
    size = max(1, CHUNK // len(weight_VD))
    return [slice(first, first + size) for first in range(0, len(hidden_PD), size)]


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        target_P: Tensor,
        factor_P: Tensor,
        smoothing: float,
    ) -> Tensor:
        total = hidden_PD.new_zeros((), dtype=torch.promote_types(hidden_PD.dtype, torch.float32))
        grad_hidden_PD = torch.empty_like(hidden_PD)
        grad_weight_VD, grad_bias_V = torch.zeros_like(weight_VD), torch.zeros_like(bias_V)
        vocabulary = len(weight_VD)
        for part in _chunks(hidden_PD, weight_VD):
            x, factor = hidden_PD[part], factor_P[part, None]
            weight = weight_VD.to(x.dtype)
            logits = torch.addmm(bias_V.to(x.dtype), x, weight.T).to(total.dtype)
            log_shares = logits.log_softmax(-1)
            picked = log_shares.gather(1, target_P[part, None])
            losses = -(1 - smoothing) * picked
            if smoothing:
                losses = losses - smoothing * log_shares.mean(-1, keepdim=True)
            total += (losses * factor).sum()
            # The gradient of the logits: softmax minus the target, times the factor.
            grad = log_shares.exp_().mul_(factor)
            if smoothing:
                grad -= factor * (smoothing / vocabulary)
            grad.scatter_add_(1, target_P[part, None], -(1 - smoothing) * factor.to(grad.dtype))
            grad = grad.to(x.dtype)
            grad_hidden_PD[part] = grad @ weight
            grad_weight_VD.addmm_(grad.T.to(weight_VD.dtype), x.to(weight_VD.dtype))
            grad_bias_V += grad.sum(0)
        ctx.save_for_backward(grad_hidden_PD, grad_weight_VD, grad_bias_V)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_PD, grad_weight_VD, grad_bias_V = ctx.saved_tensors
        factor = grads[0]
        scaled = (x * factor.to(x.dtype) for x in (grad_hidden_PD, grad_weight_VD, grad_bias_V))
        return (*scaled, None, None, None)
