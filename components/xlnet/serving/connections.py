"""The server's connections: how many there may be, which of them gives way, and how they end."""

import contextlib
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from xlnet.errors import UserError
from xlnet.serving.batcher import Batcher
from xlnet.serving.model import Model

CONNECTIONS = 256  # at once; each is a thread
GIVE_WAY = 1.0  # seconds that a new client waits for an idle connection to close
HEALTH, PREDICT = "/healthz", "/predict"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server(ThreadingHTTPServer):
    """Listens from the start, so that a port that is taken is known at once; a model is added before it serves."""

    daemon_threads = False  # requests that began are answered before the process ends
    request_queue_size = 128
    model: Model
    batcher: Batcher

    def __init__(self, host: str, port: int, environment: dict[str, str], handler: Any) -> None:
        self.health = {HEALTH, environment.get("AIP_HEALTH_ROUTE", HEALTH)}
        self.predict = {PREDICT, environment.get("AIP_PREDICT_ROUTE", PREDICT)}
        self._idle: dict[socket.socket, None] = {}  # the longest idle first
        self._lock = threading.Lock()
        self._stopping = False
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another port: --port NUMBER") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless too many are at work; an idle one gives way."""
        if not self._slot():
            with contextlib.suppress(OSError):
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started: nobody else gives the slot back
            self._slots.release()
            raise

    def _slot(self) -> bool:
        """Take a slot for a connection; False: none is to be had."""
        if self._slots.acquire(blocking=False):
            return True
        return self._close_idle() and self._slots.acquire(timeout=GIVE_WAY)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._idle.pop(request, None)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's affair; anything else is a bug and is shown whole."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def idles(self, connection: socket.socket) -> bool:
        """Note that a connection waits for its next request; False: there is to be none."""
        with self._lock:
            self._idle[connection] = None
            return not self._stopping

    def works(self, connection: socket.socket) -> None:
        """Note that a connection's request has begun."""
        with self._lock:
            self._idle.pop(connection, None)

    def _close_idle(self) -> bool:
        """Close the connection that has been idle for longest; False: none is idle."""
        with self._lock:
            for connection in self._idle:
                _hang_up(connection)
                del self._idle[connection]
                return True
        return False

    def stop(self) -> None:
        """Take no more requests; those that began are answered."""
        self.shutdown()
        with self._lock:
            self._stopping = True
            for connection in self._idle:
                _hang_up(connection)

    @property
    def stopping(self) -> bool:
        """Whether the server was told to end."""
        return self._stopping


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
