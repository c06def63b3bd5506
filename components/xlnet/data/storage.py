"""Lists and opens input: local files, globs, directories, objects in buckets and the shipped demo data."""

import gzip
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import xlnet
from xlnet import provenance
from xlnet.data import objects, zipped
from xlnet.data.addresses import EXAMPLES
from xlnet.data.object_stream import ObjectStream
from xlnet.data.values import shown
from xlnet.data.walking import AGAIN, DATA_SUFFIXES, HIDDEN, OTHER, Skipped, identity, is_data, is_hidden, local_files
from xlnet.errors import RunError, UserError, nearest

DEMO = "demo:"
GLOB = "[*?[]"  # a sign that makes a name a glob


@dataclass(frozen=True)
class Source:
    """One input object."""

    uri: str  # the name that a user would type; absolute for local files
    size: int  # bytes as stored
    checksum: str  # ``sha256:…`` of a local file; ``crc32c:…`` or ``etag:…`` of an object, known without downloading
    generation: str = ""  # version of a gs:// object; empty elsewhere
    labels: "Source | None" = None  # the file that holds the label of each line; None: the source holds its own

    @property
    def name(self) -> str:
        """The file name without ``.gz``, in lower case. Its extension tells the format."""
        return Path(self.uri).name.lower().removesuffix(".gz")


def list_sources(field: str, paths: tuple[str, ...], skipped: Skipped | None = None) -> list[Source]:
    """List every object that the paths of a recipe field name, each once, in a stable order; add others to ``skipped``.

    Raises:
        UserError: a path names nothing; says which field and what to type.
    """
    found: dict[object, Source] = {}
    skipped = skipped or Skipped()
    for path in paths:
        if not path.isprintable():
            raise UserError(f"{field}: {path!a} is not a path: it holds characters that cannot be seen")
        try:
            sources = list(_list_one(field, path, skipped))
        except OSError as error:  # such as a name that is too long
            raise UserError(f"{field}: {shown(path)} cannot be read: {error.strerror}") from None
        if not sources:
            if "://" not in path and Path(path).is_dir():
                endings = ", ".join(DATA_SUFFIXES)
                raise UserError(f"{field}: directory '{path}' holds no data; allowed: files that end in {endings}")
            raise UserError(f"{field}: '{path}' matches no file; check the path{_neighbour(path)}")
        for source in sources:
            if found.setdefault(same_object(source), source).uri != source.uri:
                skipped.add(AGAIN, source.uri)
    return list(found.values())


def same_object(source: Source) -> object:
    """Return a key that is equal for two names of one file or object."""
    path = local_path(source)
    if path is None or objects.is_remote(address := objects.address(path)):
        return source.uri if path is None else address
    return identity(path)


def _list_one(field: str, path: str, skipped: Skipped) -> Iterator[Source]:
    if objects.is_remote(path):
        yield from _list_objects(field, path, skipped)
    elif path.startswith(DEMO):
        yield from _list_demo(field, path)
    elif "://" in path:
        raise UserError(f"{field}: '{path}' has an unknown scheme; allowed: a local path, {EXAMPLES}, demo:NAME")
    else:
        for file in local_files(path, skipped):
            yield local_source(str(file), file)


def local_source(uri: str, file: Path) -> Source:
    """Return a local file with its checksum; UserError if it cannot be read."""
    try:
        return Source(uri, file.stat().st_size, provenance.digest_file(file))
    except OSError as error:
        raise UserError(f"'{file}' cannot be read: {error.strerror}") from None


def _neighbour(path: str) -> str:
    folder = Path(path).parent
    if "://" in path or not folder.is_dir():
        return "" if "://" in path else f": there is no directory '{folder}'"
    return nearest(Path(path).name, [entry.name for entry in folder.iterdir()])


def _list_demo(field: str, path: str) -> Iterator[Source]:
    root = Path(xlnet.__file__).parent / "demo"
    name = path.removeprefix(DEMO)
    known = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    if name not in known:
        raise UserError(f"{field}: demo data '{name}' is unknown; allowed: {', '.join(known)}{nearest(name, known)}")
    for file in sorted((root / name).glob("*.txt")):
        yield local_source(f"{DEMO}{name}/{file.name}", file)


def _list_objects(field: str, path: str, skipped: Skipped) -> Iterator[Source]:
    scheme, (bucket, pattern) = objects.scheme(path), objects.split(path)
    prefix = re.split(GLOB, pattern)[0]
    try:
        found = objects.listing(f"{scheme}{bucket}/{prefix}")
    except (UserError, RunError) as error:
        raise type(error)(f"{field}: {error}") from None
    for one in found:
        if one.name == pattern or _is_taken(one, pattern, skipped):
            yield Source(one.uri, one.size, one.checksum, one.version)


def _is_taken(stored: objects.Stored, pattern: str, skipped: Skipped) -> bool:
    """Apply the rules of local directories and globs to an object whose name is not the pattern itself.

    The glob is matched here, because some servers ignore it and list everything below its prefix.
    """
    name, is_glob = stored.name, re.search(GLOB, pattern) is not None
    folder = re.split(GLOB, pattern)[0].rpartition("/")[0] if is_glob else pattern.rstrip("/")
    if name.endswith("/") or (folder and not name.startswith(folder + "/")):
        return False
    if is_hidden(name.removeprefix(folder)):
        reason = HIDDEN
    elif is_glob and not objects.matches(name, pattern):
        return False
    else:
        reason = "" if is_glob or is_data(name) else OTHER
    if reason:
        skipped.add(reason, stored.uri)
    return not reason


def local_path(source: Source) -> Path | None:
    """Return the file behind a source, or None if it is not on this machine."""
    if objects.is_remote(source.uri):
        return None
    if source.uri.startswith(DEMO):
        return Path(xlnet.__file__).parent / "demo" / source.uri.removeprefix(DEMO)
    return Path(source.uri)


def open_binary(source: Source) -> IO[bytes]:
    """Open a source for reading. Gzip and ZIP archives of one file, recognised by their first bytes, are unpacked.

    Raises:
        UserError: a ZIP archive that holds several files, or is encrypted.
        RunError: it is gone.
    """
    path = local_path(source)
    try:
        raw: IO[bytes] = path.open("rb") if path else _open_object(source)
        first = raw.read(4)
        raw.seek(0)
    except OSError as error:
        raise RunError(f"'{source.uri}' cannot be read any more: {error}") from None
    # GzipFile's own readline is slow Python.
    if first.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18)
    return zipped.member(raw, source.uri)[1] if first in zipped.SIGNATURES else raw


def inner_name(source: Source) -> str:
    """Return the name, in lower case, of the file in a ZIP archive; for other files their own without ``.zip``."""
    path = local_path(source)
    with path.open("rb") if path else _open_object(source) as raw:
        is_zip = raw.read(4) in zipped.SIGNATURES
        raw.seek(0)
        name = zipped.member(raw, source.uri)[0] if is_zip else ""
    return name.lower() or source.name.removesuffix(".zip")


def _open_object(source: Source) -> IO[bytes]:
    name = objects.split(source.uri)[1]
    raw = ObjectStream(objects.Stored(source.uri, name, source.size, source.checksum, source.generation))
    return cast(IO[bytes], io.BufferedReader(raw, 1 << 18))
