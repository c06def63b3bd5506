"""One pass of generation with the compiled CPU kernel; ``decode.cpp`` explains it.

Shapes: see :mod:`xlnet.generation.decoder`.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.model.kernels import build, native

LANES = 16  # every width must be a multiple of the widest vector
WIDEST_HEAD = 1024
PANEL = 64  # columns of keys and distances that lie together
MOST_ROWS, MOST_GROUPS = 3, 8  # rows of a group, groups of a pass
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Matrix(NamedTuple):
    """The weights of a product, [O, I]; a row of int8 is to be multiplied by its scale, [O]."""

    weights: Tensor
    scales: Tensor | None
    bias: Tensor | None


class Screen(NamedTuple):
    """A coarse copy of the output, W words: the vocabulary, filled up to a multiple of 64.

    Attributes:
        panels: of its matrix in int8, [W / 64, D, 64].
        scales_W: what each column is to be multiplied by.
        bias_W: of the output; the words that fill it up have one that never wins.
        slack_W: a coarse logit is at most this times the hidden state's length from the exact one.
    """

    panels: Tensor
    scales_W: Tensor
    bias_W: Tensor
    slack_W: Tensor


class LayerTensors(NamedTuple):
    """The weights and the cache of a layer; vectors are float32, and ``r`` and ``keys`` are :func:`panels`.

    ``matrices`` are those of queries, keys and values, of the attention's output, and of the feed-forward's two layers.
    """

    matrices: Sequence[Matrix]
    r: Tensor
    biases: Tensor
    norm: Tensor
    norm_bias: Tensor
    last_norm: Tensor
    last_norm_bias: Tensor
    keys: Tensor
    values: Tensor


class _Matrix(ctypes.Structure):
    """``struct Matrix`` of decode.cpp."""

    _fields_ = [(name, c_void_p) for name in Matrix._fields]


class _Screen(ctypes.Structure):
    """``struct Screen`` of decode.cpp."""

    _fields_ = [(name, c_void_p) for name in Screen._fields]


class _Layer(ctypes.Structure):
    """``struct Layer`` of decode.cpp."""

    _fields_ = [("matrices", _Matrix * 4), *((name, c_void_p) for name in LayerTensors._fields[1:])]


class Group(NamedTuple):
    """Rows of one pass that see the same keys: some tokens of the content, and last the query.

    Attributes:
        ids: the content's tokens, fewer than :data:`MOST_ROWS`.
        slots: where the content's keys are kept.
        shifts: each row's distance from the highest place.
        keys: the slots that are seen.
        column: the first column of the distances that the row at the highest place needs.
    """

    ids: Sequence[int]
    slots: Sequence[int]
    shifts: Sequence[int]
    keys: slice
    column: int


class _DecodePass(ctypes.Structure):
    """``struct Pass`` of decode.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "scratch", "logits", "table", "mask")),
        ("output", _Matrix),
        ("screen", _Screen),
        *((name, c_void_p) for name in ("hidden", "groups", "ids", "slots", "shifts")),
        *((name, c_long) for name in ("count", "rows", "layers", "width", "heads", "head", "inner", "vocabulary")),
        *((name, c_long) for name in ("kept_slots", "distances", "kind", "likeliest")),
        ("eps", c_float),
        ("threads", c_int),
    ]


def obstacle(device: str, dtype: str, widths: Sequence[int], head_width: int) -> str:
    """Return why it cannot run here, or an empty text if it can."""
    if any(width % LANES for width in widths) or head_width > WIDEST_HEAD:
        return f"widths must be multiples of {LANES}, and these are {list(widths)}"
    if dtype != "torch.float32":
        return f"it computes in float32, and the weights are {dtype}"
    return native.obstacle(device, dtype, head_width)


def panels(x_NHC: Tensor) -> Tensor:
    """Return columns as panels, the last one filled up with zeros: [N, H, C] → [N, C / 64, H, 64]."""
    filled_NHC = F.pad(x_NHC, (0, -x_NHC.shape[2] % PANEL))
    return filled_NHC.unflatten(2, (-1, PANEL)).transpose(1, 2).contiguous()


def columns(x_NPHC: Tensor, wanted: slice) -> Tensor:
    """Return some columns of panels: [N, P, H, 64] → [N, H, columns]."""
    first = wanted.start // PANEL
    x_NHC = x_NPHC[:, first : -(-wanted.stop // PANEL)].transpose(1, 2).flatten(2)
    return x_NHC[:, :, wanted.start - first * PANEL : wanted.stop - first * PANEL]


class Passes:
    """The passes of one text."""

    def __init__(
        self,
        layers: Sequence[LayerTensors],
        table_VD: Tensor,
        output: Matrix,
        screen: Screen | None,
        mask_D: Tensor,
        eps: float,
    ) -> None:
        """Take what passes read; the matrices have one of :data:`KINDS`, and everything is contiguous.

        Args:
            layers: of the model.
            table_VD: the tokens' embeddings, in float32.
            output: gives the logits.
            screen: of the output, to find the likeliest tokens in fewer bytes.
            mask_D: what the query stream begins with.
            eps: of the layer norms.
        """
        self._tensors = layers, table_VD, output, screen, mask_D  # keeps the memory that is pointed to
        heads, slots, head = layers[0].values.shape
        (vocabulary, width), inner, distances = (
            table_VD.shape,
            len(layers[0].matrices[2].weights),
            layers[0].r.shape[1] * PANEL,
        )
        self._layers = (_Layer * len(layers))(*map(_layer, layers))
        self._x_QD = table_VD.new_empty(MOST_GROUPS * MOST_ROWS, width)
        library = build.library()
        library.decode_scratch.restype = c_long
        size = library.decode_scratch(*map(c_long, (width, heads, head, inner, slots, vocabulary)))
        self._scratch = table_VD.new_empty(size)
        self._pass = _DecodePass(self._x_QD.data_ptr(), self._scratch.data_ptr())
        self._pass.table, self._pass.mask, self._pass.output = table_VD.data_ptr(), mask_D.data_ptr(), _matrix(output)
        if screen:
            self._pass.screen = _Screen(*(one.data_ptr() for one in screen))
        self._pass.layers, self._pass.width, self._pass.heads, self._pass.head = len(layers), width, heads, head
        self._pass.inner, self._pass.vocabulary = inner, vocabulary
        self._pass.kind = KINDS[layers[0].matrices[0].weights.dtype]
        self._pass.kept_slots, self._pass.distances, self._pass.eps = slots, distances, eps

    def logits(self, groups: Sequence[Group], hidden_K: Tensor | None = None, likeliest: int = 0) -> Tensor:
        """Compute all layers' rows and the logits of each group's query: [groups, V].

        Args:
            groups: at most :data:`MOST_GROUPS`. Each sees what earlier ones keep.
            hidden_K: True for keys whose token is not known, of a single group; None if all are known.
            likeliest: how many of the greatest logits are needed, others may be -inf; 0: all.
        """
        logits_GW = self._x_QD.new_empty(len(groups), -(-self._pass.vocabulary // PANEL) * PANEL)
        numbers = (
            [number for one in groups for number in (len(one.shifts), one.keys.start, one.keys.stop, one.column)],
            [number for one in groups for number in (*one.ids, -1)],
            [number for one in groups for number in (*one.slots, -1)],
            [number for one in groups for number in one.shifts],
        )
        arrays = [(c_long * len(these))(*these) for these in numbers]
        self._pass.groups, self._pass.ids, self._pass.slots, self._pass.shifts = map(ctypes.addressof, arrays)
        self._pass.logits, self._pass.count, self._pass.rows = logits_GW.data_ptr(), len(groups), len(numbers[1])
        self._pass.hidden = None if hidden_K is None else hidden_K.data_ptr()
        self._pass.likeliest, self._pass.threads = likeliest, torch.get_num_threads()
        build.library().decode(self._layers, ctypes.byref(self._pass))
        return logits_GW[:, : self._pass.vocabulary]


def _matrix(matrix: Matrix) -> _Matrix:
    return _Matrix(*(None if one is None else one.data_ptr() for one in matrix))


def _layer(tensors: LayerTensors) -> _Layer:
    matrices, *others = tensors
    return _Layer((_Matrix * 4)(*map(_matrix, matrices)), *(one.data_ptr() for one in others))
