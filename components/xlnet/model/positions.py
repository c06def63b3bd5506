"""The position and segment terms of attention: two tokens' distance, and whether they share a segment.

Shapes: T tokens, N heads, H head width, D model width, L tokens of one text, R = 2L distances (from L
down to 1 - L).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Positions(NamedTuple):
    """Relative positions, which all texts of a batch share.

    Attributes:
        r_RNH: projected encodings of the distances from L down to 1 - L, where L is the longest text's length.
        content_bias_NH: ``r_w_bias``, added to queries before their product with keys.
        position_bias_NH: ``r_r_bias``, added to queries before their product with distances.
    """

    r_RNH: Tensor
    content_bias_NH: Tensor
    position_bias_NH: Tensor

    def of_length(self, length: int) -> Tensor:
        """Return the rows for a text of this length: distances from ``length`` down to ``1 - length``."""
        longest = len(self.r_RNH) // 2
        return self.r_RNH[longest - length : longest + length]


class Segments(NamedTuple):
    """Relative segments: attention depends only on whether two tokens share a segment.

    Attributes:
        ids_T: segment of each token: int32.
        bias_NH: ``r_s_bias``, added to queries before their product with segment embeddings.
        embed_2NH: embedding of "same segment" (0) and "another segment" (1).
    """

    ids_T: Tensor
    bias_NH: Tensor
    embed_2NH: Tensor


def distance_encoding(
    length: int, width: int, clamp_len: int, device: torch.device | None = None, memory: int = 0, backward: bool = False
) -> Tensor:
    """Return the sinusoids of the distances M+L, M+L-1, …, 1-L: float32 [R, D], sines first, then cosines.

    Source: Vaswani et al. 2017, section 3.5, in Transformer-XL's arrangement. M is the number of memory tokens. A text
    that stands in reverse has the same distances with the other sign, as in XLNet's released code (``bi_data``).
    """
    distance_R = torch.arange(memory + length, -length, -1.0, device=device)
    if backward:
        distance_R = -distance_R
    if clamp_len > 0:
        distance_R = distance_R.clamp(-clamp_len, clamp_len)
    frequency = 1.0 / torch.pow(10_000, torch.arange(0, width, 2.0, device=device) / width)
    angle = torch.outer(distance_R, frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def by_key(scores_R: Tensor) -> Tensor:
    """View scores by distance as scores by key, without copying: [..., L, R] → [..., L, L].

    The score of key j is in column L + j - i of query i's row. If the same memory is read with rows of 2L - 1 elements
    instead of 2L, each key's scores are in one column.
    """
    length = scores_R.shape[-2]
    return scores_R.flatten(-2)[..., length:].unflatten(-1, (length, 2 * length - 1))[..., :length]


def split_heads(qkv_T3NH: Tensor) -> tuple[Tensor, ...]:
    """Return the queries, keys and values of one projection as views of it.

    If the backward pass gets gradients that are views of one tensor, it returns that tensor without a copy.
    """
    return _Split.apply(qkv_T3NH)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_T3NH: Tensor) -> tuple[Tensor, ...]:
        return qkv_T3NH.unbind(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0]._base
        if whole is not None and whole.shape == (len(grads[0]), len(grads), *grads[0].shape[1:]):
            views = whole.unbind(1)
            pairs = zip(grads, views, strict=True)
            if all(grad.data_ptr() == view.data_ptr() and grad.stride() == view.stride() for grad, view in pairs):
                return whole
        return torch.stack(grads, 1)


def split_columns(weight_D3NH: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return views of the weights of the first ``count`` products and of the rest; their gradients are joined once."""
    return _SplitColumns.apply(weight_D3NH, count)


class _SplitColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_D3NH: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return weight_D3NH[:, :count], weight_D3NH[:, count:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.cat(grads, 1), None


def by_token(x_TNH: Tensor) -> Tensor:
    """Return the memory layout that kernels need: a token's heads are contiguous, tokens may have any stride."""
    heads, width = x_TNH.shape[1:]
    return x_TNH if x_TNH.stride()[1:] == (width, 1) else x_TNH.contiguous().view(-1, heads, width)


def empty_gradients(*tensors_TNH: Tensor) -> tuple[Tensor, ...]:
    """Make uninitialised tensors with the arguments' token strides; views of one tensor if the arguments are."""
    first_TNH, count = tensors_TNH[0], len(tensors_TNH)
    tokens, heads, width = first_TNH.shape
    step = heads * width * first_TNH.element_size()
    if all(
        x.stride(0) == count * heads * width and x.data_ptr() - first_TNH.data_ptr() == place * step
        for place, x in enumerate(tensors_TNH)
    ):
        return first_TNH.new_empty(tokens, count, heads, width).unbind(1)
    return tuple(x.new_empty_strided(x.shape, x.stride()) for x in tensors_TNH)
