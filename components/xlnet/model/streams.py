"""Two-stream attention over a factorisation order, with memory: one formula, several implementations.

Source: Yang et al. 2019 (XLNet), sections 2.2 to 2.4. A text's content tokens know what they are; its query tokens
know only where they are, and predict. Both attend to the same keys: the memory of earlier segments, then the content.
The score of a query and a key is that of :mod:`xlnet.model.attention`; which keys a query sees follows from two small
integers: query i sees key j if ``order[j] <= sees[i]``. So no [L, L] mask is stored.

Shapes: B texts of L content tokens and P predicted positions, Q = L + P queries, M memory tokens, K = M + L keys,
R = L + K distances, N heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from xlnet.errors import RunError, UserError
from xlnet.model.dropout import Dropout
from xlnet.model.positions import Positions

IMPLEMENTATIONS = ("auto", "reference", "dense")
NEVER = 2**30  # the order of padding: no token of a text sees it


class Sight(NamedTuple):
    """Where each query is, and what it sees.

    Attributes:
        place_BQ: each query's place in its text: int64, from 0; the first L queries are the content, in order.
        sees_BQ: the highest order that each query sees: int32.
        order_BK: each key's order: int32; memory first.
        length: L.
    """

    place_BQ: Tensor
    sees_BQ: Tensor
    order_BK: Tensor
    length: int

    @classmethod
    def of(cls, order_BL: Tensor, place_BP: Tensor, memory: int = 0) -> "Sight":
        """Make the sight of both streams.

        Args:
            order_BL: each content token's place in the factorisation order: int32; equal numbers see each other, -1
                is seen by all, and padding is :data:`NEVER`.
            place_BP: places to predict: int64. A query sees only what comes before its own token in the order.
            memory: M; every token sees all memory.
        """
        texts, length = order_BL.shape
        place_BL = torch.arange(length, device=order_BL.device).expand(texts, length)
        before_BP = order_BL.gather(1, place_BP) - 1
        known_BM = order_BL.new_full((texts, memory), -(2**30))
        return cls(
            torch.cat([place_BL, place_BP], 1),
            torch.cat([order_BL, before_BP], 1),
            torch.cat([known_BM, order_BL], 1),
            length,
        )


class StreamSegments(NamedTuple):
    """Relative segments: attention depends only on whether query and key share a segment.

    Attributes:
        queries_BQ: each query's segment: int32.
        keys_BK: each key's segment; memory has 0, as in the released code.
        bias_NH: ``r_s_bias``, added to queries before their product with segment embeddings.
        embed_2NH: embedding of "same segment" (0) and "another segment" (1).
    """

    queries_BQ: Tensor
    keys_BK: Tensor
    bias_NH: Tensor
    embed_2NH: Tensor


def stream_attention(
    q_BQNH: Tensor,
    k_BKNH: Tensor,
    v_BKNH: Tensor,
    positions: Positions,
    segments: StreamSegments | None,
    sight: Sight,
    dropout: Dropout | None = None,
    impl: str = "auto",
) -> Tensor:
    """Compute the output of both streams' attention before the output projection.

    Args:
        q_BQNH: queries: the content's, then the predicted positions'.
        k_BKNH: keys: the memory's, then the content's.
        v_BKNH: values.
        positions: encodings of the distances from K down to 1 - L: [R, N, H].
        segments: None if the model is used without segments.
        sight: what each query sees; a query that sees no key gets zeros.
        dropout: which attention weights to drop; its row is query and head, its column is the key.
        impl: one of :data:`IMPLEMENTATIONS`.

    Returns:
        The output, [B, Q, N, H].

    Raises:
        UserError: the implementation is unknown or cannot run here.
        RunError: shapes do not match.
    """
    from xlnet.model.kernels import streams_dense, streams_reference

    _check(q_BQNH, k_BKNH, v_BKNH, positions, sight)
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"attention implementation is {impl!r}; allowed: {', '.join(IMPLEMENTATIONS)}")
    module = streams_reference if impl == "reference" else streams_dense
    return module.attention(q_BQNH, k_BKNH, v_BKNH, positions, segments, sight, dropout)


def _check(q_BQNH: Tensor, k_BKNH: Tensor, v_BKNH: Tensor, positions: Positions, sight: Sight) -> None:
    if k_BKNH.shape != v_BKNH.shape or q_BQNH.shape[2:] != k_BKNH.shape[2:] or len(q_BQNH) != len(k_BKNH):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BQNH, k_BKNH, v_BKNH))
        raise RunError(f"queries, keys and values do not match: {shapes}")
    if sight.place_BQ.shape != q_BQNH.shape[:2] or sight.order_BK.shape != k_BKNH.shape[:2]:
        raise RunError(
            f"the sight is of {tuple(sight.place_BQ.shape)} queries and {tuple(sight.order_BK.shape)} keys, and there "
            f"are {tuple(q_BQNH.shape[:2])} and {tuple(k_BKNH.shape[:2])}"
        )
    distances = sight.length + k_BKNH.shape[1]
    if len(positions.r_RNH) != distances:
        raise RunError(f"there are {len(positions.r_RNH):,} distances; {distances:,} are needed")
