"""Lines of text out of a file's bytes: which encoding, where a line ends, and a bound on how long one is."""

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from xlnet.data.storage import Source
from xlnet.errors import UserError

HEAD = 1 << 16  # bytes that tell the encoding and the ends of lines
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
MARKS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class Line(NamedTuple):
    """One line of a file, its end included; bytes that are no UTF-8 stand in it as Python escapes them."""

    number: int  # from 1
    text: str
    reason: str = ""  # why it cannot be used; the text is empty then


def read_lines(file: IO[bytes], source: Source, longest: int, quoted: bool = False) -> Iterator[Line]:
    """All lines of a file, in flat memory.

    Args:
        file: open at its beginning, uncompressed.
        source: what it is, for messages.
        longest: bytes of the longest line that is read; a longer one has a reason instead of a text.
        quoted: the lines are CSV's, where what stands in quotes does not tell how lines end. CR alone ends a line
            only in a file whose first line ends so; elsewhere it is a character like others.

    Raises:
        UserError: the file is not in an encoding that can be read.
    """
    head = file.read(HEAD)
    file.seek(0)
    if other := _other_encoding(head):
        name = source.uri.rpartition("/")[2]
        raise UserError(
            f"'{source.uri}' is {other}, not UTF-8; save it as UTF-8, or type: "
            f"iconv -f {other} -t UTF-8 '{name}' > 'utf8-{name}'"
        )
    plain = re.sub(rb'"[^"]*"', b"", head) if quoted else head
    first_end = re.search(rb"\r\n|\r|\n", plain)
    is_old = first_end is not None and first_end.group() == b"\r" and (quoted or b"\n" not in head)
    ends = ("" if quoted else "\r") if is_old else "\n"
    text_file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=ends)
    number = 0
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


def _too_long(longest: int) -> str:
    return f"line is too long: more than data.max_record_bytes = {longest}"


def _other_encoding(head: bytes) -> str:
    """The encoding that a file's first bytes tell, if it is not UTF-8's family."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    pairs = re.fullmatch(rb"(?:[^\0]\0){4}.*|(?:\0[^\0]){4}.*", head, re.DOTALL)  # no mark, but Latin letters
    return "" if pairs is None else "UTF-16LE" if head[1] == 0 else "UTF-16BE"
