"""Runs what needs large libraries (MLflow, PyArrow, PyTorch) in a second process, which ends when it is idle.

The server itself stays small, and a page that is open for days holds no memory that a training could use.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any, TypeVar

from xlnet.errors import RunError

IDLE = 120.0  # seconds without a call after which the process ends

Result = TypeVar("Result")


class Worker:
    """Calls functions in another process, one at a time."""

    def __init__(self, inline: bool = False) -> None:
        """Start nothing yet.

        Args:
            inline: call the functions here, in the calling thread.
        """
        self._inline = inline
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._timer: threading.Timer | None = None
        self._calls = 0

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return ``function(*arguments)``.

        Raises:
            RunError: the process died.
        """
        if self._inline:
            return function(*arguments)
        with self._lock:
            self._calls += 1
            if self._timer:
                self._timer.cancel()
            if self._pool is None:
                spawning = multiprocessing.get_context("spawn")  # a fork would inherit the server's threads and sockets
                self._pool = ProcessPoolExecutor(1, mp_context=spawning, initializer=_quiet)
            future = self._pool.submit(function, *arguments)
        try:
            return future.result()
        except BrokenExecutor:
            self.stop()
            text = "the helper process ended, perhaps for want of memory; free some, and load the page again"
            raise RunError(text) from None
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls and self._pool:
                    self._timer = threading.Timer(IDLE, self._idle)
                    self._timer.daemon = True
                    self._timer.start()

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)

    def _idle(self) -> None:
        if not self._calls:
            self.stop()


def _quiet() -> None:
    """Leave Ctrl-C to the server, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
