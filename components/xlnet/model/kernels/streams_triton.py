"""Two-stream attention with Triton kernels, for CUDA devices of compute capability 8.0 or newer.

This module imports Triton only when it is used. The kernels are in :mod:`~xlnet.model.kernels.triton_streams`.
"""

from torch import Tensor

from xlnet.model.inputs import TwoStreamInputs
from xlnet.model.kernels.triton import obstacle

__all__ = ["attention", "obstacle"]


def attention(given: TwoStreamInputs) -> Tensor:
    """See :func:`xlnet.model.streams.stream_attention`."""
    q_BQNH, k_BKNH, v_BKNH, positions, segments, visibility, dropout = given
    from xlnet.model.kernels.triton_streams_passes import StreamAttention

    queries_BQ, keys_BK, bias_NH, embed_2NH = segments or (None, None, None, None)
    numbers = (queries_BQ, keys_BK, visibility, dropout)
    return StreamAttention.apply(q_BQNH, k_BKNH, v_BKNH, *positions, bias_NH, embed_2NH, *numbers)
