"""Lists, reads and writes objects in ``gs://`` buckets, and copies large files in ranges.

Every transfer compares its crc32c with the bucket's. An object above CHUNK is fetched in ranges. Each range is retried
on its own, and finished ranges are kept when the connection breaks or the program starts again. Google's client reads
``STORAGE_EMULATOR_HOST``, which names another server.
"""

import base64
import contextlib
import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from xlnet.data import transfer
from xlnet.data.addresses import GCS, Stored, split
from xlnet.errors import CorruptArtifact, Missing, RunError, UserError, first_line

CRC32C = "crc32c:"  # prefix of a checksum
CHUNK = 32 << 20  # bytes of one range of a large object, and of one piece of a resumable upload
WHOLE = 8 << 20  # bytes; a smaller upload is one request, which starts again when it breaks
WORKERS = 16  # transfers at once; more than the cores, because transfers mostly wait for the network
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
DEADLINE = 120.0  # seconds for which one request is retried


def storage_client() -> Any:
    """Make a client with a connection for each worker.

    Raises:
        UserError: google-cloud-storage is not installed.
    """
    return _client_at(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache
def _client_at(host: str | None) -> Any:
    try:
        from google.cloud import storage
    except ImportError:
        raise UserError("gs:// paths need google-cloud-storage: pip install 'xlnet-pipeline[gcs]'") from None
    from requests.adapters import HTTPAdapter

    made = storage.Client()
    for scheme in ("https://", "http://"):
        made._http.mount(scheme, HTTPAdapter(pool_maxsize=WORKERS))  # not blocking: refused downloads hold theirs
    return made


def retry() -> Any:
    """Return the retry policy: retry on 408, 429, 5xx and broken connections, with growing pauses, until DEADLINE."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(DEADLINE)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise the client's errors again as ours, whose messages are one line."""
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests.exceptions import RequestException

    try:
        yield
    except NotFound:
        raise Missing(f"'{what}' does not exist; check the bucket's name and the path") from None
    except (Unauthorized, GoogleAuthError) as error:
        hint = "type: gcloud auth application-default login"
        raise UserError(f"'{what}': no valid credentials ({first_line(error)}); {hint}") from None
    except Forbidden as error:
        raise UserError(f"'{what}': access denied ({first_line(error)}); ask for a role on the bucket") from None
    except DataCorruption:
        raise CorruptArtifact(f"'{what}' was stored other than it was sent (crc32c differs); try again") from None
    except (GoogleAPIError, RequestException, ConnectionError) as error:
        raise RunError(f"'{what}' could not be transferred: {first_line(error)}; try again") from None


def listing(uri: str) -> list[Stored]:
    """List the objects whose names begin with the address's name, sorted by name."""
    bucket, prefix = split(uri)
    with _explained(uri):
        blobs = list(storage_client().list_blobs(bucket, prefix=prefix, retry=retry(), timeout=TIMEOUT))
    return [_stored(bucket, blob) for blob in blobs]


def _stored(bucket: str, blob: Any) -> Stored:
    checksum, version = f"{CRC32C}{blob.crc32c}", str(blob.generation)
    return Stored(f"{GCS}{bucket}/{blob.name}", blob.name, int(blob.size), checksum, version, blob.updated, blob)


def read(uri: str) -> bytes:
    """Return the bytes of one object."""
    bucket, name = split(uri)
    with _explained(uri):
        blob = storage_client().bucket(bucket).blob(name)
        found: bytes = blob.download_as_bytes(checksum="crc32c", retry=retry(), timeout=TIMEOUT)
    return found


def read_range(stored: Stored, first: int, last: int) -> bytes:
    """Return bytes ``first`` to ``last`` of the version of an object that was listed."""
    with _explained(stored.uri):
        file = io.BytesIO()
        _receive(_blob(stored), file, first, last)
    return file.getvalue()


def _blob(stored: Stored) -> Any:
    if stored.handle is not None:
        return stored.handle
    bucket, name = split(stored.uri)
    return storage_client().bucket(bucket).blob(name, generation=int(stored.version))


def write(uri: str, content: bytes) -> None:
    """Write one object. A reader sees all of it or nothing."""
    bucket, name = split(uri)
    with _explained(uri):
        blob = storage_client().bucket(bucket).blob(name)
        blob.upload_from_string(content, checksum="crc32c", retry=retry(), timeout=TIMEOUT)


def delete(uri: str) -> None:
    """Delete one object if it exists."""
    from google.api_core.exceptions import NotFound

    bucket, name = split(uri)
    with _explained(uri), contextlib.suppress(NotFound):  # an earlier try may have deleted it, and its answer was lost
        storage_client().bucket(bucket).blob(name).delete(retry=retry(), timeout=TIMEOUT)


def send(place: str, path: Path) -> None:
    """Copy a file into an object. A large file is sent in pieces, and pieces that have arrived are not sent again."""
    client, (bucket, name) = storage_client(), split(place)
    with _explained(place):
        size = path.stat().st_size
        if size > WHOLE:
            blob = client.bucket(bucket).blob(name, chunk_size=CHUNK)
            blob.upload_from_filename(str(path), checksum="crc32c", retry=retry(), timeout=TIMEOUT)
            return
        content = path.read_bytes()
        if retry()(transfer.send)(client, bucket, name, content, TIMEOUT) != transfer.crc32c(content):
            delete(place)
            raise CorruptArtifact(f"'{place}' was stored other than it was sent (crc32c differs); try again")


def receive(stored: Stored, path: Path) -> tuple[Path, bool]:
    """See :func:`xlnet.data.objects.fetch`."""
    blob, checksum = _blob(stored), stored.checksum.removeprefix(CRC32C)
    with _explained(stored.uri):
        if stored.size > CHUNK:
            part = _fetch_ranges(blob, path, checksum)
            return part, _crc32c(part) == checksum
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            return part, _receive(blob, file, 0, stored.size - 1) == checksum


def holds(stored: Stored, path: Path) -> bool:
    """Whether a local file has the size and the checksum of an object."""
    return path.stat().st_size == stored.size and f"{CRC32C}{_crc32c(path)}" == stored.checksum


def _receive(blob: Any, file: IO[bytes], first: int, last: int) -> str:
    """Write a range of an object at the file's current position, retry it there, and return the range's crc32c."""
    start = file.tell()

    def once() -> str:
        file.seek(start)
        return transfer.receive(storage_client(), blob, file, first, last, TIMEOUT)

    return retry()(once)()


def _fetch_ranges(blob: Any, path: Path, checksum: str) -> Path:
    """Fetch an object in ranges. After a failure, ``.NAME.CHECKSUM.part`` and its list of finished ranges remain."""
    part = path.with_name(f".{path.name}.{base64.b64decode(checksum).hex()}.part")
    done_file = part.with_suffix(".done")
    done = set(done_file.read_text().split()) if part.is_file() and done_file.is_file() else set()
    with part.open("r+b" if done else "wb") as file:
        file.truncate(blob.size)
    lock = threading.Lock()

    def one(start: int) -> None:
        end = min(start + CHUNK, blob.size) - 1
        with part.open("r+b") as file:
            file.seek(start)
            _receive(blob, file, start, end)
        with lock, done_file.open("a") as file_of_done:
            file_of_done.write(f"{start}\n")

    parallel(one, [start for start in range(0, blob.size, CHUNK) if str(start) not in done])
    done_file.unlink(missing_ok=True)
    return part


def parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Do the work on WORKERS items at once and return the results. The first error stops it."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))


def comparable(stored: Stored) -> bool:
    """Return True: an object's checksum can always be compared with its bytes."""
    return True


def checker(checksum: str) -> Callable[[bytes], str]:
    """See :func:`xlnet.data.objects.checker`."""
    total = transfer.checksum()

    def update(piece: bytes) -> str:
        total.update(piece)
        return f"{CRC32C}{transfer.written(total)}"

    return update


def _crc32c(path: Path) -> str:
    """Return a file's checksum in the bucket's format: base64 of the big-endian crc32c."""
    total = transfer.checksum()
    with path.open("rb") as file:
        while piece := file.read(transfer.PIECE):
            total.update(piece)
    return transfer.written(total)
