"""Addresses of objects in buckets, ``SCHEME://BUCKET/NAME``, and where a bucket is mounted on this machine."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from xlnet.errors import UserError

GCS = "gs://"
S3 = "s3://"
MINIO = "minio://"  # S3 inside a Kubeflow Pipelines installation, which writes its addresses so
SCHEMES = (GCS, S3, MINIO)
EXAMPLES = "gs://BUCKET/OBJECT, s3://BUCKET/OBJECT or minio://BUCKET/OBJECT"
_MOUNTS = {GCS: "XLNET_GCS_MOUNT", S3: "XLNET_S3_MOUNT", MINIO: "XLNET_MINIO_MOUNT"}


@dataclass(frozen=True)
class Stored:
    """One object as its bucket lists it."""

    uri: str
    name: str  # in the bucket
    size: int  # bytes as stored
    checksum: str  # ``crc32c:…`` (Google Cloud Storage) or ``etag:…`` (S3): known without downloading
    version: str = ""  # generation of a gs:// object; empty elsewhere
    updated: datetime | None = field(default=None, compare=False)  # when it was written; None: it was not listed
    handle: Any = field(default=None, compare=False, repr=False)  # the client's own object, where it has one


def is_remote(path: str) -> bool:
    """Whether a path is the address of an object or a prefix in a bucket."""
    return path.startswith(SCHEMES)


def scheme(uri: str) -> str:
    """Return the address's scheme: ``gs://``, ``s3://`` or ``minio://``.

    Raises:
        UserError: the address has another scheme, or names no bucket.
    """
    found = next((one for one in SCHEMES if uri.startswith(one)), "")
    if not found or not uri.removeprefix(found).partition("/")[0]:
        raise UserError(f"'{uri}' is not {EXAMPLES}")
    return found


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the object name of an address. Raises UserError if it is not an address."""
    bucket, _, name = uri.removeprefix(scheme(uri)).partition("/")
    return bucket, name


def mount(of: str = GCS) -> Path:
    """Return where buckets may be mounted: ``/gcs``, ``/s3`` or ``/minio``, as Kubeflow Pipelines names them."""
    return Path(os.environ.get(_MOUNTS[of], "/gcs" if of == GCS else f"/{of.removesuffix('://')}"))


def address(path: str | Path) -> str:
    """Return the address of the object that a path below a mount stands for; for other paths, the absolute path."""
    absolute = Path(path).absolute()
    for one in SCHEMES:
        if absolute.is_relative_to(mount(one)):
            return f"{one}{absolute.relative_to(mount(one))}"
    return str(absolute)


def mounted(uri: str) -> Path | None:
    """Return the file or directory below the mount; None if it does not exist."""
    bucket, name = split(uri)
    try:
        path = inside(mount(scheme(uri)), f"{bucket}/{name}" if name else bucket)
    except UserError:  # no file can have this name; only the bucket can be read
        return None
    return path if path.exists() else None


def inside(root: Path, name: str) -> Path:
    """Return the path of the file for an object's name, below a directory.

    Raises:
        UserError: the name leads out of the directory, or a file system would read it as another name.
    """
    parts = name.rstrip("/").split("/")
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise UserError(f"object name {name!r} cannot be a file's; allowed: names without '..', '//' and '\\'")
    return root.joinpath(*parts)
