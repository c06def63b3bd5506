"""Exceptions that end a program early (user's mistake, failed run, preempted machine), and warnings."""

import difflib
import os
import sys
from collections.abc import Iterable


class UserError(ValueError):
    """The user made a mistake. The message says in one line what was given, what is allowed, and what to type next.

    Exit status 2.
    """

    exit_status = 2


class Missing(UserError):
    """The thing that the user named does not exist. Not raised if a server refuses or fails."""


class RunError(RuntimeError):
    """The run failed although the request was valid. Exit status 1."""

    exit_status = 1


class Preempted(SystemExit):
    """The process was asked to stop and wrote a checkpoint. It resumes from there when it is started again.

    The trainer's launcher exits with this status (EX_TEMPFAIL), which no failing program uses.
    """

    exit_status = 75

    def __init__(self) -> None:
        super().__init__(self.exit_status)


class LostPeer(RunError):
    """This program cannot continue because another machine is gone. The other machine's log says why.

    With this status (EX_PROTOCOL) a pipeline engine can distinguish it from a failed program.
    """

    exit_status = 76


class CorruptArtifact(RunError):
    """The content of an artifact does not match the digest in its lineage."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def warn(text: str) -> None:
    """Print a warning about something that does not stop the run. Only the first rank prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """Return the first line of a foreign error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
