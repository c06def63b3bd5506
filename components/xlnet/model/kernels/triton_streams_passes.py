"""Runs the kernels of :mod:`~xlnet.model.kernels.triton_streams` to compute two-stream attention.

The scores of a few heads are kept at a time, in a fixed amount of memory, and only during one pass.

Shapes: see :mod:`xlnet.model.streams`; T = B · Q queries of all texts together.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels import triton_streams as kernels
from xlnet.model.kernels.tiles import NARROW, Tiling, plan
from xlnet.model.kernels.triton_passes import GROUPS, PITCH, KernelPass, kernel_biases
from xlnet.model.positions import by_token, empty_gradients


def stream_plan(width: int, wide: bool, keys: int, capability: tuple[int, int]) -> Tiling:
    """Choose the tiles of a pass, see :func:`~xlnet.model.kernels.tiles.plan`; these kernels turn nothing."""
    found = plan(width, wide, keys, capability)
    tiles = {kernel: chosen._replace(turn=False) for kernel, chosen in found.tiles.items()}
    backward = found.tile("backward_keys")._replace(turn=False)
    if backward.queries == 64 and width <= NARROW:
        tiles["backward_keys"] = backward._replace(queries=32)  # more would not fit into registers beside the orders
    return Tiling(tiles, found.scores)


class _StreamTensors(NamedTuple):
    """The tensors that the kernels read; queries, keys and values by token."""

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    content_bias: Tensor
    position_bias: Tensor
    segment_bias: Tensor
    change: Tensor
    query_ids: Tensor
    key_ids: Tensor
    place: Tensor
    sees: Tensor
    order: Tensor


class StreamAttention(torch.autograd.Function):
    """The autograd function of :func:`xlnet.model.streams.stream_attention`; it takes the tensors one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        q_BQNH, k_BKNH, v_BKNH, r_RNH, *biases, queries_BQ, keys_BK, visibility, dropout = arguments
        tokens = [by_token(x.flatten(0, 1)) for x in (q_BQNH, k_BKNH, v_BKNH)]
        numbers = [
            visibility.sees_BQ if queries_BQ is None else queries_BQ,
            visibility.order_BK if keys_BK is None else keys_BK,
        ]
        numbers += [visibility.place_BQ, visibility.sees_BQ, visibility.order_BK]
        rest = (r_RNH.to(q_BQNH.dtype), *kernel_biases(*biases), *(x.to(torch.int32) for x in numbers))
        given = _StreamTensors(*tokens, *(x.contiguous() for x in rest))
        passes = _StreamPass(given, visibility.length, len(q_BQNH), dropout, segments=biases[-1] is not None)
        out_TNH, log_sums_NT = passes.forward()
        ctx.save_for_backward(*given, out_TNH, log_sums_NT)
        ctx.rest = visibility.length, len(q_BQNH), dropout, passes.segments
        return out_TNH.view(q_BQNH.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_TNH, log_sums_NT = ctx.saved_tensors
        passes = _StreamPass(_StreamTensors(*tensors), *ctx.rest)
        found = passes.backward(grads[0].contiguous().view_as(out_TNH), out_TNH, log_sums_NT)
        by_text = (x.unflatten(0, (passes.texts, -1)) for x in found[:3] if x is not None)
        return (*by_text, *found[3:], None, None, None, None)


class _StreamPass(KernelPass):
    """A pass of :class:`StreamAttention`."""

    def __init__(self, given: _StreamTensors, length: int, texts: int, dropout: Dropout | None, segments: bool) -> None:
        self.length, self.queries, self.keys = length, len(given.q) // texts, len(given.k) // texts
        self.pitch = -(-self.keys // PITCH) * PITCH
        super().__init__(given, texts, len(given.q) * self.pitch, dropout, segments, given.sees)
        self.plan = stream_plan(self.width, self.wide, self.keys, self.capability)

    def score_positions(self, position_TNH: Tensor, scores: Tensor, head: int, heads: int) -> None:
        """See :class:`KernelPass`."""
        self.launch(
            kernels.position_scores, (self._blocks(kernels.position_scores), heads),
            position_TNH, self.given.r, self.given.place, scores,
            self.area, self.length, self.queries, self.keys, self.pitch, head, self.scale,
        )  # fmt: skip

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the attention output [T, N, H], and log₂ of the sums of unnormalised weights [N, T]."""
        out_TNH, log_sums_NT = torch.empty_like(self.given.q).contiguous(), self.numbers(self.heads, self.tokens)
        content, position, by_segment = self.prepare()
        for scores, head, heads in self.position_scores(position, kernels.forward):
            self.launch(
                kernels.forward, (self._blocks(kernels.forward), heads), *self._seen(content, by_segment),
                self.mask_key, scores, out_TNH, log_sums_NT, *self._sizes(head), *self.dropping,
                SEGMENTS=self.segments, DROPOUT=self.dropping[0] > 0,
            )  # fmt: skip
        return out_TNH, log_sums_NT

    def backward(self, grad_TNH: Tensor, out_TNH: Tensor, log_sums_NT: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys, values, distances, the three biases and the segment embeddings."""
        given = self.given
        (dq,), (dk, dv) = empty_gradients(given.q), empty_gradients(given.k, given.v)
        deltas_NT = self.numbers(self.heads, self.tokens)
        content, position, by_segment = self.prepare(out_TNH, grad_TNH, deltas_NT)
        blocks = self._blocks(kernels.backward_queries)
        partial_biases = given.q.new_zeros(blocks, self.heads, 4, self.width, dtype=torch.float32)
        partial_r = self.numbers(min(GROUPS, self.texts), *given.r.shape)
        lengths = (self.length, self.queries, self.keys, self.pitch)
        for scores, head, heads in self.position_scores(position, kernels.backward_keys):
            gradients = scores.view(given.q.dtype)
            key_blocks = self.texts * -(-self.keys // self.tile(kernels.backward_keys).keys)
            self.launch(
                kernels.backward_keys, (key_blocks, heads), *self._seen(content, by_segment),
                self.mask_key, grad_TNH, log_sums_NT, deltas_NT, scores, gradients, dk, dv,
                *self._sizes(head), *self.dropping, SEGMENTS=self.segments, DROPOUT=self.dropping[0] > 0,
            )  # fmt: skip
            self.launch(
                kernels.backward_queries, (blocks, heads),
                given.q, given.k, given.r, given.segment_bias, given.change, given.query_ids, given.key_ids,
                given.place, gradients, dq, partial_biases,
                given.q.stride(0), given.k.stride(0), self.area, *lengths, head, self.scale, SEGMENTS=self.segments,
            )  # fmt: skip
            columns = -(-len(given.r) // self.tile(kernels.backward_distances).keys)
            self.launch(
                kernels.backward_distances, (columns, heads, len(partial_r)),
                position, given.place, gradients, partial_r, self.area, self.texts, *lengths, head, self.scale,
            )  # fmt: skip
        return dq, dk, dv, *self.parameter_gradients(partial_r, partial_biases)

    def _seen(self, content_TNH: Tensor, by_segment_NT: Tensor) -> tuple[Tensor, ...]:
        given = self.given
        return content_TNH, given.k, given.v, by_segment_NT, given.query_ids, given.key_ids, given.sees, given.order

    def _sizes(self, head: int) -> tuple[Any, ...]:
        rows = (self.given.k.stride(0), self.given.v.stride(0), self.area)
        return (*rows, self.queries, self.keys, self.tokens, self.pitch, head, self.scale)

    def _blocks(self, kernel: Any) -> int:
        return self.texts * -(-self.queries // self.tile(kernel).queries)
