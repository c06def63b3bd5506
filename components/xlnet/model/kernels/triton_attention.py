"""Relative attention as Triton kernels, in the manner of FlashAttention-2 (Dao 2023).

Nothing of size length × length reaches memory. Scores by distance are computed in the tile: a tile of
M queries and M keys meets 2M distances, one product gives all M × 2M scores, and a gather along each row
picks, one column later per query, the M that belong to the keys. The backward pass has three kernels,
each recomputing the scores: one per block of queries, one per block of keys, and one per band of
distances, so that every gradient has one writer and no sum depends on the order of arrival.

Shapes: see :mod:`xlnet.model.attention`; M rows of a tile, G groups of texts.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments, by_token, room_for_gradients

GROUPS = 8  # texts share this many buffers for the gradients of distances, summed in order
LOG2E = 1.4426950408889634


@triton.jit
def _mix(x):
    """The hash of model/dropout.py."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def kept(mask_key, rows, columns, threshold):
    """Which elements survive: rows [M, 1], columns [1, M]."""
    row_keys = _mix(mask_key + rows.to(tl.uint32))
    return _mix(row_keys + columns.to(tl.uint32) * 0x9E3779B9) >= threshold


@triton.jit
def _rows(base, stride, first, count, M: tl.constexpr, H: tl.constexpr):
    """Rows ``first`` to ``first + M`` of a matrix; zero before 0 and from ``count`` on."""
    at = first + tl.arange(0, M)
    inside = (at >= 0) & (at < count)
    pointers = base + at[:, None].to(tl.int64) * stride + tl.arange(0, H)[None, :]
    return tl.load(pointers, mask=inside[:, None], other=0.0)


@triton.jit
def _put(base, stride, first, count, x, M: tl.constexpr, H: tl.constexpr):
    at = first + tl.arange(0, M)
    pointers = base + at[:, None].to(tl.int64) * stride + tl.arange(0, H)[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=((at >= 0) & (at < count))[:, None])


@triton.jit
def _by_key(by_distance, M: tl.constexpr):
    """[M, 2M] scores by distance to [M, M] by key: key j of query i stands at column j - i + M - 1."""
    i, j = tl.arange(0, M)[:, None], tl.arange(0, M)[None, :]
    return tl.gather(by_distance, j - i + (M - 1), axis=1)


@triton.jit
def _by_distance(by_key, M: tl.constexpr):
    """The transpose of :func:`_by_key`: [M, M] to [M, 2M], zero where a distance meets no key of the tile."""
    j = tl.arange(0, 2 * M)[None, :] + tl.arange(0, M)[:, None] - (M - 1)
    inside = (j >= 0) & (j < M)
    return tl.where(inside, tl.gather(by_key, tl.where(inside, j, 0), axis=1), 0.0)


@triton.jit
def _segment_scores(q, bias, change, H: tl.constexpr):
    """What "another segment" adds to each query's scores: [M]."""
    h = tl.arange(0, H)
    biased = q.to(tl.float32) + tl.load(bias + h).to(tl.float32)[None, :]
    return tl.sum(biased * tl.load(change + h).to(tl.float32)[None, :], 1)


@triton.jit
def _biased(x, bias, H: tl.constexpr):
    """Queries plus a head's bias, in the queries' type: what the products take."""
    return (x.to(tl.float32) + tl.load(bias + tl.arange(0, H)).to(tl.float32)[None, :]).to(x.dtype)


@triton.jit
def _scores(
    q_content, q_position, k, r_head, r_row, by_segment, ids, first, m0, n0, length, longest, scale,
    SEGMENTS: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Scores of queries m0… for keys n0…, as powers of two; -inf for keys behind the text's end."""
    scores = tl.dot(q_content, tl.trans(k), input_precision=PRECISION)
    r = _rows(r_head, r_row, longest + n0 - m0 - (M - 1), 2 * longest, 2 * M, H)
    scores += _by_key(tl.dot(q_position, tl.trans(r), input_precision=PRECISION), M)
    i, j = m0 + tl.arange(0, M), n0 + tl.arange(0, M)
    if SEGMENTS:
        mine = tl.load(ids + first + i, mask=i < length, other=0)
        theirs = tl.load(ids + first + j, mask=j < length, other=0)
        scores += tl.where(mine[:, None] != theirs[None, :], by_segment[:, None], 0.0)
    return tl.where((j < length)[None, :], scores * scale, float("-inf"))


@triton.jit
def _forward(
    q, k, v, r, content_bias, position_bias, segment_bias, change, ids, offsets, blocks, starts, mask_key, out,
    log_sums,
    q_row, k_row, v_row, tokens, longest, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    text, m0 = tl.load(blocks + tl.program_id(0)), tl.load(starts + tl.program_id(0))
    first = tl.load(offsets + text)
    length = tl.load(offsets + text + 1) - first
    x = _rows(q + first.to(tl.int64) * q_row + n * H, q_row, m0, length, M, H)
    q_content, q_position = _biased(x, content_bias + n * H, H), _biased(x, position_bias + n * H, H)
    by_segment = _segment_scores(x, segment_bias + n * H, change + n * H, H) if SEGMENTS else tl.zeros([M], tl.float32)
    i = m0 + tl.arange(0, M)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    attended = tl.zeros([M, H], tl.float32)
    for n0 in range(0, length, M):
        keys = _rows(k + first.to(tl.int64) * k_row + n * H, k_row, n0, length, M, H)
        scores = _scores(
            q_content, q_position, keys, r + n * H, N * H, by_segment, ids, first, m0, n0, length, longest, scale,
            SEGMENTS, PRECISION, M, H,
        )  # fmt: skip
        highest = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(top - highest)
        total = total * shrink + tl.sum(weights, 1)
        top = highest
        if DROPOUT:
            rows = ((first + i) * N + n)[:, None]
            columns = (n0 + tl.arange(0, M))[None, :]
            weights = tl.where(kept(tl.load(mask_key).to(tl.uint32), rows, columns, threshold), weights, 0.0)
        values = _rows(v + first.to(tl.int64) * v_row + n * H, v_row, n0, length, M, H)
        attended = attended * shrink[:, None]
        attended += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    attended = attended * (drop_scale / total)[:, None]
    _put(out + (first.to(tl.int64) * N + n) * H, N * H, m0, length, attended, M, H)
    tl.store(log_sums + n * tokens + first + i, top + tl.log2(total), mask=i < length)


@triton.jit
def _score_gradients(
    scores, log_sum, dout, values, delta, mask_key, rows, columns, threshold, drop_scale,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores (before their scale), and the weights after dropout."""
    weights = tl.exp2(scores - log_sum[:, None])
    grads = tl.dot(dout, tl.trans(values), input_precision=PRECISION)
    dropped = weights
    if DROPOUT:
        keep = kept(tl.load(mask_key).to(tl.uint32), rows, columns, threshold)
        grads = tl.where(keep, grads * drop_scale, 0.0)
        dropped = tl.where(keep, weights * drop_scale, 0.0)
    return weights * (grads - delta[:, None]), dropped


@triton.jit
def _backward_queries(
    q, k, v, r, content_bias, position_bias, segment_bias, change, ids, offsets, blocks, starts, mask_key,
    dout, log_sums, deltas, dq, partial,
    q_row, k_row, v_row, tokens, longest, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, and its share of the biases' (partial: [block, N, 4, H])."""
    n, block = tl.program_id(1), tl.program_id(0)
    text, m0 = tl.load(blocks + block), tl.load(starts + block)
    first = tl.load(offsets + text)
    length = tl.load(offsets + text + 1) - first
    x = _rows(q + first.to(tl.int64) * q_row + n * H, q_row, m0, length, M, H)
    q_content, q_position = _biased(x, content_bias + n * H, H), _biased(x, position_bias + n * H, H)
    by_segment = _segment_scores(x, segment_bias + n * H, change + n * H, H) if SEGMENTS else tl.zeros([M], tl.float32)
    i = m0 + tl.arange(0, M)
    grad = _rows(dout + (first.to(tl.int64) * N + n) * H, N * H, m0, length, M, H)
    log_sum = tl.load(log_sums + n * tokens + first + i, mask=i < length, other=float("inf"))
    delta = tl.load(deltas + n * tokens + first + i, mask=i < length, other=0.0)
    d_content, d_position = tl.zeros([M, H], tl.float32), tl.zeros([M, H], tl.float32)
    d_segment = tl.zeros([M], tl.float32)
    for n0 in range(0, length, M):
        keys = _rows(k + first.to(tl.int64) * k_row + n * H, k_row, n0, length, M, H)
        scores = _scores(
            q_content, q_position, keys, r + n * H, N * H, by_segment, ids, first, m0, n0, length, longest, scale,
            SEGMENTS, PRECISION, M, H,
        )  # fmt: skip
        values = _rows(v + first.to(tl.int64) * v_row + n * H, v_row, n0, length, M, H)
        j = n0 + tl.arange(0, M)
        dscores, _ = _score_gradients(
            scores, log_sum, grad, values, delta, mask_key, ((first + i) * N + n)[:, None], j[None, :],
            threshold, drop_scale, DROPOUT, PRECISION,
        )  # fmt: skip
        d_content += tl.dot(dscores.to(keys.dtype), keys, input_precision=PRECISION)
        distances = _rows(r + n * H, N * H, longest + n0 - m0 - (M - 1), 2 * longest, 2 * M, H)
        d_position += tl.dot(_by_distance(dscores, M).to(keys.dtype), distances, input_precision=PRECISION)
        if SEGMENTS:
            mine = tl.load(ids + first + i, mask=i < length, other=0)
            theirs = tl.load(ids + first + j, mask=j < length, other=0)
            d_segment += tl.sum(tl.where(mine[:, None] != theirs[None, :], dscores, 0.0), 1)
    factor = scale / 1.4426950408889634
    whole = (d_content + d_position) * factor
    h = tl.arange(0, H)
    to = partial + (block.to(tl.int64) * N + n) * 4 * H + h
    tl.store(to, tl.sum(d_content, 0) * factor)
    tl.store(to + H, tl.sum(d_position, 0) * factor)
    if SEGMENTS:
        other = tl.load(change + n * H + h).to(tl.float32)
        biased = x.to(tl.float32) + tl.load(segment_bias + n * H + h).to(tl.float32)[None, :]
        d_segment = tl.where(i < length, d_segment * factor, 0.0)
        whole += d_segment[:, None] * other[None, :]
        tl.store(to + 2 * H, tl.sum(d_segment) * other)
        tl.store(to + 3 * H, tl.sum(d_segment[:, None] * biased, 0))
    _put(dq + first.to(tl.int64) * q_row + n * H, q_row, m0, length, whole, M, H)


@triton.jit
def _backward_keys(
    q, k, v, r, content_bias, position_bias, segment_bias, change, ids, offsets, blocks, starts, mask_key,
    dout, log_sums, deltas, dk, dv,
    q_row, k_row, v_row, tokens, longest, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values."""
    n = tl.program_id(1)
    text, n0 = tl.load(blocks + tl.program_id(0)), tl.load(starts + tl.program_id(0))
    first = tl.load(offsets + text)
    length = tl.load(offsets + text + 1) - first
    keys = _rows(k + first.to(tl.int64) * k_row + n * H, k_row, n0, length, M, H)
    values = _rows(v + first.to(tl.int64) * v_row + n * H, v_row, n0, length, M, H)
    d_keys, d_values = tl.zeros([M, H], tl.float32), tl.zeros([M, H], tl.float32)
    for m0 in range(0, length, M):
        x = _rows(q + first.to(tl.int64) * q_row + n * H, q_row, m0, length, M, H)
        q_content, q_position = _biased(x, content_bias + n * H, H), _biased(x, position_bias + n * H, H)
        by_segment = tl.zeros([M], tl.float32)
        if SEGMENTS:
            by_segment = _segment_scores(x, segment_bias + n * H, change + n * H, H)
        i = m0 + tl.arange(0, M)
        scores = _scores(
            q_content, q_position, keys, r + n * H, N * H, by_segment, ids, first, m0, n0, length, longest, scale,
            SEGMENTS, PRECISION, M, H,
        )  # fmt: skip
        grad = _rows(dout + (first.to(tl.int64) * N + n) * H, N * H, m0, length, M, H)
        log_sum = tl.load(log_sums + n * tokens + first + i, mask=i < length, other=float("inf"))
        delta = tl.load(deltas + n * tokens + first + i, mask=i < length, other=0.0)
        dscores, dropped = _score_gradients(
            scores, log_sum, grad, values, delta, mask_key, ((first + i) * N + n)[:, None],
            (n0 + tl.arange(0, M))[None, :], threshold, drop_scale, DROPOUT, PRECISION,
        )  # fmt: skip
        d_values += tl.dot(tl.trans(dropped.to(grad.dtype)), grad, input_precision=PRECISION)
        d_keys += tl.dot(tl.trans(dscores.to(x.dtype)), q_content, input_precision=PRECISION)
    factor = scale / 1.4426950408889634
    _put(dk + first.to(tl.int64) * k_row + n * H, k_row, n0, length, d_keys * factor, M, H)
    _put(dv + first.to(tl.int64) * v_row + n * H, v_row, n0, length, d_values, M, H)


@triton.jit
def _backward_distances(
    q, k, v, r, content_bias, position_bias, segment_bias, change, ids, offsets, mask_key,
    dout, log_sums, deltas, partial,
    q_row, k_row, v_row, texts, tokens, longest, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a band of M distances from one group of texts (partial: [G, 2L, N, H]).

    Query i meets distance c at key i + c - L. The roles of the skew are exchanged: scores by distance are a
    plain product here, those by key are gathered.
    """
    c0, n, group, groups = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    distances = _rows(r + n * H, N * H, c0, 2 * longest, M, H)
    d_distances = tl.zeros([M, H], tl.float32)
    i, c = tl.arange(0, M)[:, None], tl.arange(0, M)[None, :]
    for text in range(group, texts, groups):
        first = tl.load(offsets + text)
        length = tl.load(offsets + text + 1) - first
        # Queries whose keys i + c - L lie within the text, for some distance of the band.
        low = tl.maximum(longest - c0 - M + 1, 0) // M * M
        high = tl.minimum(length + longest - c0, length)
        for m0 in range(low, high, M):
            x = _rows(q + first.to(tl.int64) * q_row + n * H, q_row, m0, length, M, H)
            q_content, q_position = _biased(x, content_bias + n * H, H), _biased(x, position_bias + n * H, H)
            k0 = m0 + c0 - longest  # key of the tile's first query at the band's first distance
            keys = _rows(k + first.to(tl.int64) * k_row + n * H, k_row, k0, length, 2 * M, H)
            values = _rows(v + first.to(tl.int64) * v_row + n * H, v_row, k0, length, 2 * M, H)
            grad = _rows(dout + (first.to(tl.int64) * N + n) * H, N * H, m0, length, M, H)
            scores = tl.gather(tl.dot(q_content, tl.trans(keys), input_precision=PRECISION), i + c, axis=1)
            scores += tl.dot(q_position, tl.trans(distances), input_precision=PRECISION)
            key, query = k0 + i + c, m0 + tl.arange(0, M)
            real = (key >= 0) & (key < length) & (query < length)[:, None]
            if SEGMENTS:
                by_segment = _segment_scores(x, segment_bias + n * H, change + n * H, H)
                mine = tl.load(ids + first + query, mask=query < length, other=0)
                theirs = tl.load(ids + first + key, mask=real, other=0)
                scores += tl.where(mine[:, None] != theirs, by_segment[:, None], 0.0)
            log_sum = tl.load(log_sums + n * tokens + first + query, mask=query < length, other=0.0)
            delta = tl.load(deltas + n * tokens + first + query, mask=query < length, other=0.0)
            weights = tl.where(real, tl.exp2(tl.where(real, scores * scale, 0.0) - log_sum[:, None]), 0.0)
            grads = tl.gather(tl.dot(grad, tl.trans(values), input_precision=PRECISION), i + c, axis=1)
            if DROPOUT:
                rows = ((first + query) * N + n)[:, None]
                keep = kept(tl.load(mask_key).to(tl.uint32), rows, key, threshold)
                grads = tl.where(keep, grads * drop_scale, 0.0)
            dscores = weights * (grads - delta[:, None])
            d_distances += tl.dot(tl.trans(dscores.to(x.dtype)), q_position, input_precision=PRECISION)
    to = partial + (group.to(tl.int64) * 2 * longest * N + n) * H
    _put(to, N * H, c0, 2 * longest, d_distances * (scale / 1.4426950408889634), M, H)


def attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    positions: Positions,
    segments: Segments | None,
    layout: Layout,
    dropout: Dropout | None,
) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`."""
    ids_T, bias_NH, embed_2NH = segments or (None, None, None)
    return _Attention.apply(q_TNH, k_TNH, v_TNH, *positions, bias_NH, embed_2NH, ids_T, layout, dropout)


def tile(width: int, forward: bool, capability: tuple[int, int]) -> tuple[int, int]:
    """Rows of a tile, and warps that share it.

    Chosen by what the compiler says for compute capability 8.0 and 9.0 in bfloat16: the largest tiles whose
    values stay in registers (or nearly so), not yet by timing.
    """
    if forward and width <= 64 and capability >= (9, 0):
        return 64, 8
    return 32, 4 if width <= 64 else 8


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
        # Without segments their places are filled with tensors that no kernel reads.
        change_NH = content_bias_NH if embed_2NH is None else embed_2NH[1] - embed_2NH[0]
        segment_bias = content_bias_NH if segment_bias_NH is None else segment_bias_NH
        ids = layout.offsets_S1 if ids_T is None else ids_T
        rest = (r_RNH, content_bias_NH, position_bias_NH, segment_bias, change_NH, ids)
        tensors = (q_TNH, k_TNH, v_TNH, *(x.contiguous() for x in rest))
        out_TNH = q_TNH.new_empty(q_TNH.shape)
        log_sums_NT = q_TNH.new_empty(q_TNH.shape[1], q_TNH.shape[0], dtype=torch.float32)
        launch = _Launch(layout, dropout, segments=embed_2NH is not None, like=q_TNH, forward=True)
        launch.over_blocks(_forward, *tensors, out=(out_TNH, log_sums_NT))
        ctx.save_for_backward(*tensors, out_TNH, log_sums_NT)
        ctx.layout, ctx.dropout, ctx.segments = layout, dropout, embed_2NH is not None
        return out_TNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_TNH, log_sums_NT = ctx.saved_tensors
        launch = _Launch(ctx.layout, ctx.dropout, ctx.segments, like=out_TNH, forward=False)
        grad_TNH = grads[0].contiguous()
        delta_NT = (grad_TNH.float() * out_TNH).sum(-1).t().contiguous()
        dq, dk, dv = room_for_gradients(*tensors[:3])
        partial_biases, partial_r = launch.buffers(len(tensors[3]))
        given = (grad_TNH, log_sums_NT, delta_NT)
        launch.over_blocks(_backward_queries, *tensors, out=(*given, dq, partial_biases))
        launch.over_blocks(_backward_keys, *tensors, out=(*given, dk, dv))
        launch.over_distances(_backward_distances, *tensors, out=(*given, partial_r))
        content, position, segment, other = partial_biases.sum(0).unbind(1)
        biases = (content, position, segment if launch.segments else None)
        embed = torch.stack([-other, other]) if launch.segments else None
        return dq, dk, dv, partial_r.sum(0).to(out_TNH.dtype), *biases, embed, None, None, None


class _Launch:
    """How the kernels of one attention are started: grid, tile, and the arguments that all share."""

    def __init__(self, layout: Layout, dropout: Dropout | None, segments: bool, like: Tensor, forward: bool) -> None:
        self.layout, self.segments, self.like = layout, segments, like
        self.heads, self.width = like.shape[1:]
        capability = torch.cuda.get_device_capability(like.device) if like.is_cuda else (8, 0)
        self.rows, self.warps = tile(self.width, forward, capability)
        self.key = layout.offsets_S1 if dropout is None else dropout.key
        self.threshold = dropout.threshold if dropout else 0
        self.scale = dropout.scale if dropout else 1.0
        self.texts, self.starts = _blocks(layout, self.rows)

    def over_blocks(self, kernel: Any, *tensors: Tensor, out: tuple[Tensor, ...]) -> None:
        """One program per block of a text's tokens and head."""
        grid = (len(self.texts), self.heads)
        tables = (self.layout.offsets_S1, self.texts, self.starts, self.key)
        kernel[grid](*tensors, *tables, *out, *self._strides(tensors), *self._scalars(tensors), **self._constants())

    def over_distances(self, kernel: Any, *tensors: Tensor, out: tuple[Tensor, ...]) -> None:
        """One program per band of distances, head and group of texts."""
        grid = (triton.cdiv(len(tensors[3]), self.rows), self.heads, len(out[-1]))
        tables = (self.layout.offsets_S1, self.key)
        scalars = (len(self.layout.lengths_S), *self._scalars(tensors))
        kernel[grid](*tensors, *tables, *out, *self._strides(tensors), *scalars, **self._constants())

    def buffers(self, distances: int) -> tuple[Tensor, Tensor]:
        """Room for the blocks' shares of the biases' gradients, and the groups' of the distances'."""
        groups = min(GROUPS, len(self.layout.lengths_S))
        biases = self.like.new_zeros(len(self.texts), self.heads, 4, self.width, dtype=torch.float32)
        r = self.like.new_empty(groups, distances, self.heads, self.width, dtype=torch.float32)
        return biases, r

    def _strides(self, tensors: tuple[Tensor, ...]) -> list[int]:
        return [x.stride(0) for x in tensors[:3]]

    def _scalars(self, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
        scale = LOG2E / self.width**0.5
        return self.layout.tokens, len(tensors[3]) // 2, scale, self.threshold, self.scale

    def _constants(self) -> dict[str, Any]:
        precision = "ieee" if self.like.dtype == torch.float32 else "tf32"
        constants = {"N": self.heads, "H": self.width, "M": self.rows, "PRECISION": precision}
        constants |= {"SEGMENTS": self.segments, "DROPOUT": self.threshold > 0}
        return constants | {"num_warps": self.warps, "num_stages": 2}


def _blocks(layout: Layout, rows: int) -> tuple[Tensor, Tensor]:
    """Text and first token within it of every block: int32 [blocks] each, made once per layout and tile."""
    kept = layout.__dict__.setdefault("_blocks", {})
    if rows not in kept:
        counts_S = -(-layout.lengths_S // rows)
        text = np.repeat(np.arange(len(counts_S)), counts_S)
        start = (np.arange(len(text)) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)) * rows
        device = layout.offsets_S1.device
        kept[rows] = tuple(torch.from_numpy(x.astype(np.int32)).to(device, non_blocking=True) for x in (text, start))
    return kept[rows]
