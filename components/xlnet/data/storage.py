"""Where input lies: local files, globs, directories, ``gs://`` objects and the shipped demo data."""

import glob
import gzip
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import xlnet
from xlnet import provenance
from xlnet.data import objects
from xlnet.data.object_stream import ObjectStream
from xlnet.errors import RunError, UserError, nearest

DEMO = "demo:"
GCS = objects.GCS
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")


@dataclass(frozen=True)
class Source:
    """One input object.

    Attributes:
        uri: as a user would name it; absolute for local files.
        size: bytes as stored.
        checksum: ``sha256:…`` of a local file, ``crc32c:…`` of a gs:// object (known without downloading).
        generation: version of a gs:// object; empty elsewhere.
    """

    uri: str
    size: int
    checksum: str
    generation: str = ""

    @property
    def name(self) -> str:
        """File name without ``.gz``, in lower case: its ending tells the format."""
        return Path(self.uri).name.lower().removesuffix(".gz")


def list_sources(field: str, paths: tuple[str, ...]) -> list[Source]:
    """Every object that the paths of a recipe field name, each once, in a stable order.

    Raises:
        UserError: a path names nothing; says which field and what to type.
    """
    found: dict[str, Source] = {}
    for path in paths:
        sources = list(_list_one(field, path))
        if not sources:
            raise UserError(f"{field}: '{path}' matches no file; check the path{_neighbour(path)}")
        found |= {source.uri: source for source in sources}
    return list(found.values())


def _list_one(field: str, path: str) -> Iterator[Source]:
    if path.startswith(GCS):
        yield from _list_gcs(field, path)
    elif path.startswith(DEMO):
        yield from _list_demo(field, path)
    elif "://" in path:
        raise UserError(
            f"{field}: '{path}' has an unknown scheme; allowed: a local path, gs://BUCKET/OBJECT, demo:NAME"
        )
    else:
        for file in _local_files(path):
            yield local_source(str(file), file)


def local_source(uri: str, file: Path) -> Source:
    """A local file, checksummed; UserError if it cannot be read."""
    try:
        return Source(uri, file.stat().st_size, provenance.digest_file(file))
    except OSError as error:
        raise UserError(f"'{file}' cannot be read: {error.strerror}") from None


def _local_files(path: str) -> list[Path]:
    if Path(path).is_dir():
        files = [file for file in Path(path).rglob("*") if file.is_file() and not file.name.startswith(".")]
        return sorted(file for file in files if file.name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES))
    if Path(path).exists():
        return [Path(path).absolute()]
    return sorted(Path(file).absolute() for file in glob.glob(path, recursive=True) if os.path.isfile(file))


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


def _list_gcs(field: str, path: str) -> Iterator[Source]:
    bucket, _, pattern = path.removeprefix(GCS).partition("/")
    prefix = pattern.partition("*")[0]
    try:
        blobs = objects.listing(f"{GCS}{bucket}/{prefix}", pattern if "*" in pattern else None)
    except (UserError, RunError) as error:
        raise type(error)(f"{field}: {error}") from None
    for blob in blobs:
        if "*" not in pattern and blob.name != pattern and not _is_data_below(blob.name, pattern):
            continue
        yield Source(f"{GCS}{bucket}/{blob.name}", int(blob.size), f"crc32c:{blob.crc32c}", str(blob.generation))


def _is_data_below(name: str, folder: str) -> bool:
    below = name.startswith(folder.rstrip("/") + "/") if folder else True
    return below and name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def local_path(source: Source) -> Path | None:
    """The file behind a source, or None for one that is not on this machine."""
    if source.uri.startswith(GCS):
        return None
    if source.uri.startswith(DEMO):
        return Path(xlnet.__file__).parent / "demo" / source.uri.removeprefix(DEMO)
    return Path(source.uri)


def open_binary(source: Source) -> IO[bytes]:
    """Open a source for reading, gzip undone (told by its first bytes, not by its name).

    Raises:
        RunError: it is gone.
    """
    path = local_path(source)
    try:
        raw: IO[bytes] = path.open("rb") if path else _open_gcs(source)
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
    except OSError as error:
        raise RunError(f"'{source.uri}' cannot be read any more: {error}") from None
    # GzipFile's own readline is slow Python.
    return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18) if is_gzip else raw


def _open_gcs(source: Source) -> IO[bytes]:
    checksum = source.checksum.removeprefix("crc32c:")
    raw = ObjectStream(source.uri, source.size, source.generation, checksum)
    return cast(IO[bytes], io.BufferedReader(raw, 1 << 18))
