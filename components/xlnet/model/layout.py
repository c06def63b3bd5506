"""Packed texts: all texts of a batch are concatenated into a single row of tokens, without padding.

XLNet's positions are relative, so a text's hidden states do not depend on its place in the row, and attention
within each text is exact. All other operators work on [T, …] and never compute padding.

Shapes: S texts, T tokens of all texts together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xlnet.errors import RunError


class Capacity(NamedTuple):
    """The maximum size of a layout whose texts change."""

    tokens: int
    texts: int  # one more than the maximum number of texts, because the last text is always empty
    longest: int
    is_part: bool = False  # whether the texts are a part of a larger batch, which may begin at any of its rows


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each text of a packed batch is.

    Attributes:
        lengths_S: tokens per text, at least 1, on the host.
        offsets_S1: text s has tokens ``offsets_S1[s]`` to ``offsets_S1[s + 1] - 1``: int32, on the device.
        real_T: False for padding, if texts were padded to one length (see :meth:`padded`); None without padding.
        first_token: this part's first token within the whole batch; it selects this part's rows of the dropout masks.
            A tensor of one number if parts change.
        first_text: this part's first text within the whole batch, likewise.
        capacity: maximum size, if the texts change (see :meth:`with_capacity`); tokens behind the last text belong to
            no text.
    """

    lengths_S: np.ndarray
    offsets_S1: Tensor
    real_T: Tensor | None = None
    first_token: int | Tensor = 0
    first_text: int | Tensor = 0
    capacity: Capacity | None = None

    @classmethod
    def of(
        cls, lengths_S: np.ndarray, device: torch.device | str = "cpu", first_token: int = 0, first_text: int = 0
    ) -> "Layout":
        """Make the layout of texts of these lengths, in this order.

        Raises:
            RunError: there is no text, or a text is empty.
        """
        lengths_S = np.asarray(lengths_S, np.int64)
        if not len(lengths_S) or lengths_S.min() < 1:
            raise RunError(f"a batch needs at least one text and no empty one; its lengths are {lengths_S.tolist()}")
        offsets_S1 = torch.from_numpy(_offsets(lengths_S))
        return cls(lengths_S, offsets_S1.to(device, non_blocking=True), None, first_token, first_text)

    @classmethod
    def padded(cls, real_T: Tensor, length: int, first_text: int = 0) -> "Layout":
        """Make the layout of texts that were left-padded to one length, for devices that compile every new shape.

        Output shapes depend only on input shapes, so nothing is synchronised with the host. Nothing is computed on the
        device either, so this can run while the program of another batch is being collected.
        """
        texts = len(real_T) // length
        offsets_S1 = torch.arange(0, (texts + 1) * length, length, dtype=torch.int32).to(real_T.device)
        return cls(np.full(texts, length), offsets_S1, real_T, first_text * length, first_text)

    @classmethod
    def with_capacity(cls, capacity: Capacity, device: torch.device) -> "Layout":
        """Make an empty layout, to be filled by :meth:`refill`. Its tensors keep their addresses.

        A recorded CUDA graph needs this. The tensors' shapes depend only on ``capacity``.
        """
        offsets_S1 = torch.zeros(capacity.texts + 1, dtype=torch.int32, device=device)
        layout = cls(np.zeros(capacity.texts, np.int64), offsets_S1, capacity=capacity)
        if not capacity.is_part:
            return layout
        first_token, first_text = torch.zeros(2, 1, dtype=torch.int64, device=device)
        return replace(layout, first_token=first_token, first_text=first_text)

    def refill(self, other: "Layout") -> None:
        """Give a layout that :meth:`with_capacity` made another layout's texts."""
        self.lengths_S[:] = 0
        self.lengths_S[: other.texts] = other.lengths_S
        _refill((self.offsets_S1,), (_offsets(self.lengths_S),))
        for mine, theirs in ((self.first_token, other.first_token), (self.first_text, other.first_text)):
            if isinstance(mine, Tensor):
                mine.fill_(theirs)
            elif theirs:
                raise RunError("a part of a batch was given to a layout for whole batches")
        for tensors, make in self._tables.values():
            _refill(tensors, make())

    @cached_property
    def tokens(self) -> int:
        """T: total number of tokens."""
        return self.capacity.tokens if self.capacity else int(self.lengths_S.sum())

    @property
    def texts(self) -> int:
        """S: number of texts."""
        return len(self.lengths_S)

    @cached_property
    def longest(self) -> int:
        """Length of the longest text in tokens."""
        return self.capacity.longest if self.capacity else int(self.lengths_S.max())

    @cached_property
    def _tables(self) -> dict[tuple[str, int], tuple[tuple[Tensor, ...], Callable[[], tuple[np.ndarray, ...]]]]:
        return {}

    def _table(self, name: str, size: int, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]:
        """Return tensors on the device; the first call for a name and size makes them."""
        if (name, size) not in self._tables:
            device = self.offsets_S1.device
            tensors = tuple(torch.from_numpy(x).to(device, non_blocking=True) for x in make())
            self._tables[name, size] = tensors, make
        return self._tables[name, size][0]

    def blocks(self, rows: int) -> tuple[Tensor, ...]:
        """Cut each text into blocks of ``rows`` tokens; return each block's text and first token: int32 [blocks]."""

        def make() -> tuple[np.ndarray, ...]:
            counts_S = -(-self.lengths_S // rows)
            text = np.repeat(np.arange(self.texts), counts_S)
            start = (np.arange(len(text)) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)) * rows
            if self.capacity:  # the maximum number of blocks; unused ones belong to an empty text
                missing = self.texts + self.tokens // rows - len(text)
                text, start = np.pad(text, (0, missing), constant_values=self.texts - 1), np.pad(start, (0, missing))
            return text.astype(np.int32), start.astype(np.int32)

        return self._table("blocks", rows, make)

    def squares(self, pitch: int) -> tuple[Tensor, int]:
        """Return where each text's square of attention scores begins, int64 [S], and the squares' total size.

        Both count elements. Rows of a square begin at multiples of ``pitch`` elements.
        """

        def make() -> tuple[np.ndarray, ...]:
            sizes_S = self._square_sizes(pitch)
            return (np.cumsum(sizes_S) - sizes_S,)

        whole = (
            -(-self.longest // pitch) * pitch * self.tokens if self.capacity else int(self._square_sizes(pitch).sum())
        )
        return self._table("squares", pitch, make)[0], whole

    def _square_sizes(self, pitch: int) -> np.ndarray:
        return self.lengths_S * (-(-self.lengths_S // pitch) * pitch)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Return each text's first token and the token after its last."""
        ends = np.cumsum(self.lengths_S)
        return list(zip((ends - self.lengths_S).tolist(), ends.tolist(), strict=True))

    @property
    def last_S(self) -> Tensor:
        """Return the position of each text's last token: int64 [S]."""
        return self.offsets_S1[1:].long() - 1

    def check(self, tokens: int) -> None:
        """Check that tensors of this many tokens fit this layout.

        Raises:
            RunError: the layout has another number of tokens.
        """
        if tokens != self.tokens:
            raise RunError(
                f"{tokens:,} tokens were given, but the packed texts' lengths add up to {self.tokens:,}: "
                "the boundaries are inconsistent"
            )


def _offsets(lengths_S: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int32)


def _refill(tensors: tuple[Tensor, ...], arrays: tuple[np.ndarray, ...]) -> None:
    for tensor, array in zip(tensors, arrays, strict=True):
        source = torch.from_numpy(np.ascontiguousarray(array))
        # A copy from pinned memory does not block the caller.
        tensor.copy_(source.pin_memory() if tensor.is_cuda else source, non_blocking=True)
