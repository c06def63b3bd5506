"""Predicts one token after another. A key-value cache holds the known tokens, so each new token needs only a few rows.

Each pass computes the content stream of some tokens, caches their keys and values, and computes the query stream of one
place.

Shapes: L tokens of the content, Q = L + 1 rows of both streams, K keys that they see, S slots for keys, R distances,
D model width, N heads, H head width, V vocabulary; P panels of C = 64 columns, see :mod:`native_decode`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.generation.weights import DecoderWeights, LayerWeights
from xlnet.model.kernels import native_decode
from xlnet.model.kernels.native_decode import PANEL, columns


class View(NamedTuple):
    """Says which keys the rows of one pass see; it is the same for all layers.

    Attributes:
        slots: the cache slots for the content's keys and values.
        keys: the cache slots that the rows see.
        distances: the columns, among those of all distances, that this pass needs.
        shifts: each row's distance from the highest place, which is its first column in ``distances``.
        hidden_K: True for keys whose token is not known yet; None if all are known.
    """

    slots: list[int]
    keys: slice
    distances: slice
    shifts: list[int]
    hidden_K: Tensor | None

    @property
    def column_1QK(self) -> Tensor:
        """For each row and key, the column of their distance: int64."""
        return torch.tensor(self.shifts)[None, :, None] + torch.arange(self.keys.stop - self.keys.start)


class Decoder:
    """The state of one text while it is generated."""

    def __init__(self, weights: DecoderWeights, longest: int, memory: int) -> None:
        """Begin an empty text.

        Args:
            weights: of the language model.
            longest: maximum number of tokens of the text.
            memory: how many of the last tokens each row sees, at least 2.
        """
        self._model, self._memory = weights.model, memory
        self._slots = min(longest, 2 * memory + native_decode.MOST_GROUPS)
        self._known: set[int] = set()  # places
        self._end = self._shift = 0  # the last known place plus one; the place of slot 0
        self._reach, distances = weights.distances(min(longest, memory + 1))
        parts = zip(weights.layers, distances, strict=True)
        with torch.inference_mode():
            self._layers = [KeptLayer(*part, self._slots) for part in parts]
        self._compiled = self._passes(weights)

    @torch.inference_mode()
    def predict(self, ids: Sequence[int], places: Sequence[int], query: int, likeliest: int = 0) -> Tensor:
        """Read tokens, cache their keys and values, and compute the logits of a place that is not known yet: [V].

        The tokens see each other and all known tokens. A known token may be read again, and then sees more.

        Args:
            ids: token ids, at least one.
            places: their places in the text.
            query: the place to predict.
            likeliest: how many of the greatest logits are needed, which takes less time: others may be -inf; 0: all.
        """
        self._add(places)
        transformer, view = self._model.transformer, self._view(places, query, self._end)
        if self._compiled and len(ids) < native_decode.MOST_ROWS:
            return self._compiled.logits([_group(ids, view)], view.hidden_K, likeliest)[0]
        content_LD = F.embedding(torch.tensor(ids), transformer.word_embedding.weight)
        x_QD = torch.cat([content_LD, transformer.mask_emb[0]])
        for layer in self._layers:
            x_QD = layer.rows(x_QD, view)
        return F.linear(x_QD[-1], transformer.word_embedding.weight, self._model.lm_loss.bias)

    @torch.inference_mode()
    def follow(self, ids: Sequence[int], start: int, drafts: Sequence[int], likeliest: int = 0) -> Tensor:
        """Read a text's last tokens, and compute the logits of the next place and after each draft: [1 + drafts, V].

        The logits after a draft have the same bits as if the draft and those before it were tokens of the text, and a
        pass read the last two. Forgets tokens that earlier passes read at later places, such as drafts.

        Args:
            ids: token ids, at least one; with drafts at most two.
            start: the place of the first of them. All tokens before it are known.
            drafts: tokens that may follow, at most :attr:`most_drafts`.
            likeliest: see :meth:`predict`.
        """
        end = start + len(ids)
        self._known.difference_update(range(end, self._end))
        self._end = min(self._end, end)
        if not drafts:
            return self.predict(ids, range(start, end), end, likeliest)[None]
        assert self._compiled
        text, last = (*ids, *drafts), end + len(drafts)
        self._add(range(start, last), end)
        groups = []
        for known in range(end, last + 1):
            places = range(start if known == end else known - 2, known)
            read = text[places.start - start : known - start]
            groups.append(_group(read, self._view(places, known, known)))
        return self._compiled.logits(groups, likeliest=likeliest)

    @property
    def most_drafts(self) -> int:
        """How many drafts one pass can check."""
        return native_decode.MOST_GROUPS - 1 if self._compiled else 0

    def _add(self, places: Sequence[int], end: int | None = None) -> None:
        """Take places as known, and make room for their keys beside all keys that are seen from ``end`` on.

        The default is the end of all known places.
        """
        self._known.update(places)
        self._end = max(self._end, max(places) + 1)
        if self._end - self._shift > self._slots:
            self._move(max(0, (self._end if end is None else end) - self._memory))

    def _view(self, places: Sequence[int], query: int, end: int) -> View:
        """Return what rows at these places see of the text before ``end``."""
        first = max(0, end - self._memory)
        lowest, highest = min(*places, query), max(*places, query)
        hidden = [place not in self._known for place in range(first, end)] if len(self._known) < self._end else []
        return View(
            slots=[place - self._shift for place in places],
            keys=slice(first - self._shift, end - self._shift),
            distances=slice(self._reach - highest + first, self._reach - lowest + end),
            shifts=[highest - place for place in (*places, query)],
            hidden_K=torch.tensor(hidden) if any(hidden) else None,
        )

    def _passes(self, weights: DecoderWeights) -> native_decode.Passes | None:
        """Return the compiled kernel for passes of few rows; None where it cannot run."""
        if weights.output is None:
            return None
        layers, transformer = [layer.tensors() for layer in self._layers], self._model.transformer
        table_VD, mask_D = transformer.word_embedding.weight, transformer.mask_emb.flatten()
        return native_decode.Passes(
            layers, table_VD, weights.output, weights.screen, mask_D, self._model.config.layer_norm_eps
        )

    def _move(self, first: int) -> None:
        """Move the keys that rows still see to the first slots."""
        seen = slice(first - self._shift, self._slots)
        for layer in self._layers:
            layer.move(seen)
        self._shift = first


def _group(ids: Sequence[int], view: View) -> native_decode.Group:
    return native_decode.Group(ids, view.slots, view.shifts, view.keys, view.distances.start)


class KeptLayer:
    """A layer with its key-value cache."""

    def __init__(self, weights: LayerWeights, distance_NPHC: Tensor, slots: int) -> None:
        self._weights, self._distance_NPHC = weights, distance_NPHC
        heads, _, head, panel = distance_NPHC.shape
        slots = -(-slots // panel) * panel
        self._key_NPHC = distance_NPHC.new_zeros(heads, slots // panel, head, panel)
        self._value_NSH = distance_NPHC.new_zeros(heads, slots, head)
        self._scale = 1 / math.sqrt(head)

    def rows(self, x_QD: Tensor, view: View) -> Tensor:
        """Compute the layer's output for the content's rows and, last, the query's: [Q, D] → [Q, D]."""
        attention, ff = self._weights.layer.rel_attn, self._weights.layer.ff
        shape, slots = attention.qkv.shape[1:], torch.tensor(view.slots)
        qkv_3NQH = F.linear(x_QD, self._weights.qkv).view(-1, *shape).permute(1, 2, 0, 3)
        self._key_NPHC[:, slots // PANEL, :, slots % PANEL] = qkv_3NQH[1, :, :-1].transpose(0, 1)
        self._value_NSH.index_copy_(1, slots, qkv_3NQH[2, :, :-1])
        k_NHK, v_NKH = columns(self._key_NPHC, view.keys), self._value_NSH[:, view.keys]
        content_NQH, position_NQH = qkv_3NQH[0] + self._weights.biases_2N1H
        by_distance_NQR = position_NQH @ columns(self._distance_NPHC, view.distances)
        position_NQK = by_distance_NQR.gather(2, view.column_1QK.expand(len(k_NHK), -1, -1))
        scores_NQK = torch.baddbmm(position_NQK, content_NQH, k_NHK) * self._scale
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

    def tensors(self) -> native_decode.LayerTensors:
        """Return weights and cache for the compiled kernel."""
        matrices, biases_2N1H = self._weights.matrices, self._weights.biases_2N1H
        assert matrices is not None
        norm, last = self._weights.layer.rel_attn.layer_norm, self._weights.layer.ff.layer_norm
        norms = (norm.weight, norm.bias, last.weight, last.bias)
        cache = (self._key_NPHC, self._value_NSH)
        return native_decode.LayerTensors(matrices, self._distance_NPHC, biases_2N1H, *norms, *cache)

    def move(self, seen: slice) -> None:
        """Move the cached keys and values of some slots to the first slots."""
        kept_NPHC = native_decode.panels(columns(self._key_NPHC, seen))
        self._key_NPHC[:, : kept_NPHC.shape[1]] = kept_NPHC
        self._value_NSH[:, : seen.stop - seen.start] = self._value_NSH[:, seen].clone()
