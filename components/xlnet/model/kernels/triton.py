"""Relative attention with Triton kernels, for CUDA devices of compute capability 8.0 or newer.

This module imports Triton only when it is used. The kernels are in :mod:`~xlnet.model.kernels.triton_attention`.
"""

import importlib.util
import os

import torch
from torch import Tensor

from xlnet.model.inputs import AttentionInputs

WIDTHS = (16, 32, 64, 128)
TYPES = ("torch.float32", "torch.bfloat16", "torch.float16")


def obstacle(device: str, dtype: str, head_width: int) -> str:
    """Return the reason why Triton attention cannot run here; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if head_width not in WIDTHS:
        return f"heads are {head_width} wide; allowed: {', '.join(map(str, WIDTHS))}"
    if dtype not in TYPES:
        return f"tensors are {dtype}; allowed: {', '.join(TYPES)}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device != "cuda":
        return f"it is for CUDA devices, and the tensors are on {device}"
    capability = torch.cuda.get_device_capability()
    return "" if capability >= (8, 0) else f"it needs compute capability 8.0, this device has {capability}"


def attention(given: AttentionInputs) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`."""
    q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout = given
    from xlnet.model.kernels.triton_passes import Attention

    ids_T, bias_NH, embed_2NH = segments or (None, None, None)
    return Attention.apply(q_TNH, k_TNH, v_TNH, *positions, bias_NH, embed_2NH, ids_T, layout, dropout)
