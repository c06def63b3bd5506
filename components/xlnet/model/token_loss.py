"""Cross-entropy over a large vocabulary, in chunks, so that the logits of all positions are never in memory at once.

Shapes: P positions, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from xlnet.model.fused import cross_entropy

CHUNK = 1 << 24  # logits in memory at once; the fewer chunks, the faster the weight's gradient


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

    The forward pass also computes the gradients, because each chunk's logits exist only then.
    """
    return _TokenLoss.apply(hidden_PD, weight_VD, bias_V, target_P, factor_P, smoothing)


def _chunks(hidden_PD: Tensor, weight_VD: Tensor) -> list[slice]:
    """Split the positions into chunks of equal size. A chunk has at most CHUNK logits, unless one position has more."""
    positions = len(hidden_PD)
    count = -(-positions // max(1, CHUNK // len(weight_VD)))
    size = -(-positions // max(1, count))
    return [slice(first, first + size) for first in range(0, positions, max(1, size))]


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
        precise = torch.promote_types(hidden_PD.dtype, torch.float32)
        total = hidden_PD.new_zeros((), dtype=precise)
        grad_hidden_PD, grad_bias_V = torch.empty_like(hidden_PD), torch.zeros_like(bias_V)
        grad_weight_VD = torch.empty_like(weight_VD) if len(hidden_PD) else torch.zeros_like(weight_VD)
        weight, bias = weight_VD.to(hidden_PD.dtype), bias_V.to(hidden_PD.dtype)
        for number, part in enumerate(_chunks(hidden_PD, weight_VD)):
            x = hidden_PD[part]
            logits = torch.addmm(bias, x, weight.T).to(precise)
            total += cross_entropy(logits, target_P[part], factor_P[part], smoothing).sum()
            grad_bias_V += logits.sum(0)  # they are gradients now
            grad = logits.to(x.dtype)
            grad_hidden_PD[part] = grad @ weight
            # The first chunk writes the weight's gradient, which may be hundreds of MiB, and the others add to it.
            if x.dtype == weight_VD.dtype:
                grad_weight_VD.addmm_(grad.T, x, beta=int(number > 0))
            elif number:
                grad_weight_VD += grad.T @ x
            else:
                grad_weight_VD.copy_(grad.T @ x)
        ctx.save_for_backward(grad_hidden_PD, grad_weight_VD, grad_bias_V)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_PD, grad_weight_VD, grad_bias_V = ctx.saved_tensors
        factor = grads[0]
        if factor.device.type == "cpu" and factor == 1:  # the usual case needs no pass over memory
            return grad_hidden_PD, grad_weight_VD, grad_bias_V, None, None, None
        scaled = (x * factor.to(x.dtype) for x in (grad_hidden_PD, grad_weight_VD, grad_bias_V))
        return (*scaled, None, None, None)
