"""Starts each step of a local run in its own process group, watches it, and stops the whole group."""

import contextlib
import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol

from xlnet.redaction import redacted, visible
from xlnet.training.preemption import grace, handling

BEYOND = 5.0  # seconds added to the grace period in which a step's program saves its work
POLL = 0.1  # longest delay until a stop is noticed, seconds
AGAIN = 1.0  # a second signal within so many seconds is the first one, forwarded by another process
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_LINE = 1 << 20  # bytes; a longer line is split


def patience() -> float:
    """Return the seconds between SIGTERM and SIGKILL, in which a training writes a checkpoint."""
    return grace() + BEYOND


class Stopped(BaseException):
    """The run must end now. This is not an ``Exception``, so no handler mistakes it for a step's failure.

    Attributes:
        reason: ``cancelled`` or ``timeout``.
        ended: how the running process ended: ``by itself``, ``late`` (we killed it when its time was up) or
            ``at once`` (we killed it when the user asked twice). Empty if no process was running.
    """

    def __init__(self, reason: str, ended: str = "") -> None:
        super().__init__(reason)
        self.reason, self.ended = reason, ended


class Cancellation:
    """Tells whether and why a run should end: because of Ctrl-C, a signal, or the time limit.

    A signal only sets a flag. The run reads the flag where it can stop cleanly, so no record is left half written.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.deadline = time.monotonic() + timeout if timeout is not None else None
        self.asked: float | None = None  # when a signal came first
        self.impatient = False  # whether the user asked twice

    @property
    def reason(self) -> str:
        """The reason to end the run: ``cancelled`` or ``timeout``. Empty if the run should go on."""
        if self.asked is not None:
            return "cancelled"
        late = self.deadline is not None and time.monotonic() > self.deadline
        return "timeout" if late else ""

    def check(self) -> None:
        """Raise :class:`Stopped` if the run should end."""
        if reason := self.reason:
            raise Stopped(reason)

    def on_signals(self) -> AbstractContextManager[None]:
        """Handle the signals that ask a process to end. Does nothing outside the main thread."""

        def note(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.asked is None:
                self.asked = now
            elif number != signal.SIGHUP and now - self.asked > AGAIN:  # a shell and its terminal both hang up
                self.impatient = True

        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        taken = [number for number in SIGNALS if not (number == signal.SIGHUP and under_nohup)]
        return handling(taken, note)


class Process(Protocol):
    """The methods of :class:`subprocess.Popen` that watching a step needs."""

    @property
    def pid(self) -> int:
        """Its number, which is also its process group's."""

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""

    def wait(self) -> int:
        """Wait until it ends and return the exit status."""

    def __enter__(self) -> Any:
        """Enter a context that ends when the process has ended."""

    def __exit__(self, *problem: Any) -> None:
        """Wait for the process."""


@dataclass(frozen=True)
class Watch:
    """Where the output of a step's command goes, and what stops the command.

    Attributes:
        log: file that gets the output as bytes, without passwords in addresses; if ``live`` is given, also without text
            that a progress bar has overwritten.
        line: called with each whole line of the log, without control characters.
        stop: checked all the time. When it asks to stop, the command and all that it has started get SIGTERM, and
            :func:`patience` seconds to end.
        live: if given, the command writes to a pseudo-terminal, and this is called with the unfinished last line each
            time a progress bar redraws it.
        stopping: called after the command has been asked to end.
    """

    log: BinaryIO
    line: Callable[[str], None]
    stop: Cancellation
    live: Callable[[str], None] | None = None
    stopping: Callable[[], None] = lambda: None


Start = Callable[[list[str], dict[str, str], Watch], int]  # runs a step's command with these variables, as :func:`run`


def spawn(command: Sequence[str], environment: Mapping[str, str], output: int, directory: Path | None) -> Process:
    """Start a command in a session and process group of its own.

    Args:
        command: the program and its arguments.
        environment: all of its variables.
        output: file descriptor for standard output and standard error.
        directory: where it runs; None: where we are.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        cwd=directory,
        start_new_session=True,
    )


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    watch: Watch,
    directory: Path | None = None,
    after: Sequence[str] = (),
    start: Callable[[Sequence[str], Mapping[str, str], int, Path | None], Process] = spawn,
) -> int:
    """Run a command and watch it until all that it has started is gone.

    Args:
        command: the program and its arguments.
        environment: variables added to ours.
        watch: where its output goes, and what stops it.
        directory: working directory of the command; None: ours.
        after: a command to run if we are killed; it ends what other programs, such as Docker, run for the command.
        start: starts the process.

    Returns:
        The exit status; negative or above 128: killed by a signal. A command that was asked to end, and ended with
        0, has done its work.

    Raises:
        Stopped: the command was stopped; every process that it had started is gone.
    """
    ours, theirs = pty.openpty() if watch.live else os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as output:
        try:
            process = start(command, {**os.environ, **environment}, theirs, directory)
        finally:
            os.close(theirs)
        with process, _watchdog(process.pid, after):
            ending = _Ending(process, watch.stop, watch.stopping)
            with ending, contextlib.closing(_Log(watch.log)) as kept:
                for text in _lines(output, kept, ending, watch.live):
                    watch.line(text)
            if ending.reason and (ending.ended != "by itself" or process.wait()):
                raise Stopped(ending.reason, ending.ended)
            return process.wait()


class _Ending:
    """Asks a process group to end when the run should end, and tells whether to keep waiting for it."""

    def __init__(self, process: Process, stop: Cancellation, stopping: Callable[[], None]) -> None:
        self.process, self.stop, self.stopping = process, stop, stopping
        self.reason = ""
        self.ended = "by itself"
        self.deadline = 0.0

    def __enter__(self) -> None:
        """Do nothing: only leaving the context has an effect."""

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Wait until the process has ended (after an error, ask it to), and kill the processes that it left behind."""
        try:
            if kind is not None:
                self.ask()
            while self.goes_on():  # it may have closed its output and go on
                time.sleep(POLL / 2)
        finally:
            _signal_group(self.process.pid, signal.SIGKILL)

    def ask(self) -> None:
        """Ask all processes of the group to end, unless they were asked before."""
        if not self.deadline:
            self.deadline = time.monotonic() + patience()
            _signal_group(self.process.pid, signal.SIGTERM)

    def goes_on(self) -> bool:
        """Whether the process runs; after it was asked to end, whether any of its group runs and has time left."""
        if not self.reason and (reason := self.stop.reason):
            self.reason = reason
            self.ask()
            self.stopping()
        if not self.deadline:
            return self.process.poll() is None
        if self.process.poll() is not None and not _group_lives(self.process.pid):
            return False
        if self.stop.impatient or time.monotonic() > self.deadline:
            self.ended = "at once" if self.stop.impatient else "late"
            return False
        return True


class _Log:
    """A step's log file. Passwords are removed from the addresses that libraries print."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""  # an address may go on in the next piece of its line

    def write(self, output: bytes) -> None:
        """Write the lines that are complete. A line that a progress bar has drawn again counts as complete."""
        self._rest += output
        end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r")) + 1
        if len(self._rest) - end > LONGEST_LINE:
            end = len(self._rest)
        self._write(self._rest[:end])
        self._rest = self._rest[end:]

    def close(self) -> None:
        """Write what is left; the file stays open."""
        self._write(self._rest)
        self._rest = b""

    def _write(self, output: bytes) -> None:
        text = output.decode("utf-8", "surrogateescape")  # whatever the bytes are, they come out as they went in
        self._file.write(redacted(text).encode("utf-8", "surrogateescape"))
        self._file.flush()


def _lines(output: FileIO, log: _Log, ending: _Ending, live: Callable[[str], None] | None) -> Iterator[str]:
    """Yield lines as they arrive, until the output is closed or the process has ended."""
    rest = b""
    while True:
        goes_on = ending.goes_on()
        readable, _, _ = select.select([output], [], [], POLL if goes_on else 0)
        if not readable:
            if goes_on:
                continue
            break  # a grandchild may hold the output open; the step itself has ended
        chunk = _read(output)
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE and b"\r" not in rest:
            whole, rest = [*whole, rest], b""
        log.write(b"".join(_last_drawn(one) + b"\n" for one in whole) if live else chunk)
        yield from (_text(one) for one in whole)
        if live and b"\r" in rest:
            live(_text(rest))
        rest = _bounded(rest)
        if ending.ended != "by itself":
            break  # its time is up; it might write for ever
    if rest:
        log.write(_last_drawn(rest) if live else b"")
        yield _text(rest)


def _bounded(rest: bytes) -> bytes:
    """Return the visible part of an unfinished line, because a progress bar may overwrite its line for hours."""
    return rest[rest.rstrip(b"\r").rfind(b"\r") + 1 :]


def _read(output: FileIO) -> bytes:
    try:
        return os.read(output.fileno(), 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal's other end is closed
            return b""
        raise


def _last_drawn(line: bytes) -> bytes:
    """Return what a terminal shows of a line that a progress bar has overwritten."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].replace(b"\x1b[K", b"")


def _text(line: bytes) -> str:
    return visible(redacted(_last_drawn(line).decode("utf-8", "replace")))


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_lives(group: int) -> bool:
    """Whether any process of the group runs. Zombies do not count."""
    if sys.platform.startswith("linux"):
        every = (_stat(int(entry)) for entry in os.listdir("/proc") if entry.isdecimal())
        return any(fields[2] == str(group) for fields in every if fields)
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def _watchdog(group: int, after: Sequence[str]) -> Iterator[None]:
    """Kill the group if this process is killed itself (kill -9), which closes a pipe that only this process holds."""
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
    """Return when a process started, to tell it from a later one with the same number. None if it has ended."""
    if sys.platform.startswith("linux"):
        fields = _stat(pid)
        return f"{_boot()}:{fields[19]}" if fields else None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _stat(pid: int) -> list[str]:
    """Return the fields after the name in Linux's ``stat`` of a living process: state, parent, group, …; else []."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
