"""Handles requests to stop: Ctrl-C, SIGTERM, or a cloud that takes back its spot machine.

Each request only sets a flag. The training loop reads it between two steps, where it can save a checkpoint.
"""

import contextlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from xlnet.errors import Preempted

GRACE = 25.0  # seconds from SIGTERM to SIGKILL that Kubernetes and Vertex AI give spot machines
SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 1.0  # a second SIGINT within so many seconds is the first one, forwarded, and not a second Ctrl-C
# Google's metadata server answers when this changes: https://cloud.google.com/compute/docs/instances/create-use-spot
METADATA = "http://{host}/computeMetadata/v1/instance/{what}?wait_for_change=true&timeout_sec=60"
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}


def grace() -> float:
    """Return the seconds after SIGTERM in which a checkpoint must be written: ``XLNET_GRACE_SECONDS``, or GRACE."""
    return float(os.environ.get("XLNET_GRACE_SECONDS", GRACE))


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle these signals with a function. Does nothing outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def leaving_when_asked() -> AbstractContextManager[None]:
    """Treat SIGTERM as a preemption already during start-up, before a :class:`StopRequest` handles signals."""
    return handling((signal.SIGTERM,), _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted


class StopRequest:
    """Whether this process was asked to stop, and by what. As a context manager, it handles the signals."""

    def __init__(self) -> None:
        self.reason = ""
        self._interrupted = 0.0  # time of the first Ctrl-C
        self._earlier: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.reason)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows no signal handlers in other threads
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}
        if host := metadata_host():
            for what, value in NOTICES.items():
                threading.Thread(target=self._watch, args=(host, what, value), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            self._interrupted = self._interrupted or now
            if now - self._interrupted > AGAIN:
                raise KeyboardInterrupt
        self.reason = self.reason or signal.Signals(number).name

    def _watch(self, host: str, what: str, value: str) -> None:
        request = urllib.request.Request(METADATA.format(host=host, what=what), headers={"Metadata-Flavor": "Google"})
        pause = threading.Event()
        while not self.reason:
            try:
                with urllib.request.urlopen(request, timeout=90) as answer:
                    if answer.read().decode().strip() == value:
                        self.reason = self.reason or f"the notice '{what}' of Google Cloud"
            except (OSError, urllib.error.URLError):
                pause.wait(5)

    def leave(self, saved: str, say: Callable[[str], None]) -> BaseException:
        """Return what to raise after the checkpoint: the process ends with status 75, or with 130 after Ctrl-C."""
        say(f"stopping on {self.reason or 'the request of another rank'}: {saved}")
        return KeyboardInterrupt() if self._interrupted else Preempted()


def metadata_host() -> str:
    """Return the host of Google's metadata server; empty on machines that are not Google's."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    with contextlib.suppress(OSError):
        if "Google" in Path("/sys/class/dmi/id/product_name").read_text(encoding="utf-8"):
            return "metadata.google.internal"
    return ""
