"""Matrix products of tokens' hidden states with weights.

On a CPU that is not Intel's, float32 products use oneDNN, which torch uses only for other types. On an AMD EPYC with
AVX-512, oneDNN was measured to be 10 to 30 % faster than MKL, torch's default library. On an Intel Xeon with AVX-512,
MKL was 11 to 38 % faster.

Shapes: T tokens, I inputs, O outputs.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Compute ``x · weightᵀ + bias``: [T, O]."""
    if _is_for_onednn(x_TI):
        return _Linear.apply(x_TI, weight_OI, bias_O)
    return F.linear(x_TI, weight_OI, bias_O)


def project(x_TI: Tensor, weight_IO: Tensor) -> Tensor:
    """Compute ``x · weight``: [T, O]."""
    if _is_for_onednn(x_TI):  # oneDNN takes a hundred times as long for strided weights
        return _Project.apply(x_TI, weight_IO.contiguous())
    return x_TI @ weight_IO


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not _is_intel()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def _is_intel() -> bool:
    return sys.platform == "linux" and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def _product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        ctx.has_bias = bias_O is not None
        return _product(x_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        grad_TO = grads[0].contiguous()
        grad_x_TI = _product(grad_TO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        return grad_x_TI, grad_TO.t() @ x_TI, grad_TO.sum(0) if ctx.has_bias else None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_IO: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_IO)
        return _product(x_TI, weight_IO.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_IO = ctx.saved_tensors
        grad_TO = grads[0].contiguous()
        grad_x_TI = _product(grad_TO, weight_IO) if ctx.needs_input_grad[0] else None
        return grad_x_TI, x_TI.t() @ grad_TO
