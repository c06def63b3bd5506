"""Starts a training of pairs from scratch with attention that finds each token in the other text.

Whether two texts mean the same depends on the tokens that they share. With the usual small random weights every token
attends to all others alike, and a few thousand labels do not teach it to find its equal. Here most heads of the first
layer do so from the start. Each of them reads its own slice of the hidden coordinates. Its queries and its keys equal
that slice, so equal tokens attract each other, more strongly across the texts than within one. Its output subtracts
what it finds. So a token that the other text also has loses these coordinates, any other token keeps them, and the
layers above read the difference. All other matrices start with a deviation of 1/√(inputs), so that the difference is
not lost on the way. Only the weights' first values change: the architecture stays the same, and training may change
every weight.
"""

import math

import torch

from xlnet.model.xlnet import RelativeAttention, XLNetClassifier

EMBEDDING = 0.1  # deviation of an embedding's coordinates
EQUAL = 6.0  # how much higher two equal tokens score than two different ones in the same text; e⁶ is 400 : 1
OTHER_TEXT = 8.0  # how much higher a token of the other text scores than one of the same text
SHARE = 0.75  # share of the heads that match, and the largest share of the hidden coordinates that they read
SEGMENT_BIAS = 8.0  # length of r_s_bias: the longer, the less a token's own query changes OTHER_TEXT


@torch.no_grad()
def begin_matching(model: XLNetClassifier) -> None:
    """Change a new model's random weights as described above, without drawing a random number.

    If a head is too wide for its slice of the coordinates, only the deviations change.
    """
    config, transformer = model.config, model.transformer
    usual = config.initializer_range
    for embedding in (transformer.word_embedding.weight, transformer.mask_emb):
        embedding.mul_(EMBEDDING / usual)
    wide, inner = 1 / math.sqrt(config.d_model), 1 / math.sqrt(config.d_inner)
    for layer in transformer.layers():
        for matrix in (layer.rel_attn.qkv, layer.rel_attn.o, layer.ff.layer_1.weight):
            matrix.mul_(wide / usual)
        layer.ff.layer_2.weight.mul_(inner / usual)
    model.sequence_summary.summary.weight.mul_(wide / usual)
    first = transformer.layers()[0].rel_attn
    for head in range(heads(config.d_model, config.n_head, config.d_head)):
        _match(first, head)


def heads(width: int, count: int, head_width: int) -> int:
    """Return how many of ``count`` heads match: at least one, unless a head is wider than all slices together."""
    return min(max(1, int(SHARE * count)), int(SHARE * width / head_width))


def _match(attention: RelativeAttention, head: int) -> None:
    model, _, _, width = attention.qkv.shape
    slice_DH = torch.zeros(model, width)
    slice_DH[head * width : (head + 1) * width] = torch.eye(width)
    # Two equal tokens have a product of width * EMBEDDING² on average, which attention divides by √width.
    scale = math.sqrt(EQUAL / (EMBEDDING**2 * math.sqrt(width)))
    attention.qkv[:, 0, head], attention.qkv[:, 1, head] = slice_DH * scale, slice_DH * scale
    attention.qkv[:, 2, head], attention.o[:, head] = slice_DH, -slice_DH
    direction = 1 / math.sqrt(width)
    attention.r_s_bias[head] = SEGMENT_BIAS * direction
    attention.seg_embed[0, head] = -OTHER_TEXT / 2 * math.sqrt(width) / SEGMENT_BIAS * direction
    attention.seg_embed[1, head] = OTHER_TEXT / 2 * math.sqrt(width) / SEGMENT_BIAS * direction
