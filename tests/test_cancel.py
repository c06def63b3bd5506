"""Stopping: a step's processes end whole, on Ctrl-C, on SIGTERM, on a time limit, and when the run itself is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest

from xlnet_pipeline.targets import processes

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def wait_until_gone(*pids: int) -> None:
    patience = time.monotonic() + 5
    while any(processes.started(pid) for pid in pids):
        assert time.monotonic() < patience, f"one of {pids} is still there"
        time.sleep(0.02)


def run(code: str, stop: processes.Cancellation | None = None, lines: list[str] | None = None) -> tuple[int, bytes]:
    log = BytesIO()
    line = (lines if lines is not None else []).append
    status = processes.run(
        [sys.executable, "-c", code], {"FROM_US": "x"}, processes.Watch(log, line, stop or processes.Cancellation())
    )
    return status, log.getvalue()


def test_output_goes_to_the_log_as_bytes_and_to_the_user_as_lines() -> None:
    lines: list[str] = []
    code = (
        "import os, sys; sys.stdout.buffer.write(b'10%\\r99%\\ndone \\xff\\n'); print(os.environ['FROM_US'], end='');"
        " sys.exit(3)"
    )
    status, log = run(code, lines=lines)
    assert status == 3
    assert log == b"10%\r99%\ndone \xff\nx"
    assert lines == ["99%", "done \ufffd", "x"]


def test_an_ended_step_is_not_waited_for_because_its_child_holds_the_pipe() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    lines: list[str] = []
    begun = time.monotonic()
    assert run(code, lines=lines)[0] == 0
    assert time.monotonic() - begun < 5
    wait_until_gone(int(lines[0]))


def test_a_time_limit_ends_the_step_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_GRACE_SECONDS", "0.3")
    monkeypatch.setattr(processes, "BEYOND", 0.0)
    lines: list[str] = []
    with pytest.raises(processes.Stopped, match="timeout"):
        run(STUBBORN, processes.Cancellation(timeout=1.0), lines)
    wait_until_gone(*map(int, lines[0].split()[1:]))


@pytest.mark.parametrize("number", processes.SIGNALS)
def test_a_signal_ends_the_step_and_its_children(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_GRACE_SECONDS", "0.3")
    monkeypatch.setattr(processes, "BEYOND", 0.0)
    lines: list[str] = []
    stop = processes.Cancellation()
    earlier = signal.getsignal(number)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(processes.Stopped, match="cancelled"), stop.on_signals():
        run(STUBBORN, stop, lines)
    timer.join()
    assert signal.getsignal(number) is earlier
    wait_until_gone(*map(int, lines[0].split()[1:]))


def test_a_run_under_nohup_goes_on_when_its_terminal_closes() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = processes.Cancellation()
    try:
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert stop.asked is None


def test_asking_twice_is_asking_for_less_patience() -> None:
    stop = processes.Cancellation()
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in (0.8, 2.0)]
    for timer in timers:
        timer.start()
    begun = time.monotonic()
    with pytest.raises(processes.Stopped) as stopped, stop.on_signals():
        run(STUBBORN, stop)
    assert stopped.value.ended == "at once"
    assert time.monotonic() - begun < processes.patience() / 2


@pytest.mark.parametrize(
    ("pair", "impatient"),
    [
        ((signal.SIGINT, signal.SIGINT), True),
        ((signal.SIGTERM, signal.SIGTERM), True),
        ((signal.SIGHUP, signal.SIGHUP), False),  # a shell that hangs up passes on what its terminal said
        ((signal.SIGINT, signal.SIGHUP), False),  # the window is closed after Ctrl-C: the step still saves its work
    ],
)
def test_who_asks_twice(
    pair: tuple[signal.Signals, signal.Signals], impatient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = processes.Cancellation()
    with stop.on_signals():
        os.kill(os.getpid(), pair[0])
        os.kill(os.getpid(), pair[1])
        assert not stop.impatient, "within a moment it is the same signal, passed on"
        monkeypatch.setattr(processes, "AGAIN", 0.0)
        os.kill(os.getpid(), pair[1])
    assert (stop.reason, stop.impatient) == ("cancelled", impatient)


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("shell", [False, True])
def test_who_saves_its_work_is_waited_for_and_heard_behind_a_process_that_dies_at_once(shell: bool) -> None:
    """As a step's shell does, or a process that started others."""
    lines: list[str] = []
    log = BytesIO()
    stop = processes.Cancellation()
    asked: list[float] = []

    def line(text: str) -> None:
        lines.append(text)
        stop.asked = stop.asked or time.monotonic()

    command = [sys.executable, "-c", SAVES]
    if shell:
        command = ["sh", "-c", '"$0" "$@"; exit $?', *command]
    begun = time.monotonic()
    with pytest.raises(processes.Stopped) as stopped:
        processes.run(command, {}, processes.Watch(log, line, stop, stopping=lambda: asked.append(1.0)))
    assert (stopped.value.reason, stopped.value.ended) == ("cancelled", "by itself")
    assert lines == ["begun", "saved"]
    assert log.getvalue() == b"begun\nsaved\n"
    assert len(asked) == 1
    assert time.monotonic() - begun < processes.patience() / 2


def test_who_ends_well_when_it_is_asked_to_end_has_done_its_work() -> None:
    """A training that is asked to stop after its last step writes its model."""
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('x'); time.sleep(60)"
    stop = processes.Cancellation()

    def line(text: str) -> None:
        stop.asked = time.monotonic()

    assert processes.run([sys.executable, "-uc", code], {}, processes.Watch(BytesIO(), line, stop)) == 0
    with pytest.raises(processes.Stopped):
        stop.check()


def test_who_ignores_the_signal_is_ended_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_GRACE_SECONDS", "0.5")
    monkeypatch.setattr(processes, "BEYOND", 0.0)
    lines: list[str] = []
    stop = processes.Cancellation(timeout=1.0)
    with pytest.raises(processes.Stopped) as stopped:
        run(STUBBORN, stop, lines)
    assert (stopped.value.reason, stopped.value.ended) == ("timeout", "late")
    wait_until_gone(*map(int, lines[0].split()[1:]))


def test_redraws_without_a_newline_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar of hours, and a program that never ends its line: what is kept of either is bounded."""
    kept: list[int] = []
    original = processes._bounded

    def watch(rest: bytes) -> bytes:
        kept.append(len(original(rest)))
        return original(rest)

    monkeypatch.setattr(processes, "_bounded", watch)
    redraws = "import sys\nfor step in range(200_000): sys.stdout.write(f'\\r\\033[K[####] step {step}')"
    lines: list[str] = []
    bar: list[str] = []
    command = [sys.executable, "-c", redraws]
    assert (
        processes.run(command, {}, processes.Watch(BytesIO(), lines.append, processes.Cancellation(), bar.append)) == 0
    )
    assert max(kept) < 100
    assert lines == [bar[-1]] == ["[####] step 199999"]
    kept.clear()
    endless = "import sys\nfor _ in range(40): sys.stdout.write('x' * 100_000)"
    log = BytesIO()
    assert (
        processes.run([sys.executable, "-c", endless], {}, processes.Watch(log, lines.append, processes.Cancellation()))
        == 0
    )
    assert max(kept) <= processes.LONGEST_LINE
    assert len(log.getvalue()) == sum(map(len, lines[1:])) == 4_000_000


def test_a_step_does_not_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    """kill -9 gives the run no chance to end its step: the watchdog does."""
    code = (
        "import sys; from io import BytesIO; from xlnet_pipeline.targets import processes;"
        f"processes.run([sys.executable, '-c', {STUBBORN!r}], {{}}, processes.Watch(BytesIO(),"
        " lambda text: print(text, flush=True), processes.Cancellation()))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        pids = [int(word) for word in runner.stdout.readline().split()[1:]]
        assert all(processes.started(pid) for pid in pids)
        runner.kill()
    wait_until_gone(*pids)


def test_what_others_run_for_a_step_does_not_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    """A container is no child of ours: the watchdog is told what ends it."""
    ended = tmp_path / "ended"
    code = (
        "from io import BytesIO; from xlnet_pipeline.targets import processes;"
        "processes.run(['sh', '-c', 'echo ready; sleep 60'], {}, processes.Watch(BytesIO(),"
        f" lambda text: print(text, flush=True), processes.Cancellation()), after=['touch', {str(ended)!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        assert not ended.exists()
        runner.kill()
    patience = time.monotonic() + 5
    while not ended.exists():
        assert time.monotonic() < patience
        time.sleep(0.02)


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        first = processes.started(process.pid)
        assert first == processes.started(process.pid)
        assert first != processes.started(os.getpid())
        process.kill()
        time.sleep(0.05)
        assert processes.started(process.pid) is None, "a zombie runs no more"


def test_a_progress_bar_is_live_on_a_terminal_and_left_out_of_the_log() -> None:
    code = (
        "import sys, time\n"
        "for percent in (10, 99): sys.stderr.write(f'\\r\\033[K{percent}%'); sys.stderr.flush(); time.sleep(0.3)\n"
        "print('\\r\\033[Kterminal', sys.stdout.isatty())\n"
        "print('end', end='')"
    )
    lines: list[str] = []
    bar: list[str] = []
    log = BytesIO()
    status = processes.run(
        [sys.executable, "-c", code], {}, processes.Watch(log, lines.append, processes.Cancellation(), bar.append)
    )
    assert status == 0
    assert bar[:2] == ["10%", "99%"]
    assert lines == ["terminal True", "end"]
    assert log.getvalue() == b"terminal True\nend"
