"""Dropout, GELU with dropout, and layer norm of a residual plus dropout, with the CPU kernels of ``elementwise.cpp``.

All of them compute in float32. What comes from a matrix product and goes to the next one may be bfloat16 in memory; the
hidden states between layers are float32, also under autocast.

Shapes: T rows, D columns.
"""

from ctypes import c_float, c_int, c_long, c_uint32
from typing import Any

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels import build
from xlnet.model.kernels.native import floats, is_bfloat16, pointers

# Sums over rows are split into this many parts, independently of the number of threads.
PARTS = 32


def gelu_dropout(x_TD: Tensor, dropout: Dropout | None) -> Tensor:
    """See :func:`xlnet.model.fused.gelu_dropout`."""
    return _GeluDropout.apply(_loadable(x_TD), dropout)


def dropout_add_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None
) -> Tensor:
    """See :func:`xlnet.model.fused.dropout_add_norm`."""
    return _DropoutAddNorm.apply(_loadable(x_TD), *floats(residual_TD, weight_D, bias_D), eps, dropout)


def dropout(x_TD: Tensor, noise: Dropout) -> Tensor:
    """See :func:`xlnet.model.fused.dropout`."""
    return _Dropout.apply(x_TD.float(), noise)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, noise: Dropout) -> Tensor:
        ctx.noise = noise
        return _Dropout._apply(x_TD, noise)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropout._apply(grads[0], ctx.noise), None

    @staticmethod
    def _apply(x_TD: Tensor, noise: Dropout) -> Tensor:
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        build.library().dropout_rows(*pointers(x_TD, out_TD), *_sizes(x_TD), *_noise(noise))
        return out_TD


class _GeluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, dropout: Dropout | None) -> Tensor:
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        build.library().gelu_dropout_forward(*pointers(x_TD, out_TD), *_sizes(x_TD), *_noise(dropout), _halves(x_TD))
        ctx.save_for_backward(x_TD)
        ctx.dropout = dropout
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        grad_TD = grads[0].contiguous()
        out_TD = torch.empty_like(x_TD)
        arguments = (*pointers(x_TD, grad_TD, out_TD), *_sizes(x_TD), *_noise(ctx.dropout), _halves(x_TD))
        build.library().gelu_dropout_backward(*arguments)
        return out_TD, None


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
        out_TD, moments_T2 = torch.empty_like(residual_TD), residual_TD.new_empty(len(x_TD), 2)
        build.library().dropout_add_norm_forward(
            *pointers(x_TD, residual_TD, weight_D, bias_D, out_TD, moments_T2),
            *_sizes(x_TD),
            c_float(eps),
            *_noise(dropout),
            _halves(x_TD),
        )
        ctx.save_for_backward(x_TD, residual_TD, weight_D, moments_T2)
        ctx.dropout = dropout
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, residual_TD, weight_D, moments_T2 = ctx.saved_tensors
        grad_TD = grads[0].contiguous()
        grad_x_TD, grad_residual_TD = torch.empty_like(x_TD), torch.empty_like(residual_TD)
        partial = residual_TD.new_zeros(PARTS, 2, x_TD.shape[1])
        grad_2D = residual_TD.new_empty(2, x_TD.shape[1])
        build.library().dropout_add_norm_backward(
            *pointers(x_TD, residual_TD, weight_D, moments_T2, grad_TD, grad_x_TD, grad_residual_TD, partial),
            c_long(PARTS),
            *pointers(grad_2D),
            *_sizes(x_TD),
            *_noise(ctx.dropout),
            _halves(x_TD),
        )
        return grad_x_TD, grad_residual_TD, *grad_2D, None, None


def cross_entropy(logits_PV: Tensor, target_P: Tensor, factor_P: Tensor, smoothing: float) -> Tensor:
    """See :func:`xlnet.model.fused.cross_entropy`."""
    losses_P = torch.empty_like(factor_P)
    build.library().cross_entropy_rows(
        *pointers(logits_PV, target_P.contiguous(), factor_P.contiguous(), losses_P),
        *_sizes(logits_PV),
        c_float(smoothing),
        c_int(torch.get_num_threads()),
    )
    return losses_P


def adamw_rows(
    table_VD: Tensor,
    mean_VD: Tensor,
    square_VD: Tensor,
    seen_V: Tensor,
    gradient: Tensor,
    *,
    rate: float,
    decay: float,
    betas: tuple[float, float],
    epsilon: float,
    step: int,
    gradient_scale: float,
) -> None:
    """Update a table and its moments in place from a coalesced sparse gradient; ``step`` counts from 1."""
    rows_U = gradient.indices()[0]
    place_V = torch.full((len(table_VD),), -1, dtype=torch.int32)
    place_V[rows_U] = torch.arange(len(rows_U), dtype=torch.int32)
    values_UD = gradient.values().contiguous()
    corrections = [1 - beta**step for beta in betas]
    build.library().adamw_rows(
        *pointers(table_VD, mean_VD, square_VD, seen_V, place_V, values_UD),
        *_sizes(table_VD),
        *(c_float(x) for x in (rate, decay, *betas, epsilon, *corrections, gradient_scale)),
        c_int(torch.get_num_threads()),
    )


def transpose(x_TD: Tensor, with_sums: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return a bfloat16 matrix transposed, [D, T], and if asked for each column's sum: float32 [D]."""
    x_TD = x_TD.contiguous()
    out_DT = x_TD.new_empty(x_TD.shape[::-1])
    sums_D = torch.empty(x_TD.shape[1]) if with_sums else None
    build.library().transpose(*pointers(x_TD, out_DT, sums_D), *_sizes(x_TD), c_int(torch.get_num_threads()))
    return out_DT, sums_D


def round_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`xlnet.model.precision.quantised`."""
    x_TD = x_TD.contiguous()
    out_TD, scale_T = torch.empty_like(x_TD, dtype=torch.int8), x_TD.new_empty(len(x_TD))
    build.library().round_rows(*pointers(x_TD, out_TD, scale_T), *_sizes(x_TD), c_int(torch.get_num_threads()))
    return out_TD, scale_T


def scale_rows(y_TD: Tensor, scale_T: Tensor, bias_D: Tensor | None, gelu: bool) -> None:
    """Multiply each row by its scale, add the bias and apply GELU, in place."""
    rest = c_int(gelu), c_int(torch.get_num_threads())
    build.library().scale_rows(*pointers(y_TD, scale_T, bias_D), *_sizes(y_TD), *rest)


def _loadable(x: Tensor) -> Tensor:
    return x if is_bfloat16(x) else x.float()


def _sizes(x_TD: Tensor) -> list[c_long]:
    return [c_long(size) for size in x_TD.shape]


def _halves(x_TD: Tensor) -> c_int:
    return c_int(is_bfloat16(x_TD))


def _noise(dropout: Dropout | None) -> list[Any]:
    threads = c_int(torch.get_num_threads())
    if dropout is None:
        return [c_uint32(0), c_uint32(0), c_float(1), threads]
    return [c_uint32(int(dropout.key)), c_uint32(dropout.threshold), c_float(dropout.scale), threads]
