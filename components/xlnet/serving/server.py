"""The server: health, a description, and predictions over HTTP/1.1 with JSON.

Answers to Vertex AI's prediction containers (``AIP_HTTP_PORT``, ``AIP_HEALTH_ROUTE``, ``AIP_PREDICT_ROUTE``,
``AIP_STORAGE_URI``) and to KServe's first protocol (``/v1/models/NAME:predict``). On SIGTERM it takes no more
connections, answers what was asked, and ends with status 0.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from xlnet.data import objects
from xlnet.errors import UserError
from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.registry import open_registry
from xlnet.serving.batcher import Batcher
from xlnet.serving.requests import MAX_BODY, MAX_TEXTS, Refusal, body_length, texts_of

PORT = 8080
CONNECTIONS = 256  # at once; each is a thread
IDLE = 75.0  # seconds that a connection may say nothing: longer than load balancers keep theirs
HEALTH, PREDICT = "/healthz", "/predict"


class Model:
    """A model directory, opened, with the name it is served under."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.predictor = Predictor(directory)
        config = self.predictor.model.config
        self.facts: dict[str, Any] = {"name": name, "task": config.task, "classes": list(config.classes)}
        has_recipe = (directory / "recipe.json").is_file()
        self.pairs = self.predictor.recipe.text_pair is not None if has_recipe else None

    def answers(self, texts: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
        """One record per text, as ``predict`` has it."""
        return list(predict(self.predictor, texts))


class Server(ThreadingHTTPServer):
    """Listens from the start, so that a port that is taken is known at once; a model is added before it serves."""

    daemon_threads = False  # requests that began are answered before the process ends
    request_queue_size = 128
    model: Model
    batcher: Batcher

    def __init__(self, host: str, port: int, environment: dict[str, str]) -> None:
        self.health = {HEALTH, environment.get("AIP_HEALTH_ROUTE", HEALTH)}
        self.predict = {PREDICT, environment.get("AIP_PREDICT_ROUTE", PREDICT)}
        self._idle: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another port: --port NUMBER") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection, unless there are too many."""
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's affair; anything else is a bug and is shown whole."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def idles(self, connection: socket.socket) -> bool:
        """Note that a connection waits for its next request; False: there is to be none."""
        with self._lock:
            self._idle.add(connection)
            return not self._stopping

    def works(self, connection: socket.socket) -> None:
        """Note that a connection's request has begun."""
        with self._lock:
            self._idle.discard(connection)

    def stop(self) -> None:
        """Take no more requests; those that began are answered."""
        self.shutdown()
        with self._lock:
            self._stopping = True
            for connection in self._idle:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)

    @property
    def stopping(self) -> bool:
        """Whether the server was told to end."""
        return self._stopping


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE
    wbufsize = -1  # an answer's headers and body go out together
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        if not self.server.idles(self.connection):
            self.close_connection = True
            return
        try:
            super().handle_one_request()
        finally:
            self.server.works(self.connection)

    def parse_request(self) -> bool:
        """Read the headers of a request that has begun."""
        self.server.works(self.connection)
        self.begun = time.perf_counter()
        return super().parse_request()

    def do_GET(self) -> None:
        """Health and description."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Predictions."""
        self._answer(self._post)

    do_HEAD = do_GET

    def _get(self) -> dict[str, Any]:
        path, model = self._path(), self.server.model
        if path in self.server.health:
            return {"status": "ok"}
        if path == "/":
            return {**model.facts, "limits": {"bytes": MAX_BODY, "instances": MAX_TEXTS}}
        if path == f"/v1/models/{model.name}":
            return {"name": model.name, "ready": True}
        if path in self._predicting():
            raise Refusal(405, f"{path} takes POST, not {self.command}", (("Allow", "POST"),))
        raise self._unknown(path)

    def _post(self) -> dict[str, Any]:
        path = self._path()
        if path not in self._predicting():
            if path in {*self.server.health, "/", f"/v1/models/{self.server.model.name}"}:
                raise Refusal(405, f"{path} takes GET, not POST", (("Allow", "GET, HEAD"),))
            raise self._unknown(path)
        length = body_length(self.headers.get("Content-Length"), self.headers.get("Transfer-Encoding"))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client went away while it sent")
        texts = texts_of(body, self.server.model.pairs)
        return {"predictions": self.server.batcher.ask(texts)}

    def _answer(self, content: Callable[[], dict[str, Any]]) -> None:
        headers: tuple[tuple[str, str], ...] = ()
        try:
            status, said = 200, content()
        except Refusal as refusal:
            status, said, headers = refusal.status, {"error": refusal.message}, refusal.headers
        except ConnectionError:
            raise
        except Exception as error:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            status, said = 500, {"error": "the model could not answer; the server's log says why"}
        self._send(status, said, headers)

    def _send(self, status: int, said: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> None:
        body = json.dumps(said, ensure_ascii=False).encode() + b"\n"
        # What is left of a refused body would be read as the next request.
        self.close_connection |= status >= 400 or self.server.stopping
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (*headers, *((("Connection", "close"),) if self.close_connection else ())):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not HTTP, or a method that is not known, in the same words as all else."""
        self.request_version = self.protocol_version  # even to who speaks the first version, without headers
        self._send(code, {"error": message or self.responses[code][0]})

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """A line for each request but those for health: its first line, status and milliseconds; never a text."""
        if getattr(self, "path", "") in self.server.health and code == 200:
            return
        took = 1000 * (time.perf_counter() - getattr(self, "begun", time.perf_counter()))
        print(f"{self.client_address[0]} {self.requestline!a} {int(code)} {took:.0f} ms", file=sys.stderr)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: time-outs of idle connections are no news."""

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _predicting(self) -> set[str]:
        return {*self.server.predict, f"/v1/models/{self.server.model.name}:predict"}

    def _unknown(self, path: str) -> Refusal:
        there = ", ".join(sorted({"/", *self.server.health, *self._predicting()}))
        return Refusal(404, f"there is no '{path}'; there are {there}")


def model_directory(reference: str) -> Path:
    """The directory of a model: itself, a copy of what a ``gs://`` URI names, or a registered model's.

    Raises:
        UserError: there is no such model.
    """
    if Path(reference).is_dir():
        return Path(reference)
    if not reference.startswith(objects.GCS):
        if os.sep in reference:
            raise UserError(f"there is no model directory '{reference}'; name one, a gs:// URI, or a registered model")
        reference = open_registry().find(reference).model_uri
    directory = objects.local_directory(reference)
    if not directory.is_dir():
        raise UserError(f"the model was kept in '{reference}', which is gone; run its recipe again")
    return directory


def serve(reference: str, host: str, port: int, environment: dict[str, str]) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Args:
        reference: a directory, a ``gs://`` URI, or a registered ``NAME``, ``NAME:VERSION``, ``NAME@ALIAS``.
        host: the address to listen on.
        port: 0 chooses one.
        environment: where Vertex AI's variables are.

    Raises:
        UserError: there is no such model, the port is taken.
    """
    server = Server(host, port, environment)
    with _ended_by_signals(server):
        begun = time.perf_counter()
        directory = model_directory(reference)
        server.model = Model(directory, environment.get("XLNET_SERVED_NAME") or _name(reference))
        server.model.answers([("ready?", "yes?" if server.model.pairs else None)])  # the first is the slowest
        with Batcher(server.model.answers) as server.batcher:
            address = f"http://{host}:{server.server_address[1]}"
            print(f"serving '{reference}' on {address} after {time.perf_counter() - begun:.1f} s", file=sys.stderr)
            server.serve_forever(poll_interval=0.1)
            server.server_close()


def _name(reference: str) -> str:
    """What a model is called in addresses: ``model`` of ``gs://b/run/model``, ``reviews`` of ``reviews@champion``."""
    last = reference.rstrip("/").rpartition("/")[2]
    return last.partition("@")[0].partition(":")[0] or "model"


@contextlib.contextmanager
def _ended_by_signals(server: Server) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server in good order; before it serves they end the process."""

    def end(number: int, frame: Any) -> None:
        if not hasattr(server, "batcher"):
            raise SystemExit(128 + number)
        threading.Thread(target=server.stop).start()  # it waits for the loop that this thread is in

    earlier = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
