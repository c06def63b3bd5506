"""Matrix products of tokens' hidden states with weights.

On a CPU with AMX, float32 products of 64 rows or more run on it: 1.3 to 1.6 times as fast as MKL, torch's default
library, with half its error (measured on a Xeon). With 2 to 63 rows, reading the weights takes the time; on Intel's
processors, with AMX or without, oneDNN needs 5 to 35 % less of it than MKL if the weights are wide. On a CPU that is
not Intel's, all float32 products use oneDNN, which torch uses only for other types. On an AMD EPYC with AVX-512, oneDNN
was measured to be 10 to 30 % faster than MKL. On an Intel Xeon with AVX-512, MKL was 11 to 38 % faster at large
products.

Under bfloat16 autocast on a CPU, the weights are cast once per forward pass, for the backward pass too. A weight's
gradient is a product whose left factor is transposed. oneDNN multiplies 1.6 to 2.5 times as fast if that factor is
written out transposed first (measured on a Xeon with AMX). For each number of rows it has not multiplied yet, oneDNN
writes new machine code, which took a quarter of an update of 1,024 tokens, and it remembers about a thousand shapes. So
rows of zeros are added until the number of rows is one of few.

Shapes: T tokens, I inputs, O outputs.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.model.fused import gelu_dropout
from xlnet.model.kernels import native, native_amx, native_fused


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Compute ``x · weightᵀ + bias``: [T, O]."""
    if _is_bfloat16_on_cpu(x_TI):
        return _BFloat16.apply(x_TI, weight_OI, bias_O, True)
    if multiply := _multiply_for(x_TI):
        return _Linear.apply(multiply, x_TI, weight_OI, bias_O, True)
    return F.linear(x_TI, weight_OI, bias_O)


def linear_of_few(x_SI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Compute ``x · weightᵀ + bias`` of one row per text: [S, O]. CPUs compute it in float32: it is small."""
    if not _is_bfloat16_on_cpu(x_SI):
        return F.linear(x_SI, weight_OI, bias_O)
    with torch.autocast("cpu", enabled=False):
        return F.linear(x_SI.float(), weight_OI, bias_O)


def project(x_TI: Tensor, weight_IO: Tensor) -> Tensor:
    """Compute ``x · weight``: [T, O]."""
    if _is_bfloat16_on_cpu(x_TI):
        return _BFloat16.apply(x_TI, weight_IO, None, False)
    if multiply := _multiply_for(x_TI):
        if multiply is _multiply_with_onednn:  # it takes a hundred times as long for strided weights
            weight_IO = weight_IO.contiguous()
        return _Linear.apply(multiply, x_TI, weight_IO, None, False)
    return x_TI @ weight_IO


def multiply_gelu(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Compute the exact GELU (Hendrycks & Gimpel 2016) of ``x · weightᵀ + bias`` without gradients: [T, O]."""
    if native_amx.fits(x_TI, weight_OI.t()):
        return native_amx.product(x_TI, weight_OI.t(), bias_O, gelu=True)
    return gelu_dropout(linear(x_TI, weight_OI, bias_O), None)


def _is_bfloat16_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not native.obstacle("cpu", str(torch.bfloat16), native.LANES)
    )


class _BFloat16(torch.autograd.Function):
    """A product in bfloat16; sums are float32 in the processor, and gradients of weights are float32 in memory."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight: Tensor, bias_O: Tensor | None, outputs_first: bool) -> Tensor:
        tokens = len(x_TI)
        x_TI, weight = _with_zeros(x_TI), weight.bfloat16()
        ctx.save_for_backward(x_TI, weight)
        ctx.has_bias, ctx.outputs_first, ctx.tokens = bias_O is not None, outputs_first, tokens
        weight_IO = weight.t() if outputs_first else weight
        y_TO = x_TI @ weight_IO if bias_O is None else torch.addmm(bias_O.bfloat16(), x_TI, weight_IO)
        return y_TO[:tokens]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight = ctx.saved_tensors
        grad_TO = _with_zeros(grads[0])
        weight_OI = weight if ctx.outputs_first else weight.t()
        grad_x_TI = (grad_TO @ weight_OI)[: ctx.tokens] if ctx.needs_input_grad[0] else None
        if ctx.outputs_first:
            grad_OT, grad_bias_O = native_fused.transpose(grad_TO, with_sums=ctx.has_bias)
            return grad_x_TI, (grad_OT @ x_TI).float(), grad_bias_O, None
        x_IT, _ = native_fused.transpose(x_TI)
        return grad_x_TI, (x_IT @ grad_TO).float(), None, None


def _with_zeros(x_TI: Tensor) -> Tensor:
    """Return the rows in bfloat16, with zeros below them.

    Their number is a multiple of 16, or of about a 32nd part of itself if that is more.
    """
    tokens = len(x_TI)
    multiple = max(16, 1 << max(0, tokens.bit_length() - 6))
    padded = -(-tokens // multiple) * multiple
    if padded == tokens:
        return x_TI.bfloat16().contiguous()
    rows_TI = x_TI.new_empty(padded, x_TI.shape[1], dtype=torch.bfloat16)
    rows_TI[:tokens].copy_(x_TI)
    rows_TI[tokens:].zero_()
    return rows_TI


def _multiply_for(x: Tensor) -> Callable[..., Tensor] | None:
    """Return the function for products of float32 matrices on this CPU; None means torch's own."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    if not native_amx.obstacle() or (_is_intel() and _has_onednn()):
        return _multiply_on_intel
    return _multiply_with_onednn if _has_onednn() else None


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _is_intel() -> bool:
    return sys.platform == "linux" and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def _multiply_on_intel(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    if native_amx.fits(left, right):
        return native_amx.product(left, right, bias)
    if 1 < len(left) < native_amx.FEWEST and right.t().is_contiguous() and _has_onednn():
        return _multiply_with_onednn(left, right, bias)
    return left @ right if bias is None else torch.addmm(bias, left, right)


def _multiply_with_onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    if not left.is_contiguous():
        return left @ right
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """``x · weight + bias`` in float32, whose products ``multiply`` computes.

    Each gradient is written in the order of its tensor, so none is copied afterwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        multiply: Callable[..., Tensor],
        x_TI: Tensor,
        weight: Tensor,
        bias_O: Tensor | None,
        outputs_first: bool,
    ) -> Tensor:
        ctx.save_for_backward(x_TI, weight)
        ctx.multiply, ctx.has_bias, ctx.outputs_first = multiply, bias_O is not None, outputs_first
        return multiply(x_TI, weight.t() if outputs_first else weight, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight = ctx.saved_tensors
        grad_TO, multiply = grads[0].contiguous(), ctx.multiply
        weight_OI = weight if ctx.outputs_first else weight.t()
        grad_x_TI = multiply(grad_TO, weight_OI) if ctx.needs_input_grad[1] else None
        grad_weight = multiply(grad_TO.t(), x_TI) if ctx.outputs_first else multiply(x_TI.t(), grad_TO)
        return None, grad_x_TI, grad_weight, grad_TO.sum(0) if ctx.has_bias else None, None
