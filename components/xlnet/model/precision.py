"""Matrix products of prediction in float32, bfloat16 or int8: which of them this processor has, and their weights.

Only the products with weights change. Attention, layer norm and the sums of the residual stream stay in float32.

Shapes: T tokens, I inputs, O outputs.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from xlnet import processor
from xlnet.errors import UserError
from xlnet.model.fused import gelu_dropout
from xlnet.model.kernels import native, native_fused
from xlnet.model.linear import linear, multiply_gelu
from xlnet.options import PRECISIONS

# Processor features, any of which makes products of a type faster than those of float32, as Linux names them.
FEATURES = {"bfloat16": {"amx_bf16", "avx512_bf16"}, "int8": {"amx_int8", "avx512_vnni", "avx_vnni"}}


class Product(Protocol):
    """A product with weights that are prepared once."""

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        """Compute ``x · weightᵀ + bias``, and its GELU if asked: [T, O], in the product's own type."""


def choose(precision: str) -> str:
    """Return the type of products to use; ``auto`` is float32, whose answers are those of the training.

    Raises:
        UserError: the precision is unknown, or this processor would be slower with it than with float32.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if reason := obstacle(precision):
        raise UserError(f"precision {precision!r} cannot be used here: {reason}; take 'float32'")
    return "float32" if precision == "auto" else precision


def obstacle(precision: str) -> str:
    """Return why a precision cannot be used on this processor, or an empty text if it can."""
    needed = FEATURES.get(precision)
    if needed is None:
        return ""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    return "" if needed & processor.features() else f"the processor has none of {', '.join(sorted(needed))}"


def prepare(precision: str, weight_OI: Tensor, bias_O: Tensor | None = None) -> Product:
    """Prepare weights for products of a precision that :func:`choose` has returned."""
    kinds: dict[str, type[Float32] | type[BFloat16] | type[Int8]]
    kinds = {"float32": Float32, "bfloat16": BFloat16, "int8": Int8}
    return kinds[precision](weight_OI, bias_O)


class Float32:
    """Products of float32 with the weights as they are."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight, self._bias = weight_OI.detach(), None if bias_O is None else bias_O.detach()

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        """See :class:`Product`."""
        return (multiply_gelu if gelu else linear)(x_TI, self._weight, self._bias)


class BFloat16:
    """Products of bfloat16 that are summed in float32, with weights in the order in which oneDNN reads them."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().bfloat16().contiguous())
        self._bias = None if bias_O is None else bias_O.detach().bfloat16()

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        """See :class:`Product`."""
        kind, variant = ("gelu", "none") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x_TI.bfloat16(), self._weight, self._bias, kind, [], variant)


class Int8:
    """Products of int8 that are summed in int32: a scale for each row of weights, and one for each token.

    Source of the scales: Dettmers et al. 2022 (LLM.int8), section 2.1, without its outliers.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        rounded_OI, scale_O = quantised(weight_OI.detach())
        self._weight: Any = torch.ops.onednn.qlinear_prepack(rounded_OI, None)
        self._scale = scale_O
        self._zero = torch.zeros(len(scale_O), dtype=torch.int32)
        self._bias = None if bias_O is None else bias_O.detach()

    def __call__(self, x_TI: Tensor, gelu: bool = False) -> Tensor:
        """See :class:`Product`."""
        rounded_TI, scale_T = quantised(x_TI)
        weights = self._weight, self._scale, self._zero
        y_TO = torch.ops.onednn.qlinear_pointwise(
            rounded_TI, 1.0, 0, *weights, None, 1.0, 0, torch.float32, "none", [], ""
        )
        if _has_kernels(y_TO):
            native_fused.scale_rows(y_TO, scale_T, self._bias, gelu)
            return y_TO
        scale_T1 = scale_T[:, None]
        y_TO = y_TO.mul_(scale_T1) if self._bias is None else torch.addcmul(self._bias, y_TO, scale_T1)
        return gelu_dropout(y_TO, None) if gelu else y_TO


def quantised(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8; return the rows, and what each is to be multiplied by, float32 [T]."""
    if _has_kernels(x_TI):
        return native_fused.round_rows(x_TI)
    scale_T = (x_TI.abs().amax(1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x_TI / scale_T[:, None]).round_().to(torch.int8), scale_T


def _has_kernels(x_TD: Tensor) -> bool:
    return x_TD.shape[1] % native.LANES == 0 and not native.obstacle(x_TD.device.type, str(x_TD.dtype), native.LANES)
