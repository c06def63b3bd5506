"""A classifier prepared for prediction: no dropout, no gradients, weights and positions arranged once.

A text's logits need only its last token's state of the last layer, so that layer computes queries, output projection
and feed-forward for last tokens alone. Projections of distances depend on weights only, and are kept.

Shapes: those of :mod:`xlnet.model.xlnet`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet.model.attention import relative_attention, takes_last_queries
from xlnet.model.fused import dropout_add_norm
from xlnet.model.layout import Layout
from xlnet.model.linear import project
from xlnet.model.positions import Positions, Segments, distance_encoding
from xlnet.model.precision import Product, prepare
from xlnet.model.xlnet import Layer, XLNetClassifier, in_label_units

KEPT = 1024  # tokens: projections of distances are kept for texts up to this length
GRAIN = 64  # the table of distances grows to a multiple of it


@dataclass(frozen=True)
class _PreparedLayer:
    """One layer's products, and the weights that stay as they are. The others are not kept, to save memory."""

    biases: dict[str, Tensor]  # r_w_bias, r_r_bias and r_s_bias, [N, H], and seg_embed, [2, N, H]
    distances_DNH: Tensor
    qkv: tuple[Product, ...]  # queries, keys and values at once; in the last layer, queries, and keys and values
    out: Product
    inner: Product
    outer: Product
    norms: tuple[nn.LayerNorm, nn.LayerNorm]

    @classmethod
    def of(cls, layer: Layer, precision: str, is_last: bool) -> "_PreparedLayer":
        own, ff = layer.rel_attn, layer.ff
        parts = own.qkv.detach().split([1, 2] if is_last else [3], 1)
        return cls(
            {name: getattr(own, name).detach() for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")},
            own.r.detach(),
            tuple(prepare(precision, part.flatten(1).t().contiguous()) for part in parts),
            prepare(precision, own.o.detach().flatten(1)),
            prepare(precision, ff.layer_1.weight, ff.layer_1.bias),
            prepare(precision, ff.layer_2.weight, ff.layer_2.bias),
            (own.layer_norm, ff.layer_norm),
        )


class PreparedClassifier:
    """Computes the logits of packed texts like the classifier that it was made of, whose weights it shares or copies.

    Attributes:
        config: the classifier's.
        device: where the weights are.
    """

    def __init__(self, model: XLNetClassifier, precision: str = "float32") -> None:
        """Prepare a classifier.

        Args:
            model: stays as it is; later changes of its weights need a new preparation.
            precision: what :func:`xlnet.model.precision.choose` has returned; float32 on any device, others on a CPU.
        """
        self.config, self._impl = model.config, model.transformer.impl
        self._embedding = model.transformer.word_embedding.weight.detach()
        self.device = self._embedding.device
        *layers, last = model.transformer.layers()
        self._layers = [_PreparedLayer.of(layer, precision, is_last=False) for layer in layers]
        self._layers.append(_PreparedLayer.of(last, precision, is_last=True))
        self._head = model.sequence_summary.summary, model.logits_proj
        self._distances: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, input_ids_T: Tensor, segment_ids_T: Tensor | None, layout: Layout) -> Tensor:
        """Compute logits, [S, C]; for the arguments see :class:`xlnet.model.xlnet.Transformer`."""
        layout.check(len(input_ids_T))
        x_TD = F.embedding(input_ids_T, self._embedding)
        distances = self._projected(layout.longest)
        for layer, r_RNH in zip(self._layers, distances, strict=True):
            attended_TD = self._attend(layer, x_TD, r_RNH, segment_ids_T, layout)
            if layer is self._layers[-1]:
                x_TD = x_TD[layout.last_S]
                attended_TD = attended_TD if len(attended_TD) == len(x_TD) else attended_TD[layout.last_S]
            x_TD = _add_norm(layer.out(attended_TD), x_TD, layer.norms[0])
            x_TD = _add_norm(layer.outer(layer.inner(x_TD, gelu=True)), x_TD, layer.norms[1])
        summary, head = self._head
        return in_label_units(head(torch.tanh(summary(x_TD))), self.config)

    def _attend(
        self, layer: _PreparedLayer, x_TD: Tensor, r_RNH: Tensor, ids_T: Tensor | None, layout: Layout
    ) -> Tensor:
        heads = layer.distances_DNH.shape[1:]
        asking_TD = x_TD
        if layer is self._layers[-1] and takes_last_queries(self._impl, x_TD, heads[-1], layout):
            asking_TD = x_TD[layout.last_S]
        given = asking_TD, x_TD
        q_TNH, k_TNH, v_TNH = (
            part_TNH
            for product, rows_TD in zip(layer.qkv, given, strict=False)
            for part_TNH in product(rows_TD).unflatten(1, (-1, *heads)).unbind(1)
        )
        own = {name: bias.to(q_TNH.dtype) for name, bias in layer.biases.items()}
        positions = Positions(r_RNH.to(q_TNH.dtype), own["r_w_bias"], own["r_r_bias"])
        segments = None if ids_T is None else Segments(ids_T, own["r_s_bias"], own["seg_embed"])
        return relative_attention(q_TNH, k_TNH, v_TNH, positions, segments, layout, impl=self._impl).flatten(1)

    def _projected(self, longest: int) -> list[Tensor]:
        """Return each layer's projected distances for texts of at most ``longest`` tokens: [R, N, H]."""
        if longest > KEPT:
            return self._project(longest)
        if not self._distances or longest > len(self._distances[0]) // 2:
            self._distances = self._project(min(KEPT, -(-longest // GRAIN) * GRAIN))
        kept = len(self._distances[0]) // 2
        return [r_RNH[kept - longest : kept + longest] for r_RNH in self._distances]

    def _project(self, longest: int) -> list[Tensor]:
        distances_RD = distance_encoding(longest, self.config.d_model, self.config.clamp_len, self.device)
        weights = [layer.distances_DNH for layer in self._layers]
        return [project(distances_RD, r_DNH.flatten(1)).unflatten(-1, r_DNH.shape[1:]) for r_DNH in weights]


def _add_norm(x_TD: Tensor, residual_TD: Tensor, norm: nn.LayerNorm) -> Tensor:
    return dropout_add_norm(x_TD, residual_TD, norm.weight, norm.bias, norm.eps, None)
