"""Lists, reads and writes objects in ``gs://``, ``s3://`` and ``minio://`` buckets, and copies directories.

Every transfer is checked against the bucket's checksum. If a bucket is mounted, its objects are read as files.
"""

import fnmatch
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from xlnet.data import gcs
from xlnet.data.addresses import GCS, Stored, inside, is_remote, mounted, scheme
from xlnet.data.addresses import address as address
from xlnet.data.addresses import mount as mount
from xlnet.data.addresses import split as split
from xlnet.errors import CorruptArtifact, UserError


def _store(uri: str) -> ModuleType:
    """Return the module that serves the address's kind of bucket."""
    if scheme(uri) == GCS:
        return gcs
    from xlnet.data import s3

    return s3


def listing(uri: str) -> list[Stored]:
    """List the objects whose names begin with the address's name."""
    return _store(uri).listing(uri)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a name. ``*`` matches within a part of the name, ``**`` matches any number of parts."""
    return _matches(name.split("/"), pattern.split("/"))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def read(uri: str) -> bytes:
    """Return the bytes of one object, from the mount if the bucket is mounted."""
    if path := mounted(uri):
        return path.read_bytes()
    return _store(uri).read(uri)


def read_range(stored: Stored, first: int, last: int) -> bytes:
    """Return bytes ``first`` to ``last`` of the version of an object that was listed."""
    return _store(stored.uri).read_range(stored, first, last)


def checker(stored: Stored) -> Callable[[bytes], str | None] | None:
    """Return a function that takes an object's next bytes and returns the checksum so far; None if it has none."""
    return _store(stored.uri).checker(stored.checksum)


def comparable(stored: Stored) -> bool:
    """Whether a wrong checksum proves damage; in some buckets, checksums are not of an object's bytes."""
    return _store(stored.uri).comparable(stored)


def write(uri: str, content: bytes) -> None:
    """Write one object. A reader sees all of it or nothing."""
    _store(uri).write(uri, content)


def delete(uri: str) -> None:
    """Delete one object if it exists."""
    _store(uri).delete(uri)


def upload(directory: str | Path, uri: str) -> int:
    """Copy a directory's files below an address, but not those whose objects already hold the same bytes.

    Returns:
        The number of objects that were written.
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
    """Copy all objects below an address into a directory, but not those whose files already hold the same bytes.

    Raises:
        UserError: there are no objects or no access, or an object's name cannot be a file name.
        CorruptArtifact: an object's bytes arrived twice with a wrong checksum.
    """
    base, root = uri.rstrip("/"), Path(directory)
    found = [one for one in listing(base + "/") if not one.name.endswith("/")]
    if not found:
        raise UserError(f"'{uri}' holds no object; check the path")
    files = [(one, inside(root, one.uri[len(base) + 1 :])) for one in found]
    gcs.parallel(lambda one: fetch(*one), files)
    return root


def fetch(stored: Stored, path: Path) -> None:
    """Copy one object into a file unless the file already holds its bytes.

    The bytes arrive in a temporary file beside it, which takes its place if their checksum is right.

    Raises:
        CorruptArtifact: twice they were not.
    """
    store = _store(stored.uri)
    if path.is_file() and store.holds(stored, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        part, is_right = store.receive(stored, path)
        if is_right:
            os.replace(part, path)
            return
        part.unlink()
    kind = stored.checksum.partition(":")[0]
    raise CorruptArtifact(f"'{stored.uri}' arrived damaged twice ({kind} differs); try again, or write it anew")


def local_directory(uri: str) -> Path:
    """Return a local directory with an artifact's files: the address itself, its place in a mount, or a copy.

    Copies are kept below the system's temporary directory. A later call completes or renews the copy.
    """
    if not is_remote(uri):
        return Path(uri)
    if path := mounted(uri):
        return path
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return download(uri, Path(tempfile.gettempdir(), f"xlnet-artifacts-{os.getuid()}", name))
