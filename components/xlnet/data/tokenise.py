"""Tokenises a batch of rows: the one function that a process, a pipeline's shard and a Beam worker run."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from xlnet.data.dataset import schema
from xlnet.data.tokenizer import Encoded, Tokenizer, load_tokenizer
from xlnet.data.unknown import Unknown

HISTOGRAM = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 20)
TOKENS = ("input_ids", "boundary")  # the columns that tokenising adds
TRUNCATED = "truncated"
CHARACTERS_PER_SECOND = 4_000_000  # that one process tokenises


@dataclass
class TokenCounts:
    """The counts of tokenised rows."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(HISTOGRAM), np.int64))
    unknown: Unknown = field(default_factory=Unknown)

    def add(self, other: "TokenCounts") -> None:
        """Add what was counted of other rows."""
        self.rows += other.rows
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.histogram = self.histogram + other.histogram
        self.unknown.merge(other.unknown)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON can hold them."""
        return {**vars(self), "histogram": self.histogram.tolist(), "unknown": vars(self.unknown)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> "TokenCounts":
        """Make the counts from the result of :meth:`to_dict`."""
        histogram = np.array(given["histogram"], np.int64)
        return cls(**{**given, "histogram": histogram, "unknown": Unknown(**given["unknown"])})


class Tokenised(NamedTuple):
    """A batch in the dataset's schema, and its counts."""

    rows: pa.RecordBatch
    counts: TokenCounts


def rows_schema(task: str) -> pa.Schema:
    """Return the schema of a batch that is not tokenised yet: the dataset's, without the columns of tokens."""
    return pa.schema([one for one in schema(task) if one.name not in TOKENS])


@dataclass(frozen=True)
class Tokenise:
    """Tokenises batches. The result depends only on the fields, so it is the same on every machine."""

    tokenizer: str  # directory of the vocabulary, or its address in a bucket
    task: str
    max_length: int  # maximum number of tokens in a row; documents of a corpus keep all
    has_pairs: bool  # whether rows may have a second text

    def __call__(self, rows: pa.RecordBatch) -> Tokenised:
        """Add the columns of tokens to a batch in :func:`rows_schema`."""
        return self.finished(rows, self.tokens(rows))

    def tokens(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns that tokenising adds to a batch with texts, and a column that says which were cut."""
        encoded = self._encode(rows)
        lengths = np.fromiter(map(len, encoded.input_ids), np.int64, len(rows))
        flat = np.fromiter(itertools.chain.from_iterable(encoded.input_ids), np.int32, int(lengths.sum()))
        return _columns(flat, lengths, np.array(encoded.boundaries, np.int32), np.array(encoded.truncated, bool))

    def finished(self, rows: pa.RecordBatch, tokens: pa.RecordBatch) -> Tokenised:
        """Put a batch in :func:`rows_schema` and its :meth:`tokens` together, and count them."""
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns |= {name: tokens.column(name) for name in TOKENS}
        ids, whole = columns["input_ids"], schema(self.task)
        flat, lengths = ids.flatten().to_numpy(), np.diff(ids.offsets.to_numpy()).astype(np.int64)
        truncated = int(tokens.column(TRUNCATED).to_numpy(zero_copy_only=False).sum())
        counts = TokenCounts(len(rows), len(flat), truncated)
        counts.histogram += np.bincount(np.searchsorted(HISTOGRAM, lengths), minlength=len(HISTOGRAM))
        counts.unknown.add(flat, lengths, _loaded(self.tokenizer))
        return Tokenised(pa.record_batch([columns[name] for name in whole.names], schema=whole), counts)

    def _encode(self, rows: pa.RecordBatch) -> Encoded:
        texts = rows.column("text").to_pylist()
        pairs = rows.column("text_pair").to_pylist() if self.has_pairs else None
        if self.task == "pretrain":
            return _loaded(self.tokenizer).encode_documents(texts, pairs)
        return _loaded(self.tokenizer).encode(texts, pairs, self.max_length)


def joined(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return batches of :meth:`Tokenise.tokens` as one, with the same bytes as if it had been made at once.

    A slice of an Arrow array is written with some of its neighbours' bytes, so all arrays are copied.
    """
    ids = [part.column(TOKENS[0]) for part in parts]
    lengths = np.concatenate([np.diff(one.offsets.to_numpy()).astype(np.int64) for one in ids])
    flat = np.concatenate([one.flatten().to_numpy() for one in ids])
    others = (
        np.concatenate([part.column(name).to_numpy(zero_copy_only=False) for part in parts])
        for name in (TOKENS[1], TRUNCATED)
    )
    return _columns(flat, lengths, *others)


def _columns(flat: np.ndarray, lengths: np.ndarray, boundaries: np.ndarray, truncated: np.ndarray) -> pa.RecordBatch:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = [pa.ListArray.from_arrays(offsets, flat), pa.array(boundaries), pa.array(truncated)]
    return pa.record_batch(columns, names=[*TOKENS, TRUNCATED])


@functools.lru_cache(maxsize=2)
def _loaded(directory: str) -> Tokenizer:
    return load_tokenizer(directory)
