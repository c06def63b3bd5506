"""Decodes a file into lines: finds the encoding and the line ends, and bounds the length of a line."""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from xlnet.data import encoding as encodings
from xlnet.data import signatures
from xlnet.data.storage import Source
from xlnet.recipe import DataRecipe

HEAD = 1 << 16  # bytes from which the encoding and the kind of line end are determined


class Line(NamedTuple):
    """One line of a file, with its line end. Bytes that cannot be decoded are escaped as surrogates."""

    number: int  # from 1
    text: str
    reason: str = ""  # why it cannot be used; the text is empty then


def read_lines(
    file: IO[bytes], source: Source, recipe: DataRecipe, tell: Callable[[str], None], quoted: bool = False
) -> Iterator[Line]:
    """Yield all lines of a file that is uncompressed and at its beginning, in flat memory.

    A line longer than the recipe allows has a reason instead of a text. A lone CR ends lines only if it ends the first
    line; otherwise it is a character. In CSV (``quoted``), the first line is the first outside quotes.

    Raises:
        UserError: the file is not text, or its encoding cannot be read.
    """
    start, encoding = _look(file, source, recipe, tell)
    plain = re.sub(r'"[^"]*"', "", start) if quoted else start
    first_end = re.search(r"\r\n|\r|\n", plain)
    is_old = first_end is not None and first_end.group() == "\r" and (quoted or "\n" not in start)
    ends = ("" if quoted else "\r") if is_old else "\n"
    text_file = _decoded(file, encoding, ends)
    longest, number = recipe.max_record_bytes, 0
    while text := text_file.readline(longest + 1):
        number += 1
        if len(text) > longest and text[-1] not in "\r\n":
            while (rest := text_file.readline(longest)) and rest[-1] not in "\r\n":
                pass
            yield Line(number, "", _too_long(longest))
        elif 4 * len(text) > longest and len(text.encode(errors="surrogateescape")) > longest + 2:
            yield Line(number, "", _too_long(longest))
        else:
            yield Line(number, text)


def open_text(
    file: IO[bytes], source: Source, recipe: DataRecipe, tell: Callable[[str], None] = lambda _: None
) -> io.TextIOWrapper:
    """Open a file's characters, from its beginning; see :func:`read_lines`."""
    return _decoded(file, _look(file, source, recipe, tell)[1], "\n")


def _look(file: IO[bytes], source: Source, recipe: DataRecipe, tell: Callable[[str], None]) -> tuple[str, str]:
    """Return a file's first characters, and its encoding."""
    head = file.read(HEAD)
    file.seek(0)
    signatures.refuse(head, source)
    is_auto = recipe.encoding == "auto"
    encoding = encodings.find(head, source, tell) if is_auto else encodings.check(head, recipe.encoding, source)
    start = head.decode(encoding, "replace")
    signatures.refuse_binary(start, source)
    return start, encoding


def _decoded(file: IO[bytes], encoding: str, ends: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding=encoding, errors=_UNDECODABLE, newline=ends)


def _too_long(longest: int) -> str:
    return f"line is too long: more than data.max_record_bytes = {longest}"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape undecodable bytes as surrogateescape does, and also those below 128, which other encodings may refuse."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + max(byte, 0x80)) for byte in error.object[error.start : error.end]), error.end


_UNDECODABLE = "xlnet-undecodable"
codecs.register_error(_UNDECODABLE, _escaped)
