"""Two-stream attention with the compiled CPU kernels; ``streams.cpp`` explains the algorithm.

Shapes: see :mod:`xlnet.model.streams`.
"""

import ctypes
from ctypes import c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import TwoStreamInputs
from xlnet.model.kernels import build
from xlnet.model.kernels.native import (
    SETTINGS,
    TENSORS,
    floats,
    obstacle,
    pointers,
    run_backward,
    run_forward,
    set_threads_and_dropout,
)
from xlnet.model.positions import by_token, empty_gradients

__all__ = ["attention", "obstacle"]


def attention(given: TwoStreamInputs) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`. It computes in float32 for every input type."""
    q_BQNH, k_BKNH, v_BKNH, positions, segments, visibility, dropout = given
    queries_BQ, keys_BK, bias_NH, embed_2NH = segments or (None, None, None, None)
    tensors = floats(q_BQNH, k_BKNH, v_BKNH, *positions, bias_NH, embed_2NH)
    return _StreamAttention.apply(*tensors, queries_BQ, keys_BK, visibility, dropout).to(q_BQNH.dtype)


class _Streams(ctypes.Structure):
    """``struct Streams`` of streams.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in (*TENSORS, "query_segments", "key_segments", "place", "sees", "order")),
        *((name, c_long) for name in ("q_row", "k_row", "v_row")),
        *((name, c_long) for name in ("texts", "length", "queries", "keys", "heads", "width")),
        *SETTINGS,
    ]


class _StreamAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        q_BQNH, k_BKNH, v_BKNH, *rest, queries_BQ, keys_BK, visibility, dropout = given
        shape = q_BQNH.shape
        rows = [by_token(x.flatten(0, 1)) for x in (q_BQNH, k_BKNH, v_BKNH)]
        tensors = [*rows, *(None if x is None else x.contiguous() for x in rest)]
        whole = (queries_BQ, keys_BK, None, visibility.sees_BQ, visibility.order_BK)
        numbers = [None if x is None else x.to(torch.int32).contiguous() for x in whole]
        numbers[2] = visibility.place_BQ.contiguous()
        problem = _problem(tensors, numbers, visibility.length, dropout)
        library = build.library()
        out_BQNH, *kept = run_forward(library.streams_floats, library.streams_forward, problem, tensors, shape)
        ctx.save_for_backward(*tensors, *numbers, *kept)
        ctx.length, ctx.dropout, ctx.texts = visibility.length, dropout, shape[0]
        return out_BQNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, r_panels, r_rows, log_sums_NBQ = ctx.saved_tensors
        tensors, numbers = saved[:8], saved[8:]
        problem = _problem(tensors, numbers, ctx.length, ctx.dropout)
        gradients = (*empty_gradients(tensors[0]), *empty_gradients(*tensors[1:3]))
        kept = (r_panels, r_rows, log_sums_NBQ)
        rest = run_backward(build.library().streams_backward, problem, tensors, kept, grads[0], gradients)
        return (*(x.unflatten(0, (ctx.texts, -1)) for x in gradients), *rest, None, None, None, None)


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
