"""Says which keys each query of the two streams sees, and which segments queries and keys belong to.

Shapes: see :mod:`xlnet.model.streams`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = 2**30  # the order of padding: no token of a text sees it


class Visibility(NamedTuple):
    """Each query's place, and the keys that it sees: those whose order is not above its own limit.

    Attributes:
        place_BQ: each query's place in its text: int64, from 0; the first L queries are the content, in order.
        sees_BQ: the highest order that each query sees, its limit: int32.
        order_BK: each key's order: int32; memory first.
        length: L.
    """

    place_BQ: Tensor
    sees_BQ: Tensor
    order_BK: Tensor
    length: int

    @classmethod
    def of(cls, order_BL: Tensor, place_BP: Tensor, memory: int = 0) -> "Visibility":
        """Make the visibility of both streams.

        Args:
            order_BL: each content token's place in the factorisation order: int32. Tokens of equal order see each
                other, all tokens see those of order -1, and padding has the order :data:`NEVER`.
            place_BP: places to predict: int64. Their queries see only tokens that come before their own in the order.
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
