"""Reads TensorFlow's checkpoints (``NAME.index`` and ``NAME.data-00000-of-00001``) without TensorFlow.

The index is a sorted string table, as in LevelDB: blocks of keys and values, the last of which lists the others. A
key is a tensor's name; its value says where the tensor's bytes are. Every block and every tensor has a CRC-32C.
Source: tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/format.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlnet.data.wire import fields, varint
from xlnet.errors import CorruptArtifact, UserError

FOOTER, TRAILER = 48, 5  # bytes
MAGIC = 0xDB4775248B80FB57
DTYPES = {1: "<f4", 2: "<f8", 19: "<f2"}  # TensorFlow's numbers of the types that weights may have
BFLOAT16 = 14
CRC_DELTA = 0xA282EAD8  # stored checksums are rotated, and this is added
UNREADABLE = (IndexError, ValueError, KeyError, struct.error, UnicodeDecodeError, OverflowError, TypeError)


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is.

    Attributes:
        dtype: TensorFlow's number of the tensor's type.
        shape: its dimensions.
        shard: the number of its data file.
        offset: its first byte there.
        size: in bytes.
        crc: the stored checksum of its bytes.
        sliced: whether its parts are stored as other entries.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    sliced: bool = False


@dataclass(frozen=True)
class TensorFlowCheckpoint:
    """An open checkpoint: its index, whose tensors are read one by one."""

    prefix: Path
    shards: int
    entries: dict[str, TensorEntry]

    def read(self, name: str) -> np.ndarray:
        """Read a tensor of floating-point numbers, and check its checksum.

        Raises:
            UserError: the tensor has another type, or is stored in slices.
            CorruptArtifact: the data file is missing, too short, or damaged.
        """
        entry = self.entries[name]
        if entry.sliced:
            raise UserError(f"'{self.prefix}' has {name} in slices; save it with one part for each variable")
        if entry.dtype not in (*DTYPES, BFLOAT16):
            raise UserError(f"'{self.prefix}' has {name} of TensorFlow's type {entry.dtype}; allowed: floating point")
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05}-of-{self.shards:05}")
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                content = file.read(entry.size)
        except OSError as error:
            raise CorruptArtifact(f"the weights in '{path}' cannot be read: {error.strerror}") from None
        width = 2 if entry.dtype == BFLOAT16 else np.dtype(DTYPES[entry.dtype]).itemsize
        if len(content) != entry.size or entry.size != width * int(np.prod(entry.shape, dtype=np.int64)):
            raise CorruptArtifact(f"'{path}' ends within {name}, or its index is of another file; copy both again")
        if _masked(crc32c_function()(content)) != entry.crc:
            raise CorruptArtifact(f"'{path}' is damaged: the checksum of {name} is wrong; copy it again")
        if entry.dtype == BFLOAT16:
            return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").reshape(entry.shape)
        return np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)


def find(directory: Path) -> Path | None:
    """Return the index of a directory's checkpoint; None if there is none.

    Raises:
        UserError: there are several.
    """
    found = sorted(directory.glob("*.ckpt*.index"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise UserError(f"'{directory}' has {len(found)} TensorFlow checkpoints ({names}); leave one in a directory")
    return found[0] if found else None


def open_checkpoint(index: Path) -> TensorFlowCheckpoint:
    """Read a checkpoint's index.

    Raises:
        UserError: its format differs from that of the released checkpoints.
        CorruptArtifact: it is damaged.
    """
    try:
        content = index.read_bytes()
    except OSError as error:
        raise CorruptArtifact(f"'{index}' cannot be read: {error.strerror}") from None
    try:
        values = dict(_table(content, index))
        header = dict(fields(values.pop(b"")))
        if header.get(2):
            raise UserError(f"'{index}' was written on a big-endian machine; allowed: little-endian checkpoints")
        entries = {key.decode(): _entry(value) for key, value in values.items()}
        shards = header[1]
    except UserError:
        raise
    except UNREADABLE:
        raise CorruptArtifact(
            f"'{index}' is not an index of a TensorFlow checkpoint, or is damaged; copy it again"
        ) from None
    return TensorFlowCheckpoint(index.with_suffix(""), int(shards), entries)


def crc32c_function() -> Callable[[bytes], int]:
    """Return the function that computes a CRC-32C."""
    try:
        import google_crc32c
    except ModuleNotFoundError:
        raise UserError("TensorFlow's checkpoints need google-crc32c; type: pip install google-crc32c") from None
    return google_crc32c.value


def _table(content: bytes, index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a sorted string table."""
    footer = content[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end like a table")
    _, at = _handle(footer, 0)
    place, _ = _handle(footer, at)
    for _, value in _block(content, place, index):
        yield from _block(content, _handle(value, 0)[0], index)


def _handle(message: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Read where a block is: its offset and size; return them and the place behind them."""
    offset, at = varint(message, at)
    size, at = varint(message, at)
    return (offset, size), at


def _block(content: bytes, place: tuple[int, int], index: Path) -> list[tuple[bytes, bytes]]:
    """Read a block. A key is stored as the number of bytes that it shares with the key before it, and the rest."""
    offset, size = place
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + TRAILER]
    kind, crc = struct.unpack("<BI", trailer)
    if _masked(crc32c_function()(block + trailer[:1])) != crc:
        raise ValueError("a block's checksum is wrong")
    if kind:
        raise UserError(f"'{index}' is compressed; allowed: the uncompressed index that TensorFlow's Saver writes")
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    found = []
    while at < end:
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + rest]
        found.append((key, block[at + rest : at + rest + length]))
        at += rest + length
    return found


def _entry(message: bytes) -> TensorEntry:
    values = dict(fields(message))
    numbers = {
        name: int(values.get(field, 0)) for name, field in (("dtype", 1), ("shard", 3), ("offset", 4), ("size", 5))
    }
    shape = tuple(_size(one) for number, one in fields(bytes(values.get(2, b""))) if number == 2)
    crc = bytes(values.get(6, bytes(4)))
    return TensorEntry(shape=shape, crc=struct.unpack("<I", crc)[0], sliced=7 in values, **numbers)


def _size(dimension: int | bytes) -> int:
    return int(dict(fields(bytes(dimension))).get(1, 0))


def _masked(crc: int) -> int:
    """Convert a CRC-32C to the form that TensorFlow stores."""
    return ((crc >> 15 | crc << 17) + CRC_DELTA) & 0xFFFFFFFF
