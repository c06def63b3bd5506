"""Runs functions that need large libraries (MLflow, PyArrow, PyTorch) in a second process, which ends when it is idle.

So the server stays small, and a page that is open for days does not take memory from trainings.
"""

import importlib
import multiprocessing
import signal
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from xlnet.errors import RunError

IDLE = 120.0  # seconds without a call after which the process ends


class Worker:
    """Calls functions in another process, one at a time."""

    def __init__(self, inline: bool = False) -> None:
        """Start no process yet. ``inline``: call functions in the calling thread instead."""
        self._inline = inline
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._timer: threading.Timer | None = None
        self._calls = 0

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function in the process, and return its result.

        Args:
            name: ``MODULE.FUNCTION`` in ``xlnet_pipeline.ui``; only the process imports the module.
            arguments: the function's arguments.

        Raises:
            RunError: the process died.
        """
        if self._inline:
            return _called(name, *arguments)
        with self._lock:
            self._calls += 1
            if self._timer:
                self._timer.cancel()
            if self._pool is None:
                spawning = multiprocessing.get_context("spawn")  # a fork would inherit the server's threads and sockets
                ignored = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends the process
                self._pool = ProcessPoolExecutor(1, spawning, signal.signal, ignored)
            future = self._pool.submit(_called, name, *arguments)
        try:
            return future.result()
        except BrokenExecutor:
            self.stop()
            text = "the helper process ended, perhaps because memory ran out; free some, and load the page again"
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


def _called(name: str, *arguments: Any) -> Any:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"xlnet_pipeline.ui.{module}"), function)(*arguments)
