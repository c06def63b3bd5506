"""The two forms that batches take: packed texts of any number of tokens, or padded ones of a few fixed shapes.

Both decide which rows an update sees, and what each of several devices, or of several rounds on one
device, computes of it: its share. A share is cut from the update's rows in an order that does not depend
on the number of shares, so that however many there are, they add up to the same update.
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

BUCKETS = 4  # shapes that are compiled, each once for training and once for evaluation
GRAIN = 16  # their lengths are multiples of it


@dataclass(frozen=True)
class Share:
    """What one rank computes of an update.

    Attributes:
        batches: one after the other, their gradients added up; of the kind that its :class:`Shapes` makes.
        texts: of the whole update, on all ranks: what its loss is the mean over.
        tokens: likewise.
    """

    batches: tuple[Any, ...]
    texts: int
    tokens: int


class Shapes(Protocol):
    """How an epoch's rows become updates, and an update's rows batches."""

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Row positions per update, in training order: a function of its arguments alone."""

    def share(self, split: Rows, rows: np.ndarray, budget: "Budget") -> Share:
        """One rank's share of an update's rows."""

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[Any]:
        """Every row once."""


@dataclass(frozen=True)
class Budget:
    """Whose share of an update, and in how large pieces.

    Attributes:
        rank: whose.
        ranks: how many there are.
        batch_tokens: what an update sees.
        micro_batch_tokens: what a device computes at once, at most; 0: its whole share.
    """

    rank: int
    ranks: int
    batch_tokens: int
    micro_batch_tokens: int

    def rounds(self, tokens: int) -> int:
        """In how many pieces a rank computes its share of so many tokens: the same number on every rank."""
        return -(-tokens // (self.ranks * self.micro_batch_tokens)) if self.micro_batch_tokens else 1


class Packed:
    """One text behind the other: nothing is computed for padding."""

    def __str__(self) -> str:
        return "packed"

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        """See :func:`xlnet.data.batches.epoch_plan`."""
        return epoch_plan(lengths, batch_tokens, seed, epoch)

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """Pieces of about equally many tokens, whatever the number of their rows."""
        lengths = split.lengths[rows]
        tokens = int(lengths.sum())
        rounds = budget.rounds(tokens)
        parts = cut_evenly(lengths, budget.ranks * rounds)[budget.rank * rounds :][:rounds]
        return Share(tuple(collate(split, rows, part) for part in parts), len(rows), tokens)

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[Batch | PaddedBatch]:
        """See :func:`xlnet.data.batches.evaluation_batches`."""
        return evaluation_batches(split, batch_tokens)


@dataclass(frozen=True)
class Padded:
    """A few fixed shapes, for devices that compile every shape anew.

    Attributes:
        buckets: lengths that texts are padded to, ascending; the last one holds the longest.
        pad_id: token id of padding.
        multiple: batches have a multiple of so many rows.
    """

    buckets: tuple[int, ...]
    pad_id: int
    multiple: int = 1

    @classmethod
    def fitting(cls, data: Dataset, multiple: int = 1) -> "Padded":
        """The shapes that pad a dataset's rows least."""
        lengths = np.concatenate([data.split(name).lengths for name in ("train", "validation")])
        return cls(best_buckets(lengths, BUCKETS, GRAIN), data.pad_id, multiple)

    def __str__(self) -> str:
        return f"padded to {', '.join(map(str, self.buckets))}"

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        """See :func:`xlnet.data.batches.bucket_plan`."""
        return [rows for rows, _ in bucket_plan(lengths, batch_tokens, seed, epoch, self.buckets)]

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """Pieces of one shape per bucket: those of an epoch's last rows are filled up with rows of weight 0."""
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
        """By bucket: one shape for each."""
        bucket = np.searchsorted(self.buckets, split.lengths)
        for number, length in enumerate(self.buckets):
            rows, count = np.flatnonzero(bucket == number), self._filled(bucket_rows(length, batch_tokens))
            for first in range(0, len(rows), count):
                yield collate_padded(split, rows, slice(first, first + count), length, self.pad_id)

    def _filled(self, rows: int) -> int:
        return -(-rows // self.multiple) * self.multiple
