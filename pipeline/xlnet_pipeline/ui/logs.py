"""Reads step logs: their ends, search results and new lines, without loading a whole large file.

Lines of kfp's own executor are left out, as in ``xlnet-pipeline runs logs``. The downloaded file contains them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from xlnet_pipeline.targets import Run, StepRun
from xlnet_pipeline.targets.output import shown
from xlnet_pipeline.targets.record import FAILED, RUNNING
from xlnet_pipeline.ui.site import LOCAL, Site

TAIL = 256 * 1024  # bytes of a log's end that a page shows
SEARCHED = 64 * 1024 * 1024  # bytes of a log's end that a search reads
FOUND = 1000  # maximum number of lines that a search shows
LONGEST = 4000  # maximum characters that a line shows
REMOTE_LINES = 2000


@dataclass(frozen=True)
class Lines:
    """Lines of a log."""

    lines: list[str]
    note: str = ""  # says which lines were left out
    end: int = 0  # the offset in bytes up to which the log was read


def chosen(run: Run, name: str) -> StepRun | None:
    """Return the step whose log to show: the named one, else the running or failed one, else the last with a log."""
    with_log = [step for step in run.steps if step.log or run.target not in (LOCAL, "docker")]
    for step in run.steps:
        if step.name == name:
            return step
    for status in (RUNNING, FAILED):
        for step in with_log:
            if step.status == status:
                return step
    return with_log[-1] if with_log else None


def place(site: Site, run: Run, step: StepRun) -> Path | None:
    """Return the file of a step's log; None if there is no file, or not yet."""
    if not step.log or run.target not in (LOCAL, "docker"):
        return None
    path = site.home / "runs" / run.id / step.log
    return site.inside(path) if path.exists() else None


def read(site: Site, run: Run, step: StepRun, search: str = "") -> Lines:
    """Return the end of a step's log, or its lines that contain ``search``; upper and lower case are equal."""
    path = place(site, run, step)
    if path:
        return find(path, search) if search else tail(path)
    if run.target in (LOCAL, "docker"):
        return Lines([])
    wanted = search.casefold()
    lines = (line for line in site.target(run.target).logs(run.id, step.name) if wanted in line.casefold())
    return Lines([line[:LONGEST] for line in deque(lines, REMOTE_LINES)])


def tail(path: Path) -> Lines:
    """Return the last TAIL bytes as lines."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL))
        content = file.read(TAIL)
    if size > TAIL:
        content = content[content.find(b"\n") + 1 :] if b"\n" in content[:-1] else content
    note = f"the last {TAIL // 1024} kB of {size:,} bytes; download the file for the rest" if size > TAIL else ""
    return Lines(_lines(content), note, size)


def added(path: Path, offset: int) -> Lines:
    """Return the whole lines that were written after ``offset``."""
    size = path.stat().st_size
    if size < offset:  # the step was started again
        offset = 0
    start = max(offset, size - TAIL)
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(TAIL)
    whole = content.rfind(b"\n") + 1
    return Lines(_lines(content[:whole]), "", start + whole)


def find(path: Path, search: str) -> Lines:
    """Return the lines of the log's last SEARCHED bytes that contain ``search``."""
    size = path.stat().st_size
    wanted = search.casefold()
    with path.open("rb") as file:
        file.seek(max(0, size - SEARCHED))
        hits = (line for line in shown(_read(file)) if wanted in line.casefold())
        found = list(islice(hits, FOUND + 1))
    notes = [f"the first {FOUND:,} lines"] if len(found) > FOUND else []
    notes += [f"of the last {SEARCHED // 2**20} MB"] if size > SEARCHED else []
    return Lines(found[:FOUND], " ".join(notes), size)


def _read(file: IO[bytes]) -> Iterator[str]:
    """Yield lines, each cut to its first LONGEST bytes."""
    rest = False
    while piece := file.readline(LONGEST):
        ended = piece.endswith(b"\n")
        if not rest:
            yield piece.decode("utf-8", "replace").rstrip("\r\n").replace("\0", "")
        rest = not ended


def _lines(content: bytes) -> list[str]:
    lines = content.decode("utf-8", "replace").replace("\0", "").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line[:LONGEST] for line in shown(line.rstrip("\r") for line in lines)]
