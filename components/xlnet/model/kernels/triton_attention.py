"""The Triton kernels of relative attention, after FlashAttention-2 (Dao 2023).

Scores by distance are a matrix product of queries and distances. Query i needs distance i - j at key j, so each row
is shifted by one column. A separate kernel computes these scores and stores each row aligned with its keys, so that
the attention kernel can read tiles. The backward pass stores the scores' gradients in the same place; two more kernels
read them by key and by distance. Every gradient has one writer, and no sum depends on timing.

Shapes: see :mod:`xlnet.model.attention`; M queries and K keys (or distances) of a tile, G groups of
texts. Rows of scores begin at multiples of P elements.
"""

import triton
import triton.language as tl

from xlnet.model.kernels.triton_turning import select, turn

# Sizes that change from batch to batch are not specialised, or Triton would compile a program for each divisor.
_jit = triton.jit(do_not_specialize=["longest", "tokens", "texts", "head", "threshold"])


@triton.jit
def _mix(x):
    """Mix the bits of a number as :mod:`xlnet.model.dropout` does, so that all implementations draw equal masks."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def kept(mask_key, rows, columns, threshold):
    """Return which elements dropout keeps, for broadcast rows and columns."""
    row_keys = _mix(mask_key + rows.to(tl.uint32))
    return _mix(row_keys + columns.to(tl.uint32) * 0x9E3779B9) >= threshold


@triton.jit
def _rows(base, stride, first, count, M: tl.constexpr, H: tl.constexpr):
    """Load M rows of a matrix from row ``first`` on; rows before 0 and from ``count`` on are zero."""
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
def _text(offsets, text):
    """Return a text's first token and its length."""
    first = tl.load(offsets + text)
    return first, tl.load(offsets + text + 1) - first


@triton.jit
def _block(blocks, starts, offsets, SIZE: tl.constexpr):
    """Return this program's text, its block's first token in the text, the text's first token, and its length."""
    text, start = tl.load(blocks + tl.program_id(0)), tl.load(starts + tl.program_id(0))
    first, length = _text(offsets, text)
    return text, tl.multiple_of(start, SIZE), first, length  # or scores would be read one by one


@triton.jit
def _square(scores, squares, area, text, length, P: tl.constexpr):
    """Return where the text's scores for this program's head begin, and the row stride in elements."""
    base = scores + tl.program_id(1).to(tl.int64) * area + tl.multiple_of(tl.load(squares + text), P)
    return base, tl.cdiv(length, P) * P


@triton.jit
def _by_distance(square, pitch, i, ahead, length, K: tl.constexpr):
    """Locate queries' scores at K distances, starting ``ahead`` keys ahead; return addresses, and which exist."""
    j = i[:, None] + (ahead + tl.arange(0, K))[None, :]
    there = (i < length)[:, None] & (j >= 0) & (j < length)
    return square + i[:, None].to(tl.int64) * pitch + j, there


@triton.jit
def _at_distances(x, distances, PRECISION: tl.constexpr, scale):
    """Compute queries' scores at the distances of a table's rows, in the type in which scores are stored."""
    found = tl.dot(x, tl.trans(distances), input_precision=PRECISION) * scale
    if PRECISION == "tf32":
        found = found.to(tl.float16)
    return found


@_jit
def prepare(
    q, content_bias, position_bias, segment_bias, change, q_content, q_position, by_segment, out, dout, deltas,
    q_row, tokens, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, SEGMENTS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Add the content and position biases to queries; compute what "another segment" adds to their scores.

    For the backward pass, also compute each query's sum of weights times their gradients.
    """
    m0, n, h = tl.program_id(0) * M, tl.program_id(1), tl.arange(0, H)
    i = m0 + tl.arange(0, M)
    x = _rows(q + n * H, q_row, m0, tokens, M, H).to(tl.float32)
    content = x + tl.load(content_bias + n * H + h).to(tl.float32)[None, :]
    position = x + tl.load(position_bias + n * H + h).to(tl.float32)[None, :]
    _put(q_content + n * H, N * H, m0, tokens, content, M, H)
    _put(q_position + n * H, N * H, m0, tokens, position, M, H)
    if SEGMENTS:
        biased = x + tl.load(segment_bias + n * H + h).to(tl.float32)[None, :]
        found = tl.sum(biased * tl.load(change + n * H + h).to(tl.float32)[None, :], 1) * scale
        tl.store(by_segment + n * tokens + i, found, mask=i < tokens)
    if BACKWARD:
        grad = _rows(dout + n * H, N * H, m0, tokens, M, H).to(tl.float32)
        delta = tl.sum(grad * _rows(out + n * H, N * H, m0, tokens, M, H).to(tl.float32), 1)
        tl.store(deltas + n * tokens + i, delta, mask=i < tokens)


@_jit
def position_scores(
    q_position, r, offsets, squares, blocks, starts, scores,
    area, longest, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    TURN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute what distances add to the scores of a block of queries, as exponents of two.

    They are stored by distance, or moved to their keys first if TURN, so that a row's scores are stored together.
    """
    n = head + tl.program_id(1)
    text, m0, first, length = _block(blocks, starts, offsets, M)
    square, pitch = _square(scores, squares, area, text, length, P)
    x = _rows(q_position + (first.to(tl.int64) * N + n) * H, N * H, m0, length, M, H)
    i = m0 + tl.arange(0, M)
    if TURN:
        row = longest - m0 + 1
        distances = _rows(r + n * H, N * H, row - M, 2 * longest, M, H)
        upper = _at_distances(x, distances, PRECISION, scale)
        for n0 in range(0, length, K):
            distances = _rows(r + n * H, N * H, row + n0, 2 * longest, M, H)
            lower = _at_distances(x, distances, PRECISION, scale)
            found = turn(select(upper, lower, K, 1), K, 1, False)
            line = square + i[:, None].to(tl.int64) * pitch
            tl.store(line + (n0 + tl.arange(0, K))[None, :], found, mask=(i < length)[:, None])
            upper = lower
        return
    # Distances from the block's last query to the text's first key, up to those from its first query to the last key.
    for ahead in range(1 - M - m0, length - m0, K):
        distances = _rows(r + n * H, N * H, longest + ahead, 2 * longest, K, H)
        found = tl.dot(x, tl.trans(distances), input_precision=PRECISION) * scale
        places, there = _by_distance(square, pitch, i, ahead, length, K)
        tl.store(places, found.to(scores.dtype.element_ty), mask=there)


@_jit
def forward(
    q_content, q_position, k, v, r, by_segment, ids, offsets, squares, blocks, starts, mask_key, scores, out, log_sums,
    k_row, v_row, area, longest, tokens, head, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, TURN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the attention output of a block of queries, and log₂ of the sums of the unnormalised weights.

    Scores by distance are read, or computed for each tile if TURN.
    """
    n = head + tl.program_id(1)
    text, m0, first, length = _block(blocks, starts, offsets, M)
    at = (first.to(tl.int64) * N + n) * H
    x = _rows(q_content + at, N * H, m0, length, M, H)
    i = m0 + tl.arange(0, M)
    k_head, v_head = k + first.to(tl.int64) * k_row + n * H, v + first.to(tl.int64) * v_row + n * H
    if TURN:
        by_place, row = _rows(q_position + at, N * H, m0, length, M, H), longest - m0 + 1
        distances = _rows(r + n * H, N * H, row - M, 2 * longest, M, H)
        upper = _at_distances(by_place, distances, PRECISION, scale)
    else:
        square, pitch = _square(scores, squares, area, text, length, P)
        line = square + i[:, None].to(tl.int64) * pitch
    if SEGMENTS:
        segment = tl.load(by_segment + n * tokens + first + i, mask=i < length, other=0.0)
        mine = tl.load(ids + first + i, mask=i < length, other=0)
    if DROPOUT:
        key = tl.load(mask_key).to(tl.uint32)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    attended = tl.zeros([M, H], tl.float32)
    for n0 in range(0, length, K):
        j = n0 + tl.arange(0, K)
        keys = _rows(k_head, k_row, n0, length, K, H)
        if TURN:
            distances = _rows(r + n * H, N * H, row + n0, 2 * longest, M, H)
            lower = _at_distances(by_place, distances, PRECISION, scale)
            found = turn(select(upper, lower, K, 1), K, 1, False).to(tl.float32)
            upper = lower
        else:
            found = tl.load(line + j[None, :], mask=(i < length)[:, None], other=0.0).to(tl.float32)
        found += tl.dot(x, tl.trans(keys), input_precision=PRECISION) * scale
        if SEGMENTS:
            theirs = tl.load(ids + first + j, mask=j < length, other=0)
            found += tl.where(mine[:, None] != theirs[None, :], segment[:, None], 0.0)
        found = tl.where((j < length)[None, :], found, float("-inf"))
        highest = tl.maximum(top, tl.max(found, 1))
        weights = tl.exp2(found - highest[:, None])
        shrink = tl.exp2(top - highest)
        total = total * shrink + tl.sum(weights, 1)
        top = highest
        if DROPOUT:
            weights = tl.where(kept(key, ((first + i) * N + n)[:, None], j[None, :], threshold), weights, 0.0)
        values = _rows(v_head, v_row, n0, length, K, H)
        attended = attended * shrink[:, None]
        attended += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    attended = attended * (drop_scale / total)[:, None]
    _put(out + at, N * H, m0, length, attended, M, H)
    tl.store(log_sums + n * tokens + first + i, top + tl.log2(total), mask=i < length)


@_jit
def backward_keys(
    q_content, q_position, k, v, r, by_segment, ids, offsets, squares, blocks, starts, mask_key, dout, log_sums, deltas,
    scores, dscores, dk, dv,
    k_row, v_row, area, longest, tokens, head, scale, threshold, drop_scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, TURN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute gradients of a block of keys and values, and store the scores' gradients. Tiles are [K, M].

    Scores by distance are read from where the gradients go, or computed for each tile if TURN.
    """
    n = head + tl.program_id(1)
    text, n0, first, length = _block(blocks, starts, offsets, K)
    square, pitch = _square(scores, squares, area, text, length, P)
    d_square, _ = _square(dscores, squares, area, text, length, P)
    k_head, v_head = k + first.to(tl.int64) * k_row + n * H, v + first.to(tl.int64) * v_row + n * H
    at = (first.to(tl.int64) * N + n) * H
    keys, values = _rows(k_head, k_row, n0, length, K, H), _rows(v_head, v_row, n0, length, K, H)
    j = n0 + tl.arange(0, K)
    if SEGMENTS:
        theirs = tl.load(ids + first + j, mask=j < length, other=0)
    if DROPOUT:
        key = tl.load(mask_key).to(tl.uint32)
    d_keys, d_values = tl.zeros([K, H], tl.float32), tl.zeros([K, H], tl.float32)
    for m0 in range(0, length, M):
        i = m0 + tl.arange(0, M)
        place = i[None, :].to(tl.int64) * pitch + j[:, None]
        x = _rows(q_content + at, N * H, m0, length, M, H)
        if TURN:
            by_place = _rows(q_position + at, N * H, m0, length, M, H)
            row = longest + n0 - m0 + 1
            distances = _rows(r + n * H, N * H, row - K, 2 * longest, K, H)
            upper = _at_distances(distances, by_place, PRECISION, scale)
            distances = _rows(r + n * H, N * H, row, 2 * longest, K, H)
            lower = _at_distances(distances, by_place, PRECISION, scale)
            found = turn(select(upper, lower, K, 0), K, 0, False).to(tl.float32)
        else:
            found = tl.load(square + place, mask=(i < length)[None, :], other=0.0).to(tl.float32)
        found += tl.dot(keys, tl.trans(x), input_precision=PRECISION) * scale
        if SEGMENTS:
            segment = tl.load(by_segment + n * tokens + first + i, mask=i < length, other=0.0)
            mine = tl.load(ids + first + i, mask=i < length, other=0)
            found += tl.where(mine[None, :] != theirs[:, None], segment[None, :], 0.0)
        log_sum = tl.load(log_sums + n * tokens + first + i, mask=i < length, other=float("inf"))
        weights = tl.exp2(tl.where((j < length)[:, None], found, float("-inf")) - log_sum[None, :])
        grad = _rows(dout + at, N * H, m0, length, M, H)
        grads = tl.dot(values, tl.trans(grad), input_precision=PRECISION)
        dropped = weights
        if DROPOUT:
            keep = kept(key, ((first + i) * N + n)[None, :], j[:, None], threshold)
            grads = tl.where(keep, grads * drop_scale, 0.0)
            dropped = tl.where(keep, weights * drop_scale, 0.0)
        d_values += tl.dot(dropped.to(grad.dtype), grad, input_precision=PRECISION)
        delta = tl.load(deltas + n * tokens + first + i, mask=i < length, other=0.0)
        d_found = (weights * (grads - delta[None, :])).to(x.dtype)
        tl.store(d_square + place, d_found, mask=(i < length)[None, :])
        d_keys += tl.dot(d_found, x, input_precision=PRECISION)
    _put(dk + first.to(tl.int64) * k_row + n * H, k_row, n0, length, d_keys * (scale / 1.4426950408889634), K, H)
    _put(dv + first.to(tl.int64) * v_row + n * H, v_row, n0, length, d_values, K, H)


@_jit
def backward_queries(
    q, k, r, segment_bias, change, ids, offsets, squares, blocks, starts, dscores, dq, partial,
    q_row, k_row, area, longest, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    SEGMENTS: tl.constexpr, TURN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute gradients of a block of queries, and its share of the biases' gradients (partial: [block, N, 4, H]).

    The scores' gradients are read once more by distance, or moved there for each tile if TURN.
    """
    n, block = head + tl.program_id(1), tl.program_id(0)
    text, m0, first, length = _block(blocks, starts, offsets, M)
    square, pitch = _square(dscores, squares, area, text, length, P)
    k_head = k + first.to(tl.int64) * k_row + n * H
    i = m0 + tl.arange(0, M)
    line = square + i[:, None].to(tl.int64) * pitch
    if SEGMENTS:
        mine = tl.load(ids + first + i, mask=i < length, other=0)
    d_content, d_position = tl.zeros([M, H], tl.float32), tl.zeros([M, H], tl.float32)
    d_segment = tl.zeros([M], tl.float32)
    if TURN:
        row, lower = longest - m0 + 1, tl.zeros([M, K], dscores.dtype.element_ty)
    for n0 in range(0, length, K):
        j = n0 + tl.arange(0, K)
        d_found = tl.load(line + j[None, :], mask=(i < length)[:, None], other=0.0)
        d_content += tl.dot(d_found, _rows(k_head, k_row, n0, length, K, H), input_precision=PRECISION)
        if TURN:
            turned = turn(d_found, K, 1, True)
            distances = _rows(r + n * H, N * H, row + n0 - K, 2 * longest, K, H)
            d_position += tl.dot(select(turned, lower, K, 1), distances, input_precision=PRECISION)
            lower = turned
        if SEGMENTS:
            theirs = tl.load(ids + first + j, mask=j < length, other=0)
            other = (mine[:, None] != theirs[None, :]) & (j < length)[None, :]
            d_segment += tl.sum(tl.where(other, d_found.to(tl.float32), 0.0), 1)
    if TURN:
        distances = _rows(r + n * H, N * H, row + (tl.cdiv(length, K) - 1) * K, 2 * longest, K, H)
        d_position += tl.dot(select(tl.zeros_like(lower), lower, K, 1), distances, input_precision=PRECISION)
    else:
        for ahead in range(1 - M - m0, length - m0, K):
            places, there = _by_distance(square, pitch, i, ahead, length, K)
            d_found = tl.load(places, mask=there, other=0.0)
            distances = _rows(r + n * H, N * H, longest + ahead, 2 * longest, K, H)
            d_position += tl.dot(d_found, distances, input_precision=PRECISION)
    factor = scale / 1.4426950408889634
    whole = (d_content + d_position) * factor
    h = tl.arange(0, H)
    to = partial + (block.to(tl.int64) * N + n) * 4 * H + h
    tl.store(to, tl.sum(d_content, 0) * factor)
    tl.store(to + H, tl.sum(d_position, 0) * factor)
    if SEGMENTS:
        x = _rows(q + first.to(tl.int64) * q_row + n * H, q_row, m0, length, M, H).to(tl.float32)
        biased = x + tl.load(segment_bias + n * H + h).to(tl.float32)[None, :]
        other = tl.load(change + n * H + h).to(tl.float32)
        d_segment = tl.where(i < length, d_segment * factor, 0.0)
        whole += d_segment[:, None] * other[None, :]
        tl.store(to + 2 * H, tl.sum(d_segment) * other)
        tl.store(to + 3 * H, tl.sum(d_segment[:, None] * biased, 0))
    _put(dq + first.to(tl.int64) * q_row + n * H, q_row, m0, length, whole, M, H)


@triton.jit
def _turned_tile(square, pitch, m0, n0, length, B: tl.constexpr):
    """Load the scores' gradients of a square tile, or zeros outside of the text, and move them to their distances."""
    i, j = m0 + tl.arange(0, B), n0 + tl.arange(0, B)
    there = (i < length) & (n0 >= 0) & (n0 < length)
    x = tl.load(square + i[:, None].to(tl.int64) * pitch + j[None, :], mask=there[:, None], other=0.0)
    return turn(x, B, 1, True)


@_jit
def backward_distances(
    q_position, offsets, squares, dscores, partial,
    area, texts, longest, head, scale,
    N: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
    TURN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of K adjacent distances from one group of texts (partial: [G, 2L, N, H]).

    The scores' gradients are read by distance. If TURN, square tiles of them are read and moved there; the first
    distance is then one at which a tile begins, and lies up to K before the table.
    """
    c0, group, groups = tl.program_id(0) * K, tl.program_id(2), tl.num_programs(2)
    n = head + tl.program_id(1)
    if TURN:  # tiles lie this far from the diagonal
        offset = (tl.program_id(0) - (longest + 1) // K) * K
        c0 = longest + 1 - K + offset
    ahead = c0 - longest
    d_distances = tl.zeros([K, H], tl.float32)
    for text in range(group, texts, groups):
        first, length = _text(offsets, text)
        square, pitch = _square(dscores, squares, area, text, length, P)
        # Queries that have a key at one of these distances.
        low = tl.maximum(1 - K - ahead, 0) // M * M
        high = tl.minimum(length - ahead, length)
        for m0 in range(low, high, M):
            if TURN:
                n0 = m0 + offset
                upper = _turned_tile(square, pitch, m0, n0, length, K)
                d_found = select(upper, _turned_tile(square, pitch, m0, n0 - K, length, K), K, 1)
            else:
                i = m0 + tl.arange(0, M)
                places, there = _by_distance(square, pitch, i, ahead, length, K)
                d_found = tl.load(places, mask=there, other=0.0)
            x = _rows(q_position + (first.to(tl.int64) * N + n) * H, N * H, m0, length, M, H)
            d_distances += tl.dot(tl.trans(d_found), x, input_precision=PRECISION)
    to = partial + (group.to(tl.int64) * 2 * longest * N + n) * H
    _put(to, N * H, c0, 2 * longest, d_distances * (scale / 1.4426950408889634), K, H)
