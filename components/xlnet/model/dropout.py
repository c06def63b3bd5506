"""Dropout whose mask is a function of (seed, row, column): nothing is stored for the backward pass.

Every implementation, on every device, computes the same mask, so each can be tested against the
readable one below, and a kernel recomputes in the backward pass what it dropped in the forward one.
The generator is a counter through an integer hash ("lowbias32", Ettinger 2018): each element costs
two multiplications, where torch's CPU generator draws 64 bits per element in a single thread.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9
_M1, _M2, _WORD = 0x21F0AAAD, 0xD35A2D97, 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """What to drop: each element with this probability, chosen by this key.

    Attributes:
        probability: 0 ≤ p < 1.
        key: of row 0, int64 [1], on the device, below 2^32; a row's number is added to it. A tensor, so that a
            recorded graph can be replayed with another.
    """

    probability: float
    key: Tensor

    @classmethod
    def seeded(cls, probability: float, seed: Tensor) -> "Dropout":
        """With a key that has nothing in common with that of another seed: int64 [1], below 2^32."""
        return cls(probability, _mix(seed))

    def from_row(self, first: int) -> "Dropout":
        """The same mask, of which row 0 is now row ``first``: for a slice of a larger batch."""
        return Dropout(self.probability, (self.key + first) & _WORD) if first else self

    @property
    def threshold(self) -> int:
        """Elements whose 32 random bits are below it are dropped; 0: none are."""
        return min(_WORD, round(self.probability * (1 << 32)))

    @property
    def scale(self) -> float:
        """What kept elements are multiplied with, so that the mean stays."""
        return 1 / (1 - self.probability)

    def keep(self, rows: Tensor, columns: Tensor) -> Tensor:
        """True for elements kept, at broadcast int64 row and column numbers."""
        row_keys = _mix((self.key + rows) & _WORD)
        return _mix((row_keys + columns * GOLDEN) & _WORD) >= self.threshold


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit words that lie in int64."""
    x = ((x ^ (x >> 16)) * _M1) & _WORD
    x = ((x ^ (x >> 15)) * _M2) & _WORD
    return x ^ (x >> 15)


def dropout(x: Tensor, noise: Dropout | None) -> Tensor:
    """Zero elements of [..., D] and scale the others so that the mean stays; None: return them as they are.

    Source: Srivastava et al. 2014.
    """
    if noise is None:
        return x
    rows = torch.arange(x[..., 0].numel(), device=x.device).view(*x.shape[:-1], 1)
    keep = noise.keep(rows, torch.arange(x.shape[-1], device=x.device))
    return torch.where(keep, x * noise.scale, 0.0)


class Dropouts:
    """A seed for each place that drops something, all drawn at once from torch's generator.

    They are drawn on the host, and so are the same whatever the device.
    """

    def __init__(self, places: int, device: torch.device, on: bool) -> None:
        self._keys = _draw(places, device) if on else None
        self._used = 0

    def next(self, probability: float, first_row: int = 0) -> Dropout | None:
        """The next place's, for rows counted from ``first_row``; None if nothing is dropped there."""
        if self._keys is None:
            return None
        self._used += 1
        key = self._keys[self._used - 1 : self._used]
        found = Dropout(probability, key)
        return found.from_row(first_row) if found.threshold else None


class KeyBuffers:
    """Keys in tensors that stay where they are, so that a recorded graph is replayed with those of another step."""

    _in_use: "KeyBuffers | None" = None

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._taken = 0

    def __enter__(self) -> None:
        """Whatever draws keys from now on gets these: the first time they are made, later they are what they are."""
        KeyBuffers._in_use, self._taken = self, 0

    def __exit__(self, *_: object) -> None:
        KeyBuffers._in_use = None

    def take(self, keys: Tensor, device: torch.device) -> Tensor:
        """The buffer of the next keys."""
        if self._taken == len(self._buffers):
            self._buffers.append(keys.to(device))
        self._taken += 1
        return self._buffers[self._taken - 1]

    def refill(self) -> None:
        """Draw all keys as they were drawn the first time: from the generator's present state, in the same order."""
        for buffer in self._buffers:
            buffer.copy_(_random_keys(len(buffer)), non_blocking=True)


def _random_keys(places: int) -> Tensor:
    return _mix(torch.randint(1 << 32, (places,)))


def _draw(places: int, device: torch.device) -> Tensor:
    keys = _random_keys(places)
    buffers = KeyBuffers._in_use
    return keys.to(device, non_blocking=True) if buffers is None else buffers.take(keys, device)
