"""Decides which texts, labels and ids are allowed, for the readers, ``predict`` and the server.

A value comes in as a file format, a request or a command line gave it, and goes out clean, or as BadValue.

- Text and pair are strings; numbers, booleans, bytes, lists and objects are refused, and nothing is changed in them.
  A string is refused that holds a NUL (which separates fields where rows are hashed, and which other programs cut
  texts at), half of a surrogate pair or a byte that is not UTF-8 (neither can be stored), or nothing that can be
  seen (spaces, zero-width characters, a byte order mark).
- A class is a string without its surrounding spaces, zero-width characters and byte order marks; a whole number,
  digit by digit, however long; a finite fraction as Python writes it; ``true`` or ``false``. Bytes, lists, objects,
  dates, NaN and infinity are refused. Strings stay as written: ``nan`` is a language to some, and `xlnet.data.classes`
  warns of what looks alike.
- The value of a regression is a number that float32 holds, or a string of one; a boolean is refused.
- An id is a string, number, boolean, date, time or UUID; null, NaN and a blank string are no id, which is allowed.

Reasons read ``kind`` or ``kind: what was given``, in one line of characters that every terminal and file can take.
"""

import datetime
import math
import re
import uuid
from decimal import Decimal

import numpy as np

INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f"  # marks, zero-width and soft characters
SHOWN = 40  # characters of a refused value
LARGEST = float(np.finfo(np.float32).max)
DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*")

_SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + INVISIBLE
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


class BadValue(ValueError):
    """A value that cannot be used.

    Attributes:
        reason: one clause of plain English that can be printed anywhere.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_text(value: object) -> str:
    """Return the text unchanged; BadValue if it is not a text."""
    return _text(value, "text")


def check_pair(value: object) -> str:
    """Return the second text of a pair unchanged; BadValue if it is not a text."""
    return _text(value, "text_pair")


def check_label(value: object, task: str) -> str:
    """Return the class's name, or a regression's number as a string that ``float`` reads; BadValue if it is neither."""
    label = _scalar(value, "label")
    if not label:
        raise BadValue("no label")
    return label if task == "classification" else _number(label)


def check_id(value: object) -> str | None:
    """Return the id, or None if the row has none; BadValue if the value cannot be an id."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime.date | datetime.time | uuid.UUID):
        return str(value)
    return _scalar(value, "id") or None


def shown(text: str) -> str:
    """Quote a string for a message. Cut it if it is long, and escape invisible characters."""
    return f"'{printable(text if len(text) <= SHOWN else text[: SHOWN - 1] + '…')}'"


def printable(text: str) -> str:
    """Escape characters that are not printable, so that a name cannot control the terminal."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def bare(name: str) -> str:
    """Return a column's name without the spaces and invisible characters around it."""
    return name.strip(_SPACES)


def _text(value: object, use: str) -> str:
    if value is None:
        raise BadValue(f"empty {use}")
    if not isinstance(value, str):
        raise BadValue(f"{use} is {type(value).__name__}, not a string")
    _refuse_unusable(value)
    if not value.strip(_SPACES):
        raise BadValue(f"empty {use}")
    return value


def _scalar(value: object, use: str) -> str:
    """Convert a string, number or boolean to a stripped string."""
    if value is None:
        return ""
    if isinstance(value, str):
        _refuse_unusable(value)
        return value.strip(_SPACES)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return format(Decimal(value), "f")  # str(int) refuses more than 4,300 digits
    if isinstance(value, float | Decimal):
        if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
            raise BadValue(f"{use} is not finite: {value}")
        return repr(value) if isinstance(value, float) else format(value, "f")
    raise BadValue(f"{use} is {type(value).__name__}, not a string or a number")


def _number(label: str) -> str:
    try:
        value = float(label.replace("_", "no digit"))  # Python reads 1_000
    except ValueError:
        if DECIMAL_COMMA.fullmatch(label):
            raise BadValue(f"label has a decimal comma, where a point is read: {shown(label)}") from None
        raise BadValue(f"label is not a number: {shown(label)}") from None
    if not math.isfinite(value) and not any(one.isdigit() for one in label):
        raise BadValue(f"label is not finite: {shown(label)}")
    if abs(value) > LARGEST:
        raise BadValue(f"label is beyond float32: {shown(label)}")
    return label


def _refuse_unusable(text: str) -> None:
    found = None if text.isascii() and "\0" not in text else _UNUSABLE.search(text)
    if found is None:
        return
    code, column = ord(found.group()), found.start() + 1
    if code == 0:
        raise BadValue("NUL byte")
    if 0xDC80 <= code <= 0xDCFF:  # what Python makes of an argument's bytes that are not UTF-8
        raise BadValue(f"not UTF-8: byte {code - 0xDC00:#04x} at column {column}")
    raise BadValue(f"half of a surrogate pair: U+{code:04X} at column {column}")
