"""Relative attention over texts padded to one length, for compilers that generate their own kernels.

All shapes follow from [B, L], so a program that is compiled once serves every batch of this shape. The dropout mask
is that of the reference implementation, so losses are the same on every device.

Shapes: see :mod:`xlnet.model.attention`; here B texts of L tokens, including padding.
"""

import math

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import AttentionInputs
from xlnet.model.positions import by_key


def attention(given: AttentionInputs) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`. The layout must come from :meth:`Layout.padded`."""
    q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout = given
    texts, length = layout.texts, layout.longest
    q_BNLH, k_BNLH, v_BNLH = (x.unflatten(0, (texts, length)).transpose(1, 2) for x in (q_TNH, k_TNH, v_TNH))
    r_NRH = positions.of_length(length).transpose(0, 1)
    scores = (q_BNLH + positions.content_bias_NH[:, None]) @ k_BNLH.mT
    scores = scores + by_key((q_BNLH + positions.position_bias_NH[:, None]) @ r_NRH.mT)
    if segments is not None:
        # Softmax ignores a constant along a row, so this term can be zero for "same segment".
        other_NH1 = (segments.embed_2NH[1] - segments.embed_2NH[0])[..., None]
        ids_BL = segments.ids_T.view(texts, length)
        differs_B1LL = (ids_BL[:, None, :, None] != ids_BL[:, None, None, :]).to(scores.dtype)
        scores = scores + (q_BNLH + segments.bias_NH[:, None]) @ other_NH1 * differs_B1LL
    if layout.real_T is not None:
        scores = scores.masked_fill(~layout.real_T.view(texts, 1, 1, length), float("-inf"))
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = (scores * (1 / math.sqrt(q_TNH.shape[-1]))).softmax(-1, dtype=precise)
    if dropout is not None:
        weights = weights * _keep(dropout, weights) * dropout.scale
    return (weights.to(v_TNH.dtype) @ v_BNLH).transpose(1, 2).flatten(0, 1)


def _keep(dropout: Dropout, weights_BNLL: Tensor) -> Tensor:
    """Return the mask. Its row is the query's token and head; its column is the key's place in the text."""
    texts, heads, length, _ = weights_BNLL.shape
    device = weights_BNLL.device
    token_BL = torch.arange(texts * length, device=device).view(texts, 1, length, 1)
    rows = token_BL * heads + torch.arange(heads, device=device)[:, None, None]
    return dropout.keep(rows, torch.arange(length, device=device))
