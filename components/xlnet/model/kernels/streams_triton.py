"""Two-stream attention with Triton kernels, for CUDA devices of compute capability 8.0 or newer.

This module imports Triton only when it is used. The kernels are in :mod:`~xlnet.model.kernels.triton_streams`.
"""

from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.kernels.triton import obstacle
from xlnet.model.positions import Positions
from xlnet.model.visibility import StreamSegments, Visibility

__all__ = ["attention", "obstacle"]


def attention(
    q_BQNH: Tensor,
    k_BKNH: Tensor,
    v_BKNH: Tensor,
    positions: Positions,
    segments: StreamSegments | None,
    visibility: Visibility,
    dropout: Dropout | None,
) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`."""
    from xlnet.model.kernels.triton_streams_passes import StreamAttention

    queries_BQ, keys_BK, bias_NH, embed_2NH = segments or (None, None, None, None)
    numbers = (queries_BQ, keys_BK, visibility, dropout)
    return StreamAttention.apply(q_BQNH, k_BKNH, v_BKNH, *positions, bias_NH, embed_2NH, *numbers)
