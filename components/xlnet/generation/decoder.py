"""Predicts one token after another. Keys and values of the known tokens are kept, so a token costs a few rows.

Each pass computes the content stream of some tokens, whose keys and values it keeps, and the query stream of one place.

Shapes: L tokens of the content, Q = L + 1 rows of both streams, K keys that they see, S slots for keys, R distances,
D model width, N heads, H head width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.positions import distance_encoding
from xlnet.model.xlnet import Layer


class View(NamedTuple):
    """What the rows of one pass see; all layers share it.

    Attributes:
        slot_L: where the content's keys are kept: int64.
        keys: the slots that are seen.
        distances: the distances between rows and keys, as columns of all distances.
        column_1QK: for each row and key, the column of their distance among those: int64.
        hidden_K: True for slots whose token is not known; None if all are known.
    """

    slot_L: Tensor
    keys: slice
    distances: slice
    column_1QK: Tensor
    hidden_K: Tensor | None


class Decoder:
    """A text being written."""

    def __init__(self, model: XLNetLanguageModel, longest: int, memory: int) -> None:
        """Begin an empty text.

        Args:
            model: in evaluation mode, in float32.
            longest: tokens that the text will have at most.
            memory: how many of the last tokens a row sees, at least 2.
        """
        self._model, self._memory = model, memory
        self._reach = min(longest, memory + 1)  # the greatest distance, and one more
        self._slots = min(longest, 2 * memory + 2)
        self._known: set[int] = set()  # places
        self._end = self._shift = 0  # one more than the last known place; the place of slot 0
        device = model.lm_loss.bias.device
        with torch.inference_mode():
            encoding_RD = distance_encoding(self._reach, model.config.d_model, model.config.clamp_len, device)
            self._layers = [KeptLayer(layer, encoding_RD, self._slots) for layer in model.transformer.layers()]

    @torch.inference_mode()
    def predict(self, ids: Sequence[int], places: Sequence[int], query: int) -> Tensor:
        """Read tokens, keep their keys and values, and compute the logits of a place that is not known yet: [V].

        The tokens see each other and all that is known. A known token may be read again, with more known.

        Args:
            ids: token ids, at least one.
            places: their places in the text.
            query: the place to predict.
        """
        transformer = self._model.transformer
        view = self._view(places, query)
        content_LD = F.embedding(view.slot_L.new_tensor(ids), transformer.word_embedding.weight)
        x_QD = torch.cat([content_LD, transformer.mask_emb[0]])
        for layer in self._layers:
            x_QD = layer.rows(x_QD, view)
        return F.linear(x_QD[-1], transformer.word_embedding.weight, self._model.lm_loss.bias)

    def _view(self, places: Sequence[int], query: int) -> View:
        self._known.update(places)
        self._end = end = max(self._end, max(places) + 1)
        first = max(0, end - self._memory)
        if end - self._shift > self._slots:
            self._move(first)
        device = self._model.lm_loss.bias.device
        place_Q = torch.tensor([*places, query], device=device)
        lowest, highest = min(*places, query), max(*places, query)
        hidden = [place not in self._known for place in range(first, end)] if len(self._known) < end else []
        return View(
            slot_L=place_Q[:-1] - self._shift,
            keys=slice(first - self._shift, end - self._shift),
            distances=slice(self._reach - highest + first, self._reach - lowest + end),
            column_1QK=((highest - place_Q)[:, None] + torch.arange(end - first, device=device))[None],
            hidden_K=torch.tensor(hidden, device=device) if any(hidden) else None,
        )

    def _move(self, first: int) -> None:
        """Move what is still seen to the first slots."""
        seen = slice(first - self._shift, self._slots)
        for layer in self._layers:
            layer.move(seen)
        self._shift = first


class KeptLayer:
    """A layer with the keys and values of the known tokens."""

    def __init__(self, layer: Layer, encoding_RD: Tensor, slots: int) -> None:
        self._layer = attention, _ = layer.rel_attn, layer.ff
        _, _, heads, head = attention.qkv.shape
        self._qkv = attention.qkv.flatten(1).T.contiguous()
        self._distance_NHR = (encoding_RD @ attention.r.flatten(1)).view(-1, heads, head).permute(1, 2, 0).contiguous()
        self._kept_2NSH = encoding_RD.new_zeros(2, heads, slots, head)
        self._biases_2N1H = torch.stack([attention.r_w_bias, attention.r_r_bias])[:, :, None]
        self._scale = 1 / math.sqrt(head)

    def rows(self, x_QD: Tensor, view: View) -> Tensor:
        """Compute the layer's rows, the content's and last the query's: [Q, D] → [Q, D]."""
        attention, ff = self._layer
        qkv_3NQH = F.linear(x_QD, self._qkv).view(len(x_QD), 3, *self._kept_2NSH.shape[1::2]).permute(1, 2, 0, 3)
        self._kept_2NSH.index_copy_(2, view.slot_L, qkv_3NQH[1:, :, :-1])
        k_NKH, v_NKH = self._kept_2NSH[:, :, view.keys]
        content_NQH, position_NQH = qkv_3NQH[0] + self._biases_2N1H
        by_distance_NQR = position_NQH @ self._distance_NHR[:, :, view.distances]
        position_NQK = by_distance_NQR.gather(2, view.column_1QK.expand(len(k_NKH), -1, -1))
        scores_NQK = torch.baddbmm(position_NQK, content_NQH, k_NKH.mT) * self._scale
        if view.hidden_K is not None:
            scores_NQK = scores_NQK.masked_fill(view.hidden_K, -math.inf)
        attended_QNH = (scores_NQK.softmax(-1) @ v_NKH).transpose(0, 1)
        x_QD = x_QD + F.linear(attended_QNH.flatten(1), attention.o.flatten(1))
        norm = attention.layer_norm
        x_QD = F.layer_norm(x_QD, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        inner_QI = F.gelu(F.linear(x_QD, ff.layer_1.weight, ff.layer_1.bias))
        x_QD = x_QD + F.linear(inner_QI, ff.layer_2.weight, ff.layer_2.bias)
        return F.layer_norm(
            x_QD, ff.layer_norm.weight.shape, ff.layer_norm.weight, ff.layer_norm.bias, ff.layer_norm.eps
        )

    def move(self, seen: slice) -> None:
        """Move the kept keys and values of some slots to the first ones."""
        kept_2NSH = self._kept_2NSH[:, :, seen].clone()
        self._kept_2NSH[:, :, : kept_2NSH.shape[2]] = kept_2NSH
