"""Runs the kernels of :mod:`~xlnet.model.kernels.triton_attention` to compute relative attention.

Each text has a square of length × length scores. The squares of a few heads are kept at a time, in a fixed amount of
memory, and only during one pass.

Shapes: see :mod:`xlnet.model.attention`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels import triton_attention as kernels
from xlnet.model.kernels.tiles import Tile, Tiling, plan
from xlnet.model.layout import Layout
from xlnet.model.positions import by_token, empty_gradients

GROUPS = 8  # number of buffers for the gradients of distances; texts share them, and they are summed in order
LOG2E = 1.4426950408889634
PITCH = 64  # a row of scores begins at a multiple of this many elements


class Attention(torch.autograd.Function):
    """The autograd function of :func:`xlnet.model.attention.relative_attention`; it takes the tensors one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        q_TNH, k_TNH, v_TNH, r_RNH, *biases, ids_T, layout, dropout = arguments
        q_TNH, k_TNH, v_TNH = (by_token(x) for x in (q_TNH, k_TNH, v_TNH))
        rest = (r_RNH, *kernel_biases(*biases), layout.offsets_S1 if ids_T is None else ids_T)
        given = _Tensors(q_TNH, k_TNH, v_TNH, *(x.contiguous() for x in rest))
        passes = _Pass(given, layout, dropout, segments=biases[-1] is not None)
        out_TNH, log_sums_NT = passes.forward()
        ctx.save_for_backward(*given, out_TNH, log_sums_NT)
        ctx.layout, ctx.dropout, ctx.segments = layout, dropout, passes.segments
        return out_TNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_TNH, log_sums_NT = ctx.saved_tensors
        passes = _Pass(_Tensors(*tensors), ctx.layout, ctx.dropout, ctx.segments)
        return (*passes.backward(grads[0].contiguous(), out_TNH, log_sums_NT), None, None, None)


def kernel_biases(
    content_NH: Tensor, position_NH: Tensor, segment_NH: Tensor | None, embed_2NH: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the three biases, and what another segment changes; without segments, tensors that no kernel reads."""
    if segment_NH is None or embed_2NH is None:
        return content_NH, position_NH, content_NH, content_NH
    return content_NH, position_NH, segment_NH, embed_2NH[1] - embed_2NH[0]


class _Tensors(NamedTuple):
    """The tensors that the kernels read."""

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    content_bias: Tensor
    position_bias: Tensor
    segment_bias: Tensor
    change: Tensor
    ids: Tensor


class KernelPass:
    """One forward or backward pass of attention: launches the kernels in order. Subclasses say which kernels.

    Attributes:
        given: the tensors that the kernels read: queries, keys and values by token, distances, the three biases,
            what another segment changes, and more.
        texts: number of texts.
        area: elements of one head's scores.
        plan: how the kernels divide their work.
    """

    plan: Tiling

    def __init__(
        self, given: Any, texts: int, area: int, dropout: Dropout | None, segments: bool, unread: Tensor
    ) -> None:
        """Take the inputs; ``unread`` replaces the key of the dropout mask if there is none."""
        self.given, self.texts, self.area, self.segments = given, texts, area, segments
        self.tokens, self.heads, self.width = given.q.shape
        self.scale = LOG2E / self.width**0.5
        self.mask_key = unread if dropout is None else dropout.key
        self.dropping = (dropout.threshold, dropout.scale) if dropout else (0, 1.0)
        self.wide = given.q.dtype == torch.float32
        self.capability = torch.cuda.get_device_capability(given.q.device) if given.q.is_cuda else (0, 0)

    def tile(self, kernel: Any) -> Tile:
        """Return a kernel's tile."""
        return self.plan.tile(kernel.__name__)

    def score_positions(self, position_TNH: Tensor, scores: Tensor, head: int, heads: int) -> None:
        """Launch the kernel that writes the scores by distance of ``heads`` heads, from ``head`` on."""
        raise NotImplementedError

    def position_scores(self, position_TNH: Tensor, reader: Any) -> Iterator[tuple[Tensor, int, int]]:
        """Yield the position scores of a few heads at a time: the scores, the first head, and the number of heads.

        If the kernel that would read them computes them itself, only the memory is yielded.
        """
        kind = torch.float32 if self.wide else torch.float16
        at_once = min(self.heads, max(1, self.plan.scores // (self.area * kind.itemsize)))
        scores = position_TNH.new_empty(at_once * self.area, dtype=kind)
        for head in range(0, self.heads, at_once):
            heads = min(at_once, self.heads - head)
            if not self.tile(reader).turn:
                self.score_positions(position_TNH, scores, head, heads)
            yield scores, head, heads

    def prepare(self, *backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries with content bias, queries with position bias, and the scores for another segment [N, T]."""
        given = self.given
        content, position = given.q.new_empty(given.q.shape), given.q.new_empty(given.q.shape)
        by_segment = self.numbers(self.heads, self.tokens)
        rows = 64 if self.width <= 64 else 32
        kernels.prepare[(-(-self.tokens // rows), self.heads)](
            given.q, *given[4:8], content, position, by_segment, *(backward or (content, content, by_segment)),
            given.q.stride(0), self.tokens, self.scale,
            N=self.heads, H=self.width, M=rows, SEGMENTS=self.segments, BACKWARD=bool(backward),
        )  # fmt: skip
        return content, position, by_segment

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch a kernel with the sizes that all kernels take."""
        chosen = self.tile(kernel)
        if "TURN" in kernel.arg_names:
            constants["TURN"] = chosen.turn
        constants |= {"N": self.heads, "H": self.width, "M": chosen.queries, "K": chosen.keys, "P": PITCH}
        constants |= {"PRECISION": "ieee" if self.wide else "tf32"}
        kernel[grid](*arguments, **constants, num_warps=chosen.warps, num_stages=chosen.stages)

    def numbers(self, *shape: int) -> Tensor:
        """Make an uninitialised float32 tensor."""
        return self.given.q.new_empty(shape, dtype=torch.float32)

    def parameter_gradients(self, partial_r: Tensor, partial_biases: Tensor) -> tuple[Tensor | None, ...]:
        """Sum the parts of the gradients of distances, of the three biases, and of the segment embeddings."""
        content_bias, position_bias, segment_bias, other = partial_biases.sum(0).unbind(1)
        of_segments = (segment_bias, torch.stack([-other, other])) if self.segments else (None, None)
        return partial_r.sum(0).to(self.given.q.dtype), content_bias, position_bias, *of_segments


class _Pass(KernelPass):
    """A pass of :class:`Attention`."""

    def __init__(self, given: _Tensors, layout: Layout, dropout: Dropout | None, segments: bool) -> None:
        self.layout, self.longest = layout, len(given.r) // 2
        self.squares_S, area = layout.squares(PITCH)
        super().__init__(given, layout.texts, area, dropout, segments, layout.offsets_S1)
        self.plan = plan(self.width, self.wide, self.tokens / self.texts, self.capability)

    def score_positions(self, position_TNH: Tensor, scores: Tensor, head: int, heads: int) -> None:
        """See :class:`KernelPass`."""
        self._over_blocks(
            kernels.position_scores, "queries", heads, (position_TNH, self.given.r), (scores,),
            (self.area, self.longest, head, self.scale),
        )  # fmt: skip

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the attention output [T, N, H], and log₂ of the sums of unnormalised weights [N, T]."""
        given, like = self.given, self.given.q
        # No kernel writes tokens that belong to no text, but later operators read them.
        out_TNH = like.new_zeros(like.shape) if self.layout.capacity else like.new_empty(like.shape)
        log_sums_NT = self.numbers(self.heads, self.tokens)
        content, position, by_segment = self.prepare()
        if self.tile(kernels.forward).turn:  # it needs no memory for scores, so all heads are computed at once
            parts = iter([(log_sums_NT, 0, self.heads)])
        else:
            parts = self.position_scores(position, kernels.forward)
        for scores, head, heads in parts:
            self._over_blocks(
                kernels.forward, "queries", heads,
                (content, position, given.k, given.v, given.r, by_segment, given.ids),
                (self.mask_key, scores, out_TNH, log_sums_NT), self._sizes(head),
                SEGMENTS=self.segments, DROPOUT=self.dropping[0] > 0,
            )  # fmt: skip
        return out_TNH, log_sums_NT

    def backward(self, grad_TNH: Tensor, out_TNH: Tensor, log_sums_NT: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys, values, distances, the three biases and the segment embeddings."""
        given = self.given
        dq, dk, dv = empty_gradients(*given[:3])
        for gradient in (dq, dk, dv) if self.layout.capacity else ():
            gradient.zero_()
        deltas_NT = self.numbers(self.heads, self.tokens)
        content, position, by_segment = self.prepare(out_TNH, grad_TNH, deltas_NT)
        blocks = len(self.layout.blocks(self.tile(kernels.backward_queries).queries)[0])
        partial_biases = given.q.new_zeros(blocks, self.heads, 4, self.width, dtype=torch.float32)
        partial_r = self.numbers(min(GROUPS, self.texts), *given.r.shape)
        for scores, head, heads in self.position_scores(position, kernels.backward_keys):
            gradients = scores.view(given.q.dtype)
            self._over_blocks(
                kernels.backward_keys, "keys", heads,
                (content, position, given.k, given.v, given.r, by_segment, given.ids),
                (self.mask_key, grad_TNH, log_sums_NT, deltas_NT, scores, gradients, dk, dv), self._sizes(head),
                SEGMENTS=self.segments, DROPOUT=self.dropping[0] > 0,
            )  # fmt: skip
            self._over_blocks(
                kernels.backward_queries, "queries", heads,
                (given.q, given.k, given.r, given.segment_bias, given.change, given.ids),
                (gradients, dq, partial_biases),
                (given.q.stride(0), given.k.stride(0), self.area, self.longest, head, self.scale),
                SEGMENTS=self.segments,
            )  # fmt: skip
            self.launch(
                kernels.backward_distances, (self._distance_blocks(), heads, len(partial_r)),
                position, self.layout.offsets_S1, self.squares_S, gradients, partial_r,
                self.area, self.texts, self.longest, head, self.scale,
            )  # fmt: skip
        return dq, dk, dv, *self.parameter_gradients(partial_r, partial_biases)

    def _sizes(self, head: int) -> tuple[Any, ...]:
        rows = (self.given.k.stride(0), self.given.v.stride(0), self.area)
        return (*rows, self.longest, self.tokens, head, self.scale, *self.dropping)

    def _distance_blocks(self) -> int:
        """Return how many blocks of distances there are; where they begin is up to the kernel."""
        chosen = self.tile(kernels.backward_distances)
        before = chosen.keys - (self.longest + 1) % chosen.keys if chosen.turn else 0
        return -(-(2 * self.longest + before) // chosen.keys)

    def _over_blocks(
        self, kernel: Any, of: str, heads: int, given: tuple[Tensor, ...], rest: tuple[Tensor, ...],
        scalars: tuple[Any, ...], **constants: Any,
    ) -> None:  # fmt: skip
        """Launch a kernel with one program per head and per block of a text's queries or keys."""
        texts, starts = self.layout.blocks(getattr(self.tile(kernel), of))
        tables = (self.layout.offsets_S1, self.squares_S, texts, starts)
        self.launch(kernel, (len(texts), heads), *given, *tables, *rest, *scalars, **constants)
