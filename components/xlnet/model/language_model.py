"""XLNet as a permutation language model: two streams, memory of earlier segments, tied output embedding.

The weights are those of Hugging Face's ``XLNetLMHeadModel``. The formulas are those of Yang et al. 2019. No mask token
is ever written into the content: the query stream alone starts from ``mask_emb``.

Shapes: B texts of L content tokens and P predicted positions, Q = L + P queries, M memory tokens, K = M + L keys,
D model width, N heads, H head width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xlnet.model.config import XLNetConfig
from xlnet.model.dropout import Dropouts
from xlnet.model.fused import dropout, dropout_add_norm
from xlnet.model.linear import linear, project
from xlnet.model.positions import Positions, distance_encoding, split_heads
from xlnet.model.streams import stream_attention
from xlnet.model.visibility import StreamSegments, Visibility
from xlnet.model.xlnet import Layer, LayerNoise, RelativeAttention, Transformer, initialise


@dataclass(frozen=True)
class Text:
    """A rectangle of texts for the language model.

    Attributes:
        input_ids_BL: token ids: int64.
        segment_ids_BL: segment of each token: int32; None for a model without segments.
        order_BL: place of each token in the factorisation order, see :meth:`Visibility.of`: int32.
        place_BP: places to predict: int64.
        memory: each layer's hidden states of earlier segments, [layers, B, M, D]; None without memory.
        first_text: this part's first text within the whole batch; it selects this part's rows of the dropout masks.
        backward: whether the texts are reversed, last token first.
    """

    input_ids_BL: Tensor
    segment_ids_BL: Tensor | None
    order_BL: Tensor
    place_BP: Tensor
    memory: Tensor | None = None
    first_text: int = 0
    backward: bool = False

    @property
    def remembered(self) -> int:
        """M: memory tokens of each text."""
        return 0 if self.memory is None else self.memory.shape[2]

    @property
    def targets_BP(self) -> Tensor:
        """The tokens at the places to predict: int64 [B, P]."""
        return self.input_ids_BL.gather(1, self.place_BP)


@dataclass(frozen=True)
class StreamInputs:
    """Inputs that all layers of one forward pass share."""

    visibility: Visibility
    distances_RD: Tensor
    segments_BQ: Tensor | None
    segments_BK: Tensor | None
    impl: str


class Bias(nn.Module):
    """The output bias. The output weight is the embedding."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.vocab_size))


class XLNetLanguageModel(nn.Module):
    """XLNet with a language-model head on the query stream."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_loss = Bias(config)
        self.recurrence = (0, 0)  # ``keep`` and ``reuse`` of :meth:`forward`
        self.memory: Tensor | None = None
        initialise(self, config.initializer_range)

    def remember(self, texts: int, keep: int, reuse: int) -> None:
        """Add memory to the model's state: ``keep`` hidden states of each of ``texts`` texts, in every layer.

        Of each segment the first ``reuse`` tokens go into memory; :meth:`forward` takes both numbers.
        """
        layers, width = len(self.transformer.layer), self.config.d_model
        zeros = torch.zeros(layers, texts, keep, width, device=self.lm_loss.bias.device)
        del self.memory
        self.register_buffer("memory", zeros)
        self.recurrence = (keep, reuse)

    def memory_of(self, first: int, count: int, is_first: bool) -> Tensor | None:
        """Return the memory of ``count`` texts, zeros before the first segment; None if the model has no memory."""
        if self.memory is None:
            return None
        part = self.memory[:, first : first + count]
        return torch.zeros_like(part) if is_first else part.clone()

    def keep(self, memory: Tensor | None, first: int) -> None:
        """Replace the memory of the texts from number ``first`` on."""
        if self.memory is not None and memory is not None:
            self.memory[:, first : first + memory.shape[1]] = memory

    def forward(self, text: Text, keep: int = 0, reuse: int = 0) -> tuple[Tensor, Tensor | None]:
        """Compute the hidden states of the predicted positions, and the memory for the next segment.

        Args:
            text: the texts.
            keep: how many hidden states to remember for each layer and text; 0 remembers nothing.
            reuse: how many of a segment's first tokens go into memory; 0 means all of them.

        Returns:
            Hidden states, [B, P, D], and memory, [layers, B, at most ``keep``, D], without gradients.
        """
        length = text.input_ids_BL.shape[1]
        visibility = Visibility.of(text.order_BL, text.place_BP, text.remembered)
        dropouts = Dropouts(3 + 4 * len(self.transformer.layer), text.input_ids_BL.device, self.training)
        rate, table_VD = self.config.dropout, self.transformer.word_embedding.weight
        first = text.first_text * visibility.place_BQ.shape[1]
        masks_BPD = self.transformer.mask_emb.expand(*text.place_BP.shape, -1)
        x_BQD = torch.cat([F.embedding(text.input_ids_BL, table_VD), masks_BPD], 1)
        x_BQD = _drop(self.transformer.as_hidden(x_BQD), dropouts, rate, first)
        shared = self._shared(text, visibility, dropouts)
        memory = []
        for number, layer in enumerate(self.transformer.layers()):
            old_BMD = None if text.memory is None else text.memory[number].to(x_BQD.dtype)
            if keep:
                memory.append(_remember(x_BQD[:, : reuse or length], old_BMD, keep))
            noise = LayerNoise(
                dropouts.next(rate, first * self.config.n_head), *(dropouts.next(rate, first) for _ in range(3))
            )
            if self.transformer.recompute and self.training:
                arguments = (layer, x_BQD, old_BMD, shared, noise)
                x_BQD = checkpoint(layer_streams, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BQD = layer_streams(layer, x_BQD, old_BMD, shared, noise)
        x_BQD = _drop(x_BQD, dropouts, rate, first)
        return x_BQD[:, length:], torch.stack(memory) if keep else None

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """Compute the logits of hidden states: [..., D] → [..., V]."""
        return F.linear(hidden_PD, self.transformer.word_embedding.weight, self.lm_loss.bias)

    def _shared(self, text: Text, visibility: Visibility, dropouts: Dropouts) -> StreamInputs:
        config, length = self.config, visibility.length
        distances_RD = distance_encoding(
            length, config.d_model, config.clamp_len, text.input_ids_BL.device, text.remembered, text.backward
        )
        # A distance's mask does not depend on the length, so all parts of a batch use the same mask.
        distances_RD = dropout(distances_RD, dropouts.next(config.dropout, -length - text.remembered))
        if (ids_BL := text.segment_ids_BL) is None:
            return StreamInputs(visibility, distances_RD, None, None, self.transformer.impl)
        queries_BQ = torch.cat([ids_BL, ids_BL.gather(1, text.place_BP)], 1)
        keys_BK = F.pad(ids_BL, (text.remembered, 0))
        return StreamInputs(visibility, distances_RD, queries_BQ, keys_BK, self.transformer.impl)


def _drop(x_BQD: Tensor, dropouts: Dropouts, rate: float, first_row: int) -> Tensor:
    return dropout(x_BQD.flatten(0, 1), dropouts.next(rate, first_row)).view_as(x_BQD)


def _remember(x_BLD: Tensor, old_BMD: Tensor | None, keep: int) -> Tensor:
    x_BLD = x_BLD.detach()
    return (x_BLD if old_BMD is None else torch.cat([old_BMD, x_BLD], 1))[:, -keep:]


def layer_streams(
    layer: Layer, x_BQD: Tensor, memory_BMD: Tensor | None, shared: StreamInputs, noise: LayerNoise
) -> Tensor:
    """Compute one layer for both streams: [B, Q, D] → [B, Q, D]."""
    attended_BQD = attend(layer.rel_attn, x_BQD, memory_BMD, shared, noise)
    return layer.ff(attended_BQD.flatten(0, 1), noise).view_as(x_BQD)


def attend(
    attention: RelativeAttention, x_BQD: Tensor, memory_BMD: Tensor | None, shared: StreamInputs, noise: LayerNoise
) -> Tensor:
    """Compute a layer's attention of both streams, with projections, residual connection and layer norm."""
    texts, queries, _ = x_BQD.shape
    content_BLD = x_BQD[:, : shared.visibility.length]
    known_BKD = content_BLD if memory_BMD is None else torch.cat([memory_BMD, content_BLD], 1)
    heads, width = attention.o.shape[1:]
    q_weight, kv_weight = (part.flatten(1) for part in attention.qkv.split([1, 2], dim=1))
    q = project(x_BQD.flatten(0, 1), q_weight).view(texts, queries, heads, width)
    kv = project(known_BKD.flatten(0, 1), kv_weight).view(-1, 2, heads, width)
    k, v = (part.unflatten(0, (texts, -1)) for part in split_heads(kv))
    r_RNH = project(shared.distances_RD.to(x_BQD.dtype), attention.r.flatten(1)).view(-1, heads, width)
    positions = Positions(r_RNH.to(q.dtype), attention.r_w_bias, attention.r_r_bias)
    segments = None
    if shared.segments_BQ is not None and shared.segments_BK is not None:
        segments = StreamSegments(shared.segments_BQ, shared.segments_BK, attention.r_s_bias, attention.seg_embed)
    attended = stream_attention(q, k, v, positions, segments, shared.visibility, noise.weights, shared.impl)
    out_TD = linear(attended.reshape(texts * queries, -1), attention.o.flatten(1))
    norm = attention.layer_norm
    done_TD = dropout_add_norm(out_TD, x_BQD.flatten(0, 1), norm.weight, norm.bias, norm.eps, noise.attended)
    return done_TD.view_as(x_BQD)
