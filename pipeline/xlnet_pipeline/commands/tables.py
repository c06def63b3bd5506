"""Formats what commands print: aligned columns, colours on a terminal, and JSON."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

from xlnet.redaction import visible

_GREEN, _RED, _YELLOW, _GREY = "32", "31", "33", "90"
_STATUS = {
    "SUCCEEDED": _GREEN,
    "CACHED": _GREEN,
    "champion": _GREEN,
    "FAILED": _RED,
    "LOST": _RED,
    "DAMAGED": _RED,
    "CANCELLED": _YELLOW,
    "RUNNING": _YELLOW,
    "PENDING": _GREY,
    "SKIPPED": _GREY,
}


def coloured(out: TextIO) -> bool:
    """Whether to print colours: ``out`` is a terminal, and NO_COLOR (no-color.org) is not set."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, word: str, colour: bool) -> str:
    """Return ``text`` in the colour of a status word, if that word has a colour."""
    code = _STATUS.get(word.strip())
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], colour: bool = False) -> list[str]:
    """Return lines of aligned columns. None becomes a dash."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cells[0], widths, strict=True)).rstrip()]
    for row in cells[1:]:
        padded = [paint(text.ljust(width), text, colour) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print :func:`table` on standard output."""
    print("\n".join(table(header, rows, coloured(sys.stdout))))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def local_time(moment: str | None) -> str | None:
    """Convert an ISO 8601 time to local time, to the second."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else None


def duration(seconds: float | None) -> str | None:
    """Format seconds for people: ``4.2 s``, ``3 min 07 s``, ``2 h 05 min``, ``3 d 04 h``."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return f"{hours // 24} d {hours % 24:02d} h"


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else visible(str(value))
