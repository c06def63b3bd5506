"""Lists the local files that a path, directory or glob names; follows links, takes each file once, skips hidden ones"""

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from xlnet.errors import UserError

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".txt")
HIDDEN_MARKS = (".", "~$")
HIDDEN = "hidden"
OTHER = "of another kind"
AGAIN = "there by another name already"
NO_FILE = "no file"


class Skipped:
    """The files that were found and left out, by reason."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}

    def add(self, reason: str, path: str) -> None:
        """Count one file that was left out."""
        self._paths.setdefault(reason, []).append(path)

    def lines(self, field: str) -> list[str]:
        """Return a line for each reason, with an example."""
        return [
            f"{field}: skipped {len(paths):,} that {'is' if len(paths) == 1 else 'are'} {reason}: '{paths[0]}'"
            f"{' and others' if len(paths) > 1 else ''}"
            for reason, paths in self._paths.items()
        ]


def is_data(name: str) -> bool:
    """Whether a file's extension is that of a format that can be read, compressed or not."""
    return name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def is_hidden(relative: str) -> bool:
    """Whether a path goes through a name that begins with a dot, or with Excel's mark of a workbook that is open."""
    return any(part.startswith(HIDDEN_MARKS) for part in relative.split("/"))


def local_files(path: str, skipped: Skipped) -> list[Path]:
    """List the files that a path names, in a stable order: itself, all below a directory, or all that a glob matches.

    Hidden files and directories are taken only if the path names them. Below a directory, files of other formats
    are left out. What is left out is added to ``skipped``.

    Raises:
        UserError: a directory cannot be read, or a link leads nowhere.
    """
    whole = Path(path)
    if whole.is_dir():
        found = sorted(_matching(whole, ("**", "*"), skipped, set()))
        for file in found:
            if not is_data(file.name):
                skipped.add(OTHER, str(file))
        return _each_once([file for file in found if is_data(file.name)], skipped)
    if whole.exists():
        if not whole.is_file():
            raise UserError(f"'{path}' is not a file, directory or glob; name one")
        return [whole.absolute()]
    if os.path.islink(path):
        raise _dangling(whole)
    parts = whole.parts
    literal = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = Path(*parts[:literal])
    if literal == len(parts) or not base.is_dir():
        return []
    pattern = parts[literal:] if parts[-1] != "**" else (*parts[literal:], "*")
    return _each_once(sorted(_matching(base, pattern, skipped, set())), skipped)


def identity(path: Path) -> tuple[int, int]:
    """Return a file's device and inode, which are equal for two names of one file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _each_once(files: list[Path], skipped: Skipped) -> list[Path]:
    seen: set[tuple[int, int]] = set()
    once = []
    for file in files:
        key = identity(file)
        if key in seen:
            skipped.add(AGAIN, str(file))
        else:
            once.append(file.absolute())
        seen.add(key)
    return once


def _matching(
    folder: Path, pattern: tuple[str, ...], skipped: Skipped, seen: set[tuple[tuple[int, int], int]]
) -> Iterator[Path]:
    """Yield the files below a directory that match the parts of a pattern; ``seen`` stops cycles of links."""
    first, rest = pattern[0], pattern[1:]
    if (identity(folder), len(pattern)) in seen:
        if first == "**":
            skipped.add(AGAIN, str(folder))
        return
    seen.add((identity(folder), len(pattern)))
    if first in (".", ".."):
        if rest:
            yield from _matching(folder / first, rest, skipped, seen)
        return
    if first == "**":
        yield from _matching(folder, rest, skipped, seen)
    for name in _names(folder):
        path = folder / name
        if first != "**" and not fnmatch.fnmatchcase(name, first):
            continue
        is_directory = path.is_dir()
        wanted = is_directory if first == "**" or rest else not is_directory
        if wanted and name.startswith(HIDDEN_MARKS) and not first.startswith(HIDDEN_MARKS):
            skipped.add(HIDDEN, str(path))
        elif wanted and is_directory:
            yield from _matching(path, pattern if first == "**" else rest, skipped, seen)
        elif wanted and _is_file(path, skipped):
            yield path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"directory '{folder}' cannot be read: {error.strerror}") from None


def _is_file(path: Path, skipped: Skipped) -> bool:
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return True
    except OSError:
        if is_data(path.name):
            raise _dangling(path) from None
    skipped.add(NO_FILE, str(path))
    return False


def _dangling(path: Path) -> UserError:
    return UserError(f"'{path}' is a link to '{os.readlink(path)}', which cannot be read; repair or remove it")
