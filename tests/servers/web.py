"""A JSON server on 127.0.0.1 with routes, a record of its requests, and faults to be injected."""

import json
import re
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.status, self.details = status, details


@dataclass
class Request:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any  # what JSON said; bytes where the content is none
    headers: dict[str, str]  # names in lower case
    match: re.Match[str] | None = None

    def part(self, name: str) -> str:
        assert self.match
        return unquote(self.match.group(name))


@dataclass
class Fault:
    """What happens to requests that match, instead of or after their work.

    kind: a status code; ``cut`` (after the work, the answer breaks off), ``drop`` (after the work, no answer),
    or ``hang``.
    """

    method: str
    path: str  # regular expression
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


Route = tuple[str, re.Pattern[str], Callable[[Request], Any]]


class _Connections(ThreadingHTTPServer):
    """Handles each connection in a thread of its own, its TLS handshake too: a slow caller delays nobody else."""

    daemon_threads = True
    request_queue_size = 128

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a mistake of the server's, but not a caller that was ended in the middle of a request.

        The report goes past ``sys.stderr``, where a test may be collecting what a command says.
        """
        if not isinstance(sys.exc_info()[1], ConnectionError | ssl.SSLError):
            traceback.print_exc(file=sys.__stderr__)


class WebServer:
    """Routes to methods; start with ``with``."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.connections = 0  # that were ever opened
        self.token: str | None = None  # what callers must bring; None: nothing
        self._server = _Connections(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def route(self, method: str, pattern: str, work: Callable[[Request], Any]) -> None:
        self.routes.append((method, re.compile(pattern + "$"), work))

    def __enter__(self) -> Any:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def json_only(self, path: str) -> bool:
        """Whether bodies sent to this path are JSON and nothing else."""
        return True

    def fault(self, method: str, path: str, kind: int | str, times: int = 1, **headers: str) -> None:
        self.faults.append(Fault(method, path, kind, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def count(self, method: str, path: str) -> int:
        return sum(one.method == method and re.search(path, one.path) is not None for one in self.requests)

    def _fault_for(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == request.method and re.search(fault.path, request.path):
                fault.times -= 1
                return fault
        return None

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")  # a scheme's case does not matter
        if self.token is not None and (scheme.lower(), given) != ("bearer", str(self.token)):
            return 401, {"error": {"code": 401, "message": "Request had invalid authentication credentials."}}, {}
        for method, pattern, work in self.routes:
            match = pattern.match(request.path)
            if match and method == request.method:
                request.match = match
                try:
                    with self.lock:
                        return 200, work(request), {}
                except Refused as refused:
                    return refused.status, self.refusal(refused.status, str(refused), refused.details), {}
        return 404, {"error": {"code": 404, "message": f"no such path: {request.method} {request.path}"}}, {}

    def refusal(self, status: int, message: str, details: str = "") -> Any:
        """The body of an answer other than 200."""
        return {"error": {"code": status, "message": message}, "message": message}

    def _handler(server: "WebServer") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with server.lock:
                    server.connections += 1

            def log_message(self, *_: Any) -> None:
                pass

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                url = urlsplit(self.path)
                query = {key: values[-1] for key, values in parse_qs(url.query).items()}
                headers = {key.lower(): value for key, value in self.headers.items()}
                kind = headers.get("content-type", "application/json").partition(";")[0]
                is_json = kind == "application/json" or kind.endswith("+json")
                body = json.loads(raw) if raw and is_json and server.json_only(url.path) else raw or None
                request = Request(self.command, unquote(url.path), query, body, headers)
                with server.lock:
                    server.requests.append(request)
                    fault = server._fault_for(request)
                if fault and isinstance(fault.kind, int):
                    self._send(fault.kind, {"error": {"code": fault.kind, "message": "injected"}}, fault.headers)
                    return
                if fault and fault.kind == "hang":
                    server.released.wait(30)
                    self.close_connection = True
                    return
                status, content, more = server.answer(request)
                if fault:
                    self._break_off(status, content, more, whole=fault.kind == "drop")
                    return
                self._send(status, content, more)

            def _send(self, status: int, content: Any, headers: dict[str, str]) -> None:
                data = self._head(status, content, headers)
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _head(self, status: int, content: Any, headers: dict[str, str]) -> bytes:
                kinds = {str: "text/plain; charset=utf-8", bytes: "application/octet-stream"}
                if isinstance(content, str) and content.startswith("<!DOCTYPE html>"):
                    kinds[str] = "text/html; charset=utf-8"
                data = content if isinstance(content, bytes) else str(content).encode()
                if not isinstance(content, str | bytes):
                    data = json.dumps(content).encode()
                self.send_response(status)
                for key, value in {"Content-Type": kinds.get(type(content), "application/json"), **headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                return data

            def _break_off(self, status: int, content: Any, headers: dict[str, str], whole: bool) -> None:
                if not whole:
                    data = self._head(status, content, headers)
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    time.sleep(0.01)
                self.close_connection = True
                self.connection.close()

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        return Handler
