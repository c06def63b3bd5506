"""Processes of a local run: started in a group of their own, watched, and stopped whole."""

import contextlib
import errno
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import BinaryIO

GRACE = 30.0  # seconds between asking a step to end and ending it: a training leaves a checkpoint meanwhile
POLL = 0.1  # seconds within which a stop is noticed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The run is to end now. No ``Exception``, so that nothing on the way takes it for a step's failure."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  # "cancelled" or "timeout"


class Stop:
    """Whether and why a run is to end: Ctrl-C, a signal, or its time is up.

    A signal only sets a flag, looked at where the run can be left cleanly, so that no record is cut in half.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.deadline = time.monotonic() + timeout if timeout is not None else None
        self.signals = 0

    @property
    def impatient(self) -> bool:
        """Whether the user asked twice."""
        return self.signals > 1

    def check(self) -> None:
        """Raise :class:`Stopped` if the run is to end."""
        if self.signals:
            raise Stopped("cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Stopped("timeout")

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take over the signals that ask a process to end. Off the main thread Python allows none of that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.signals += 1

        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        taken = [number for number in SIGNALS if not (number == signal.SIGHUP and under_nohup)]
        earlier = {number: signal.signal(number, note) for number in taken}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: BinaryIO,
    line: Callable[[str], None],
    stop: Stop,
    live: Callable[[str], None] | None = None,
    directory: Path | None = None,
    after: Sequence[str] = (),
) -> int:
    """Run a command; its output goes to ``log``, and line by line to ``line``.

    Args:
        command: the program and its arguments.
        environment: variables added to ours.
        log: gets the output as bytes; where ``live`` is given, without what a progress bar wrote over.
        line: called with each whole line.
        stop: looked at all the time.
        live: if given, the command writes to a terminal of its own, and this is called with the unfinished last
            line whenever a progress bar has drawn it anew.
        directory: where the command runs; None: where we are.
        after: a command that ends what the command has others run for it, should we be killed.

    Returns:
        The exit status; negative or above 128: killed by a signal.

    Raises:
        Stopped: it was stopped; every process it had started is gone.
    """
    ours, theirs = pty.openpty() if live else os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env={**os.environ, **environment},
                cwd=directory,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        with process, _watchdog(process.pid, after):
            try:
                for text in _lines(process, output, log, stop, live):
                    line(text)
                while process.poll() is None:  # it closed its output and goes on
                    stop.check()
                    time.sleep(POLL)
                return process.returncode
            except BaseException:
                _end(process, stop)
                raise
            finally:
                _signal_group(process.pid, signal.SIGKILL)  # what the step left behind


def _lines(
    process: subprocess.Popen[bytes],
    output: FileIO,
    log: BinaryIO,
    stop: Stop,
    live: Callable[[str], None] | None,
) -> Iterator[str]:
    """Yield lines as they come, until the output is closed or its process is gone."""
    rest = b""
    while True:
        stop.check()
        readable, _, _ = select.select([output], [], [], POLL)
        if not readable:
            if process.poll() is None:
                continue
            break  # a grandchild may hold the output open; the step itself has ended
        chunk = _read(output)
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        log.write(b"".join(_last_drawn(one) + b"\n" for one in whole) if live else chunk)
        log.flush()
        yield from (_text(one) for one in whole)
        if live and b"\r" in rest:
            live(_text(rest))
    if rest:
        log.write(_last_drawn(rest) if live else b"")
        yield _text(rest)


def _read(output: FileIO) -> bytes:
    try:
        return os.read(output.fileno(), 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # how a terminal says that its other end is closed
            return b""
        raise


def _last_drawn(line: bytes) -> bytes:
    """What a terminal would be left showing of a line that a progress bar wrote over."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].replace(b"\x1b[K", b"")


def _text(line: bytes) -> str:
    return _last_drawn(line).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes], stop: Stop) -> None:
    _signal_group(process.pid, signal.SIGTERM)
    patience = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < patience and not stop.impatient:
        time.sleep(POLL / 2)
    _signal_group(process.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def _watchdog(group: int, after: Sequence[str]) -> Iterator[None]:
    """Kill the group should this process die without a chance to (kill -9): a pipe that only it holds closes then."""
    ours, theirs = os.pipe()
    script = 'read -r _; kill -s KILL -- "-$0"; "$@"'
    guard = subprocess.Popen(["sh", "-c", script, str(group), *after], stdin=ours, start_new_session=True)
    os.close(ours)
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        os.close(theirs)


def started(pid: int) -> str | None:
    """When a living process started, to tell it from a later one with the same number; None: there is none."""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
