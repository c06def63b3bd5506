"""Relative attention with the compiled CPU kernels; ``attention.cpp`` explains the algorithm.

Shapes: see :mod:`xlnet.model.attention`; G groups of texts, X distances with room for whole blocks.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_long, c_uint32, c_void_p
from typing import Any

import torch
from torch import Tensor

from xlnet.model.dropout import Dropout
from xlnet.model.inputs import AttentionInputs
from xlnet.model.kernels import build
from xlnet.model.layout import Layout
from xlnet.model.positions import by_token, empty_gradients

LANES = 16  # the head width must be a multiple of the widest vector
# Each group of texts sums its gradients of distances in a separate buffer, so that the order of summation does not
# depend on the number of threads.
GROUPS = 4
# Fields that the structures of all attentions begin and end with.
TENSORS = ("q", "k", "v", "r", "content_bias", "position_bias", "segment_bias", "segment_embed")
SETTINGS = (("key", c_uint32), ("threshold", c_uint32), ("dropout_scale", c_float), ("threads", c_int))


def obstacle(device: str, dtype: str, head_width: int) -> str:
    """Return why it cannot run here, or an empty text if it can."""
    if device != "cpu":
        return f"it is for the CPU, and the tensors are on {device}"
    if dtype == "torch.float64":
        return "it computes in float32, and the tensors are float64"
    if head_width % LANES:
        return f"heads must be a multiple of {LANES} wide, and these are {head_width}"
    try:
        build.library()
    except build.Unbuildable as error:
        return str(error)
    return ""


def attention(given: AttentionInputs) -> Tensor:
    """See :func:`xlnet.model.attention.relative_attention`. It computes in float32 for every input type.

    The queries may be those of each text's last token only: [S, N, H]. Then so is the output.
    """
    q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout = given
    ids_T, bias_NH, embed_2NH = segments or (None, None, None)
    tokens = (q_TNH, k_TNH, v_TNH) if is_bfloat16(q_TNH) else floats(q_TNH, k_TNH, v_TNH)
    tensors = (*tokens, *floats(*positions, bias_NH, embed_2NH))
    return _Attention.apply(*tensors, ids_T, layout, dropout).to(q_TNH.dtype)


def is_bfloat16(x: Tensor) -> bool:
    """Whether the kernels read this tensor as bfloat16; they read all other types as float32."""
    return x.dtype == torch.bfloat16


def floats(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors in float32; None stays None."""
    return [None if x is None else x.float() for x in tensors]


SIZES = ("texts", "tokens", "heads", "width", "longest", "queries")


class _Problem(ctypes.Structure):
    """``struct Problem`` of attention.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in (*TENSORS, "segments", "offsets")),
        *((name, c_long) for name in ("q_row", "k_row", "v_row", *SIZES)),
        *SETTINGS,
    ]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *tokens, r_RNH, content_NH, position_NH, segment_NH, embed_2NH, ids_T, layout, dropout = given
        rest = (r_RNH, content_NH, position_NH, segment_NH, embed_2NH)
        q_TNH, k_TNH, v_TNH = map(by_token, tokens)
        tensors = [q_TNH, k_TNH, v_TNH, *(None if x is None else x.contiguous() for x in rest)]
        tensors.append(None if ids_T is None else ids_T.to(torch.int32).contiguous())
        problem = _problem(tensors, layout, dropout)
        library = build.library()
        functions, more = (library.distances_floats, library.attention_forward), c_int(is_bfloat16(q_TNH))
        out_TNH, *kept = run_forward(*functions, problem, tensors, q_TNH.shape, more)
        ctx.save_for_backward(*tensors, *kept)
        ctx.layout, ctx.dropout = layout, dropout
        return out_TNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, r_panels, r_rows, log_sums_NT = ctx.saved_tensors
        problem = _problem(tensors, ctx.layout, ctx.dropout)
        q, k, v = tensors[:3]
        gradients = empty_gradients(q, k, v) if len(q) == len(k) else (torch.empty_like(q), *empty_gradients(k, v))
        kept = (r_panels, r_rows, log_sums_NT)
        backward, more = build.library().attention_backward, c_int(is_bfloat16(tensors[0]))
        rest = run_backward(backward, problem, tensors, kept, grads[0], gradients, more)
        return *gradients, *rest, None, None, None


def _problem(tensors: list[Tensor | None], layout: Layout, dropout: Dropout | None) -> _Problem:
    q_TNH, k_TNH, v_TNH = tensors[:3]
    assert q_TNH is not None
    assert k_TNH is not None
    assert v_TNH is not None
    assert tensors[3] is not None
    problem = _Problem(
        *pointers(*tensors),
        *pointers(layout.offsets_S1),
        q_TNH.stride(0),
        k_TNH.stride(0),
        v_TNH.stride(0),
        layout.texts,
        *k_TNH.shape,
        len(tensors[3]) // 2,
        len(q_TNH),
    )
    set_threads_and_dropout(problem, dropout)
    return problem


def set_threads_and_dropout(problem: Any, dropout: Dropout | None) -> None:
    """Set the fields that every attention's structure has: ``threads``, ``key``, ``threshold``, ``dropout_scale``."""
    problem.threads = torch.get_num_threads()
    problem.dropout_scale = 1.0
    if dropout is not None:
        problem.key, problem.threshold = int(dropout.key), dropout.threshold
        problem.dropout_scale = dropout.scale


def run_forward(
    floats_of: Any, forward: Any, problem: Any, tensors: Sequence[Tensor | None], shape: torch.Size, *more: Any
) -> tuple[Tensor, ...]:
    """Run an attention's forward pass.

    Args:
        floats_of: the library's function that returns the size of a copy of the distances.
        forward: the library's function for the pass.
        problem: the structure that both take.
        tensors: those of :data:`TENSORS`, and more.
        shape: the output's shape, [..., N, H].
        more: further arguments of ``forward``.

    Returns:
        The output, two copies of the distances, and the logarithms of the sums of unnormalised weights, [N, ...].
    """
    q, r_RNH = tensors[0], tensors[3]
    assert q is not None
    assert r_RNH is not None
    floats_of.restype = c_long
    size = floats_of(ctypes.byref(problem))
    r_panels, r_rows = r_RNH.new_empty(size), r_RNH.new_empty(size)
    out, log_sums = q.new_empty(shape), r_RNH.new_empty(shape[-2], *shape[:-2])
    forward(ctypes.byref(problem), *pointers(r_panels, r_rows, out, log_sums), *more)
    return out, r_panels, r_rows, log_sums


def run_backward(
    backward: Any,
    problem: Any,
    tensors: Sequence[Tensor | None],
    kept: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    gradients: tuple[Tensor, ...],
    *more: Any,
) -> tuple[Tensor | None, ...]:
    """Run an attention's backward pass, which writes the gradients of queries, keys and values to ``gradients``.

    Args:
        backward: the library's function for the pass.
        problem: the structure that it takes.
        tensors: those of :data:`TENSORS`, and more.
        kept: what :func:`run_forward` returned beside the output.
        grad: the output's gradient.
        gradients: tensors to write to.
        more: further arguments of ``backward``.

    Returns:
        The gradients of distances, [R, N, H], of content, position and segment bias, [N, H], and of the segment
        embeddings, [2, N, H]; None without segments.
    """
    r_RNH, content_bias_NH, _, segment_bias_NH = tensors[3:7]
    assert r_RNH is not None
    assert content_bias_NH is not None
    (heads, width), r_rows, groups = content_bias_NH.shape, kept[1], min(GROUPS, problem.texts)
    grad_r, grad_biases_4NH = torch.empty_like(r_RNH), content_bias_NH.new_empty(4, heads, width)
    partial_r, partial_biases = r_rows.new_zeros(groups * len(r_rows)), r_rows.new_zeros(groups, heads, 4, width)
    backward(
        ctypes.byref(problem),
        *pointers(*kept[:2], grad.contiguous(), kept[2], *gradients, grad_r, grad_biases_4NH),
        c_long(groups),
        *pointers(partial_r, partial_biases),
        *more,
    )
    content, position, segment, other = grad_biases_4NH
    of_segments = (None, None) if segment_bias_NH is None else (segment, torch.stack([-other, other]))
    return grad_r, content, position, *of_segments


def pointers(*tensors: Tensor | None) -> list[c_void_p]:
    """Return the addresses of tensors' data; null for None."""
    return [c_void_p(None if x is None else x.data_ptr()) for x in tensors]
