"""A language model's weights in the form that generation reads.

Shapes: those of :mod:`xlnet.generation.decoder`; I inputs, O outputs.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.errors import UserError
from xlnet.model.kernels import native_decode
from xlnet.model.kernels.native_decode import Matrix, Screen
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.positions import distance_encoding
from xlnet.model.precision import quantised
from xlnet.model.xlnet import Layer

LINE = 64  # bytes of a processor's cache line
NEVER = -1e30  # a logit that no token has


class LayerWeights(NamedTuple):
    """One layer's weights.

    Attributes:
        layer: the layer itself.
        qkv: weights of queries, keys and values, [3·N·H, D], in float32.
        biases_2N1H: of content and of position.
        matrices: of the compiled kernel, see :class:`native_decode.LayerTensors`; None without a kernel.
    """

    layer: Layer
    qkv: Tensor
    biases_2N1H: Tensor
    matrices: Sequence[Matrix] | None


class DecoderWeights:
    """The weights of a language model; all texts share them.

    Attributes:
        model: the language model.
        layers: of the model.
        output: gives the logits in the compiled kernel; None without a kernel.
        screen: finds the likeliest tokens in fewer bytes than ``output``; None without a kernel, and in int8.
    """

    def __init__(self, model: XLNetLanguageModel, precision: str = "float32") -> None:
        """Arrange the weights.

        Args:
            model: in evaluation mode, in float32, on the CPU. Its matrices move to other memory, and keep their values.
            precision: in which matrices are kept for passes of few rows: ``float32``, ``bfloat16`` or ``int8``.

        Raises:
            UserError: this precision needs the compiled kernel, and it cannot run here.
        """
        self.model = model
        reason = _obstacle(model)
        if reason and precision != "float32":
            raise UserError(f"precision {precision!r} cannot be used here: {reason}; take 'float32'")
        with torch.no_grad():
            layers = list(model.transformer.layers())
            biases = [torch.stack([one.rel_attn.r_w_bias, one.rel_attn.r_r_bias])[:, :, None] for one in layers]
            qkv = [one.rel_attn.qkv.flatten(1).T.contiguous() for one in layers]
        self.output: Matrix | None = None
        self.screen: Screen | None = None
        found: list[Sequence[Matrix] | None] = [None] * len(layers)
        if not reason:
            *parts, self.output = _matrices(model, qkv, precision)
            self.screen = None if precision == "int8" else _screen(self.output)
            found = [parts[first : first + 4] for first in range(0, len(parts), 4)]
        self.layers = [LayerWeights(*one) for one in zip(layers, qkv, biases, found, strict=True)]
        self._distances: tuple[int, list[Tensor]] = (0, [])

    @torch.inference_mode()
    def distances(self, reach: int) -> tuple[int, list[Tensor]]:
        """Return the number of distances, at least ``reach``, and each layer's projections of them, in panels."""
        if self._distances[0] < reach:
            reach, config = 1 << max(8, (reach - 1).bit_length()), self.model.config
            encoding_RD = distance_encoding(reach, config.d_model, config.clamp_len)
            found = [encoding_RD @ one.layer.rel_attn.r.flatten(1) for one in self.layers]
            shape = (-1, config.n_head, config.d_head)
            self._distances = reach, [native_decode.panels(one.view(shape).permute(1, 2, 0)) for one in found]
        return self._distances


def _obstacle(model: XLNetLanguageModel) -> str:
    """Return why the compiled kernel cannot run, or an empty text if it can."""
    config, weight = model.config, model.transformer.word_embedding.weight
    widths = (config.d_model, config.n_head * config.d_head, config.d_inner)
    return native_decode.obstacle(weight.device.type, str(weight.dtype), widths, config.d_head)


@torch.no_grad()
def _matrices(model: XLNetLanguageModel, qkv: list[Tensor], precision: str) -> list[Matrix]:
    """Return each layer's four matrices, and last the output's, side by side in memory. Float32 is moved there."""
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for own_qkv, layer in zip(qkv, model.transformer.layers(), strict=True):
        first, second = layer.ff.layer_1, layer.ff.layer_2
        weights += own_qkv, layer.rel_attn.o, first.weight, second.weight
        biases += None, None, first.bias, second.bias
    weights.append(model.transformer.word_embedding.weight)
    biases.append(model.lm_loss.bias)
    if precision == "float32":
        moved = _side_by_side(weights)
        for weight, there in zip(weights, moved, strict=True):
            weight.data = there
        return [Matrix(there.flatten(1), None, bias) for there, bias in zip(moved, biases, strict=True)]
    scales: list[Tensor | None] = [None] * len(weights)
    if precision == "int8":
        weights, scales = map(list, zip(*(quantised(one.flatten(1)) for one in weights), strict=True))
    else:
        weights = [one.flatten(1).bfloat16() for one in weights]
    return [Matrix(*one) for one in zip(_side_by_side(weights), scales, biases, strict=True)]


@torch.no_grad()
def _screen(output: Matrix) -> Screen:
    """Return a coarse copy of a matrix, with how far its products can be from the exact ones.

    Two products with x differ by at most |row - coarse row| · |x| (Cauchy and Schwarz), and by what both lose in
    rounding: each at most its number of terms times 2^-24 of its factors' lengths (Higham 2002, section 3.1).
    """
    assert output.bias is not None
    exact_WD = F.pad(output.weights.float(), (0, 0, 0, -len(output.weights) % native_decode.PANEL))
    bias_W = F.pad(output.bias, (0, len(exact_WD) - len(output.bias)), value=NEVER)
    coarse_WD, scale_W = quantised(exact_WD)
    lost_W = (coarse_WD * scale_W[:, None] - exact_WD).double().norm(dim=1)
    rounding = 3 * exact_WD.shape[1] * 2.0**-24
    slack_W = (lost_W + rounding * exact_WD.double().norm(dim=1)).float() * (1 + 1e-6)
    panels = coarse_WD.unflatten(0, (-1, native_decode.PANEL)).transpose(1, 2).contiguous()
    return Screen(panels, scale_W, bias_W, slack_W)


def _side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to one block of memory. NumPy asks Linux for huge pages, from which a processor reads faster."""
    starts = list(accumulate((-(-one.nbytes // LINE) * LINE for one in tensors), initial=0))
    block = np.empty(starts[-1] + LINE, np.uint8)
    bytes_B = torch.from_numpy(block)[-block.ctypes.data % LINE :]
    parts = zip(starts[:-1], tensors, strict=True)
    return [bytes_B[start : start + one.nbytes].view(one.dtype).view(one.shape).copy_(one) for start, one in parts]
