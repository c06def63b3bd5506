"""Measures and removes files and directories in the state directory."""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """Something that can be removed."""

    kind: str  # "run", "version", "leftover", "checkpoints" or "cache entry"
    name: str
    path: Path | None  # None: an entry of the registry
    size: int  # bytes
    age: float  # seconds
    why: str


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory. Links are not followed."""
    total = 0
    for one in _within(path):
        with contextlib.suppress(OSError):
            total += one.lstat().st_size if one.is_symlink() or not one.is_dir() else 0
    return total


def age_of(path: Path) -> float:
    """Return the seconds since a file, or anything in a directory, was last changed."""
    newest = 0.0
    for one in _within(path):
        with contextlib.suppress(OSError):
            newest = max(newest, one.lstat().st_mtime)
    return max(0.0, time.time() - newest)


def remove(path: Path, home: Path) -> str:
    """Remove a file or a directory. Return the error, empty if there was none.

    A directory in ``home`` is renamed first, so that a process that is killed meanwhile leaves nothing that looks
    complete.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.is_relative_to(home):
            aside = home / f".removed-{uuid.uuid4().hex[:8]}.partial"
            os.rename(path, aside)
            shutil.rmtree(aside)
        else:
            shutil.rmtree(path)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _within(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            yield from path.rglob("*")
