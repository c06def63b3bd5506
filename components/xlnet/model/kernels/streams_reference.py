"""The reference two-stream attention, one query at a time in the formula; others are tested against it.

Shapes: see :mod:`xlnet.model.streams`.
"""

import math

import torch
from torch import Tensor

from xlnet.model.inputs import TwoStreamInputs


def attention(given: TwoStreamInputs) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`."""
    q_BQNH, k_BKNH, v_BKNH, positions, segments, visibility, dropout = given
    texts, queries, heads, width = q_BQNH.shape
    keys = k_BKNH.shape[1]
    key_K = torch.arange(keys, device=q_BQNH.device)
    scores_BQNK = torch.einsum("bqnh,bknh->bqnk", q_BQNH + positions.content_bias_NH, k_BKNH)
    row_BQK = visibility.length - visibility.place_BQ[..., None] + key_K  # of the distance between query and key
    distances_BQKNH = positions.r_RNH[row_BQK]
    scores_BQNK = scores_BQNK + torch.einsum("bqnh,bqknh->bqnk", q_BQNH + positions.position_bias_NH, distances_BQKNH)
    if segments is not None:
        by_segment_BQN2 = torch.einsum("bqnh,snh->bqns", q_BQNH + segments.bias_NH, segments.embed_2NH)
        same_BQ1K = (segments.queries_BQ[..., None] == segments.keys_BK[:, None])[:, :, None]
        scores_BQNK = scores_BQNK + torch.where(same_BQ1K, by_segment_BQN2[..., :1], by_segment_BQN2[..., 1:])
    visible_BQ1K = (visibility.order_BK[:, None] <= visibility.sees_BQ[..., None])[:, :, None]
    weights_BQNK = (scores_BQNK / math.sqrt(width)).masked_fill(~visible_BQ1K, -1e30).softmax(-1)
    weights_BQNK = weights_BQNK * visible_BQ1K  # a query that sees nothing gets zeros
    if dropout is not None:
        rows = torch.arange(texts * queries * heads, device=q_BQNH.device).view(texts, queries, heads, 1)
        weights_BQNK = weights_BQNK * dropout.keep(rows, key_K) * dropout.scale
    return torch.einsum("bqnk,bknh->bqnh", weights_BQNK, v_BKNH)
