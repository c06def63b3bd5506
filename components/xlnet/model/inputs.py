"""The inputs of the attention implementations. The public functions of each attention describe the fields."""

from typing import NamedTuple

from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments
from xlnet.model.visibility import StreamSegments, Visibility


class AttentionInputs(NamedTuple):
    """The arguments of :func:`xlnet.model.attention.relative_attention`, but for the choice of implementation."""

    q_TNH: Tensor
    k_TNH: Tensor
    v_TNH: Tensor
    positions: Positions
    segments: Segments | None
    layout: Layout
    dropout: Dropout | None


class TwoStreamInputs(NamedTuple):
    """The arguments of :func:`xlnet.model.streams.stream_attention`, but for the choice of implementation."""

    q_BQNH: Tensor
    k_BKNH: Tensor
    v_BKNH: Tensor
    positions: Positions
    segments: StreamSegments | None
    visibility: Visibility
    dropout: Dropout | None
