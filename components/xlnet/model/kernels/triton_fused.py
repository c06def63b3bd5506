"""Dropout, GELU with dropout, and layer norm of a residual plus dropout, as Triton kernels.

The backward pass recomputes the masks. Statistics and sums are float32.

Shapes: T rows, D columns.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels.triton_attention import kept

BLOCK = 1024
PARTS = 512  # sums over rows are split into this many parts on every device


@triton.jit
def _normal(x):
    """Return the standard normal distribution's cumulative distribution function and density at x.

    Source: Abramowitz & Stegun 1964, 7.1.26; error below 1.5e-7, without cancellation for negative x.
    """
    falling = tl.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))  # 0.3275911 / √2
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail *= 0.5 * falling
    return tl.where(x < 0, tail, 1.0 - tail), 0.3989422804014327 * falling


@triton.jit
def _dropout(x, out, key, width, threshold, scale, DROPOUT: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64) * width + column
    value = tl.load(x + at, mask=column < width, other=0.0).to(tl.float32)
    if DROPOUT:
        value = tl.where(kept(tl.load(key).to(tl.uint32), row, column, threshold), value * scale, 0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _gelu_forward(x, out, key, width, threshold, scale, DROPOUT: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64) * width + column
    value = tl.load(x + at, mask=column < width, other=0.0).to(tl.float32)
    result = value * _normal(value)[0]
    if DROPOUT:
        result = tl.where(kept(tl.load(key).to(tl.uint32), row, column, threshold), result * scale, 0.0)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _gelu_backward(x, grad, out, key, width, threshold, scale, DROPOUT: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64) * width + column
    value = tl.load(x + at, mask=column < width, other=0.0).to(tl.float32)
    slope = tl.load(grad + at, mask=column < width, other=0.0).to(tl.float32)
    if DROPOUT:
        slope = tl.where(kept(tl.load(key).to(tl.uint32), row, column, threshold), slope * scale, 0.0)
    below, density = _normal(value)
    slope *= below + value * density
    tl.store(out + at, slope.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _norm_forward(
    x, residual, weight, bias, out, moments, key, width, eps, threshold, scale,
    DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    at, inside = row.to(tl.int64) * width + column, column < width
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        value = tl.where(kept(tl.load(key).to(tl.uint32), row, column, threshold), value * scale, 0.0)
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / width
    mean += tl.sum(tl.where(inside, value - mean, 0.0), 0) / width  # makes the mean of equal values exact
    centred = tl.where(inside, value - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    result = centred * inverse * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    result += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
    tl.store(moments + 2 * row, mean)
    tl.store(moments + 2 * row + 1, inverse)


@triton.jit
def _norm_backward(
    x, residual, weight, moments, grad, grad_x, grad_residual, partial, key, rows, width, threshold, scale,
    DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradients; each program handles every PARTS-th row (partial: [PARTS, 2, D])."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    weights, biases = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros([1], tl.int64) + number
        at = row * width + column
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        keep = inside
        if DROPOUT:
            keep = kept(tl.load(key).to(tl.uint32), row, column, threshold)
            value = tl.where(keep, value * scale, 0.0)
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        mean, inverse = tl.load(moments + 2 * number), tl.load(moments + 2 * number + 1)
        normal = tl.where(inside, (value - mean) * inverse, 0.0)
        slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        weights += slope * normal
        biases += slope
        scaled = slope * gain
        change = scaled - tl.sum(scaled, 0) / width - normal * (tl.sum(scaled * normal, 0) / width)
        change *= inverse
        tl.store(grad_residual + at, change.to(grad_residual.dtype.element_ty), mask=inside)
        if DROPOUT:
            change = tl.where(keep, change * scale, 0.0)
        tl.store(grad_x + at, change.to(grad_x.dtype.element_ty), mask=inside)
    to = partial + tl.program_id(0) * 2 * width + column
    tl.store(to, weights, mask=inside)
    tl.store(to + width, biases, mask=inside)


def dropout(x_TD: Tensor, dropout: Dropout) -> Tensor:
    """See :func:`xlnet.model.fused.dropout`."""
    return _Dropped.apply(x_TD, dropout)


def gelu_dropout(x_TD: Tensor, dropout: Dropout | None) -> Tensor:
    """See :func:`xlnet.model.fused.gelu_dropout`. The result has the type of ``x_TD``."""
    return _GeluDropout.apply(x_TD, dropout)


def dropout_add_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None
) -> Tensor:
    """See :func:`xlnet.model.fused.dropout_add_norm`. The result has the type of ``residual_TD``."""
    return _DropoutAddNorm.apply(x_TD, residual_TD, weight_D, bias_D, eps, dropout)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, dropout: Dropout) -> Tensor:
        ctx.dropout = dropout
        return _with_zeros(x_TD, dropout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _with_zeros(grads[0], ctx.dropout), None


def _with_zeros(x_TD: Tensor, dropout: Dropout) -> Tensor:
    x_TD = x_TD.contiguous()
    out_TD = torch.empty_like(x_TD)
    _over_elements(_dropout, x_TD, out_TD, dropout=dropout)
    return out_TD


class _GeluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, dropout: Dropout | None) -> Tensor:
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        _over_elements(_gelu_forward, x_TD, out_TD, dropout=dropout)
        ctx.save_for_backward(x_TD)
        ctx.dropout = dropout
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        out_TD = torch.empty_like(x_TD)
        _over_elements(_gelu_backward, x_TD, grads[0].contiguous(), out_TD, dropout=ctx.dropout)
        return out_TD, None


def _over_elements(kernel: Any, *tensors: Tensor, dropout: Dropout | None) -> None:
    rows, width = tensors[0].shape
    grid = (rows, triton.cdiv(width, BLOCK))
    kernel[grid](*tensors, *_noise(dropout, tensors[0], width), DROPOUT=dropout is not None, BLOCK=BLOCK)


def _noise(dropout: Dropout | None, unread: Tensor, *sizes: float) -> tuple[Any, ...]:
    """Return key, sizes, threshold and scale. Without dropout the key is a placeholder that no kernel reads."""
    if dropout is None:
        return unread, *sizes, 0, 1.0
    return dropout.key, *sizes, dropout.threshold, dropout.scale


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        residual_TD: Tensor,
        weight_D: Tensor,
        bias_D: Tensor,
        eps: float,
        dropout: Dropout | None,
    ) -> Tensor:
        x_TD, residual_TD = x_TD.contiguous(), residual_TD.contiguous()
        rows, width = x_TD.shape
        out_TD, moments_T2 = torch.empty_like(residual_TD), x_TD.new_empty(rows, 2, dtype=torch.float32)
        tensors = (x_TD, residual_TD, weight_D, bias_D, out_TD, moments_T2)
        block = triton.next_power_of_2(width)
        _norm_forward[(rows,)](*tensors, *_noise(dropout, x_TD, width, eps), DROPOUT=dropout is not None, BLOCK=block)
        ctx.save_for_backward(x_TD, residual_TD, weight_D, moments_T2)
        ctx.dropout = dropout
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, residual_TD, weight_D, moments_T2 = ctx.saved_tensors
        rows, width = x_TD.shape
        grad_x_TD, grad_residual_TD = torch.empty_like(x_TD), torch.empty_like(residual_TD)
        partial = x_TD.new_empty(min(PARTS, rows), 2, width, dtype=torch.float32)
        tensors = (x_TD, residual_TD, weight_D, moments_T2, grads[0].contiguous(), grad_x_TD, grad_residual_TD, partial)
        noise = _noise(ctx.dropout, x_TD, rows, width)
        block = triton.next_power_of_2(width)
        _norm_backward[(len(partial),)](*tensors, *noise, DROPOUT=ctx.dropout is not None, BLOCK=block)
        grad_weight_D, grad_bias_D = partial.sum(0).to(weight_D.dtype).unbind(0)
        return grad_x_TD, grad_residual_TD, grad_weight_D, grad_bias_D, None, None
