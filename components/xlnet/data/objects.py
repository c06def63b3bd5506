"""Objects in buckets, ``gs://``, ``s3://`` and ``minio://``: read, written, listed, and directories moved in parallel.

What is sent or arrives is compared with the bucket's own checksum. Where the bucket is mounted, files are read there.
"""

import fnmatch
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from xlnet.data import gcs
from xlnet.data.addresses import GCS, Stored, address, inside, is_remote, mount, mounted, scheme, split
from xlnet.errors import UserError

__all__ = [
    "Stored",
    "address",
    "checker",
    "comparable",
    "delete",
    "download",
    "fetch",
    "inside",
    "is_remote",
    "listing",
    "local_directory",
    "matches",
    "mount",
    "mounted",
    "read",
    "read_range",
    "scheme",
    "split",
    "upload",
    "write",
]


def _store(uri: str) -> ModuleType:
    """The module that reaches an address's bucket."""
    if scheme(uri) == GCS:
        return gcs
    from xlnet.data import s3

    return s3


def listing(uri: str, pattern: str | None = None) -> list[Stored]:
    """Objects whose names begin with the address's; ``pattern`` is a glob over whole names, matched here."""
    found: list[Stored] = _store(uri).listing(uri)
    return [one for one in found if pattern is None or matches(one.name, pattern)]


def matches(name: str, pattern: str) -> bool:
    """Whether a glob names an object: ``*`` within a part of the name, ``**`` for any number of parts."""
    return _matches(name.split("/"), pattern.split("/"))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def read(uri: str) -> bytes:
    """The bytes of one object, from the mount if it is there."""
    if path := mounted(uri):
        return path.read_bytes()
    found: bytes = _store(uri).read(uri)
    return found


def read_range(stored: Stored, first: int, last: int) -> bytes:
    """Bytes ``first`` to ``last`` of an object as it was listed."""
    found: bytes = _store(stored.uri).read_range(stored, first, last)
    return found


def checker(stored: Stored) -> Callable[[bytes], str | None] | None:
    """Takes an object's bytes piece by piece and returns their checksum so far; None where that cannot be compared."""
    found: Callable[[bytes], str | None] | None = _store(stored.uri).checker(stored.checksum)
    return found


def comparable(stored: Stored) -> bool:
    """Whether an object's checksum, which differs from that of what arrived, means damage."""
    found: bool = _store(stored.uri).comparable(stored)
    return found


def write(uri: str, content: bytes) -> None:
    """Write one object whole."""
    _store(uri).write(uri, content)


def delete(uri: str) -> None:
    """Delete one object, if it is there."""
    _store(uri).delete(uri)


def upload(directory: str | Path, uri: str) -> int:
    """Copy a directory's files below an address; objects that hold the same bytes already are left alone.

    Returns:
        How many objects were written.
    """
    root, base = Path(directory), uri.rstrip("/")
    present = {one.uri: one for one in listing(base + "/")}
    store = _store(base)

    def send(path: Path) -> bool:
        place = f"{base}/{path.relative_to(root).as_posix()}"
        if place in present and store.holds(present[place], path):
            return False
        store.send(place, path)
        return True

    return sum(gcs.parallel(send, sorted(path for path in root.rglob("*") if path.is_file())))


def download(uri: str, directory: str | Path) -> Path:
    """Copy everything below an address into a directory; files that hold the same bytes already are left alone.

    Raises:
        UserError: there is nothing, or no access; an object's name cannot be a file's.
        CorruptArtifact: an object's bytes arrived other than the bucket says, twice.
    """
    base, root = uri.rstrip("/"), Path(directory)
    found = [one for one in listing(base + "/") if not one.name.endswith("/")]
    if not found:
        raise UserError(f"'{uri}' holds no object; check the path")
    files = [(one, inside(root, one.uri[len(base) + 1 :])) for one in found]
    gcs.parallel(lambda one: fetch(*one), files)
    return root


def fetch(stored: Stored, path: Path) -> None:
    """Copy one object into a file, unless the file holds its bytes already."""
    _store(stored.uri).fetch(stored, path)


def local_directory(uri: str) -> Path:
    """A directory on this machine with what an artifact's address names: itself, its place in the mount, or a copy.

    Copies are kept below the system's directory for temporary files, and completed or renewed when asked for again.
    """
    if not is_remote(uri):
        return Path(uri)
    if path := mounted(uri):
        return path
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return download(uri, Path(tempfile.gettempdir(), f"xlnet-artifacts-{os.getuid()}", name))
