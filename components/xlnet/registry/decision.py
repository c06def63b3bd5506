"""The gate's decision."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """The gate's decision, with its figures (None if nothing was compared)."""

    promote: bool
    reason: str
    champion_version: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Incomparable(Exception):
    """Two models cannot be compared; the message says why."""
