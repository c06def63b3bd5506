"""Handles the HTTP/1.1 requests of one connection."""

import contextlib
import io
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from xlnet.serving.connections import GENERATE, PredictionServer
from xlnet.serving.language import LanguageModel
from xlnet.serving.requests import MAX_BODY, Refusal, body_length, texts_of
from xlnet.serving.streaming import chunks, event, has_gone

IDLE = 75.0  # seconds that a connection may be idle; longer than load balancers' own limit
REQUEST = 60.0  # maximum seconds from a request's first byte to its last, so that slow clients do not block threads
LINGER = 2.0  # limits, in seconds and bytes, for reading what a refused client still sends
LINGER_BYTES = 16 * MAX_BODY
STREAM_HEADERS = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store"))
CHUNKED = (("Transfer-Encoding", "chunked"),)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PredictionServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send an answer's headers and body together
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Read the connection through a stream with time limits."""
        super().setup()
        self.incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self.incoming)
        self.unread = False

    def finish(self) -> None:
        """Close the connection, after reading what a refused client still sends."""
        super().finish()
        if self.unread:
            _linger(self.connection)

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        if not self.server.idles(self.connection):
            self.close_connection = True
            return
        self.incoming.wait()
        try:
            super().handle_one_request()
        finally:
            self.server.works(self.connection)

    def parse_request(self) -> bool:
        """Read a request's headers, and mark the connection as busy."""
        self.server.works(self.connection)
        self.begun = time.perf_counter()
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        """Refuse a body that is too long, before the client sends it."""
        try:
            self._length()
        except Refusal as refusal:
            self._refuse(refusal)
            return False
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def do_GET(self) -> None:
        """Answer requests for health and for the model's description."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = self.unread = True  # an unread body would be taken for the next request
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer requests for predictions."""
        self._answer(self._post)

    do_HEAD = do_GET

    def _get(self) -> dict[str, Any]:
        path, model = self._path(), self.server.model
        if path in self.server.health:
            return {"status": "ok"}
        if path == "/":
            return {**model.facts, "limits": {"bytes": MAX_BODY, **model.limits}}
        if path == f"/v1/models/{model.name}":
            return {"name": model.name, "ready": True}
        if path in self._predicting():
            raise Refusal(405, f"{path} takes POST, not {self.command}", (("Allow", "POST"),))
        raise self._unknown(path)

    def _post(self) -> dict[str, Any] | None:
        self.unread = True
        path, model = self._path(), self.server.model
        if path == GENERATE and isinstance(model, LanguageModel):
            return self._generate(model)
        if path not in self._predicting():
            if path in {*self.server.health, "/", f"/v1/models/{self.server.model.name}"}:
                raise Refusal(405, f"{path} takes GET, not POST", (("Allow", "GET, HEAD"),))
            raise self._unknown(path)
        texts = texts_of(self._body(), model.check_instance, model.limits["instances"])
        return {"predictions": self.server.batcher.predict(texts)}

    def _generate(self, model: LanguageModel) -> dict[str, Any] | None:
        """Generate a text and return it whole; return None if it was streamed."""
        request, is_streamed = model.asked(self._body())
        with model.started(request, lambda: self.server.stopping) as records:
            if is_streamed:
                self._stream(records)
                return None
            said: dict[str, Any] = {}
            for record in records:
                if has_gone(self.connection):
                    raise ConnectionResetError("the client went away while its text was written")
                said = record
            return said

    def _stream(self, records: Iterator[dict[str, Any]]) -> None:
        """Send each record as soon as it is made, until the client disconnects."""
        first = next(records)  # an error before the first record is still answered with an HTTP status
        chunked = self.request_version != "HTTP/1.0"
        self.close_connection |= not chunked
        self.connection.settimeout(IDLE)
        self.send_response(200)
        for name, value in STREAM_HEADERS + CHUNKED * chunked + (("Connection", "close"),) * self.close_connection:
            self.send_header(name, value)
        self.end_headers()
        chunks(map(event, itertools.chain([first], self._to_the_end(records))), self._send_now, chunked)

    def _to_the_end(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield records. If the model fails, the last record is the error, because the status has been sent."""
        try:
            yield from records
        except Exception as error:
            self.close_connection = True
            yield {"error": self._failed(error).message}

    def _send_now(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()

    def _body(self) -> bytes:
        length = self._length()
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise Refusal(408, f"the request did not arrive within {REQUEST:.0f} s") from None
        if len(body) < length:
            raise ConnectionResetError("the client went away while it sent")
        self.unread = False
        return body

    def _length(self) -> int:
        headers = self.headers
        lengths = headers.get_all("Content-Length", [])
        return body_length(lengths, headers.get("Transfer-Encoding"), headers.get("Content-Encoding"))

    def _answer(self, content: Callable[[], dict[str, Any] | None]) -> None:
        try:
            said = content()
        except Refusal as refusal:
            self._refuse(refusal)
        except ConnectionError:
            raise
        except Exception as error:
            self._refuse(self._failed(error))
        else:
            if said is not None:
                self._send(200, said)

    def _failed(self, error: Exception) -> Refusal:
        """Log why the model failed; return the answer for the client."""
        reason = " ".join(str(error).split()).encode("ascii", "backslashreplace").decode()
        print(f"error: {type(error).__name__}: {reason}", file=sys.stderr)
        return Refusal(500, "the model could not answer; the server's log says why")

    def _refuse(self, refusal: Refusal) -> None:
        self._send(refusal.status, {"error": refusal.message, **refusal.details}, refusal.headers)

    def _send(self, status: int, said: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> None:
        # UTF-8 cannot encode half a surrogate pair, so it becomes a JSON escape.
        body = json.dumps(said, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        # The rest of a refused body would be read as the next request.
        self.close_connection |= status >= 400 or self.server.stopping
        self.connection.settimeout(IDLE)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (*headers, *((("Connection", "close"),) if self.close_connection else ())):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse malformed HTTP and unknown methods in the same format as all other errors."""
        self.request_version = self.protocol_version  # even if the client uses HTTP/0.9, which has no headers
        self.unread = True
        self._send(code, {"error": message or self.responses[code][0]})

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Log each request except health checks: request line, status and milliseconds; never a text."""
        if getattr(self, "path", "") in self.server.health and code == 200:
            return
        took = 1000 * (time.perf_counter() - getattr(self, "begun", time.perf_counter()))
        print(f"{self.client_address[0]} {self.requestline!a} {int(code)} {took:.0f} ms", file=sys.stderr)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing, because time-outs of idle connections are normal."""

    def _path(self) -> str:
        """Return the path without query; a client of a proxy sends the whole URL."""
        try:
            path = urlsplit(self.path).path
        except ValueError:  # brackets without a valid IPv6 address
            path = self.path.partition("?")[0]
        return unquote(path) or "/"

    def _predicting(self) -> set[str]:
        own = {GENERATE} if isinstance(self.server.model, LanguageModel) else set()
        return {*self.server.predict, f"/v1/models/{self.server.model.name}:predict", *own}

    def _unknown(self, path: str) -> Refusal:
        there = ", ".join(sorted({"/", *self.server.health, *self._predicting()}))
        return Refusal(404, f"there is no '{path}'; there are {there}")


class _Incoming(io.RawIOBase):
    """A connection's input stream, with an idle limit between requests and a time limit for each request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.wait()

    def wait(self) -> None:
        """Start waiting for a request: the idle limit holds until its first byte, then the request's limit."""
        self._begun = False
        self._until = time.monotonic() + IDLE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with received bytes; raise TimeoutError if none arrived in time."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left)
        size = self._connection.recv_into(buffer)
        if not self._begun:
            self._begun, self._until = True, time.monotonic() + REQUEST
        return size


def _linger(connection: socket.socket) -> None:
    """Read what a refused client still sends; closing the connection at once would discard the answer."""
    until, taken = time.monotonic() + LINGER, 0
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := until - time.monotonic()) > 0 and taken < LINGER_BYTES:
            connection.settimeout(left)
            got = len(connection.recv(1 << 16))
            if not got:
                return
            taken += got
