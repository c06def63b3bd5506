"""The ways to end early (the user's mistake, a run that went wrong, a machine that was taken back), and warnings."""

import difflib
import os
import sys
from collections.abc import Iterable


class UserError(ValueError):
    """What was given, what is allowed and what to type next, in one line. Exit status 2."""

    exit_status = 2


class Missing(UserError):
    """What was named is not there; other than a server that refuses or fails, which says nothing about it."""


class RunError(RuntimeError):
    """A run that could not be finished, though nothing in the request was wrong. Exit status 1."""

    exit_status = 1


class Preempted(SystemExit):
    """The process was asked to stop, left a checkpoint, and will go on from it when it is started again.

    Whoever runs the trainer ends with this status (EX_TEMPFAIL), which no failing program has.
    """

    exit_status = 75

    def __init__(self) -> None:
        super().__init__(self.exit_status)


class LostPeer(RunError):
    """Another machine is gone, and this one's program cannot go on without it; that one's own end says why.

    The status (EX_PROTOCOL) lets an engine tell it from a program that failed.
    """

    exit_status = 76


class CorruptArtifact(RunError):
    """An artifact whose bytes are not those its lineage names."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def warn(text: str) -> None:
    """Tell the user something that the run goes on with; of several ranks the first one tells it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)
