"""Lists, reads and writes objects in ``s3://`` buckets, and in ``minio://`` ones (S3 of a KFP installation).

boto3 finds credentials, region and address as it always does: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_REGION``, ``AWS_ENDPOINT_URL_S3``, profiles, roles. It retries, and copies large objects in parallel parts. If an
ETag is an MD5 of the object or of its parts, it is compared with the bytes that were sent or received.

boto3 is 36 MB, s3fs 52, obstore 15; pyarrow's file system, which is here already, lists no checksums, and obstore
knows no profiles.
"""

import base64
import contextlib
import functools
import hashlib
import mimetypes
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xlnet.data.addresses import MINIO, Stored, scheme, split
from xlnet.errors import CorruptArtifact, Missing, RunError, UserError, first_line

CHUNK = 32 << 20  # bytes of one part of a large object
WORKERS = 16  # connections
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
TRIES = 5  # tries of one request, and of a body that breaks off
PART_SIZES = (CHUNK, 5 << 20, 8 << 20, 16 << 20, 64 << 20)  # into which S3 clients usually split objects
MISSING = ("NoSuchKey", "NoSuchBucket", "404", "NotFound")
UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def client(uri: str) -> Any:
    """Return the client for an address, with a connection for each worker.

    Raises:
        UserError: boto3 is not installed, or no setting says which server holds a minio:// bucket.
    """
    endpoint = next((os.environ[name] for name in ENDPOINT if os.environ.get(name)), None)
    if scheme(uri) == MINIO and not endpoint:
        raise UserError(
            f"'{uri}' is in a cluster's own S3: set {ENDPOINT[0]} to its address, such as http://localhost:9000 with "
            "kubectl -n kubeflow port-forward svc/seaweedfs 9000"
        )
    return _client(endpoint, os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_PROFILE"))


@functools.cache
def _client(endpoint: str | None, key: str | None, profile: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UserError("s3:// and minio:// paths need boto3: pip install 'xlnet-pipeline[s3]'") from None
    session = boto3.Session()
    config = Config(
        connect_timeout=TIMEOUT[0],
        read_timeout=TIMEOUT[1],
        max_pool_connections=WORKERS,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Other makers' servers refuse the checksums that boto3 adds by default; ours are Content-MD5 and the ETag.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise the client's errors again as ours, whose messages are one line."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(f"'{what}': no credentials ({first_line(error)}); {KEYS}") from None
    except ClientError as error:
        raise _refusal(what, error) from None
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise RunError(f"'{what}' could not be transferred: {first_line(error)}; try again") from None


def _refusal(what: str, error: Any) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in MISSING:
        return Missing(f"'{what}' does not exist; check the bucket's name and the path")
    if code in UNKNOWN:
        return UserError(f"'{what}': the credentials are not accepted ({code}); {KEYS}")
    if code in ("AccessDenied", "403", "Forbidden"):
        return UserError(f"'{what}': access denied ({first_line(error)}); ask for rights on the bucket")
    if code in ("PreconditionFailed", "412"):
        return RunError(f"'{what}' has changed since it was listed; run again")
    return RunError(f"'{what}' could not be transferred: {first_line(error)}; try again")


def listing(uri: str) -> list[Stored]:
    """List the objects whose names begin with the address's name, sorted by name."""
    bucket, prefix = split(uri)
    with _explained(uri):
        pages = client(uri).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [one for page in pages for one in page.get("Contents", [])]
    return [_stored(f"{scheme(uri)}{bucket}", one) for one in found]


def _stored(bucket: str, one: dict[str, Any]) -> Stored:
    checksum = f"etag:{one['ETag'].strip(chr(34))}"
    return Stored(f"{bucket}/{one['Key']}", one["Key"], one["Size"], checksum, updated=one["LastModified"])


def read(uri: str) -> bytes:
    """Return the bytes of one object."""
    return _got(uri)


def read_range(stored: Stored, first: int, last: int) -> bytes:
    """Return bytes ``first`` to ``last`` of the version of an object that was listed."""
    etag = stored.checksum.removeprefix("etag:")
    return _got(stored.uri, Range=f"bytes={first}-{last}", IfMatch=f'"{etag}"')


def _got(uri: str, **wanted: str) -> bytes:
    """Return an object's bytes. If they break off, ask again: boto3 repeats only requests that fail."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    bucket, name = split(uri)
    with _explained(uri):
        for attempt in range(TRIES - 1):
            with contextlib.suppress(HTTPClientError, IncompleteReadError, ResponseStreamingError):
                return client(uri).get_object(Bucket=bucket, Key=name, **wanted)["Body"].read()
            time.sleep(0.2 * 2**attempt)
        return client(uri).get_object(Bucket=bucket, Key=name, **wanted)["Body"].read()


def write(uri: str, content: bytes) -> None:
    """Write one object. A reader sees all of it or nothing."""
    bucket, name = split(uri)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    check = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    with _explained(uri):
        client(uri).put_object(Bucket=bucket, Key=name, Body=content, ContentType=kind, ContentMD5=check)


def delete(uri: str) -> None:
    """Delete one object if it exists."""
    bucket, name = split(uri)
    with _explained(uri):
        client(uri).delete_object(Bucket=bucket, Key=name)


def send(uri: str, path: Path) -> None:
    """Copy a file into an object. A large file is sent in parts, and a part that fails is sent again."""
    if path.stat().st_size <= CHUNK:
        write(uri, path.read_bytes())
        return
    bucket, name = split(uri)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    with _explained(uri):
        client(uri).upload_file(str(path), bucket, name, ExtraArgs={"ContentType": kind}, Config=_parts())
    (stored,) = (one for one in listing(uri) if one.name == name)
    if stored.size != path.stat().st_size or holds(stored, path) is False:
        delete(uri)
        raise CorruptArtifact(f"'{uri}' was stored other than it was sent (its ETag differs); try again")


def receive(stored: Stored, path: Path) -> tuple[Path, bool]:
    """See :func:`xlnet.data.objects.fetch`."""
    part = path.with_name(f".{path.name}.part")
    bucket, name = split(stored.uri)
    with _explained(stored.uri):
        client(stored.uri).download_file(bucket, name, str(part), Config=_parts())
    return part, holds(stored, part) is not False


def _parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=CHUNK + 1, multipart_chunksize=CHUNK, max_concurrency=WORKERS)


def holds(stored: Stored, path: Path) -> bool | None:
    """Whether a file holds an object's bytes. None if the ETag does not tell, because the bucket encrypts."""
    if path.stat().st_size != stored.size:
        return False
    etag = stored.checksum.removeprefix("etag:")
    digest, _, count = etag.partition("-")
    if len(digest) != 32:
        return None
    if not count:
        return _md5(path) == digest or (None if not comparable(stored) else False)
    for size in PART_SIZES:
        if -(-stored.size // size) == int(count):
            parts = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                while piece := file.read(size):
                    parts.update(hashlib.md5(piece, usedforsecurity=False).digest())
            if parts.hexdigest() == digest:
                return True
    return None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def comparable(stored: Stored) -> bool:
    """Whether an ETag that looks like an MD5 is one: not with encryption by a key service or by a customer's key."""
    bucket, name = split(stored.uri)
    with _explained(stored.uri):
        head = client(stored.uri).head_object(Bucket=bucket, Key=name)
    return not str(head.get("ServerSideEncryption", "")).startswith("aws:") and not head.get("SSECustomerAlgorithm")


def checker(checksum: str) -> "Callable[[bytes], str | None] | None":
    """See :func:`xlnet.data.objects.checker`."""
    digest = checksum.removeprefix("etag:")
    if len(digest) != 32:
        return None
    total = hashlib.md5(usedforsecurity=False)

    def update(piece: bytes) -> str:
        total.update(piece)
        return f"etag:{total.hexdigest()}"

    return update
