"""The reference attention, one text at a time; all other implementations are tested against it.

Shapes: see :mod:`xlnet.model.attention`; here L is the length of one text.
"""

import math

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import AttentionInputs
from xlnet.model.positions import by_key


def attention(given: AttentionInputs) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`."""
    q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout = given
    scale = 1 / math.sqrt(q_TNH.shape[-1])
    texts = []
    for start, end in layout.spans:
        q_NLH, k_NLH, v_NLH = (x[start:end].transpose(0, 1) for x in (q_TNH, k_TNH, v_TNH))
        r_NRH = positions.of_length(end - start).transpose(0, 1)
        scores = (q_NLH + positions.content_bias_NH[:, None]) @ k_NLH.mT
        scores = scores + by_key((q_NLH + positions.position_bias_NH[:, None]) @ r_NRH.mT)
        if segments is not None:
            ids_L = segments.ids_T[start:end]
            by_segment = (q_NLH + segments.bias_NH[:, None]) @ segments.embed_2NH.permute(1, 2, 0)
            scores = scores + torch.where(ids_L[:, None] == ids_L, by_segment[..., :1], by_segment[..., 1:])
        weights_NLL = (scores * scale).softmax(-1)
        if dropout is not None:
            weights_NLL = weights_NLL * _keep(dropout, start, weights_NLL) * dropout.scale
        texts.append((weights_NLL @ v_NLH).transpose(0, 1))
    return torch.cat(texts)


def _keep(dropout: Dropout, start: int, weights_NLL: Tensor) -> Tensor:
    """Return the mask. Its row is the query's token and head; its column is the key's place in the text."""
    heads, length, _ = weights_NLL.shape
    token_L = torch.arange(start, start + length, device=weights_NLL.device)
    rows = token_L[:, None] * heads + torch.arange(heads, device=weights_NLL.device)[:, None, None]
    return dropout.keep(rows, torch.arange(length, device=weights_NLL.device))
