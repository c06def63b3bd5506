"""XLNet for sequence classification and regression, over packed texts.

Parameter names and shapes are those of Hugging Face's files, except that one parameter ``qkv`` replaces ``q``, ``k``
and ``v``; :mod:`xlnet.model.weights` converts between them. The formulas are those of Yang et al. 2019. Unlike the
common implementation, this one computes nothing for padding, and uses one table of distances, with one dropout mask,
for the whole batch.

Shapes: S texts, T tokens of all texts together, L tokens of the longest text, D model width, N heads,
H head width, R = 2L distances, C outputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xlnet.model.attention import implementation, relative_attention, takes_last_queries
from xlnet.model.config import XLNetConfig
from xlnet.model.dropout import Dropout, Dropouts
from xlnet.model.fused import dropout, dropout_add_norm, gelu_dropout
from xlnet.model.layout import Layout
from xlnet.model.linear import linear, linear_of_few, project
from xlnet.model.positions import Positions, Segments, distance_encoding, split_columns, split_heads


class LayerInputs(NamedTuple):
    """Inputs that all layers of one forward pass share.

    Attributes:
        layout: where each text is.
        distances_RD: encodings of distances.
        segment_ids_T: segment of each token, or None.
        impl: the attention implementation.
        outputs_S: the tokens whose hidden states are wanted; None means all of them.
    """

    layout: Layout
    distances_RD: Tensor
    segment_ids_T: Tensor | None
    impl: str
    outputs_S: Tensor | None = None


class LayerNoise(NamedTuple):
    """One layer's dropout masks. They are drawn outside the layer, so a recomputed layer uses the same masks."""

    weights: Dropout | None
    attended: Dropout | None
    inner: Dropout | None
    outer: Dropout | None


class RelativeAttention(nn.Module):
    """Attention with its projections, residual connection and layer norm."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        model, heads, width = config.d_model, config.n_head, config.d_head
        self.qkv = nn.Parameter(torch.empty(model, 3, heads, width))
        self.o, self.r = (nn.Parameter(torch.empty(model, heads, width)) for _ in "or")
        self.r_r_bias, self.r_s_bias, self.r_w_bias = (nn.Parameter(torch.empty(heads, width)) for _ in "rsw")
        self.seg_embed = nn.Parameter(torch.empty(2, heads, width))
        self.layer_norm = nn.LayerNorm(model, eps=config.layer_norm_eps)

    def forward(self, x_TD: Tensor, shared: LayerInputs, noise: LayerNoise) -> Tensor:
        """[T, D] → [T, D], or [S, D] if only some tokens' hidden states are wanted."""
        outputs_S, inputs_TD = shared.outputs_S, x_TD
        only_last = outputs_S is not None and takes_last_queries(shared.impl, x_TD, self.qkv.shape[-1], shared.layout)
        if only_last:
            x_TD = x_TD[outputs_S]
            q_weight, kv_weight = split_columns(self.qkv, 1)
            (q_TNH,) = split_heads(_heads(x_TD, q_weight))
            k_TNH, v_TNH = split_heads(_heads(inputs_TD, kv_weight))
        else:
            q_TNH, k_TNH, v_TNH = split_heads(_heads(x_TD, self.qkv))
        ids_T = shared.segment_ids_T
        attended_TNH = relative_attention(
            q_TNH,
            k_TNH,
            v_TNH,
            Positions(_heads(shared.distances_RD, self.r), self.r_w_bias, self.r_r_bias),
            None if ids_T is None else Segments(ids_T, self.r_s_bias, self.seg_embed),
            shared.layout,
            noise.weights,
            shared.impl,
        )
        if outputs_S is not None and not only_last:
            attended_TNH, x_TD = attended_TNH[outputs_S], x_TD[outputs_S]
        out_TD = linear(attended_TNH.flatten(1), self.o.flatten(1))
        norm = self.layer_norm
        return dropout_add_norm(out_TD, x_TD, norm.weight, norm.bias, norm.eps, noise.attended)


def _heads(x_TD: Tensor, weight_DNH: Tensor) -> Tensor:
    return project(x_TD, weight_DNH.flatten(1)).unflatten(-1, weight_DNH.shape[1:])


class FeedForward(nn.Module):
    """Two linear layers around a GELU, with residual connection and layer norm."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.layer_1 = nn.Linear(config.d_model, config.d_inner)
        self.layer_2 = nn.Linear(config.d_inner, config.d_model)

    def forward(self, x_TD: Tensor, noise: LayerNoise) -> Tensor:
        """[T, D] → [T, D]."""
        inner = gelu_dropout(linear(x_TD, self.layer_1.weight, self.layer_1.bias), noise.inner)
        out_TD = linear(inner, self.layer_2.weight, self.layer_2.bias)
        norm = self.layer_norm
        return dropout_add_norm(out_TD, x_TD, norm.weight, norm.bias, norm.eps, noise.outer)


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.rel_attn = RelativeAttention(config)
        self.ff = FeedForward(config)

    def forward(self, x_TD: Tensor, shared: LayerInputs, noise: LayerNoise) -> Tensor:
        """[T, D] → [T, D], or [S, D] if only some tokens' hidden states are wanted."""
        return self.ff(self.rel_attn(x_TD, shared, noise), noise)


class Transformer(nn.Module):
    """Embeddings and layers.

    Attributes:
        impl: the attention implementation, see :data:`xlnet.model.attention.IMPLEMENTATIONS`.
        recompute: recompute each layer in the backward pass instead of keeping its activations.
        sparse_gradient: give the embedding table a sparse gradient, for only the batch's tokens.
        hidden_type: type of the hidden states between layers under autocast; None: that of the embeddings. Layer norms
            compute in float32 whatever it is.
    """

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.mask_emb = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.impl = "auto"
        self.recompute = False
        self.sparse_gradient = False
        self.hidden_type: torch.dtype | None = None

    def layers(self) -> list[Layer]:
        """Return the layers, first to last."""
        return [layer for layer in self.layer if isinstance(layer, Layer)]

    def as_hidden(self, x: Tensor) -> Tensor:
        """Return embeddings in the type of hidden states."""
        is_mixed = self.hidden_type is not None and torch.is_autocast_enabled(x.device.type)
        return x.to(self.hidden_type) if is_mixed else x

    def attention_name(self) -> str:
        """Return the attention implementation that ``impl`` selects on the weights' device."""
        weights = self.word_embedding.weight
        return implementation(self.impl, weights.device.type, str(weights.dtype), self.config.d_head)

    def forward(
        self, input_ids_T: Tensor, segment_ids_T: Tensor | None, layout: Layout, hidden_T: Tensor | None = None
    ) -> Tensor:
        """Compute the last layer's hidden state of each text's last token: [S, D].

        The last layer computes queries, keys and values of all tokens, and everything else for these tokens only.

        Args:
            input_ids_T: token ids of all texts, concatenated.
            segment_ids_T: segment ids, which are only compared for equality; None means no segments.
            layout: where each text is.
            hidden_T: True for tokens to replace by the mask embedding; None replaces nothing.
        """
        layout.check(len(input_ids_T))
        p, heads, first = self.config.dropout, self.config.n_head, layout.first_token
        dropouts = Dropouts(3 + 4 * len(self.layer), input_ids_T.device, self.training)
        x_TD = F.embedding(input_ids_T, self.word_embedding.weight, sparse=self.sparse_gradient)
        if hidden_T is not None:
            x_TD = torch.where(hidden_T[:, None], self.mask_emb[0].to(x_TD.dtype), x_TD)
        x_TD = dropout(self.as_hidden(x_TD), dropouts.next(p, first))
        distances_RD = distance_encoding(layout.longest, self.config.d_model, self.config.clamp_len, x_TD.device)
        # A distance's mask does not depend on the longest text, so all parts of a batch use the same mask.
        distances_RD = dropout(distances_RD.to(x_TD.dtype), dropouts.next(p, -layout.longest))
        shared, row = LayerInputs(layout, distances_RD, segment_ids_T, self.impl), first
        for number, layer in enumerate(self.layer, 1):
            if number == len(self.layer):
                shared, row = shared._replace(outputs_S=layout.last_S), layout.first_text
            noise = LayerNoise(dropouts.next(p, first * heads), *(dropouts.next(p, row) for _ in range(3)))
            if self.recompute and self.training:
                x_TD = checkpoint(layer, x_TD, shared, noise, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TD = layer(x_TD, shared, noise)
        return dropout(x_TD, dropouts.next(p, layout.first_text))


class SequenceSummary(nn.Module):
    """Projects the last token's hidden state and applies tanh and dropout."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.summary = nn.Linear(config.d_model, config.d_model)
        self.last_dropout = config.summary_last_dropout

    def forward(self, last_SD: Tensor, first_text: int | Tensor = 0) -> Tensor:
        """[S, D] → [S, D]; ``first_text`` is the layout's."""
        summary_SD = torch.tanh(linear_of_few(last_SD, self.summary.weight, self.summary.bias))
        return dropout(summary_SD, Dropouts(1, last_SD.device, self.training).next(self.last_dropout, first_text))


class XLNetClassifier(nn.Module):
    """XLNet with a classification or regression head on the final ``<cls>`` token."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.sequence_summary = SequenceSummary(config)
        self.logits_proj = nn.Linear(config.d_model, config.outputs)
        initialise(self, config.initializer_range)

    def forward(
        self, input_ids_T: Tensor, segment_ids_T: Tensor | None, layout: Layout, hidden_T: Tensor | None = None
    ) -> Tensor:
        """Compute the logits of packed texts, [S, C]; for the arguments see :class:`Transformer`."""
        last_SD = self.transformer(input_ids_T, segment_ids_T, layout, hidden_T)
        head, summary_SD = self.logits_proj, self.sequence_summary(last_SD, layout.first_text)
        logits_SC = linear_of_few(summary_SD, head.weight, head.bias)
        return in_label_units(logits_SC, self.config)


def in_label_units(logits_SC: Tensor, config: XLNetConfig) -> Tensor:
    """Convert a regression's standardised values to the scale of its labels: float32. A classifier's stay the same."""
    mean, deviation = config.value_mean, config.value_deviation
    return logits_SC if (mean, deviation) == (0.0, 1.0) else logits_SC.float() * deviation + mean


def initialise(model: nn.Module, deviation: float) -> None:
    """Initialise as the released code does: normal weights, zero biases, layer norms with weight one."""
    zero = ("layer_norm.bias", "layer_1.bias", "layer_2.bias", "summary.bias", "logits_proj.bias", "lm_loss.bias")
    for name, parameter in model.named_parameters():
        if name.endswith("layer_norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith(zero):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, 0.0, deviation)
