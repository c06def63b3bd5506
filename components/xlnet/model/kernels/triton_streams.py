"""The Triton kernels of two-stream attention with memory.

As in :mod:`~xlnet.model.kernels.triton_attention`, whose ``prepare`` serves here too, a kernel of its own computes the
scores by distance and stores each query's row aligned with its keys; a query's place says where its row begins. What
lies between the last key and the end of a row is read and never used, so that a row can be read in large pieces. Which
keys a query sees is decided in the kernels, by comparing orders. Every gradient has one writer.

Shapes: see :mod:`xlnet.model.streams`; M queries and K keys (or distances) of a tile, G groups of texts. Rows of
scores begin at multiples of P elements.
"""

import triton
import triton.language as tl

from xlnet.model.kernels.triton_attention import _put, _rows, kept

_jit = triton.jit(do_not_specialize=["length", "queries", "keys", "texts", "tokens", "head", "threshold"])
NOTHING = tl.constexpr(-(2**31))  # what rows behind the last query see
NEVER = tl.constexpr(2**31 - 1)  # the order of columns behind the last key


@triton.jit
def _block(count, SIZE: tl.constexpr):
    """Return this program's text and its block's first row in the text."""
    blocks = tl.cdiv(count, SIZE)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * SIZE


@triton.jit
def _by_distance(scores, pitch, token, place, inside, column, length, keys, K: tl.constexpr):
    """Locate queries' scores at K distances, from row ``column`` of the table on: addresses, and which exist."""
    j = (place - length)[:, None] + (column + tl.arange(0, K))[None, :]
    there = inside[:, None] & (j >= 0) & (j < keys)
    return scores + token[:, None].to(tl.int64) * pitch + j, there


@triton.jit
def _band(place, inside, length, keys):
    """Return the first row of the table of distances that these queries need, and the one after the last."""
    low = length - tl.max(tl.where(inside, place, 0), 0)
    return low, length - tl.min(tl.where(inside, place, length), 0) + keys


@triton.jit
def _aligned(pitch, P: tl.constexpr):
    """Return the same number; the compiler then knows that P divides it, and scores are not read one by one."""
    return pitch // P * P


@_jit
def position_scores(
    q_position, r, places, scores, area, length, queries, keys, pitch, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute what distances add to the scores of a block of queries, as exponents of two."""
    n = head + tl.program_id(1)
    text, m0 = _block(queries, M)
    i = m0 + tl.arange(0, M)
    inside, token = i < queries, text * queries + i
    place = tl.load(places + token, mask=inside, other=0)
    x = _rows(q_position + (text.to(tl.int64) * queries * N + n) * H, N * H, m0, queries, M, H)
    low, high = _band(place, inside, length, keys)
    base = scores + tl.program_id(1).to(tl.int64) * area
    for column in range(low, high, K):
        distances = _rows(r + n * H, N * H, column, length + keys, K, H)
        found = tl.dot(x, tl.trans(distances), input_precision=PRECISION) * scale
        addresses, there = _by_distance(base, pitch, token, place, inside, column, length, keys, K)
        tl.store(addresses, found.to(scores.dtype.element_ty), mask=there)


@_jit
def forward(
    q_content, k, v, by_segment, query_ids, key_ids, sees, order, mask_key, scores, out, log_sums,
    k_row, v_row, area, queries, keys, tokens, pitch, head, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the attention output of a block of queries, and log₂ of the sums of the unnormalised weights."""
    n = head + tl.program_id(1)
    text, m0 = _block(queries, M)
    i = m0 + tl.arange(0, M)
    inside, token = i < queries, text * queries + i
    at = (text.to(tl.int64) * queries * N + n) * H
    x = _rows(q_content + at, N * H, m0, queries, M, H)
    first = text.to(tl.int64) * keys
    k_head, v_head = k + first * k_row + n * H, v + first * v_row + n * H
    line = scores + tl.program_id(1).to(tl.int64) * area + token[:, None].to(tl.int64) * _aligned(pitch, P)
    mine = tl.load(sees + token, mask=inside, other=NOTHING)
    if SEGMENTS:
        segment = tl.load(by_segment + n * tokens + token, mask=inside, other=0.0)
        my_id = tl.load(query_ids + token, mask=inside, other=0)
    if DROPOUT:
        key = tl.load(mask_key).to(tl.uint32)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    attended = tl.zeros([M, H], tl.float32)
    for n0 in range(0, keys, K):
        j = n0 + tl.arange(0, K)
        found = tl.load(line + j[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        found += tl.dot(x, tl.trans(_rows(k_head, k_row, n0, keys, K, H)), input_precision=PRECISION) * scale
        if SEGMENTS:
            their_id = tl.load(key_ids + first + j, mask=j < keys, other=0)
            found += tl.where(my_id[:, None] != their_id[None, :], segment[:, None], 0.0)
        theirs = tl.load(order + first + j, mask=j < keys, other=NEVER)
        found = tl.where(theirs[None, :] <= mine[:, None], found, float("-inf"))
        highest = tl.maximum(top, tl.max(found, 1))
        level = tl.where(highest == float("-inf"), 0.0, highest)  # of a query that has seen nothing so far
        weights = tl.exp2(found - level[:, None])
        shrink = tl.exp2(top - level)
        total = total * shrink + tl.sum(weights, 1)
        top = highest
        if DROPOUT:
            weights = tl.where(kept(key, (token * N + n)[:, None], j[None, :], threshold), weights, 0.0)
        values = _rows(v_head, v_row, n0, keys, K, H)
        attended = attended * shrink[:, None]
        attended += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    attended = attended * tl.where(blind, 0.0, drop_scale / total)[:, None]
    _put(out + at, N * H, m0, queries, attended, M, H)
    tl.store(log_sums + n * tokens + token, tl.where(blind, float("inf"), top + tl.log2(total)), mask=inside)


@_jit
def backward_keys(
    q_content, k, v, by_segment, query_ids, key_ids, sees, order, mask_key, dout, log_sums, deltas,
    scores, dscores, dk, dv,
    k_row, v_row, area, queries, keys, tokens, pitch, head, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute gradients of a block of keys and values; the scores' gradients replace the scores. Tiles are [K, M]."""
    n = head + tl.program_id(1)
    text, n0 = _block(keys, K)
    first, at = text.to(tl.int64) * keys, (text.to(tl.int64) * queries * N + n) * H
    our_keys = _rows(k + first * k_row + n * H, k_row, n0, keys, K, H)
    values = _rows(v + first * v_row + n * H, v_row, n0, keys, K, H)
    j = n0 + tl.arange(0, K)
    theirs = tl.load(order + first + j, mask=j < keys, other=NEVER)
    if SEGMENTS:
        their_id = tl.load(key_ids + first + j, mask=j < keys, other=0)
    if DROPOUT:
        key = tl.load(mask_key).to(tl.uint32)
    square = tl.program_id(1).to(tl.int64) * area
    d_keys, d_values = tl.zeros([K, H], tl.float32), tl.zeros([K, H], tl.float32)
    for m0 in range(0, queries, M):
        i = m0 + tl.arange(0, M)
        inside, token = i < queries, text * queries + i
        at_pairs = square + token[None, :].to(tl.int64) * _aligned(pitch, P) + j[:, None]
        x = _rows(q_content + at, N * H, m0, queries, M, H)
        found = tl.load(scores + at_pairs, mask=inside[None, :], other=0.0).to(tl.float32)
        found += tl.dot(our_keys, tl.trans(x), input_precision=PRECISION) * scale
        if SEGMENTS:
            segment = tl.load(by_segment + n * tokens + token, mask=inside, other=0.0)
            my_id = tl.load(query_ids + token, mask=inside, other=0)
            found += tl.where(my_id[None, :] != their_id[:, None], segment[None, :], 0.0)
        mine = tl.load(sees + token, mask=inside, other=NOTHING)
        log_sum = tl.load(log_sums + n * tokens + token, mask=inside, other=float("inf"))
        weights = tl.exp2(tl.where(theirs[:, None] <= mine[None, :], found, float("-inf")) - log_sum[None, :])
        grad = _rows(dout + at, N * H, m0, queries, M, H)
        grads = tl.dot(values, tl.trans(grad), input_precision=PRECISION)
        dropped = weights
        if DROPOUT:
            keep = kept(key, (token * N + n)[None, :], j[:, None], threshold)
            grads = tl.where(keep, grads * drop_scale, 0.0)
            dropped = tl.where(keep, weights * drop_scale, 0.0)
        d_values += tl.dot(dropped.to(grad.dtype), grad, input_precision=PRECISION)
        delta = tl.load(deltas + n * tokens + token, mask=inside, other=0.0)
        d_found = (weights * (grads - delta[None, :])).to(x.dtype)
        tl.store(dscores + at_pairs, d_found, mask=inside[None, :])  # and zeros up to the end of the row
        d_keys += tl.dot(d_found, x, input_precision=PRECISION)
    _put(dk + first * k_row + n * H, k_row, n0, keys, d_keys * (scale / 1.4426950408889634), K, H)
    _put(dv + first * v_row + n * H, v_row, n0, keys, d_values, K, H)


@_jit
def backward_queries(
    q, k, r, segment_bias, change, query_ids, key_ids, places, dscores, dq, partial,
    q_row, k_row, area, length, queries, keys, pitch, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute gradients of a block of queries, and its share of the biases' gradients (partial: [block, N, 4, H])."""
    n, block = head + tl.program_id(1), tl.program_id(0)
    text, m0 = _block(queries, M)
    i = m0 + tl.arange(0, M)
    inside, token = i < queries, text * queries + i
    place = tl.load(places + token, mask=inside, other=0)
    first = text.to(tl.int64) * keys
    base = dscores + tl.program_id(1).to(tl.int64) * area
    line = base + token[:, None].to(tl.int64) * _aligned(pitch, P)
    if SEGMENTS:
        my_id = tl.load(query_ids + token, mask=inside, other=0)
    d_content, d_position = tl.zeros([M, H], tl.float32), tl.zeros([M, H], tl.float32)
    d_segment = tl.zeros([M], tl.float32)
    for n0 in range(0, keys, K):
        j = n0 + tl.arange(0, K)
        d_found = tl.load(line + j[None, :], mask=inside[:, None], other=0.0)
        d_content += tl.dot(d_found, _rows(k + first * k_row + n * H, k_row, n0, keys, K, H), input_precision=PRECISION)
        if SEGMENTS:
            their_id = tl.load(key_ids + first + j, mask=j < keys, other=0)
            other = (my_id[:, None] != their_id[None, :]) & (j < keys)[None, :]
            d_segment += tl.sum(tl.where(other, d_found.to(tl.float32), 0.0), 1)
    low, high = _band(place, inside, length, keys)
    for column in range(low, high, K):
        addresses, there = _by_distance(base, pitch, token, place, inside, column, length, keys, K)
        d_found = tl.load(addresses, mask=there, other=0.0)
        distances = _rows(r + n * H, N * H, column, length + keys, K, H)
        d_position += tl.dot(d_found, distances, input_precision=PRECISION)
    factor = scale / 1.4426950408889634
    d_content, d_position, d_segment = d_content * factor, d_position * factor, d_segment * factor
    total = d_content + d_position
    h = tl.arange(0, H)
    to = partial + (block.to(tl.int64) * N + n) * 4 * H + h
    tl.store(to, tl.sum(d_content, 0))
    tl.store(to + H, tl.sum(d_position, 0))
    at = text.to(tl.int64) * queries * q_row + n * H
    if SEGMENTS:
        moved = d_segment[:, None] * tl.load(change + n * H + h).to(tl.float32)[None, :]
        total += moved
        tl.store(to + 2 * H, tl.sum(moved, 0))
        biased = _rows(q + at, q_row, m0, queries, M, H).to(tl.float32)
        biased += tl.load(segment_bias + n * H + h).to(tl.float32)[None, :]
        tl.store(to + 3 * H, tl.sum(d_segment[:, None] * biased, 0))
    _put(dq + at, q_row, m0, queries, total, M, H)


@triton.jit
def _distance_part(
    q_position, base, pitch, places, text, m0, end, column, length, queries, keys, n,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return what queries ``m0`` to ``end - 1`` of a tile add to the gradients of K distances."""
    i = m0 + tl.arange(0, M)
    inside, token = i < end, text * queries + i
    place = tl.load(places + token, mask=inside, other=0)
    addresses, there = _by_distance(base, pitch, token, place, inside, column, length, keys, K)
    d_found = tl.load(addresses, mask=there, other=0.0)
    x = _rows(q_position + (text.to(tl.int64) * queries * N + n) * H, N * H, m0, end, M, H)
    return tl.dot(tl.trans(d_found), x, input_precision=PRECISION)


@_jit
def backward_distances(
    q_position, places, dscores, partial, area, texts, length, queries, keys, pitch, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a group of texts' gradients of K distances (partial: [G, R, N, H])."""
    column, n = tl.program_id(0) * K, head + tl.program_id(1)
    group, groups = tl.program_id(2), tl.num_programs(2)
    base = dscores + tl.program_id(1).to(tl.int64) * area
    d_distances = tl.zeros([K, H], tl.float32)
    # Content queries that have a key at one of these distances.
    low = tl.maximum(length - column - K + 1, 0) // M * M
    high = tl.minimum(length - column + keys, length)
    for number in range(tl.cdiv(texts - group, groups)):
        text = group + number * groups
        for m0 in range(low, high, M):
            d_distances += _distance_part(
                q_position, base, pitch, places, text, m0, length, column, length, queries, keys, n,
                N, H, M, K, PRECISION,
            )  # fmt: skip
        for m0 in range(length, queries, M):
            d_distances += _distance_part(
                q_position, base, pitch, places, text, m0, queries, column, length, queries, keys, n,
                N, H, M, K, PRECISION,
            )  # fmt: skip
    to = partial + (group.to(tl.int64) * (length + keys) * N + n) * H
    _put(to, N * H, column, length + keys, d_distances * (scale / 1.4426950408889634), K, H)
