"""Two-stream attention with torch's operators alone: it runs on every device, and all shapes follow from [B, Q, K].

The content's scores by distance are read as a view. The few predicted positions gather theirs.

Shapes: see :mod:`xlnet.model.streams`.
"""

import math

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import TwoStreamInputs
from xlnet.model.visibility import Visibility

LOW = -1e30


def attention(given: TwoStreamInputs) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`."""
    q_BQNH, k_BKNH, v_BKNH, positions, segments, visibility, dropout = given
    width = q_BQNH.shape[-1]
    q_BNQH, k_BNKH, v_BNKH = (x.transpose(1, 2) for x in (q_BQNH, k_BKNH, v_BKNH))
    scores_BNQK = _by_place(q_BNQH + positions.position_bias_NH[:, None], positions.r_RNH, visibility)
    scores_BNQK = scores_BNQK + (q_BNQH + positions.content_bias_NH[:, None]) @ k_BNKH.mT
    if segments is not None:
        # Softmax ignores a constant along a row, so this term can be zero for "same segment".
        other_NH1 = (segments.embed_2NH[1] - segments.embed_2NH[0])[..., None]
        differs_B1QK = (segments.queries_BQ[:, None, :, None] != segments.keys_BK[:, None, None]).to(q_BQNH.dtype)
        scores_BNQK = scores_BNQK + (q_BNQH + segments.bias_NH[:, None]) @ other_NH1 * differs_B1QK
    hidden_B1QK = (visibility.order_BK[:, None] > visibility.sees_BQ[..., None])[:, None]
    scores_BNQK = (scores_BNQK * (1 / math.sqrt(width))).masked_fill(hidden_B1QK, LOW)
    weights_BNQK = scores_BNQK.softmax(-1, dtype=torch.promote_types(scores_BNQK.dtype, torch.float32))
    weights_BNQK = weights_BNQK.masked_fill(hidden_B1QK, 0.0)  # a query that sees nothing gets zeros, never its token
    if dropout is not None:
        weights_BNQK = torch.where(_keep(dropout, weights_BNQK), weights_BNQK * dropout.scale, 0.0)
    return (weights_BNQK.to(v_BNKH.dtype) @ v_BNKH).transpose(1, 2)


def _by_place(q_BNQH: Tensor, r_RNH: Tensor, visibility: Visibility) -> Tensor:
    """Compute the scores by distance, [B, N, Q, K]: key j of a query at place p has the distance of row L - p + j."""
    length, keys = visibility.length, visibility.order_BK.shape[1]
    by_distance_BNQR = q_BNQH @ r_RNH.permute(1, 2, 0)
    content = by_distance_BNQR[:, :, :length]
    # Read with rows of R - 1 elements instead of R, each key's scores are in one column.
    content = content.flatten(-2)[..., length:].unflatten(-1, (length, -1))[..., :keys] if length else content
    if q_BNQH.shape[2] == length:
        return content
    first_BP = length - visibility.place_BQ[:, length:]
    row_BPK = first_BP[..., None] + torch.arange(keys, device=q_BNQH.device)
    predicted = by_distance_BNQR[:, :, length:]
    predicted = predicted.gather(-1, row_BPK[:, None].expand(-1, predicted.shape[1], -1, -1))
    return torch.cat([content, predicted], 2)


def _keep(dropout: Dropout, weights_BNQK: Tensor) -> Tensor:
    texts, heads, queries, keys = weights_BNQK.shape
    device = weights_BNQK.device
    query_BQ = torch.arange(texts * queries, device=device).view(texts, 1, queries, 1)
    rows = query_BQ * heads + torch.arange(heads, device=device)[:, None, None]
    return dropout.keep(rows, torch.arange(keys, device=device))
