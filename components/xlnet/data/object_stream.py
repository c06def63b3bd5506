"""Reads an object of a bucket like a file, from beginning to end, in ranges that grow."""

import io
from typing import Any

from xlnet.data import objects
from xlnet.data.addresses import Stored
from xlnet.errors import CorruptArtifact

FIRST = 256 << 10  # bytes of the first range: enough for the first rows, and some readers need no more
MOST = 16 << 20


class ObjectStream(io.RawIOBase):
    """The version of an object that was listed. Other versions are not read.

    If it is read in sequence to its end, its bytes are compared with its checksum. A broken connection is opened again.

    Raises while reading:
        UserError: the object is gone, or access is denied.
        RunError: the bucket goes on failing.
        CorruptArtifact: the bytes that arrived do not have the bucket's checksum.
    """

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self._stored, self._size = stored, stored.size
        self._at = 0  # where the reader stands
        self._begin, self._buffer = 0, b""  # the range at hand
        self._length = FIRST
        self._checker, self._summed = objects.checker(stored), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """Return True. Bytes that were already fetched are not fetched again."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See :meth:`io.IOBase.seek`."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, target: Any) -> int:
        """See :meth:`io.RawIOBase.readinto`."""
        if self._at >= self._size:
            return 0
        if not self._begin <= self._at < self._begin + len(self._buffer):
            self._fetch()
        view = memoryview(target).cast("B")
        start = self._at - self._begin
        count = min(len(view), len(self._buffer) - start)
        view[:count] = self._buffer[start : start + count]
        self._at += count
        return count

    def _fetch(self) -> None:
        last = min(self._at + self._length, self._size) - 1
        self._buffer = objects.read_range(self._stored, self._at, last)
        self._begin = self._at
        self._length = min(2 * self._length, MOST)
        if self._checker and self._begin == self._summed:
            found = self._checker(self._buffer)
            self._summed += len(self._buffer)
            differs = self._summed == self._size and found != self._stored.checksum
            if differs and objects.comparable(self._stored):
                kind = self._stored.checksum.partition(":")[0]
                raise CorruptArtifact(
                    f"'{self._stored.uri}' arrived damaged ({kind} differs); try again, or write it anew"
                )
