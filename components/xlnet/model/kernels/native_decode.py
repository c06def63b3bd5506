"""One pass of generation with the compiled CPU kernel; ``decode.cpp`` explains it.

Shapes: see :mod:`xlnet.generation.decoder`.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_long, c_void_p

import torch
from torch import Tensor

from xlnet.model.kernels import build, native

LANES = 16  # every width must be a multiple of the widest vector
WIDEST_HEAD = 1024
MOST_ROWS = 3
LAYER = (
    *("qkv", "o", "r", "biases", "norm", "norm_bias"),
    *("first", "first_bias", "second", "second_bias", "last_norm", "last_norm_bias", "keys", "values"),
)


class _Layer(ctypes.Structure):
    """``struct Layer`` of decode.cpp."""

    _fields_ = [(name, c_void_p) for name in LAYER]


class _DecodePass(ctypes.Structure):
    """``struct Pass`` of decode.cpp."""

    _fields_ = [
        *(
            (name, c_void_p)
            for name in ("x", "scratch", "logits", "table", "table_bias", "mask", "hidden", "ids", "slots", "shifts")
        ),
        *((name, c_long) for name in ("rows", "layers", "width", "heads", "head", "inner", "vocabulary")),
        *((name, c_long) for name in ("kept_slots", "distances", "first", "end", "column")),
        ("eps", c_float),
        ("threads", c_int),
    ]


def obstacle(device: str, dtype: str, widths: Sequence[int], head_width: int) -> str:
    """Return why it cannot run here; empty if it can."""
    if any(width % LANES for width in widths) or head_width > WIDEST_HEAD:
        return f"widths must be multiples of {LANES}, and these are {list(widths)}"
    if dtype != "torch.float32":
        return f"it computes in float32, and the weights are {dtype}"
    return native.obstacle(device, dtype, head_width)


class Passes:
    """The passes of one text."""

    def __init__(
        self, layers: Sequence[Sequence[Tensor]], table_VD: Tensor, bias_V: Tensor, mask: Tensor, eps: float
    ) -> None:
        """Take the weights and kept keys of each layer, in the order of :data:`LAYER`, all contiguous."""
        self._tensors = [[one.detach().contiguous() for one in layer] for layer in layers]
        self._table_VD, self._bias_V = table_VD.detach().contiguous(), bias_V.detach().contiguous()
        first = self._tensors[0]
        heads, slots, head = first[-1].shape
        vocabulary, width = table_VD.shape
        inner, distances = len(first[6]), first[2].shape[-1]
        structures = [_Layer(*(one.data_ptr() for one in layer)) for layer in self._tensors]
        self._layers = (_Layer * len(structures))(*structures)
        self._x_QD = table_VD.new_empty(MOST_ROWS, width)
        library = build.library()
        library.decode_scratch.restype = c_long
        size = library.decode_scratch(*map(c_long, (width, heads, head, inner, slots)))
        self._scratch = table_VD.new_empty(size)
        self._pass = _DecodePass(self._x_QD.data_ptr(), self._scratch.data_ptr(), None, self._table_VD.data_ptr())
        self._mask = mask.detach().contiguous()
        self._pass.table_bias, self._pass.mask = self._bias_V.data_ptr(), self._mask.data_ptr()
        self._pass.layers, self._pass.width, self._pass.heads, self._pass.head = len(layers), width, heads, head
        self._pass.inner, self._pass.vocabulary = inner, vocabulary
        self._pass.kept_slots, self._pass.distances, self._pass.eps = slots, distances, eps

    def logits(
        self,
        ids: Sequence[int],
        slots: Sequence[int],
        shifts: Sequence[int],
        keys: slice,
        column: int,
        hidden_K: Tensor | None,
    ) -> Tensor:
        """Compute all layers' rows and the logits of the last one: [V].

        Args:
            ids: the content's tokens, fewer than :data:`MOST_ROWS`.
            slots: where the content's keys are kept.
            shifts: each row's distance from the highest place.
            keys: the slots that are seen.
            column: the first column of the distances that the row at the highest place needs.
            hidden_K: True for keys whose token is not known; None if all are known.
        """
        logits_V = torch.empty_like(self._bias_V)
        arrays = [(c_long * MOST_ROWS)(*numbers) for numbers in (ids, slots, shifts)]
        self._pass.ids, self._pass.slots, self._pass.shifts = map(ctypes.addressof, arrays)
        self._pass.logits, self._pass.rows = logits_V.data_ptr(), len(shifts)
        self._pass.hidden = None if hidden_K is None else hidden_K.data_ptr()
        self._pass.first, self._pass.end, self._pass.column = keys.start, keys.stop, column
        self._pass.threads = torch.get_num_threads()
        build.library().decode(self._layers, ctypes.byref(self._pass))
        return logits_V
