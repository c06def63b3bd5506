"""The progress of a running training, read from its log or from its progress bar."""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from xlnet import provenance

FILE = "progress"  # file beside a local run's logs, which do not contain the progress bar
SECONDS = 1.0  # between two writes

_LINE = re.compile(r"step \d+/\d+ .*\bleft\b")


def kept(folder: Path, live: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that calls ``live`` and now and then writes the progress to a file."""
    last = 0.0

    def call(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            provenance.replace_file(folder / FILE, text)
        live(text)

    return call


def of(lines: Iterable[str], folder: Path | None = None) -> str:
    """Return step, loss, speed and time left. Empty if nothing is known yet.

    Args:
        lines: the step's log.
        folder: the folder with a local run's logs.
    """
    found = [match.group() for line in lines if (match := _LINE.search(line))]
    if folder is not None and (folder / FILE).is_file():
        match = _LINE.search((folder / FILE).read_text(encoding="utf-8", errors="replace"))
        found += [match.group()] if match else []
    return max(found, key=_step, default="")


def _step(line: str) -> int:
    return int(line.split("/")[0].removeprefix("step "))
