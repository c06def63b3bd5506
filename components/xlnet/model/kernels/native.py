"""Relative attention with the compiled CPU kernels; ``attention.cpp`` explains the algorithm.

Shapes: see :mod:`xlnet.model.attention`; G groups of texts, X distances with room for whole blocks.
"""

import ctypes
from ctypes import c_float, c_int, c_long, c_uint32, c_void_p
from typing import Any

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels import build
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments, by_token, empty_gradients

LANES = 16  # the head width must be a multiple of the widest vector
# Each group of texts sums its gradients of distances in a separate buffer, so that the order of summation does not
# depend on the number of threads.
GROUPS = 4


def obstacle(device: str, dtype: str, head_width: int) -> str:
    """Return why it cannot run here; empty if it can."""
    if device != "cpu":
        return f"it is for the CPU, and the tensors are on {device}"
    if dtype == "torch.float64":
        return "it computes in float32, and the tensors are float64"
    if head_width % LANES:
        return f"heads must be a multiple of {LANES} wide, and these are {head_width}"
    try:
        build.library()
    except build.Unbuildable as error:
        return str(error)
    return ""


def attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    positions: Positions,
    segments: Segments | None,
    layout: Layout,
    dropout: Dropout | None,
) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`. It computes in float32 for every input type."""
    ids_T, bias_NH, embed_2NH = segments or (None, None, None)
    given = q_TNH, k_TNH, v_TNH
    tokens = given if is_bfloat16(q_TNH) else floats(*given)
    tensors = (*tokens, *floats(*positions, bias_NH, embed_2NH))
    return _Attention.apply(*tensors, ids_T, layout, dropout).to(q_TNH.dtype)


def is_bfloat16(x: Tensor) -> bool:
    """Whether the kernels read this tensor as bfloat16; they read all other types as float32."""
    return x.dtype == torch.bfloat16


def floats(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors in float32; None stays None."""
    return [None if x is None else x.float() for x in tensors]


class _Problem(ctypes.Structure):
    """``struct Problem`` of attention.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "k", "v", "r", "content_bias", "position_bias", "segment_bias")),
        *((name, c_void_p) for name in ("segment_embed", "segments", "offsets")),
        *((name, c_long) for name in ("q_row", "k_row", "v_row", "texts", "tokens", "heads", "width", "longest")),
        ("key", c_uint32),
        ("threshold", c_uint32),
        ("dropout_scale", c_float),
        ("threads", c_int),
    ]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_TNH: Tensor,
        k_TNH: Tensor,
        v_TNH: Tensor,
        r_RNH: Tensor,
        content_bias_NH: Tensor,
        position_bias_NH: Tensor,
        segment_bias_NH: Tensor | None,
        embed_2NH: Tensor | None,
        ids_T: Tensor | None,
        layout: Layout,
        dropout: Dropout | None,
    ) -> Tensor:
        q_TNH, k_TNH, v_TNH = (by_token(x) for x in (q_TNH, k_TNH, v_TNH))
        rest = [r_RNH, content_bias_NH, position_bias_NH, segment_bias_NH, embed_2NH]
        tensors = [q_TNH, k_TNH, v_TNH, *(None if x is None else x.contiguous() for x in rest)]
        tensors.append(None if ids_T is None else ids_T.to(torch.int32).contiguous())
        problem = _problem(tensors, layout, dropout)
        library = build.library()
        library.distances_floats.restype = c_long
        size = library.distances_floats(ctypes.byref(problem))
        r_panels, r_rows = r_RNH.new_empty(size), r_RNH.new_empty(size)
        out_TNH = q_TNH.new_empty(q_TNH.shape)
        log_sums_NT = r_RNH.new_empty(q_TNH.shape[1], q_TNH.shape[0])
        arguments = pointers(r_panels, r_rows, out_TNH, log_sums_NT)
        library.attention_forward(ctypes.byref(problem), *arguments, c_int(is_bfloat16(q_TNH)))
        ctx.save_for_backward(*tensors, r_panels, r_rows, log_sums_NT)
        ctx.layout, ctx.dropout = layout, dropout
        return out_TNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, r_panels, r_rows, log_sums_NT = ctx.saved_tensors
        q_TNH, k_TNH, v_TNH, r_RNH, content_bias_NH, _, segment_bias_NH, *_ = tensors
        problem = _problem(tensors, ctx.layout, ctx.dropout)
        heads, width = q_TNH.shape[1:]
        groups = min(GROUPS, problem.texts)
        grad_q, grad_k, grad_v = empty_gradients(q_TNH, k_TNH, v_TNH)
        grad_r, grad_biases_4NH = torch.empty_like(r_RNH), content_bias_NH.new_empty(4, heads, width)
        partial_r = r_RNH.new_zeros(groups * r_rows.numel())
        partial_biases = r_RNH.new_zeros(groups, heads, 4, width)
        build.library().attention_backward(
            ctypes.byref(problem),
            *pointers(r_panels, r_rows, grads[0].contiguous(), log_sums_NT, grad_q, grad_k, grad_v, grad_r),
            *pointers(grad_biases_4NH),
            c_long(groups),
            *pointers(partial_r, partial_biases),
            c_int(is_bfloat16(q_TNH)),
        )
        biases = bias_gradients(grad_biases_4NH, segment_bias_NH is not None)
        return grad_q, grad_k, grad_v, grad_r, *biases, None, None, None


def _problem(tensors: list[Tensor | None], layout: Layout, dropout: Dropout | None) -> _Problem:
    q_TNH, k_TNH, v_TNH = tensors[:3]
    assert q_TNH is not None
    assert k_TNH is not None
    assert v_TNH is not None
    assert tensors[3] is not None
    problem = _Problem(
        *pointers(*tensors),
        *pointers(layout.offsets_S1),
        q_TNH.stride(0),
        k_TNH.stride(0),
        v_TNH.stride(0),
        layout.texts,
        *q_TNH.shape,
        len(tensors[3]) // 2,
    )
    set_threads_and_dropout(problem, dropout)
    return problem


def set_threads_and_dropout(problem: Any, dropout: Dropout | None) -> None:
    """Set the fields that every attention's structure has: ``threads``, ``key``, ``threshold``, ``dropout_scale``."""
    problem.threads = torch.get_num_threads()
    problem.dropout_scale = 1.0
    if dropout is not None:
        problem.key, problem.threshold = int(dropout.key), dropout.threshold
        problem.dropout_scale = dropout.scale


def bias_gradients(grad_biases_4NH: Tensor, has_segments: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients of content, position and segment bias, [N, H], and of the segment embeddings, [2, N, H]."""
    content, position, segment, other = grad_biases_4NH
    return content, position, *((segment, torch.stack([-other, other])) if has_segments else (None, None))


def pointers(*tensors: Tensor | None) -> list[c_void_p]:
    """Return the addresses of tensors' data; null for None."""
    return [c_void_p(None if x is None else x.data_ptr()) for x in tensors]
