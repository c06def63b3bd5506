"""Dropout whose random numbers are cheap on a CPU.

torch draws one 64-bit Bernoulli variable per element there, in a single thread: a fifth of a small
model's step. Here one 64-bit draw decides four elements, 16 bits each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 1 << 16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero elements with this probability and scale the others so that the mean stays.

    On a CPU the probability is rounded to a multiple of 2^-16, and the scale fits the rounded one.
    Source: Srivastava et al. 2014.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = round(probability * _LEVELS)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = bits >= dropped - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
