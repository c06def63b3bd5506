"""XLNet's classifier in plain operators over padded texts, to be exported to ONNX: our weights, our formulas.

The layers of :mod:`xlnet.model.xlnet` call compiled kernels and take packed texts, and torch's exporters cannot follow
either. This module computes the same logits; ``export`` says by how much they differ.

Shapes: B texts of L tokens with padding, D model width, N heads, H head width, R = 2L distances.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet.model.xlnet import Layer, XLNetClassifier

NAMES = ("ids", "segments", "real")


class Portable(nn.Module):
    """The classifier; ``forward`` takes token ids, segment ids, and which tokens are no padding, each [B, L]."""

    def __init__(self, model: XLNetClassifier) -> None:
        super().__init__()
        self.model = model
        width = model.config.d_model
        self.register_buffer("frequency", 1.0 / torch.pow(10_000, torch.arange(0, width, 2.0) / width))

    def forward(self, ids_BL: Tensor, segments_BL: Tensor, real_BL: Tensor) -> Tensor:
        """Compute logits, [B, C]."""
        body = self.model.transformer
        distance_R1 = (ids_BL.shape[1] - torch.arange(2 * ids_BL.shape[1]))[:, None].float()
        angle = distance_R1 * self.frequency
        distances_RD = torch.cat([angle.sin(), angle.cos()], -1)
        differs_B1LL = (segments_BL[:, None, :, None] != segments_BL[:, None, None, :]).float()
        padding_B11L = (1.0 - real_BL[:, None, None, :].float()) * -1e30
        x_BLD = F.embedding(ids_BL, body.word_embedding.weight)
        for layer in body.layers():
            x_BLD = _layer(layer, x_BLD, distances_RD, differs_B1LL, padding_B11L)
        summary = torch.tanh(self.model.sequence_summary.summary(x_BLD[:, -1]))
        return self.model.logits_proj(summary)


def _layer(layer: Layer, x_BLD: Tensor, distances_RD: Tensor, differs_B1LL: Tensor, padding_B11L: Tensor) -> Tensor:
    own = layer.rel_attn
    heads, width = own.r_r_bias.shape
    texts, length = x_BLD.shape[0], x_BLD.shape[1]
    qkv = (x_BLD @ own.qkv.flatten(1)).reshape(texts, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    r = (distances_RD @ own.r.flatten(1)).reshape(2 * length, heads, width).permute(1, 2, 0)
    by_distance = (q + own.r_r_bias[:, None]) @ r
    by_distance = by_distance.reshape(texts, heads, 2 * length * length)[..., length:]
    by_distance = by_distance.reshape(texts, heads, length, 2 * length - 1)[..., :length]
    other = (own.seg_embed[1] - own.seg_embed[0])[..., None]
    by_segment = ((q + own.r_s_bias[:, None]) @ other) * differs_B1LL
    scores = (q + own.r_w_bias[:, None]) @ k.transpose(-1, -2) + by_distance + by_segment
    weights = (scores * (1 / math.sqrt(width)) + padding_B11L).softmax(-1)
    attended = (weights @ v).transpose(1, 2).reshape(texts, length, heads * width)
    x_BLD = own.layer_norm(x_BLD + F.linear(attended, own.o.flatten(1)))
    inner = F.gelu(layer.ff.layer_1(x_BLD))
    return layer.ff.layer_norm(x_BLD + layer.ff.layer_2(inner))


def export(model: XLNetClassifier, path: Path) -> None:
    """Write an ONNX file with a free number of texts and tokens."""
    shapes = {0: torch.export.Dim("texts", min=2, max=4096), 1: torch.export.Dim("tokens", min=2, max=2048)}
    example = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7) > 0
    torch.onnx.export(
        Portable(model).eval(),
        example,
        str(path),
        dynamo=True,
        input_names=list(NAMES),
        output_names=["logits"],
        dynamic_shapes=(shapes,) * len(NAMES),
        verbose=False,
    )
