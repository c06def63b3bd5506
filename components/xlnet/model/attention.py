"""XLNet's two-part relative attention: content and distance, with segment agreement on top.

Source: Yang et al. 2019 (XLNet), sections 2.3 to 2.6; Dai et al. 2019 (Transformer-XL), section 3.3.
The score of query i for key j is::

    (q_i + r_w) · k_j  +  (q_i + r_r) · r_{i-j}  +  (q_i + r_s) · s_{ij}        (over √H)

with r the projected sinusoids of the distance i - j, and s one of two embeddings: same segment or not.

Shapes: B rows, L tokens, N heads, H head width, D model width, R = 2L distances (from L down to 1 - L),
M = B · L queries.
"""

import math

import torch
from torch import Tensor

from xlnet.model import dropout as noise


def distance_encoding(length: int, width: int, clamp_len: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids of the distances L, L-1, …, 1-L: float32 [R, D], sines first, then cosines.

    Source: Vaswani et al. 2017, section 3.5, in Transformer-XL's arrangement.
    """
    distance_R = torch.arange(length, -length, -1.0, device=device)
    if clamp_len > 0:
        distance_R = distance_R.clamp(-clamp_len, clamp_len)
    frequency = 1.0 / torch.pow(10_000, torch.arange(0, width, 2.0, device=device) / width)
    angle = torch.outer(distance_R, frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def by_key(scores_R: Tensor) -> Tensor:
    """Turn scores by distance into scores by key, without copying: [..., L, R] → [..., L, L].

    Key j stands at column L + j - i of query i's row. Read with rows of 2L - 1 instead of 2L, the
    same memory holds the wanted values one below the other.
    """
    length = scores_R.shape[-2]
    return scores_R.flatten(-2)[..., length:].unflatten(-1, (length, 2 * length - 1))[..., :length]


def relative_attention(
    q_BLNH: Tensor,
    k_BLNH: Tensor,
    v_BLNH: Tensor,
    r_RNH: Tensor,
    *,
    r_w_bias_NH: Tensor,
    r_r_bias_NH: Tensor,
    r_s_bias_NH: Tensor,
    seg_embed_2NH: Tensor,
    differs_BLL: Tensor,
    keys_BL: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention output before the output projection.

    Args:
        q_BLNH: queries.
        k_BLNH: keys.
        v_BLNH: values.
        r_RNH: projected distance encodings, shared by the batch.
        r_w_bias_NH: global content bias.
        r_r_bias_NH: global position bias.
        r_s_bias_NH: global segment bias.
        seg_embed_2NH: embedding of "same segment" (0) and "another segment" (1).
        differs_BLL: 1 where query and key are of different segments, in the scores' type.
        keys_BL: True for keys that may be seen; None: all of them.
        dropout: probability of dropping an attention weight.

    Returns:
        [B, L, N, H].
    """
    scale = 1 / math.sqrt(q_BLNH.shape[-1])
    q_NBLH = q_BLNH.permute(2, 0, 1, 3)
    content = torch.matmul(q_NBLH + r_w_bias_NH[:, None, None], k_BLNH.permute(2, 0, 3, 1))
    # One product per head over all rows of the batch: the distances are the same for each.
    q_r_NMH = (q_NBLH + r_r_bias_NH[:, None, None]).flatten(1, 2)
    by_distance = torch.matmul(q_r_NMH, r_RNH.permute(1, 2, 0)).unflatten(1, q_NBLH.shape[1:3])
    # Softmax ignores what is constant along a row, so "same segment" can be the zero of this term.
    other_N1H1 = (seg_embed_2NH[1] - seg_embed_2NH[0])[:, None, :, None]
    by_segment = torch.matmul(q_NBLH + r_s_bias_NH[:, None, None], other_N1H1)
    scores = (content + by_key(by_distance) + by_segment * differs_BLL) * scale
    if keys_BL is not None:
        scores = scores.masked_fill(~keys_BL[:, None, :], float("-inf"))
    weights = noise.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return torch.matmul(weights, v_BLNH.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)
