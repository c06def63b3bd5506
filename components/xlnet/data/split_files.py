"""Writes the Arrow files of a dataset's splits, after a pool has tokenised their rows in batches."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from xlnet.data.columns import Row
from xlnet.data.dataset import schema
from xlnet.data.tokenise import HISTOGRAM, TokenCounts, Tokenised, rows_schema

BATCH_ROWS = 2048  # rows tokenised and written at once
BATCH_CHARACTERS = 8_000_000  # or fewer, where texts are long
FILE_ROWS = 131_072


class Pool(Protocol):
    """What tokenises batches: processes of this machine, or shards on others."""

    def do(self, item: pa.RecordBatch, then: Callable[[Tokenised], None], /) -> None:
        """Tokenise a batch, and call ``then`` with the result, in the order of the batches."""

    def finish(self) -> None:
        """Return when every batch is done."""


class SplitWriter:
    """Writes one split: sends rows to be tokenised in batches, and stores each batch that comes back.

    Args:
        directory: the split's directory, which must not exist.
        task: the recipe's ``data.task``.
        classes: names in index order; empty for other tasks.
        pool: the processes that tokenise the batches.
    """

    def __init__(self, directory: Path, task: str, classes: list[str], pool: Pool) -> None:
        directory.mkdir()
        self.name, self.counts = directory.name, TokenCounts()
        self._directory, self._task, self._classes, self._pool = directory, task, classes, pool
        self._index = {name: number for number, name in enumerate(classes)}
        self._of_class: Counter[str] = Counter()
        self._rows: list[Row] = []
        self._sources: list[int] = []
        self._characters = self._sent = self._number = 0
        self._content = hashlib.sha256()
        self._file: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, row: Row, source: int) -> None:
        """Take one row and the index of its file; memory holds at most a batch of them."""
        self._rows.append(row)
        self._sources.append(source)
        self._characters += len(row.text) + len(row.text_pair or "")
        if len(self._rows) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self.flush()

    def close(self) -> None:
        """Close the file at hand, once the pool has finished."""
        if self._file is not None:
            self._file.close()

    def flush(self) -> None:
        """Send the collected rows to be tokenised."""
        if self._rows:
            self._pool.do(self._batch(), self._write)
            self._rows, self._sources, self._characters = [], [], 0

    def _batch(self) -> pa.RecordBatch:
        """Return the collected rows in :func:`rows_schema`, and count them."""
        rows = self._rows
        # No text holds a NUL: the reader rejects it.
        fields = (f"{row.text}\0{row.text_pair or ''}\0{row.label}\0" for row in rows)
        self._content.update("".join(fields).encode())
        if self._task == "classification":
            self._of_class.update(row.label for row in rows)
        columns: dict[str, Any] = {
            "label": self._labels(rows),
            "row": range(self._sent, self._sent + len(rows)),
            "source": self._sources,
            "line": [row.line for row in rows],
            "text": [row.text for row in rows],
            "text_pair": [row.text_pair for row in rows],
            "id": [row.id for row in rows],
        }
        self._sent += len(rows)
        form = rows_schema(self._task)
        return pa.record_batch([pa.array(columns[one.name], one.type) for one in form], schema=form)

    def _labels(self, rows: list[Row]) -> list[Any]:
        if self._task == "regression":
            return [float(row.label) for row in rows]
        if self._task == "pretrain":
            return [0] * len(rows)
        return [self._index[row.label] for row in rows]

    def _write(self, found: Tokenised) -> None:
        number = self.counts.rows // FILE_ROWS
        if self._file is None or number != self._number:
            if self._file is not None:
                self._file.close()
            self._number = number
            self._file = pa.ipc.new_file(str(self._directory / f"{number:05}.arrow"), schema(self._task))
        self._file.write_batch(found.rows)
        self.counts.add(found.counts)

    def facts(self) -> dict[str, Any]:
        """The split's part of the card."""
        counts = self.counts
        used = int(np.flatnonzero(counts.histogram).max()) + 1 if counts.rows else 0
        return {
            "rows": counts.rows,
            "tokens": counts.tokens,
            "classes": {name: self._of_class[name] for name in self._classes},
            "length_histogram": [[HISTOGRAM[i], int(counts.histogram[i])] for i in range(used)],
            "truncated": counts.truncated,
            "unknown_tokens": counts.unknown.unknown_tokens,
            "digest": "sha256:" + self._content.hexdigest(),
        }


def close(writers: Sequence[SplitWriter], pool: Pool) -> None:
    """Write the rows that are left, and close all files."""
    for writer in writers:
        writer.flush()
    pool.finish()
    for writer in writers:
        writer.close()
