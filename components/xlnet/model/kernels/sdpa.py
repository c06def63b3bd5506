"""Relative attention with torch's scaled dot-product attention, which runs everywhere.

Position and segment scores become a bias. Texts of similar length are padded to one block, so that there is little
padding. torch's operator draws its own random numbers for dropout, and a recomputed layer would draw different ones.
So with dropout, the operator is written out and uses the mask that all implementations share.

Shapes: see :mod:`xlnet.model.attention`; here B texts of a block and L tokens of its longest text.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import AttentionInputs
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments, by_key

# A block takes more texts as long as at least this share of its query-key pairs is not padding.
MIN_REAL = 0.7


def attention(given: AttentionInputs) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`."""
    q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout = given
    pieces, places = [], []
    for texts in blocks(layout.lengths_S):
        token_BL, real_BL = _tokens(layout, texts, q_TNH.device)
        q_BNLH, k_BNLH, v_BNLH = (x[token_BL].transpose(1, 2) for x in (q_TNH, k_TNH, v_TNH))
        bias_BNLL = _bias(q_BNLH, positions, segments, token_BL)
        if real_BL is not None:
            bias_BNLL = bias_BNLL.masked_fill(~real_BL[:, None, None], float("-inf"))
        query_BNLH = q_BNLH + positions.content_bias_NH[:, None]
        if dropout is None:
            out_BNLH = F.scaled_dot_product_attention(query_BNLH, k_BNLH, v_BNLH, bias_BNLL)
        else:
            out_BNLH = _with_dropout(query_BNLH, k_BNLH, v_BNLH, bias_BNLL, token_BL, dropout)
        out_BLNH = out_BNLH.transpose(1, 2)
        pieces.append(out_BLNH.flatten(0, 1) if real_BL is None else out_BLNH[real_BL])
        places.append(token_BL.flatten() if real_BL is None else token_BL[real_BL])
    place = places[0] if len(places) == 1 else torch.cat(places)
    out_TNH = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return torch.empty_like(out_TNH).index_copy(0, place, out_TNH)


def _with_dropout(
    query_BNLH: Tensor, k_BNLH: Tensor, v_BNLH: Tensor, bias_BNLL: Tensor, token_BL: Tensor, dropout: Dropout
) -> Tensor:
    """Compute attention with dropout. The mask's row is the query's token and head; its column is the key's place."""
    heads, length = query_BNLH.shape[1:3]
    scores = query_BNLH @ k_BNLH.mT / math.sqrt(query_BNLH.shape[-1]) + bias_BNLL
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    rows = token_BL[:, None, :, None] * heads + torch.arange(heads, device=token_BL.device)[:, None, None]
    keep = dropout.keep(rows, torch.arange(length, device=token_BL.device))
    return torch.where(keep, weights * dropout.scale, 0.0).to(v_BNLH.dtype) @ v_BNLH


def _bias(q_BNLH: Tensor, positions: Positions, segments: Segments | None, token_BL: Tensor) -> Tensor:
    """Compute the scores by distance and by segment: [B, N, L, L]."""
    r_NRH = positions.of_length(token_BL.shape[1]).transpose(0, 1)
    bias = by_key((q_BNLH + positions.position_bias_NH[:, None]) @ r_NRH.mT)
    if segments is not None:
        # Softmax ignores a constant along a row, so this term can be zero for "same segment".
        other_NH1 = (segments.embed_2NH[1] - segments.embed_2NH[0])[..., None]
        ids_BL = segments.ids_T[token_BL]
        differs_B1LL = (ids_BL[:, None, :, None] != ids_BL[:, None, None, :]).to(bias.dtype)
        bias = bias + (q_BNLH + segments.bias_NH[:, None]) @ other_NH1 * differs_B1LL
    return bias / math.sqrt(q_BNLH.shape[-1])


def blocks(lengths_S: np.ndarray) -> list[np.ndarray]:
    """Group texts of similar length; return each block's text numbers."""
    order = np.argsort(lengths_S, kind="stable")
    cuts, start, real = [], 0, 0
    for i, length in enumerate(lengths_S[order].tolist()):
        real += length**2
        if real < MIN_REAL * (i - start + 1) * length**2:
            cuts.append(i)
            start, real = i, length**2
    return np.split(order, cuts)


def _tokens(layout: Layout, texts: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the block's token positions, padded with each text's first token, and which are real (None: all)."""
    lengths_B = layout.lengths_S[texts]
    starts_B = (np.cumsum(layout.lengths_S) - layout.lengths_S)[texts]
    column_L = np.arange(lengths_B.max())
    real_BL = column_L < lengths_B[:, None]
    token_BL = torch.from_numpy(starts_B[:, None] + np.where(real_BL, column_L, 0)).to(device)
    return token_BL, None if real_BL.all() else torch.from_numpy(real_BL).to(device)
