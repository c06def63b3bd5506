"""The two forms of batches: packed texts with any number of tokens, or padded texts in a few fixed shapes.

Both forms decide which rows belong to an update, and which part (share) of the update each device computes, in one
batch or in several. Rows are divided in an order that does not depend on the number of devices, so the shares add up to
the same update for any number of devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xlnet.data.batches import (
    Batch,
    PaddedBatch,
    Rows,
    best_buckets,
    bucket_plan,
    bucket_rows,
    collate,
    collate_padded,
    cut_evenly,
    epoch_plan,
    evaluation_batches,
)
from xlnet.data.dataset import Dataset

BUCKETS = 4  # number of shapes; each is compiled for training and for evaluation
GRAIN = 16  # lengths are multiples of this


@dataclass(frozen=True)
class Share:
    """The part of an update that one rank computes."""

    batches: tuple[Any, ...]  # computed one after the other; gradients are added. Their class depends on Shapes
    texts: int  # number of texts in the whole update, over all ranks; the loss is a mean over them
    tokens: int  # number of tokens in the whole update, over all ranks


class Shapes(Protocol):
    """Divides an epoch's rows into updates, and an update's rows into batches."""

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the row positions of each update, in training order. They depend only on the arguments."""

    def share(self, split: Rows, rows: np.ndarray, budget: "Budget") -> Share:
        """Return one rank's share of an update's rows."""

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[Any]:
        """Yield batches that hold every row once."""


@dataclass(frozen=True)
class Budget:
    """Says which rank's share of an update is wanted, and how large its batches may be."""

    rank: int  # from 0
    ranks: int
    batch_tokens: int  # largest number of tokens in an update
    micro_batch_tokens: int  # largest number of tokens that a device computes at once; 0: its whole share

    def rounds(self, tokens: int) -> int:
        """Return the number of batches in a rank's share of an update with this many tokens; equal on all ranks."""
        return -(-tokens // (self.ranks * self.micro_batch_tokens)) if self.micro_batch_tokens else 1


class Packed:
    """Batches of concatenated texts, so nothing is computed for padding."""

    def __str__(self) -> str:
        return "packed"

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        return epoch_plan(lengths, batch_tokens, seed, epoch)

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """Return batches with about equally many tokens; their numbers of rows differ."""
        lengths = split.lengths[rows]
        tokens = int(lengths.sum())
        rounds = budget.rounds(tokens)
        parts = cut_evenly(lengths, budget.ranks * rounds)[budget.rank * rounds :][:rounds]
        return Share(tuple(collate(split, rows, part) for part in parts), len(rows), tokens)

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[Batch | PaddedBatch]:
        return evaluation_batches(split, batch_tokens)


@dataclass(frozen=True)
class Padded:
    """Batches of a few fixed shapes, for devices that compile a program for each shape."""

    buckets: tuple[int, ...]  # lengths to which texts are padded, ascending; the longest text fits into the last
    pad_id: int  # token id of padding
    multiple: int = 1  # the number of rows in a batch is a multiple of this

    @classmethod
    def fitting(cls, data: Dataset, multiple: int = 1) -> "Padded":
        """Return the shapes that need the least padding for a dataset's rows."""
        lengths = np.concatenate([data.split(name).lengths for name in ("train", "validation")])
        return cls(best_buckets(lengths, BUCKETS, GRAIN), data.pad_id, multiple)

    def __str__(self) -> str:
        return f"padded to {', '.join(map(str, self.buckets))}"

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        return [rows for rows, _ in bucket_plan(lengths, batch_tokens, seed, epoch, self.buckets)]

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """Return batches of one shape per bucket. At the end of an epoch, rows of weight 0 complete the shape."""
        lengths = split.lengths[rows]
        length = self.buckets[int(np.searchsorted(self.buckets, lengths.max()))]
        whole = bucket_rows(length, budget.batch_tokens)
        rounds = budget.rounds(whole * length)
        count = self._filled(-(-whole // (budget.ranks * rounds)))
        batches = [
            collate_padded(split, rows, slice(first, first + count), length, self.pad_id)
            for first in range(budget.rank * rounds * count, (budget.rank + 1) * rounds * count, count)
        ]
        return Share(tuple(batches), len(rows), int(lengths.sum()))

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[Batch | PaddedBatch]:
        """Yield the batches of one bucket after the other; a bucket's batches have one shape."""
        bucket = np.searchsorted(self.buckets, split.lengths)
        for number, length in enumerate(self.buckets):
            rows, count = np.flatnonzero(bucket == number), self._filled(bucket_rows(length, batch_tokens))
            for first in range(0, len(rows), count):
                yield collate_padded(split, rows, slice(first, first + count), length, self.pad_id)

    def _filled(self, rows: int) -> int:
        return -(-rows // self.multiple) * self.multiple
