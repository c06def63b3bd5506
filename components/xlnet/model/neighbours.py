"""Starts a pretraining from nothing with attention that looks at each token's neighbours.

With the usual small random weights every token attends to all others alike. A language model then learns how frequent
each token is, and stays there for thousands of updates, because nothing says which of a hundred tokens is worth looking
at. Here each head of the first layer attends to one distance from the start: the token before, the token after, the
second before, and so on. In XLNet, a fixed vector (``r_r_bias``) times the projected encoding of a distance is the part
of the score that depends on the distance alone, so one coordinate of each head suffices. Only the weights' first values
change: the architecture stays the same, and training may change every weight.
"""

import math

import torch
from torch import Tensor

from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.positions import distance_encoding

REACH = 128  # distances on both sides that the scores are fitted to
PEAK = 8.0  # the score of a head's own distance; others score about 0
STIFFNESS = 1.0  # of the fit: greater, and scores are smoother


@torch.no_grad()
def begin_neighbours(model: XLNetLanguageModel) -> None:
    """Change a new model's random weights as described above, without drawing a random number."""
    attention, config = model.transformer.layers()[0].rel_attn, model.config
    for head in range(config.n_head):
        distance = (head // 2 + 1) * (1 if head % 2 == 0 else -1)
        score_D = _scores(distance, config.d_model) * math.sqrt(config.d_head)
        length = float(score_D.norm())
        attention.r[:, head, 0] = score_D / math.sqrt(length)
        attention.r_r_bias[head, 0] = math.sqrt(length)


def _scores(distance: int, width: int) -> Tensor:
    """Return the vector whose product with a distance's encoding is PEAK at one distance, about 0 at others: [D]."""
    encoding_RD = distance_encoding(REACH, width, -1).double()
    wanted_R = torch.zeros(2 * REACH, dtype=torch.float64)
    wanted_R[REACH - distance] = PEAK
    square_DD = encoding_RD.T @ encoding_RD
    ridge_DD = STIFFNESS * torch.eye(width, dtype=torch.float64)
    found_D = torch.linalg.solve(square_DD + ridge_DD, encoding_RD.T @ wanted_R)
    return (found_D * PEAK / (encoding_RD[REACH - distance] @ found_D)).float()
