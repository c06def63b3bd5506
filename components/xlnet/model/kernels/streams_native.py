"""Two-stream attention with the compiled CPU kernels; ``streams.cpp`` explains the algorithm.

Shapes: see :mod:`xlnet.model.streams`.
"""

import ctypes
from ctypes import c_float, c_int, c_long, c_uint32, c_void_p
from typing import Any

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels import build
from xlnet.model.kernels.native import (
    GROUPS,
    bias_gradients,
    floats,
    obstacle,
    pointers,
    set_threads_and_dropout,
)
from xlnet.model.positions import Positions, by_token, empty_gradients
from xlnet.model.sight import Sight, StreamSegments

__all__ = ["attention", "obstacle"]


def attention(
    q_BQNH: Tensor,
    k_BKNH: Tensor,
    v_BKNH: Tensor,
    positions: Positions,
    segments: StreamSegments | None,
    sight: Sight,
    dropout: Dropout | None,
) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`. It computes in float32 for every input type."""
    queries_BQ, keys_BK, bias_NH, embed_2NH = segments or (None, None, None, None)
    tensors = floats(q_BQNH, k_BKNH, v_BKNH, *positions, bias_NH, embed_2NH)
    return _StreamAttention.apply(*tensors, queries_BQ, keys_BK, sight, dropout).to(q_BQNH.dtype)


class _Streams(ctypes.Structure):
    """``struct Streams`` of streams.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "k", "v", "r", "content_bias", "position_bias", "segment_bias")),
        *((name, c_void_p) for name in ("segment_embed", "query_segments", "key_segments", "place", "sees", "order")),
        *((name, c_long) for name in ("q_row", "k_row", "v_row")),
        *((name, c_long) for name in ("texts", "length", "queries", "keys", "heads", "width")),
        ("key", c_uint32),
        ("threshold", c_uint32),
        ("dropout_scale", c_float),
        ("threads", c_int),
    ]


class _StreamAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BQNH: Tensor,
        k_BKNH: Tensor,
        v_BKNH: Tensor,
        r_RNH: Tensor,
        content_bias_NH: Tensor,
        position_bias_NH: Tensor,
        segment_bias_NH: Tensor | None,
        embed_2NH: Tensor | None,
        queries_BQ: Tensor | None,
        keys_BK: Tensor | None,
        sight: Sight,
        dropout: Dropout | None,
    ) -> Tensor:
        shape = q_BQNH.shape
        rows = [by_token(x.flatten(0, 1)) for x in (q_BQNH, k_BKNH, v_BKNH)]
        rest = [r_RNH, content_bias_NH, position_bias_NH, segment_bias_NH, embed_2NH]
        tensors = [*rows, *(None if x is None else x.contiguous() for x in rest)]
        whole = (queries_BQ, keys_BK, None, sight.sees_BQ, sight.order_BK)
        numbers = [None if x is None else x.to(torch.int32).contiguous() for x in whole]
        numbers[2] = sight.place_BQ.contiguous()
        problem = _problem(tensors, numbers, sight.length, dropout)
        library = build.library()
        library.streams_floats.restype = c_long
        size = library.streams_floats(ctypes.byref(problem))
        r_panels, r_rows = q_BQNH.new_empty(size), q_BQNH.new_empty(size)
        out_BQNH = q_BQNH.new_empty(shape)
        log_sums_NBQ = q_BQNH.new_empty(shape[2], *shape[:2])
        library.streams_forward(ctypes.byref(problem), *pointers(r_panels, r_rows, out_BQNH, log_sums_NBQ))
        ctx.save_for_backward(*tensors, *numbers, r_panels, r_rows, log_sums_NBQ)
        ctx.length, ctx.dropout, ctx.texts = sight.length, dropout, shape[0]
        return out_BQNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, r_panels, r_rows, log_sums_NBQ = ctx.saved_tensors
        tensors, numbers = saved[:8], saved[8:]
        q, k, v, r_RNH, content_bias_NH, _, segment_bias_NH, _ = tensors
        problem = _problem(tensors, numbers, ctx.length, ctx.dropout)
        heads, width = q.shape[1:]
        groups = min(GROUPS, ctx.texts)
        (grad_q,), (grad_k, grad_v) = empty_gradients(q), empty_gradients(k, v)
        grad_r, grad_biases_4NH = torch.empty_like(r_RNH), content_bias_NH.new_empty(4, heads, width)
        partial_r = r_rows.new_zeros(groups * r_rows.numel())
        partial_biases = r_rows.new_zeros(groups, heads, 4, width)
        build.library().streams_backward(
            ctypes.byref(problem),
            *pointers(r_panels, r_rows, grads[0].contiguous(), log_sums_NBQ, grad_q, grad_k, grad_v, grad_r),
            *pointers(grad_biases_4NH),
            c_long(groups),
            *pointers(partial_r, partial_biases),
        )
        by_text = (x.unflatten(0, (ctx.texts, -1)) for x in (grad_q, grad_k, grad_v))
        biases = bias_gradients(grad_biases_4NH, segment_bias_NH is not None)
        return (*by_text, grad_r, *biases, None, None, None, None)


def _problem(
    tensors: list[Tensor | None], numbers: list[Tensor | None], length: int, dropout: Dropout | None
) -> _Streams:
    q, k, v = (x for x in tensors[:3] if x is not None)
    place_BQ = numbers[2]
    assert place_BQ is not None
    texts, queries = place_BQ.shape
    problem = _Streams(
        *pointers(*tensors, *numbers),
        *(x.stride(0) for x in (q, k, v)),
        *(texts, length, queries, len(k) // texts, *q.shape[1:]),
    )
    set_threads_and_dropout(problem, dropout)
    return problem
