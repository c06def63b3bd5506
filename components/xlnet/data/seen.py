"""Records which rows a model has seen, as hashes of its train and validation rows, stored beside the model.

The file is Parquet and holds the differences of sorted hashes. Hashes are so long that one unseen row in 16 million is
mistaken for a seen one. Ten million rows take about 34 MB.
"""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlnet.data import objects
from xlnet.errors import RunError, UserError

FILE = "seen.parquet"
MARGIN_BITS = 24  # an unseen row is taken for a seen one with probability 2^-24
FEWEST_BITS = 40


def key(text: str, pair: str | None) -> int:
    """Return the hash of a row's text, or pair of texts: 64 bits, signed."""
    content = text if pair is None else f"{text}\0{pair}"  # no text holds a NUL: the reader rejects it
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little", signed=True)


def write(path: Path, keys: np.ndarray) -> None:
    """Write the hashes of these rows: int64 [rows], in any order."""
    _write(path, keys.view(np.uint64), 64)


def _write(path: Path, values: np.ndarray, bits: int) -> None:
    """Write hashes of ``bits`` bits, sorted, each once, shortened to the bits that so many rows need."""
    kept = min(bits, max(FEWEST_BITS, len(values).bit_length() + MARGIN_BITS), 63)
    shortened = (values >> np.uint64(bits - kept)).view(np.int64)
    shortened.sort()
    differs = np.ones(len(shortened), bool)
    np.not_equal(shortened[1:], shortened[:-1], out=differs[1:])
    shortened = shortened if differs.all() else shortened[differs]
    table = pa.table({"hash": shortened}).replace_schema_metadata({"bits": str(kept)})
    pq.write_table(
        table,
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        column_encoding={"hash": "DELTA_BINARY_PACKED"},
    )


class Seen:
    """The rows of one file."""

    def __init__(self, content: bytes) -> None:
        table = pq.read_table(io.BytesIO(content))
        self.bits = int((table.schema.metadata or {})[b"bits"])
        self.values = table["hash"].to_numpy().view(np.uint64)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, row: int) -> bool:
        return bool(self.among(np.array([row], np.int64))[0])

    def among(self, keys: np.ndarray) -> np.ndarray:
        """Return which of these rows, by their keys, were seen: int64 [rows] → bool [rows]."""
        if not len(self):
            return np.zeros(len(keys), bool)
        shortened = keys.view(np.uint64) >> np.uint64(64 - self.bits)
        places = np.searchsorted(self.values, shortened)
        return self.values[np.minimum(places, len(self) - 1)] == shortened


def read(artifact: str | Path) -> Seen | None:
    """Read the seen rows of an artifact at a path or address; None if it records none or cannot be reached."""
    address = str(artifact)
    try:
        if address.startswith(objects.GCS):
            return Seen(objects.read(f"{address.rstrip('/')}/{FILE}"))
        return Seen(Path(address, FILE).read_bytes())
    except (OSError, UserError, RunError, KeyError, ValueError, pa.ArrowException):
        return None


def merge(path: Path, artifacts: Iterable[str | Path]) -> None:
    """Write the union of the rows that these artifacts have seen, such as a dataset and pretrained weights."""
    found = [one for artifact in artifacts if (one := read(artifact)) is not None]
    if found:
        bits = min(one.bits for one in found)
        values = [one.values >> np.uint64(one.bits - bits) for one in found]
        _write(path, np.concatenate(values), bits)
