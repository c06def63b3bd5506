"""Opens ZIP archives that hold one file, as many data sets are published."""

import contextlib
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import IO

from xlnet.data.values import printable, shown
from xlnet.errors import RunError, UserError

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # the second one of an empty archive
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# What zipfile raises if an archive is damaged.
DAMAGE = (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error)
NAMED = 5  # files that a message names
# Limits against archive bombs: unpacked over packed size; unpacked bytes that are always allowed.
MOST_TIMES, FREE = 200, 1 << 30


def member(raw: IO[bytes], uri: str) -> tuple[str, IO[bytes]]:
    """Return the name and content of an archive's only file. Files that file managers add do not count.

    For a workbook, which is an archive too, the name is empty and the content is ``raw`` itself, at its beginning.

    Raises:
        UserError: there are several files or none, it needs a password, Python cannot unpack it, or its content is
            suspiciously large for its size.
        RunError: the archive is damaged.
    """
    with _damage_said(uri):
        archive = zipfile.ZipFile(raw)
    every = [one for one in archive.infolist() if not one.is_dir()]
    names = [one.filename for one in every]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raw.seek(0)
        return "", raw
    found = [one for one in every if not re.match(r"(.*/)?(\.|__MACOSX)", one.filename)]
    if not found:
        raise UserError(f"'{uri}' is a ZIP archive without a file; give one with rows")
    if len(found) > 1:
        listed = ", ".join(shown(one.filename) for one in found[:NAMED])
        more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
        raise UserError(f"'{uri}' is a ZIP archive of {len(found)} files, not one: {listed}{more}; unpack it")
    (one,) = found
    if one.flag_bits & 1:
        raise UserError(f"'{uri}' is protected with a password; unpack it")
    if one.filename.lower().endswith(".zip"):
        raise UserError(f"'{uri}' holds another archive, {shown(one.filename)}; unpack it")
    if one.file_size > max(FREE, MOST_TIMES * one.compress_size):
        size = f"{one.file_size >> 20:,} MiB, {one.file_size // max(1, one.compress_size):,} times its size"
        raise UserError(f"'{uri}' would unpack to {size}, which no text does; unpack it yourself if it is right")
    if one.compress_type not in METHODS:
        raise UserError(f"'{uri}' is compressed in a way that Python cannot read; unpack it")
    with _damage_said(uri):
        return one.filename, archive.open(one)


@contextlib.contextmanager
def _damage_said(uri: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise damaged(uri, error) from None


def damaged(uri: str, error: Exception) -> RunError:
    """Return the error, of one line, that an archive or a compressed file is damaged."""
    return RunError(f"'{uri}' is damaged: {printable(str(error))}; replace the file")
