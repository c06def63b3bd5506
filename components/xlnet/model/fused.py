"""The element-wise parts of a layer, in as few passes over memory as the device's kernels allow.

Shapes: T rows, D columns; P positions, V vocabulary.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.model import dropout as plain
from xlnet.model.dropout import Dropout
from xlnet.model.kernels import native, native_fused, triton

LANES = 16  # the compiled kernels need rows of whole vectors


def gelu_dropout(x_TD: Tensor, noise: Dropout | None) -> Tensor:
    """Apply the exact GELU (Hendrycks & Gimpel 2016), then dropout: [T, D]."""
    if kernels := _kernels(x_TD.device.type, str(x_TD.dtype), x_TD.shape[-1] % LANES):
        return kernels.gelu_dropout(x_TD, noise)
    return plain.dropout(F.gelu(x_TD), noise)


def dropout_add_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, noise: Dropout | None
) -> Tensor:
    """Apply layer norm (Ba et al. 2016) to ``residual + dropout(x)``, in float32: [T, D], of the residual's type."""
    if kernels := _kernels(x_TD.device.type, str(x_TD.dtype), x_TD.shape[-1] % LANES):
        return kernels.dropout_add_norm(x_TD, residual_TD, weight_D, bias_D, eps, noise)
    sum_TD = residual_TD.to(torch.promote_types(residual_TD.dtype, torch.float32)) + plain.dropout(x_TD, noise)
    # Layer norm ignores a shift. Centring makes equal values exactly zero; torch would normalise their rounding errors.
    sum_TD = sum_TD - sum_TD.detach().mean(-1, keepdim=True)
    return F.layer_norm(sum_TD, weight_D.shape, weight_D, bias_D, eps).to(residual_TD.dtype)


def dropout(x_TD: Tensor, noise: Dropout | None) -> Tensor:
    """Set elements to zero and scale the others to keep the mean: [T, D]."""
    kernels = _kernels(x_TD.device.type, str(x_TD.dtype), x_TD.shape[-1] % LANES)
    return kernels.dropout(x_TD, noise) if kernels and noise is not None else plain.dropout(x_TD, noise)


def cross_entropy(logits_PV: Tensor, target_P: Tensor, factor_P: Tensor, smoothing: float) -> Tensor:
    """Return each row's cross-entropy with label smoothing, times its factor: [P]. The logits become their gradients.

    Source of the smoothing: Szegedy et al. 2016, section 7.
    """
    if logits_PV.device.type == "cpu" and _kernels("cpu", str(logits_PV.dtype), 0) is native_fused:
        return native_fused.cross_entropy(logits_PV, target_P, factor_P.float(), smoothing)
    target_P1, factor_P1 = target_P[:, None], factor_P[:, None].to(logits_PV.dtype)
    log_shares_PV = logits_PV.log_softmax(-1)
    losses_P = (smoothing - 1) * log_shares_PV.gather(1, target_P1)[:, 0]
    if smoothing:
        losses_P = losses_P - smoothing * log_shares_PV.mean(-1)
    torch.exp(log_shares_PV, out=logits_PV).mul_(factor_P1)
    if smoothing:
        logits_PV.sub_(factor_P1 * (smoothing / logits_PV.shape[1]))
    logits_PV.scatter_add_(1, target_P1, (smoothing - 1) * factor_P1)
    return losses_P * factor_P1[:, 0]


@cache
def _kernels(device: str, dtype: str, rest: int) -> ModuleType | None:
    """Return the module of fused kernels for this device, type and width modulo LANES; None means torch's operators."""
    if device == "cuda":  # import Triton only if it is used
        if triton.obstacle(device, dtype, LANES):
            return None
        from xlnet.model.kernels import triton_fused

        return triton_fused
    if device == "cpu" and not rest and not native.obstacle(device, dtype, LANES):
        return native_fused
    return None
