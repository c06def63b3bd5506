"""Packed texts: one behind the other in a single row of tokens, with nothing between them.

XLNet's positions are relative, so a text's states do not depend on where in the row it stands, and
attention that stays within each text is exact. Everything but attention works on [T, …] and never
sees padding.

Shapes: S texts, T tokens of all texts together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xlnet.errors import RunError


class Room(NamedTuple):
    """What a layout of changing texts has room for."""

    tokens: int
    texts: int  # one more than there ever are: the last one is always empty
    longest: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each text of a packed batch lies.

    Attributes:
        lengths_S: tokens per text, on the host, each at least 1.
        offsets_S1: text s holds tokens ``offsets_S1[s]`` to ``offsets_S1[s + 1] - 1``: int32, on the device.
        real_T: False for padding, where texts were padded to one length (see :meth:`padded`); None: there is none.
        first_token: of the batch that this is a part of; its dropout masks are that part of the whole batch's.
        first_text: likewise.
        room: of a layout whose texts change (see :meth:`with_room`); tokens behind the last text belong to none.
    """

    lengths_S: np.ndarray
    offsets_S1: Tensor
    real_T: Tensor | None = None
    first_token: int = 0
    first_text: int = 0
    room: Room | None = None

    @classmethod
    def of(
        cls, lengths_S: np.ndarray, device: torch.device | str = "cpu", first_token: int = 0, first_text: int = 0
    ) -> "Layout":
        """The layout of texts of these lengths, in this order.

        Raises:
            RunError: no text, or an empty one.
        """
        lengths_S = np.asarray(lengths_S, np.int64)
        if not len(lengths_S) or lengths_S.min() < 1:
            raise RunError(f"a batch needs at least one text and no empty one; its lengths are {lengths_S.tolist()}")
        offsets_S1 = torch.from_numpy(_offsets(lengths_S))
        return cls(lengths_S, offsets_S1.to(device, non_blocking=True), None, first_token, first_text)

    @classmethod
    def padded(cls, real_T: Tensor, length: int, first_text: int = 0) -> "Layout":
        """The layout of texts that were left-padded to one length, for devices that compile every shape anew.

        Shapes depend on nothing but the arguments': no token count leaves the device. Nothing is computed there
        either, so that a batch can be laid out while another one's program is being collected.
        """
        texts = len(real_T) // length
        offsets_S1 = torch.arange(0, (texts + 1) * length, length, dtype=torch.int32).to(real_T.device)
        return cls(np.full(texts, length), offsets_S1, real_T, first_text * length, first_text)

    @classmethod
    def with_room(cls, room: Room, device: torch.device) -> "Layout":
        """A layout without texts, in which :meth:`replace` puts some: its tensors stay where they are.

        That is what a recorded graph needs. Shapes are those of the room, whatever is in it.
        """
        offsets_S1 = torch.zeros(room.texts + 1, dtype=torch.int32, device=device)
        return cls(np.zeros(room.texts, np.int64), offsets_S1, room=room)

    def replace(self, lengths_S: np.ndarray) -> None:
        """Put texts of these lengths into a layout with room for them."""
        self.lengths_S[:] = 0
        self.lengths_S[: len(lengths_S)] = lengths_S
        _refill((self.offsets_S1,), (_offsets(self.lengths_S),))
        for tensors, make in self._tables.values():
            _refill(tensors, make())

    @cached_property
    def tokens(self) -> int:
        """T: tokens of all texts together."""
        return self.room.tokens if self.room else int(self.lengths_S.sum())

    @property
    def texts(self) -> int:
        """S."""
        return len(self.lengths_S)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.room.longest if self.room else int(self.lengths_S.max())

    @cached_property
    def _tables(self) -> dict[tuple[str, int], tuple[tuple[Tensor, ...], Callable[[], tuple[np.ndarray, ...]]]]:
        return {}

    def _table(self, name: str, size: int, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]:
        """Tensors on the device, made once."""
        if (name, size) not in self._tables:
            device = self.offsets_S1.device
            tensors = tuple(torch.from_numpy(x).to(device, non_blocking=True) for x in make())
            self._tables[name, size] = tensors, make
        return self._tables[name, size][0]

    def blocks(self, rows: int) -> tuple[Tensor, ...]:
        """Text, and first token within it, of every block of so many tokens of one text: int32 [blocks] each."""

        def make() -> tuple[np.ndarray, ...]:
            counts_S = -(-self.lengths_S // rows)
            text = np.repeat(np.arange(self.texts), counts_S)
            start = (np.arange(len(text)) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)) * rows
            if self.room:  # the most there can be; those that are not there lie in an empty text
                missing = self.texts + self.tokens // rows - len(text)
                text, start = np.pad(text, (0, missing), constant_values=self.texts - 1), np.pad(start, (0, missing))
            return text.astype(np.int32), start.astype(np.int32)

        return self._table("blocks", rows, make)

    def squares(self, pitch: int) -> tuple[Tensor, int]:
        """Where each text's square of scores begins, and the elements of all of them.

        Rows of a square begin at multiples of ``pitch`` elements: int64 [S].
        """

        def make() -> tuple[np.ndarray, ...]:
            sizes_S = self._square_sizes(pitch)
            return (np.cumsum(sizes_S) - sizes_S,)

        whole = -(-self.longest // pitch) * pitch * self.tokens if self.room else int(self._square_sizes(pitch).sum())
        return self._table("squares", pitch, make)[0], whole

    def _square_sizes(self, pitch: int) -> np.ndarray:
        return self.lengths_S * (-(-self.lengths_S // pitch) * pitch)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First token and the one behind the last, per text."""
        ends = np.cumsum(self.lengths_S)
        return list(zip((ends - self.lengths_S).tolist(), ends.tolist(), strict=True))

    @property
    def last_S(self) -> Tensor:
        """Position of each text's last token: int64 [S]."""
        return self.offsets_S1[1:].long() - 1

    def check(self, tokens: int) -> None:
        """Refuse tensors that this layout does not describe.

        Raises:
            RunError: another number of tokens.
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
        # From pinned memory the copy does not hold up the one who asks for it.
        tensor.copy_(source.pin_memory() if tensor.is_cuda else source, non_blocking=True)
