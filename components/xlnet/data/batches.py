"""Divides rows into batches, and packs each batch's texts.

A packed batch has no padding: the tokens of its texts follow each other. The plan of an epoch depends only on the
lengths, the token budget, the seed and the epoch. It holds every row exactly once and is known before the first step,
so an interrupted run can continue at its exact next batch.

Shapes: S texts of a batch, T tokens of all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from xlnet.data.tokenizer import Encoded
from xlnet.errors import UserError

# Rows are packed within a shuffled window of this many batches: wide enough that batches become full,
# narrow enough that a batch's rows change from epoch to epoch.
WINDOW_BATCHES = 64


class Rows(Protocol):
    """Tokenised rows: a split of a dataset, or texts in memory."""

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
        return np.array([len(ids) for ids in self.encoded.input_ids], np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def tokens(self) -> np.ndarray:
        return np.concatenate([np.array(ids, np.int32) for ids in self.encoded.input_ids])

    @cached_property
    def boundaries(self) -> np.ndarray:
        return np.array(self.encoded.boundaries, np.int32)

    @cached_property
    def labels(self) -> np.ndarray:
        """Zeros [rows], because the labels are unknown."""
        return np.zeros(len(self.lengths), np.float32)


@dataclass(frozen=True)
class Batch:
    """Packed texts: they follow each other without padding."""

    input_ids_T: np.ndarray  # int64
    segment_ids_T: np.ndarray  # int32: 0 first text, 1 second text, 2 <cls>
    lengths_S: np.ndarray  # int64: tokens per text
    labels_S: np.ndarray  # int64 or float32
    index_S: np.ndarray  # int64: positions within the split
    weights_S: np.ndarray  # float32: 1 for texts that count, 0 for one that only fills an empty part
    first_token: int = 0  # number of this part's first token within the update
    first_text: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in the batch; none is padding."""
        return len(self.input_ids_T)


def epoch_plan(lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Split all rows into batches of at most ``batch_tokens`` tokens; return the rows of each, in training order.

    Within a window of shuffled rows, longest first, each row goes to the first batch with room for it
    (first-fit decreasing, Johnson 1973), so that batches are full and an update costs the same each time. A row that is
    longer than the budget makes a batch of its own. The order depends on the seed and on the epoch, counted from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    window = max(1, int(WINDOW_BATCHES * batch_tokens / mean))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        batches += pack(rows[np.argsort(-lengths[rows], kind="stable")], lengths, batch_tokens)
    return [spread(batches[i], lengths) for i in generator.permutation(len(batches))]


def spread(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Order a batch's rows so that both halves have about equally many tokens, and the same holds within each half.

    So each of several devices can take a contiguous part, and the order does not depend on the number of devices.
    """
    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    place = np.arange(len(rows))
    levels = range(max(1, len(rows) - 1).bit_length())
    # Dealing 0 1 1 0 0 1 1 0 … gives each half one of two neighbours in length, and each the longer one in turn.
    halves = [((place >> level) % 4 % 3 != 0).astype(np.int64) << (len(levels) - level) for level in levels]
    return by_length[np.argsort(sum(halves), kind="stable")]


def cut_evenly(lengths: np.ndarray, parts: int) -> list[slice]:
    """Cut texts, in this order, into parts with about equally many tokens; parts may be empty."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    middles = ends - lengths / 2  # a text belongs to the run that holds its middle
    cuts = np.searchsorted(middles, total * np.arange(1, parts) / parts).tolist()
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(lengths)], strict=True)]


def pack(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Put each row, in this order, into the first batch into which it fits. A row above the budget gets its own batch.

    Consecutive rows of equal length are placed together: as many as fit into the first batch, then into the next.
    """
    if not len(rows):
        return []
    sizes = lengths[rows]
    runs = np.flatnonzero(np.diff(sizes, prepend=-1))
    batch_of_row = np.empty(len(rows), np.int64)
    room = np.empty(0, np.int64)
    for start, stop in zip(runs, [*runs[1:], len(rows)], strict=True):
        length, count = int(sizes[start]), int(stop - start)
        filled = np.minimum(np.cumsum(room // length), count)  # rows of the run in the batches up to each
        placed = int(filled[-1]) if len(filled) else 0
        batch_of_row[start : start + placed] = np.searchsorted(filled, np.arange(placed), side="right")
        room -= np.diff(filled, prepend=0) * length
        each = max(1, batch_tokens // length)
        new = np.arange(count - placed) // each
        batch_of_row[start + placed : stop] = len(room) + new
        room = np.concatenate([room, np.maximum(batch_tokens - np.bincount(new) * length, 0)])
    by_batch = np.argsort(batch_of_row, kind="stable")
    return np.split(rows[by_batch], np.flatnonzero(np.diff(batch_of_row[by_batch])) + 1)


def bucket_plan(
    lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int, buckets: Sequence[int]
) -> list[tuple[np.ndarray, int]]:
    """Split all rows into batches of a few shapes, for devices that compile a program for each shape.

    A row is padded to the smallest of the ascending buckets into which it fits; padding counts in the token budget. A
    batch has :func:`bucket_rows` rows of one bucket; the last batch of each bucket may have fewer, and
    :func:`collate_padded` completes it. The order depends on the seed and on the epoch, counted from 0.

    Returns:
        Row positions and bucket per batch, in training order.
    """
    edges = np.asarray(buckets)
    if len(lengths) and lengths.max() > edges[-1]:
        raise UserError(f"a row has {lengths.max():,} tokens; the largest bucket holds {edges[-1]:,}")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    bucket = edges[np.searchsorted(edges, lengths[order])]
    batches = []
    for length in edges.tolist():
        rows, size = order[bucket == length], bucket_rows(length, batch_tokens)
        batches += [(rows[start : start + size], length) for start in range(0, len(rows), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def bucket_rows(length: int, batch_tokens: int) -> int:
    """Return the number of rows in a batch of texts padded to ``length``.

    It is a multiple of 8 (if it is above 8), so that several chips can share the batch, and it does not depend on the
    number of chips, so that updates are the same on any number.
    """
    rows = max(1, batch_tokens // length)
    return rows - rows % 8 if rows > 8 else rows


def best_buckets(lengths: np.ndarray, most: int, grain: int) -> tuple[int, ...]:
    """Return the bucket lengths that need the least padding: at most ``most``, each a multiple of ``grain``.

    The result is exact: dynamic programming over the histogram of lengths.
    """
    rows_G = np.bincount(-(-lengths // grain))
    longest = len(rows_G) - 1
    until_G = np.cumsum(rows_G)  # rows that a bucket of so many grains holds
    # cost[g]: grains computed for all rows of at most g grains, the last bucket being g; one more bucket each round
    cost_G = until_G * np.arange(longest + 1)
    chosen = [(length,) for length in range(longest + 1)]
    for _ in range(most - 1):
        table_GG = cost_G[:, None] + (until_G[None, :] - until_G[:, None]) * np.arange(longest + 1)[None, :]
        table_GG[np.tril_indices(longest + 1)] = np.iinfo(np.int64).max
        earlier_G = table_GG.argmin(0)
        better_G = table_GG.min(0) < cost_G
        chosen = [
            (*chosen[before], length) if better else kept
            for length, (before, better, kept) in enumerate(zip(earlier_G, better_G, chosen, strict=True))
        ]
        cost_G = np.where(better_G, table_GG.min(0), cost_G)
    return tuple(length * grain for length in chosen[longest])


def cut_by_tokens(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut rows, in this order, where a batch would exceed the budget."""
    cuts, tokens = [], 0
    for i, length in enumerate(lengths[rows].tolist()):
        tokens += length
        if tokens > batch_tokens and tokens > length:
            cuts.append(i)
            tokens = length
    return np.split(rows, cuts) if len(rows) else []


def collate(split: Rows, rows: np.ndarray, part: slice = slice(None)) -> Batch:
    """Gather rows, or a part of them, into a packed batch; an empty part becomes the first row with weight 0."""
    first, stop, _ = part.indices(len(rows))
    weight = float(stop > first)
    first_token = int(split.lengths[rows[:first]].sum())
    rows = rows[first:stop] if weight else rows[:1]
    lengths_S = split.lengths[rows]
    ends_S = np.cumsum(lengths_S)
    place_T = np.arange(ends_S[-1]) - np.repeat(ends_S - lengths_S, lengths_S)  # within the text
    segment_T = (place_T >= np.repeat(split.boundaries[rows], lengths_S)).astype(np.int32)
    segment_T[ends_S - 1] = 2
    return Batch(
        input_ids_T=split.tokens[np.repeat(split.offsets[rows], lengths_S) + place_T].astype(np.int64),
        segment_ids_T=segment_T,
        lengths_S=lengths_S,
        labels_S=split.labels[rows].astype(np.int64 if split.labels.dtype == np.int32 else np.float32),
        index_S=rows,
        weights_S=np.full(len(rows), weight, np.float32),
        first_token=first_token,
        first_text=first,
    )


@dataclass(frozen=True)
class PaddedBatch:
    """Texts left-padded to one length: B rows of L tokens. The last rows may only fill the shape."""

    input_ids_BL: np.ndarray  # int64
    segment_ids_BL: np.ndarray  # int32: as in Batch; 3 padding
    real_BL: np.ndarray  # bool: True for tokens of a text
    labels_B: np.ndarray  # int64 or float32
    index_B: np.ndarray  # int64: positions within the split, of texts only
    weights_B: np.ndarray  # float32: 1 for texts, 0 for rows that only fill the shape
    tokens: int  # without padding
    first_text: int = 0  # number of this part's first text within the update


def collate_padded(split: Rows, rows: np.ndarray, part: slice, length: int, pad_id: int) -> PaddedBatch:
    """Gather a part of an update's rows, padded to ``length`` tokens; the first row, at weight 0, fills up the part."""
    count, given = part.stop - part.start, len(rows[part])
    filled = np.concatenate([rows[part], np.full(count - given, rows[0])])
    lengths_B = split.lengths[filled]
    place_BL = np.arange(length)[None, :] - (length - lengths_B)[:, None]  # within the text; negative: padding
    real_BL = place_BL >= 0
    flat_BL = split.offsets[filled][:, None] + np.maximum(place_BL, 0)
    segment_BL = (place_BL >= split.boundaries[filled][:, None]).astype(np.int32)
    segment_BL[:, -1] = 2
    return PaddedBatch(
        input_ids_BL=np.where(real_BL, split.tokens[flat_BL], pad_id).astype(np.int64),
        segment_ids_BL=np.where(real_BL, segment_BL, 3).astype(np.int32),
        real_BL=real_BL,
        labels_B=split.labels[filled].astype(np.int64 if split.labels.dtype == np.int32 else np.float32),
        index_B=rows[part],
        weights_B=(np.arange(count) < given).astype(np.float32),
        tokens=int(split.lengths[rows[part]].sum()),
        first_text=part.start,
    )


def evaluation_batches(split: Rows, batch_tokens: int) -> Iterator[Batch]:
    """Yield batches that hold every row once, sorted by length."""
    order = np.argsort(split.lengths, kind="stable")
    for rows in cut_by_tokens(order, split.lengths, batch_tokens):
        yield collate(split, rows)
