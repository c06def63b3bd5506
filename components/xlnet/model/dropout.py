"""Dropout whose mask is a function of (seed, row, column), so nothing is stored for the backward pass.

Every implementation computes the same mask on every device. So each can be tested against the readable one below, and
a kernel recomputes the mask in the backward pass. The generator hashes a counter with an integer hash ("lowbias32",
Ettinger 2018). This costs two multiplications per element, while torch's CPU generator draws 64 bits per element in
a single thread.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9
_M1, _M2, _WORD = 0x21F0AAAD, 0xD35A2D97, 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """Describes a dropout mask by its probability and its key.

    Attributes:
        probability: probability of dropping an element, 0 ≤ p < 1.
        key: key of row 0, int64 [1], on the device, below 2^32; a row's number is added to it. It is a tensor so that a
            recorded CUDA graph can be replayed with another key.
    """

    probability: float
    key: Tensor

    @classmethod
    def seeded(cls, probability: float, seed: Tensor) -> "Dropout":
        """Make a mask from a seed, int64 [1], below 2^32. Different seeds give unrelated keys."""
        return cls(probability, _mix(seed))

    def from_row(self, first: int | Tensor) -> "Dropout":
        """Return the same mask, starting at row ``first``, for a slice of a larger batch."""
        if isinstance(first, Tensor) or first:
            return Dropout(self.probability, (self.key + first) & _WORD)
        return self

    @property
    def threshold(self) -> int:
        """An element is dropped if its 32 random bits are below this number; 0 drops nothing."""
        return min(_WORD, round(self.probability * (1 << 32)))

    @property
    def scale(self) -> float:
        """Kept elements are multiplied by this factor, so that the mean does not change."""
        return 1 / (1 - self.probability)

    def keep(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return True for kept elements, at broadcast int64 row and column numbers."""
        row_keys = _mix((self.key + rows) & _WORD)
        return _mix((row_keys + columns * GOLDEN) & _WORD) >= self.threshold


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit words that are stored as int64."""
    x = ((x ^ (x >> 16)) * _M1) & _WORD
    x = ((x ^ (x >> 15)) * _M2) & _WORD
    return x ^ (x >> 15)


def dropout(x: Tensor, noise: Dropout | None) -> Tensor:
    """Set elements of [..., D] to zero and scale the others to keep the mean; without noise, return ``x``.

    Source: Srivastava et al. 2014.
    """
    if noise is None:
        return x
    rows = torch.arange(x[..., 0].numel(), device=x.device).view(*x.shape[:-1], 1)
    keep = noise.keep(rows, torch.arange(x.shape[-1], device=x.device))
    return torch.where(keep, x * noise.scale, 0.0)


class Dropouts:
    """Seeds for all dropout layers of one forward pass, drawn at once from torch's generator.

    They are drawn on the host, so they are the same on every device.
    """

    def __init__(self, places: int, device: torch.device, on: bool) -> None:
        self._keys = _draw(places, device) if on else None
        self._used = 0

    def next(self, probability: float, first_row: int | Tensor = 0) -> Dropout | None:
        """Return the next layer's dropout, with rows counted from ``first_row``; None if it drops nothing."""
        if self._keys is None:
            return None
        self._used += 1
        key = self._keys[self._used - 1 : self._used]
        found = Dropout(probability, key)
        return found.from_row(first_row) if found.threshold else None


class KeyBuffers:
    """Keeps dropout keys in tensors with fixed addresses, so that a recorded CUDA graph can use a new step's keys."""

    _in_use: "KeyBuffers | None" = None

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._taken = 0

    def __enter__(self) -> None:
        """From now on, drawing keys returns these buffers: new ones the first time, then the same ones."""
        KeyBuffers._in_use, self._taken = self, 0

    def __exit__(self, *_: object) -> None:
        KeyBuffers._in_use = None

    def take(self, keys: Tensor, device: torch.device) -> Tensor:
        """Return the buffer for the next keys."""
        if self._taken == len(self._buffers):
            self._buffers.append(keys.to(device))
        self._taken += 1
        return self._buffers[self._taken - 1]

    def refill(self) -> None:
        """Draw new keys into all buffers from the generator's current state, in the original order."""
        for buffer in self._buffers:
            buffer.copy_(_random_keys(len(buffer)), non_blocking=True)


def _random_keys(places: int) -> Tensor:
    return _mix(torch.randint(1 << 32, (places,)))


def _draw(places: int, device: torch.device) -> Tensor:
    keys = _random_keys(places)
    buffers = KeyBuffers._in_use
    return keys.to(device, non_blocking=True) if buffers is None else buffers.take(keys, device)
