"""Reads JSON objects: one per line (JSON Lines), in an array, or one after another over many lines."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, islice
from typing import IO, Any, NamedTuple, TextIO

from xlnet.data.lines import Line, open_text
from xlnet.data.storage import Source
from xlnet.data.values import BadValue, check_text, shown
from xlnet.errors import UserError
from xlnet.recipe import DataRecipe

MOST_DIGITS = 4300  # int() reads no longer number
CHUNK = 1 << 16  # characters
RECORDS = "write one object a line, in pandas with to_json('rows.jsonl', orient='records', lines=True)"
_SPACES = " \t\r\n"


class Object(NamedTuple):
    """A record whose fields have names."""

    line: int
    fields: dict[Any, Any]
    reason: str = ""


class _Repeating(dict[str, Any]):
    """A JSON object in which some names occur several times. It holds the last value of each name."""

    names: frozenset[str] = frozenset()  # the names that occur more than once


def of_lines(lines: Iterator[Line], wanted: set[Any], blank: bool) -> Iterator[Object]:
    """Yield the object of each line, or the reason why the line holds none.

    Args:
        lines: of the file.
        wanted: fields that an object may name once only.
        blank: whether a blank line is a reject; otherwise it is skipped.
    """
    for line in lines:
        if line.reason:
            yield Object(line.number, {}, line.reason)
        elif not line.text.isspace():
            yield _object_of_line(line, wanted)
        elif blank:
            yield Object(line.number, {}, "empty text")


def is_many_lines(file: IO[bytes], source: Source, recipe: DataRecipe) -> bool:
    """Whether the objects form an array or span several lines each. Rewinds the file."""
    text = open_text(file, source, recipe)
    stream = _Stream(text, recipe.max_record_bytes)
    try:
        first = stream.next()
        if first == "{":
            line = stream.rest_of_line().strip()
            return line == "{"
        if first != "[":
            return False
        stream.take()
        if stream.next() == "]":
            return True
        return isinstance(stream.value(), dict | list) and stream.next() in ("]", ",")
    except (ValueError, RecursionError):
        return False
    finally:
        text.detach()
        file.seek(0)


def of_array(
    file: IO[bytes], source: Source, recipe: DataRecipe, wanted: set[Any], tell: Callable[[str], None]
) -> Iterator[Object]:
    """Yield the objects of an array, or of a file that holds one after another, in flat memory.

    Raises:
        UserError: the file is damaged, so that nobody can know where the next object begins.
    """
    stream = _Stream(open_text(file, source, recipe, tell), recipe.max_record_bytes)
    is_array = stream.next() == "["
    if is_array:
        stream.take()
    try:
        while (sign := stream.next()) and sign != "]":
            line = stream.line
            value = stream.value()
            yield _checked(line, value, wanted)
            if is_array and stream.next() == ",":
                stream.take()
            elif is_array and stream.next() not in ("]", ""):
                raise ValueError("a comma or ']' is missing")
        if is_array and sign != "]":
            raise ValueError("its closing ']' is missing")
        if sign:
            stream.take()
        if stream.next():
            raise ValueError("something follows its end")
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(
            f"'{source.uri}' is JSON of several lines, damaged at or below line {stream.line}: {what}; correct it, or "
            "write one object a line"
        ) from None


def rows_alone(objects: Iterator[Object], wanted: Sequence[Any], source: Source) -> Iterator[Object]:
    """Return the objects; refuse a file that is one object with all rows inside.

    Raises:
        UserError: it is; the message describes the object's form, and what to write instead.
    """
    first = list(islice(objects, 2))
    if len(first) == 1 and (how := _table(first[0].fields, wanted)):
        raise UserError(f"'{source.uri}' is one JSON object {how}")
    return chain(first, objects)


def _table(fields: dict[Any, Any], wanted: Sequence[Any]) -> str:
    """Return how rows lie in an object and what to write instead; empty if it is a row itself."""
    inner = next((name for name, value in fields.items() if _holds(value, dict)), None)
    if inner is not None and not set(wanted) <= fields.keys():
        return f"that holds its rows as a list, {shown(inner)}; write that list alone, or one object a line"
    is_split = _holds(fields.get("data"), list) and isinstance(fields.get("columns"), list)
    values = [fields.get(name) for name in wanted]
    if is_split or (values and all(isinstance(value, dict | list) for value in values)):
        return f"of columns, not of rows; {RECORDS}"
    if fields and all(isinstance(value, dict) for value in fields.values()):
        return f"that names its rows, such as {shown(next(iter(fields)))}; {RECORDS}"
    return ""


def _holds(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)


class _Stream:
    """Reads the characters of a file in chunks, as they are needed."""

    def __init__(self, file: TextIO, longest: int) -> None:
        self.line = 1
        self._file, self._longest = file, longest
        self._buffer, self._at = "", 0

    def _fill(self) -> bool:
        more = self._file.read(max(CHUNK, len(self._buffer) - self._at))
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)

    def next(self) -> str:
        """Return the next character that is no space, without consuming it; empty at the end."""
        while self._at < len(self._buffer) or self._fill():
            one = self._buffer[self._at]
            if one not in _SPACES:
                return one
            self.line += one == "\n"
            self._at += 1
        return ""

    def take(self) -> None:
        """Consume that character."""
        self._at += 1

    def rest_of_line(self) -> str:
        """Return the rest of the current line, as far as it has been read."""
        return self._buffer[self._at :].partition("\n")[0]

    def value(self) -> Any:
        """Consume and return the next value; ValueError if there is none."""
        while True:
            try:
                value, end = _JSON.raw_decode(self._buffer, self._at)
            except ValueError:
                if len(self._buffer) - self._at > self._longest or not self._fill():
                    raise
                continue
            if end == len(self._buffer) and self._fill():  # a number may go on
                continue
            self.line += self._buffer.count("\n", self._at, end)
            self._at = end
            return value


def _object_of_line(line: Line, wanted: set[Any]) -> Object:
    text = line.text.strip()
    try:
        check_text(text)
        value, end = _JSON.raw_decode(text)  # decode() searches for spaces around it, which takes a third longer
        if end < len(text):
            value = _JSON.decode(text)  # raises an error with the position of what follows
    except BadValue as bad:
        return Object(line.number, {}, bad.reason)
    except ValueError as error:
        return Object(line.number, {}, f"not JSON: {error}")
    except RecursionError:
        return Object(line.number, {}, "not JSON: nested too deeply")
    if type(value) is dict:  # the usual case, without a call
        return Object(line.number, value)
    return _checked(line.number, value, wanted)


def _checked(line: int, value: Any, wanted: set[Any]) -> Object:
    if isinstance(value, _Repeating) and (twice := value.names & wanted):
        return Object(line, {}, f"several fields of one name: {shown(min(twice))}")
    if isinstance(value, dict):
        return Object(line, value)
    return Object(line, {}, f"not a JSON object: {type(value).__name__}")


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeating = _Repeating(fields)
    repeating.names = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeating


def _whole_number(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < MOST_DIGITS else Decimal(digits)


_JSON = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=_fields)
