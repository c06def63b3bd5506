"""Splits CSV lines into records of bounded size. A wrong quotation rejects only the line that opens it.

A quotation that is never closed would swallow the rest of a file, and one that closes in a later row the rows between.
So where the parser fails, only the first line is rejected, and reading goes on with the line below it. A record that
spans several lines and has the wrong number of columns is rejected line by line. Each line thus belongs to exactly one
record or reject.
"""

import csv
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from xlnet.data.dialect import Dialect
from xlnet.data.lines import Line

csv.field_size_limit(sys.maxsize)
USUAL = Dialect()


class Record(NamedTuple):
    """The fields of one record, or a line that cannot be used."""

    line: int  # of the file, from 1, where it begins
    fields: list[str]
    reason: str = ""  # why it cannot be used


class CsvRecords:
    """Iterates over the records of a file, in order, without empty lines.

    Attributes:
        width: columns that each record has to have; None: any number.
        blank_rows: whether an empty line is a record, without fields, from now on.
        is_row: whether one line, split without regard to quotes, is a complete row of the file with its label.
            If every line of a record is such a row, a wrong quotation has joined rows.
    """

    def __init__(self, lines: Iterable[Line], max_lines: int, max_bytes: int, dialect: Dialect = USUAL) -> None:
        self.width: int | None = None
        self.blank_rows = False
        self.is_row: Callable[[list[str]], bool] | None = None
        self._rejects = deque[Record]()  # of the record at hand, beyond its first line
        self._dialect, self._plain = dialect, Dialect(dialect.delimiter, quote=None)
        self._buffer = _LineBuffer(iter(lines), max_lines, max_bytes)
        self._reader = dialect.reader(self._buffer)

    def ahead(self) -> list[Record]:
        """Return the complete records among the next lines, without consuming them."""
        lines = self._buffer.peek()
        found = list[Record]()
        for record in CsvRecords(lines, len(lines) + 1, sys.maxsize, self._dialect):
            if record.reason.startswith(_OPEN):
                break
            found.append(record)
        return found

    def take_back(self) -> None:
        """Parse the last record again, with what is now known about the file."""
        self._buffer.go_back(keep=0)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        while True:
            record = self._rejects.popleft() if self._rejects else self._one()
            if record.fields or record.reason or self.blank_rows:
                return record

    def _one(self) -> Record:
        buffer = self._buffer
        buffer.begin()
        fields: list[str] = []
        try:
            fields = next(self._reader)
            reason = buffer.taken[0].reason
            if len(buffer.taken) > 1 and not reason:
                reason = self._trouble(fields)
        except _TooMuch as limit:
            reason = f"{_OPEN}: it holds more than {limit}"
        except csv.Error as error:
            reason = f"malformed CSV: {error}"
            if str(error) == "unexpected end of data":
                reason = f"{_OPEN}: the file ends in it"
            elif "expected after" in str(error):
                reason = "malformed CSV: text follows a closing quote"
            elif str(error).startswith("new-line character seen"):
                reason = self._stray_ends()
        line = buffer.taken[0].number
        if reason.startswith(_COLUMNS):
            self._rejects.extend(Record(line.number, [], reason) for line in buffer.taken[1:] if line.text.strip())
        elif reason:
            buffer.go_back()
        return Record(line, [] if reason else fields, reason)

    def _stray_ends(self) -> str:
        """Return the reason for a line with CR outside quotes; each row between two CRs becomes a reject."""
        line = self._buffer.taken[0]
        reason = "malformed CSV: a carriage return outside quotes, where other lines end otherwise"
        pieces = self._plain.reader(line.text.split("\r"))
        rows = sum(map(self.is_row, pieces)) if self.is_row else 1
        self._rejects.extend(Record(line.number, [], reason) for _ in range(rows - 1))
        return reason

    def _trouble(self, fields: list[str]) -> str:
        """Return why a record of several lines cannot be right, or an empty text if it can."""
        lines = [line.text for line in self._buffer.taken if line.text.strip()]
        plain = self._plain.reader(line.replace("\r", "") for line in lines)  # the csv module refuses CR outside quotes
        alike = sum(map(self.is_row, plain)) if self.is_row else 0
        fits = self.width is None or len(fields) == self.width
        if alike == len(lines) or (not fits and 2 * alike >= len(lines)):
            return f"{_OPEN}: {alike} of the {len(lines)} lines that it would hold are rows themselves"
        return "" if fits else wrong_width(len(fields), self.width)


def wrong_width(found: int, width: int | None) -> str:
    """Return the reason for a record with another number of columns than the file's first record."""
    return f"{_COLUMNS}: {found} instead of {width}"


_COLUMNS = "wrong number of columns"
_OPEN = "unclosed quotation"
AHEAD_LINES, AHEAD_CHARACTERS = 500, 1 << 20  # looked at before the first record is read


class _TooMuch(Exception):
    """Raised where a record exceeds a limit. The message names the limit."""


class _LineBuffer:
    """Feeds lines to the parser, keeps those of the current record, and can feed them again."""

    def __init__(self, lines: Iterator[Line], max_lines: int, max_bytes: int) -> None:
        self.taken: list[Line] = []
        self._lines, self._again = lines, deque[Line]()
        self._max_lines, self._max_bytes, self._size = max_lines, max_bytes, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        if self.taken and (limit := self._limit(line)):
            self._again.appendleft(line)
            raise _TooMuch(limit)
        self.taken.append(line)
        self._size += len(line.text)
        return line.text

    def _limit(self, line: Line) -> str:
        if len(self.taken) >= self._max_lines:
            return f"data.max_record_lines = {self._max_lines}"
        if line.reason or self._size + len(line.text) > self._max_bytes:
            return f"data.max_record_bytes = {self._max_bytes}"
        return ""

    def begin(self) -> None:
        """Begin a record with the next line."""
        self.taken, self._size = [], 0

    def go_back(self, keep: int = 1) -> None:
        """Return the lines of a failed record to the buffer, except the first ``keep``."""
        self._again.extendleft(reversed(self.taken[keep:]))

    def peek(self) -> list[Line]:
        """Return the next lines without consuming them."""
        size = sum(len(line.text) for line in self._again)
        while len(self._again) < AHEAD_LINES and size < AHEAD_CHARACTERS and (line := next(self._lines, None)):
            self._again.append(line)
            size += len(line.text)
        return list(self._again)
