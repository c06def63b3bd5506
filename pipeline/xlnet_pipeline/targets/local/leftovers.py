"""Finds partial files that killed processes left in the state directory and in the system's temporary directory."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from xlnet_pipeline.targets import processes
from xlnet_pipeline.targets.local.removal import Item, age_of, remove, size_of

AGE = 86400.0  # seconds for which a half-written file may still be somebody's

# Half-written files and directories; each gets its real name once it is whole.
_PARTIAL = (
    "runs/*/.*.partial",
    "runs/*/artifacts/*/.*.partial",
    "cache/*.partial",
    "checkpoints/*/.*.partial",
    "schedules/*.partial",
    ".*.partial",
)
# Directories of our own; a number in a name is that of the process.
_TEMPORARY = ("xlnet-run-*", "xlnet-workspace-*", "xlnet-tokenizer-*", "xlnet-artifact-*", "xlnet-ui-*")


def leftovers(home: Path, running: Collection[str] = (), older_than: float = AGE) -> list[Item]:
    """Find partial files and directories that are older than a given age.

    Args:
        home: the state directory.
        running: ids of the runs that are running, whose files are not left over.
        older_than: files stay until they are this many seconds old.
    """
    found = []
    for path, why in _candidates(home, running):
        if (age := age_of(path)) > older_than:
            name = str(path.relative_to(home) if path.is_relative_to(home) else path)
            found.append(Item("leftover", name, path, size_of(path), age, why))
    return found


def clean(home: Path, is_running: Callable[[str], bool] = lambda run: False) -> None:
    """Remove partial files. Each run does this before it starts.

    Args:
        home: the state directory.
        is_running: tells whether the run with an id is running. It is called only for runs that have partial files.
    """
    for item in leftovers(home):
        if item.path is None:
            continue
        place = item.path.relative_to(home).parts if item.path.is_relative_to(home) else ()
        if place[:1] != ("runs",) or not is_running(place[1]):
            remove(item.path, home)


def _candidates(home: Path, running: Collection[str]) -> Iterator[tuple[Path, str]]:
    for pattern in _PARTIAL:
        for path in sorted(home.glob(pattern)):
            if not set(path.relative_to(home).parts) & set(running):
                yield path, "half-written by a process that is gone"
    for path in sorted(home.glob("runs/*")):
        with contextlib.suppress(PermissionError):
            if path.is_dir() and not (path / "run.json").exists():
                yield path, "a run without a record"
    for pattern in _TEMPORARY:
        for path in sorted(Path(tempfile.gettempdir()).glob(pattern)):
            if _ours(path) and not _alive(path):
                yield path, "temporary, of a process that is gone"


def _ours(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
    return False


def _alive(path: Path) -> bool:
    number = re.fullmatch(r"xlnet-run-(\d+)-.*", path.name)
    return number is not None and processes.started(int(number.group(1))) is not None
