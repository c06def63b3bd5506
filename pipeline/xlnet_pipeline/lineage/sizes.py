"""Formats a number of bytes."""

from typing import Any


def size(count: Any) -> str:
    """Format a number of bytes for people."""
    amount = float(count or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
