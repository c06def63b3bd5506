"""Manages the server's connections: their limit, closing idle ones, and shutdown."""

import contextlib
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from xlnet.errors import UserError
from xlnet.serving.batcher import Batcher
from xlnet.serving.language import LanguageModel
from xlnet.serving.model import ServedModel

CONNECTIONS = 256  # maximum number of connections; each has a thread
GIVE_WAY = 1.0  # seconds that a new client waits until an idle connection is closed
HEALTH, PREDICT, GENERATE = "/healthz", "/predict", "/generate"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class PredictionServer(ThreadingHTTPServer):
    """Listens at once, so that a port in use is reported before the model is loaded."""

    daemon_threads = False  # the process ends only after started requests are answered
    request_queue_size = 128
    model: ServedModel | LanguageModel
    batcher: Batcher

    def __init__(self, host: str, port: int, environment: dict[str, str], handler: Any) -> None:
        self.health = {HEALTH, environment.get("AIP_HEALTH_ROUTE", HEALTH)}
        self.predict = {PREDICT, environment.get("AIP_PREDICT_ROUTE", PREDICT)}
        self._idle: dict[socket.socket, None] = {}  # longest idle first
        self._lock = threading.Lock()
        self.stopping = False  # whether the server is shutting down
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another port: --port NUMBER") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, closing an idle one if needed; refuse it if all connections are busy."""
        if not self._slot():
            with contextlib.suppress(OSError):
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started, so nothing else returns the slot
            self._slots.release()
            raise

    def _slot(self) -> bool:
        """Take a slot for a connection; return False if there is none."""
        if self._slots.acquire(blocking=False):
            return True
        return self._close_idle() and self._slots.acquire(timeout=GIVE_WAY)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._idle.pop(request, None)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections; show every other error with its traceback, because it is a bug."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def idles(self, connection: socket.socket) -> bool:
        """Mark a connection as idle; return False if it must close."""
        with self._lock:
            self._idle[connection] = None
            return not self.stopping

    def works(self, connection: socket.socket) -> None:
        """Mark a connection as busy, because its request has begun."""
        with self._lock:
            self._idle.pop(connection, None)

    def _close_idle(self) -> bool:
        """Close the connection that has been idle for longest; return False if none is idle."""
        with self._lock:
            for connection in self._idle:
                _hang_up(connection)
                del self._idle[connection]
                return True
        return False

    def stop(self) -> None:
        """Accept no more requests, but answer those that have begun."""
        self.shutdown()
        with self._lock:
            self.stopping = True
            for connection in self._idle:
                _hang_up(connection)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
