"""Sends and receives the bytes of objects: one request per object or range, over connections that stay open.

We use google-cloud-storage's client for credentials, listing and its retry policy, but not for the bytes. Its upload
and download spend more processor time in Python than moving a megabyte takes, under a lock that threads share, and it
sends small uploads as multipart messages.

Measured beside its transfer manager with as many threads, on a server 20 ms away, files in memory, at load 14 to 20 on
two cores (tests/benchmarks/transfer_speed.py, medians of interleaved rounds). With 100 objects of 1 MB the manager
needs 2.4 times our time and 2.1 times our processor time for uploads, 1.7 and 1.8 times for downloads. Files on a disk
hide part of this, because writing them costs both the same: downloads then take 1.2 times our time. With 4 objects of
64 MB it needs 1.4 to 2.1 times our time for downloads (two runs of 5 rounds); their ranges are fetched here anyway,
because finished ranges survive a broken connection and a new start, as the manager's do not. Google's client uploads
objects of this size.
"""

import base64
import contextlib
import mimetypes
import os
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote, urlencode

from xlnet import http

PIECE = 1 << 20  # bytes read from a connection at once


def receive(client: Any, blob: Any, file: IO[bytes], first: int, last: int, timeout: tuple[float, float]) -> str:
    """Write bytes ``first`` to ``last`` of an object, as they are stored, at the file's current position.

    Returns:
        Their crc32c in the bucket's format.

    Raises:
        GoogleAPICallError: the bucket refused the request.
        ConnectionError: the connection broke, or fewer bytes arrived.
    """
    query = {"alt": "media"} | ({"generation": blob.generation} if blob.generation else {})
    headers = {"Accept-Encoding": "gzip"}  # an object stored as gzip has the checksum of its compressed bytes
    if blob.size is None or (first, last) != (0, blob.size - 1):
        headers["Range"] = f"bytes={first}-{last}"
    path = f"/download/storage/v1/b/{blob.bucket.name}/o/{quote(blob.name, safe='')}"
    start, total, size = file.tell(), checksum(), 0
    with _answer(client, "GET", path, query, headers, timeout) as answer:
        while piece := answer.read(PIECE):
            file.write(piece)
            total.update(piece)
            size += len(piece)
    if size != last - first + 1:
        file.seek(start)
        raise ConnectionError(f"{size} of {last - first + 1} bytes arrived")
    return written(total)


def send(client: Any, bucket: str, name: str, content: bytes, timeout: tuple[float, float]) -> str:
    """Write an object, and send its crc32c along so that the bucket can check it.

    Returns:
        The crc32c of what the bucket has stored.

    Raises:
        GoogleAPICallError: the bucket refused the request.
        ConnectionError: the connection broke.
    """
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"Content-Type": kind, "X-Goog-Hash": f"crc32c={crc32c(content)}"}
    path = f"/upload/storage/v1/b/{bucket}/o"
    query = {"uploadType": "media", "name": name}
    with _answer(client, "POST", path, query, headers, timeout, content) as answer:
        return str(answer.json()["crc32c"])


def crc32c(content: bytes) -> str:
    """Return the checksum of bytes in the bucket's format: base64 of the big-endian crc32c."""
    total = checksum()
    total.update(content)
    return written(total)


def written(total: Any) -> str:
    """Return a checksum object's sum in the bucket's format."""
    return base64.b64encode(total.digest()).decode()


def checksum() -> Any:
    """Return the crc32c of no bytes, to be updated."""
    import google_crc32c

    return google_crc32c.Checksum()


@contextlib.contextmanager
def _answer(
    client: Any,
    method: str,
    path: str,
    query: dict[str, Any],
    headers: dict[str, str],
    timeout: tuple[float, float],
    body: bytes | None = None,
) -> Iterator[Any]:
    """Yield the response to a request while it is read. An error of the connection becomes a ConnectionError."""
    from google.api_core.exceptions import from_http_status
    from urllib3 import Timeout
    from urllib3.exceptions import HTTPError

    url = f"{client._connection.API_BASE_URL}{path}?{urlencode(query)}"
    limits = Timeout(connect=timeout[0], read=timeout[1])
    options: dict[str, Any] = {"timeout": limits, "preload_content": False, "redirect": False}
    with contextlib.ExitStack() as unless_whole:
        try:
            answer = _connections(client).urlopen(method, url, body=body, headers=headers, **options)
            unless_whole.callback(answer.close)
            answer.decode_content = False
            if answer.status >= 300:
                raise from_http_status(answer.status, http.reason(answer.read(), answer.reason))
            yield answer
        except HTTPError as error:
            raise ConnectionError(http.short(error)) from None
        unless_whole.pop_all()
        answer.release_conn()


def _connections(client: Any) -> Any:
    """Return the connections that all threads of this process share, with the client's credentials."""
    http = getattr(client, "_xlnet_connections", None)
    if http is None or http.credentials is not client._http.credentials:
        from google.auth.transport.urllib3 import AuthorizedHttp

        http = client._xlnet_connections = AuthorizedHttp(client._http.credentials, http=_pool(client))
    return http


def _pool(client: Any) -> Any:
    """Make a connection pool with the environment's proxies and certificates, as the requests library does."""
    import urllib3
    from requests.certs import where
    from requests.utils import get_environ_proxies, select_proxy

    base = client._connection.API_BASE_URL
    proxy = select_proxy(base, get_environ_proxies(base))
    certificates = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or where()
    options: dict[str, Any] = {"maxsize": 32, "retries": False, "ca_certs": certificates}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
