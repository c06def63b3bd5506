"""Moves scores between keys and distances within a tile, in Triton kernels.

The keys of a square tile of B queries and B keys lie at 2B - 1 distances: B adjacent rows of the table, and the next
B - 1. Each query needs the last of the former and the first of the latter, together as many as there are keys. So both
fit into one tile, in which each query's scores then only have to be turned, by one place more than those of the query
before.
"""

import triton
import triton.language as tl


@triton.jit
def select(upper, lower, B: tl.constexpr, AXIS: tl.constexpr):
    """Join each query's last distances of ``upper`` and its first of ``lower``; ``AXIS`` is that of the distances."""
    c, m = tl.arange(0, B)[None, :], tl.arange(0, B)[:, None]
    if AXIS == 0:
        c, m = tl.arange(0, B)[:, None], tl.arange(0, B)[None, :]
    return tl.where(c >= B - 1 - m, upper, lower)


@triton.jit
def turn(x, B: tl.constexpr, AXIS: tl.constexpr, BACK: tl.constexpr):
    """Turn each query's row of joined distances so that they lie at their keys, or back."""
    c, m = tl.arange(0, B)[None, :], tl.arange(0, B)[:, None]
    if AXIS == 0:
        c, m = tl.arange(0, B)[:, None], tl.arange(0, B)[None, :]
    if BACK:
        m = -2 - m
    return tl.gather(x, (c - m - 1) & (B - 1), AXIS)
