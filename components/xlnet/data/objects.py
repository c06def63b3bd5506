"""Objects in ``gs://`` buckets: listing, reading, and directories moved in parallel, checked and resumed.

Every transfer compares crc32c with the bucket's own. An object above CHUNK is fetched in ranges, each tried again on
its own, into a file whose finished ranges survive a broken connection and a new start. Where the bucket is mounted
(``/gcs`` on Vertex AI; ``XLNET_GCS_MOUNT`` names another place) files are read there. ``STORAGE_EMULATOR_HOST`` is
respected.
"""

import base64
import contextlib
import functools
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from xlnet.data import transfer
from xlnet.errors import CorruptArtifact, Missing, RunError, UserError

GCS = "gs://"
CHUNK = 32 << 20  # bytes of one range of a large object, and of one piece of a resumable upload
WHOLE = 8 << 20  # bytes up to which an upload is one request, begun anew when it breaks
WORKERS = 16  # objects or ranges on their way at once: latency bound, so more than there are cores
EMULATED = 4  # the same for an emulator, which is near, and drops connections beyond the few that it lets wait
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
DEADLINE = 120.0  # seconds that one request is tried again for


def split(uri: str) -> tuple[str, str]:
    """Bucket and object name of a ``gs://`` URI; UserError if it is none."""
    bucket, _, name = uri.removeprefix(GCS).partition("/")
    if not uri.startswith(GCS) or not bucket:
        raise UserError(f"'{uri}' is no gs://BUCKET/OBJECT")
    return bucket, name


def mount() -> Path:
    """Where buckets are mounted, if they are."""
    return Path(os.environ.get("XLNET_GCS_MOUNT", "/gcs"))


def address(path: str | Path) -> str:
    """How to name a path from another machine: ``gs://…`` for one below the mount, else the absolute path."""
    absolute = Path(path).absolute()
    return f"{GCS}{absolute.relative_to(mount())}" if absolute.is_relative_to(mount()) else str(absolute)


def mounted(uri: str) -> Path | None:
    """The file or directory below the mount, if it is there."""
    bucket, name = split(uri)
    try:
        path = inside(mount(), f"{bucket}/{name}" if name else bucket)
    except UserError:  # no file's name: it can be read as an object alone
        return None
    return path if path.exists() else None


def inside(root: Path, name: str) -> Path:
    """The file below a directory that an object's name stands for.

    Raises:
        UserError: the name leads elsewhere, or means another file on this machine than in the bucket.
    """
    parts = name.rstrip("/").split("/")
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise UserError(f"object name {name!r} cannot be a file's; allowed: names without '..', '//' and '\\'")
    return root.joinpath(*parts)


def storage_client() -> Any:
    """A client with a connection for each worker, to the emulator where there is one.

    Raises:
        UserError: google-cloud-storage is not installed.
    """
    return _client_at(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache
def _client_at(emulator: str | None) -> Any:
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    except ImportError:
        raise UserError("gs:// paths need google-cloud-storage: pip install 'xlnet-pipeline[gcs]'") from None
    from requests.adapters import HTTPAdapter

    arguments = {"project": "emulator", "credentials": AnonymousCredentials()} if emulator else {}
    made = storage.Client(**arguments)
    for scheme in ("https://", "http://"):
        made._http.mount(scheme, HTTPAdapter(pool_maxsize=WORKERS))  # not blocking: refused downloads hold theirs
    return made


def retry() -> Any:
    """How requests are tried again: on 408, 429, 5xx and broken connections, ever more slowly, up to DEADLINE."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(DEADLINE)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the client's errors into one line."""
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
        raise UserError(f"'{what}': no valid credentials ({_first_line(error)}); {hint}") from None
    except Forbidden as error:
        raise UserError(f"'{what}': access denied ({_first_line(error)}); ask for a role on the bucket") from None
    except DataCorruption:
        raise CorruptArtifact(f"'{what}' was stored other than it was sent (crc32c differs); try again") from None
    except (GoogleAPIError, RequestException, ConnectionError) as error:
        raise RunError(f"'{what}' could not be transferred: {_first_line(error)}; try again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def listing(uri: str, pattern: str | None = None) -> list[Any]:
    """Blobs whose names begin with the URI's; ``pattern`` is a glob over whole names."""
    bucket, prefix = split(uri)
    with _explained(uri):
        found = storage_client().list_blobs(bucket, prefix=prefix, match_glob=pattern, retry=retry(), timeout=TIMEOUT)
        return list(found)


def read(uri: str) -> bytes:
    """The bytes of one object, from the mount if it is there."""
    if path := mounted(uri):
        return path.read_bytes()
    bucket, name = split(uri)
    with _explained(uri):
        blob = storage_client().bucket(bucket).blob(name)
        found: bytes = blob.download_as_bytes(checksum="crc32c", retry=retry(), timeout=TIMEOUT)
    return found


def read_range(uri: str, blob: Any, first: int, last: int) -> bytes:
    """Bytes ``first`` to ``last`` of an object."""
    with _explained(uri):
        file = io.BytesIO()
        _receive(blob, file, first, last)
    return file.getvalue()


def write(uri: str, content: bytes) -> None:
    """Write one object whole."""
    bucket, name = split(uri)
    with _explained(uri):
        blob = storage_client().bucket(bucket).blob(name)
        blob.upload_from_string(content, checksum="crc32c", retry=retry(), timeout=TIMEOUT)


def delete(uri: str) -> None:
    """Delete one object, if it is there."""
    from google.api_core.exceptions import NotFound

    bucket, name = split(uri)
    with _explained(uri), contextlib.suppress(NotFound):  # perhaps the answer to an earlier try was lost
        storage_client().bucket(bucket).blob(name).delete(retry=retry(), timeout=TIMEOUT)


def upload(directory: str | Path, uri: str) -> int:
    """Copy a directory's files below a URI; objects that hold the same bytes already are left alone.

    Returns:
        How many objects were written.
    """
    root, base = Path(directory), uri.rstrip("/")
    present = {blob.name: blob.crc32c for blob in listing(base + "/")}
    bucket, prefix = split(base)
    files = sorted(path for path in root.rglob("*") if path.is_file())

    def send(path: Path) -> bool:
        name = f"{prefix}/{path.relative_to(root).as_posix()}".lstrip("/")
        if name in present and present[name] == _crc32c(path):
            return False
        _send(bucket, name, path)
        return True

    return sum(_parallel(send, files))


def _send(bucket: str, name: str, path: Path) -> None:
    """Copy a file into an object: whole, or in pieces of which those that have arrived are not sent again."""
    client, place = storage_client(), f"{GCS}{bucket}/{name}"
    with _explained(place):
        size = path.stat().st_size
        # An emulator takes a bare body of JSON for a request, and no empty one.
        if size > WHOLE or size == 0 or path.suffix == ".json":
            blob = client.bucket(bucket).blob(name, chunk_size=CHUNK)
            blob.upload_from_filename(str(path), checksum="crc32c", retry=retry(), timeout=TIMEOUT)
            return
        content = path.read_bytes()
        if retry()(transfer.send)(client, bucket, name, content, TIMEOUT) != transfer.crc32c(content):
            delete(place)
            raise CorruptArtifact(f"'{place}' was stored other than it was sent (crc32c differs); try again")


def download(uri: str, directory: str | Path) -> Path:
    """Copy everything below a URI into a directory; files that hold the same bytes already are left alone.

    Raises:
        UserError: there is nothing, or no access.
        CorruptArtifact: an object's bytes arrived other than the bucket says, twice.
    """
    base, root = uri.rstrip("/"), Path(directory)
    blobs = [blob for blob in listing(base + "/") if not blob.name.endswith("/")]
    if not blobs:
        raise UserError(f"'{uri}' holds no object; check the path")
    start = len(split(base)[1]) + 1 if split(base)[1] else 0
    files = [(blob, inside(root, blob.name[start:])) for blob in blobs]
    _parallel(lambda one: fetch(*one), files)
    return root


def local_directory(uri: str) -> Path:
    """A directory on this machine with what an artifact's address names: itself, its place in the mount, or a copy.

    Copies are kept below the system's directory for temporary files, and completed or renewed when asked for again.
    """
    if not uri.startswith(GCS):
        return Path(uri)
    if path := mounted(uri):
        return path
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return download(uri, Path(tempfile.gettempdir(), f"xlnet-artifacts-{os.getuid()}", name))


def fetch(blob: Any, path: Path) -> None:
    """Copy one object into a file, unless the file holds its bytes already."""
    if path.is_file() and path.stat().st_size == blob.size and _crc32c(path) == blob.crc32c:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{GCS}{blob.bucket.name}/{blob.name}"
    for attempt in (1, 2):
        with _explained(name):
            if blob.size > CHUNK:
                part = _fetch_ranges(blob, path)
                found = _crc32c(part)
            else:
                part = path.with_name(f".{path.name}.part")
                with part.open("wb") as file:
                    found = _receive(blob, file, 0, blob.size - 1)
        if found == blob.crc32c:
            os.replace(part, path)
            return
        part.unlink()
        if attempt == 2:
            raise CorruptArtifact(f"'{name}' arrived damaged twice (crc32c differs); try again, or write it anew")


def _receive(blob: Any, file: IO[bytes], first: int, last: int) -> str:
    """Write a range of an object into a file from where it stands, tried again from there; return its crc32c."""
    start = file.tell()

    def once() -> str:
        file.seek(start)
        return transfer.receive(storage_client(), blob, file, first, last, TIMEOUT)

    found: str = retry()(once)()
    return found


def _fetch_ranges(blob: Any, path: Path) -> Path:
    """Fetch an object in ranges; ``.NAME.CHECKSUM.part`` and its list of finished ranges outlive a failure."""
    part = path.with_name(f".{path.name}.{base64.b64decode(blob.crc32c).hex()}.part")
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

    _parallel(one, [start for start in range(0, blob.size, CHUNK) if str(start) not in done])
    done_file.unlink(missing_ok=True)
    return part


def _parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    workers = min(WORKERS, EMULATED) if os.environ.get("STORAGE_EMULATOR_HOST") else WORKERS
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _crc32c(path: Path) -> str:
    """Checksum of a file in the bucket's own writing: base64 of the big-endian crc32c."""
    total = transfer.checksum()
    with path.open("rb") as file:
        while piece := file.read(transfer.PIECE):
            total.update(piece)
    return transfer.written(total)
