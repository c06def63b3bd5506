"""Products of float32 matrices on AMX, the matrix unit of some Intel processors; ``amx.cpp`` explains them.

Shapes: M rows, K depth, N columns.
"""

from ctypes import c_int, c_long
from functools import cache

import torch
from torch import Tensor

from xlnet import processor
from xlnet.model.kernels import build
from xlnet.model.kernels.native import pointers

NEEDED = {"amx_tile", "amx_bf16"}
LANES, SIDE = 16, 32  # the contiguous dimension of a factor, and the columns of a product, are multiples of these
FEWEST = 64  # rows of a product; with fewer, reading and splitting the right factor takes longer than MKL's product


@cache
def obstacle() -> str:
    """Return why this processor cannot run them, or an empty text if it can."""
    if missing := NEEDED - processor.features():
        return f"the processor lacks {', '.join(sorted(missing))}"
    try:
        return "" if build.library().amx_ready() else "the kernels were compiled without AMX, or Linux forbids it"
    except build.Unbuildable as error:
        return str(error)


def fits(left_MK: Tensor, right_KN: Tensor) -> bool:
    """Whether :func:`product` can multiply these, and is faster than other libraries."""
    return (
        left_MK.device.type == "cpu"
        and left_MK.dtype == right_KN.dtype == torch.float32
        and left_MK.shape[0] >= FEWEST
        and left_MK.shape[1] >= LANES
        and right_KN.shape[1] % SIDE == 0
        and _is_in_vectors(left_MK)
        and _is_in_vectors(right_KN)
        and not obstacle()
    )


def _is_in_vectors(x: Tensor) -> bool:
    """Whether a dimension is contiguous, and its size a multiple of LANES."""
    return any(x.stride(i) == 1 and x.shape[i] % LANES == 0 for i in (0, 1))


def product(left_MK: Tensor, right_KN: Tensor, bias_N: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Compute ``left · right + bias``, and its exact GELU if asked: [M, N]. The arguments must fit."""
    out_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
    build.library().amx_product(
        *_matrix(left_MK),
        *_matrix(right_KN),
        *pointers(bias_N if bias_N is None else bias_N.contiguous(), out_MN),
        *(c_long(size) for size in (*left_MK.shape, right_KN.shape[1])),
        c_int(gelu),
        c_int(torch.get_num_threads()),
    )
    return out_MN


def _matrix(x: Tensor) -> list[object]:
    return [*pointers(x), c_long(x.stride(0)), c_long(x.stride(1))]
