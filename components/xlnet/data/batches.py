"""Batches: which rows an update sees, and how they become rectangular arrays.

Rows of similar length share a batch, so that little padding is computed. The plan of an epoch is a
pure function of (lengths, token budget, seed, epoch), holds every row exactly once, and is known
before the first step, so that a run can continue at its exact next batch.

Shapes: B rows of a batch, L its longest row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from xlnet.data.tokenizer import Encoded

# Rows are sorted by length within a window of this many batches: wide enough that a batch is almost
# rectangular, narrow enough that its rows change from epoch to epoch.
WINDOW_BATCHES = 64


class Rows(Protocol):
    """Tokenised rows, one after the other: a split of a dataset, or texts in memory."""

    @property
    def tokens(self) -> np.ndarray:
        """Token ids of all rows: int32 [sum of lengths]."""

    @property
    def offsets(self) -> np.ndarray:
        """Row i holds ``tokens[offsets[i]:offsets[i + 1]]``: int64 [rows + 1]."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row: int64 [rows]."""

    @property
    def boundaries(self) -> np.ndarray:
        """Index of each row's first token with segment id 1: int32 [rows]."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices (int32) or values (float32): [rows]."""


@dataclass(frozen=True)
class Unlabelled:
    """Texts in memory, for prediction; see :class:`Rows`."""

    encoded: Encoded

    @cached_property
    def lengths(self) -> np.ndarray:
        """[rows]."""
        return np.array([len(ids) for ids in self.encoded.input_ids], np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """[rows + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def tokens(self) -> np.ndarray:
        """[sum of lengths]."""
        return np.concatenate([np.array(ids, np.int32) for ids in self.encoded.input_ids])

    @cached_property
    def boundaries(self) -> np.ndarray:
        """[rows]."""
        return np.array(self.encoded.boundaries, np.int32)

    @cached_property
    def labels(self) -> np.ndarray:
        """Zeros: nobody knows them."""
        return np.zeros(len(self.lengths), np.float32)


@dataclass(frozen=True)
class Batch:
    """A left-padded batch."""

    input_ids_BL: np.ndarray  # int64
    segment_ids_BL: np.ndarray  # int64: 0 first text, 1 second text, 2 <cls>, 3 padding
    attention_mask_BL: np.ndarray  # bool: True where there is a token
    labels_B: np.ndarray  # int64 or float32
    index_B: np.ndarray  # int64: positions within the split
    tokens: int  # without padding


def epoch_plan(lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Split all rows into batches of at most ``batch_tokens`` tokens, padding counted.

    Args:
        lengths: tokens per row, [rows].
        batch_tokens: budget of one batch; a longer row makes a batch of its own.
        seed: order of rows and batches.
        epoch: counted from 0.

    Returns:
        One array of row positions per batch, in training order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    window = max(1, int(WINDOW_BATCHES * batch_tokens / mean))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        batches += cut_by_tokens(rows[np.argsort(lengths[rows], kind="stable")], lengths, batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def cut_by_tokens(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut rows sorted by ascending length where rows × longest would exceed the budget."""
    cuts, start = [], 0
    for i, length in enumerate(lengths[rows]):
        if i > start and (i - start + 1) * length > batch_tokens:
            cuts.append(i)
            start = i
    return np.split(rows, cuts) if len(rows) else []


def collate(split: Rows, rows: np.ndarray, pad_id: int) -> Batch:
    """Gather rows into a left-padded batch."""
    lengths_B = split.lengths[rows]
    longest = int(lengths_B.max())
    # Column c of a row holds its token c - (longest - length); negative means padding.
    position_BL = np.arange(longest)[None, :] - (longest - lengths_B)[:, None]
    mask_BL = position_BL >= 0
    flat_BL = split.offsets[rows][:, None] + np.maximum(position_BL, 0)
    segment_BL = (position_BL >= split.boundaries[rows][:, None]).astype(np.int64)
    segment_BL[:, -1] = 2
    return Batch(
        input_ids_BL=np.where(mask_BL, split.tokens[flat_BL], pad_id).astype(np.int64),
        segment_ids_BL=np.where(mask_BL, segment_BL, 3),
        attention_mask_BL=mask_BL,
        labels_B=split.labels[rows].astype(np.int64 if split.labels.dtype == np.int32 else np.float32),
        index_B=rows,
        tokens=int(lengths_B.sum()),
    )


def evaluation_batches(split: Rows, batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Every row once, sorted by length."""
    order = np.argsort(split.lengths, kind="stable")
    for rows in cut_by_tokens(order, split.lengths, batch_tokens):
        yield collate(split, rows, pad_id)
