"""The dataset artifact: its Arrow schema, and a reader that maps the shards into memory.

Layout of one row's tokens (XLNet's own): ``A <sep> <cls>`` or ``A <sep> B <sep> <cls>``, padding
not stored. Segment ids follow from ``boundary``: 0 below it, 1 from it on, 2 for the final ``<cls>``.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlnet.errors import CorruptArtifact, UserError

SPLITS = ("train", "validation", "test")


def schema(task: str) -> pa.Schema:
    """Return the Arrow schema of a split's shards.

    Args:
        task: ``"classification"`` (integer labels), ``"regression"`` (float labels) or ``"pretrain"`` (labels are 0).
    """
    fields = {
        "input_ids": pa.list_(pa.int32()),
        "boundary": pa.int32(),
        "label": pa.float32() if task == "regression" else pa.int32(),
        "row": pa.int64(),
        "source": pa.int32(),
        "line": pa.int64(),
    }
    return pa.schema(fields | dict.fromkeys(("text", "text_pair", "id"), pa.string()))


@dataclass(frozen=True)
class Split:
    """One split's rows, see :class:`xlnet.data.batches.Rows`. Token ids stay on disk, mapped, until they are read."""

    name: str
    shards: tuple[Path, ...]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in self.shards])

    def table(self) -> pa.Table:
        """Read all columns of all rows."""
        return self._table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def tokens(self) -> np.ndarray:
        chunks = [chunk.flatten().to_numpy() for chunk in self._table["input_ids"].chunks]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int32)

    @cached_property
    def offsets(self) -> np.ndarray:
        lengths = pc.list_value_length(self._table["input_ids"])
        return np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)]).astype(np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def bytes(self) -> np.ndarray:
        """Bytes of each document in UTF-8, with one for its end: int64 [rows]."""
        sizes = [pc.fill_null(pc.binary_length(self._table[name]), 0) for name in ("text", "text_pair")]
        return np.asarray(pc.add(*sizes).to_numpy(), np.int64) + 1

    @cached_property
    def boundaries(self) -> np.ndarray:
        return self._table["boundary"].to_numpy()

    @cached_property
    def labels(self) -> np.ndarray:
        return self._table["label"].to_numpy()


@dataclass(frozen=True)
class Dataset:
    """A dataset artifact on disk."""

    path: Path
    card: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Class names in index order; empty for regression."""
        return list(self.card["classes"])

    @property
    def pad_id(self) -> int:
        """Token id of ``<pad>``."""
        return int(self.card["special_ids"]["pad"])

    def split(self, name: str) -> Split:
        """Return one split by name.

        Raises:
            UserError: the dataset has no such split.
        """
        shards = tuple(sorted((self.path / name).glob("*.arrow")))
        if not shards:
            raise UserError(f"dataset '{self.path}' has no split '{name}'; allowed: {', '.join(self.card['splits'])}")
        return Split(name, shards)


def open_dataset(path: str | Path) -> Dataset:
    """Open a dataset artifact.

    Raises:
        UserError: the directory is not a dataset artifact.
        CorruptArtifact: its card cannot be read.
    """
    card = Path(path, "card.json")
    try:
        return Dataset(Path(path), json.loads(card.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"'{path}' is not a dataset: it has no card.json; make one with: python -m xlnet preprocess"
        ) from None
    except json.JSONDecodeError as error:
        raise CorruptArtifact(f"'{card}' is damaged ({error}); run preprocess again") from None
