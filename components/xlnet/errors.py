"""The two ways to fail: the user's mistake, and a run that went wrong."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was given, what is allowed and what to type next, in one line. Exit status 2."""

    exit_status = 2


class RunError(RuntimeError):
    """A run that could not be finished, though nothing in the request was wrong. Exit status 1."""

    exit_status = 1


class CorruptArtifact(RunError):
    """An artifact whose bytes are not those its lineage names."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
