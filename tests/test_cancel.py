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


def run(code: str, stop: processes.Stop | None = None, lines: list[str] | None = None) -> tuple[int, bytes]:
    log = BytesIO()
    line = (lines if lines is not None else []).append
    status = processes.run([sys.executable, "-c", code], {"FROM_US": "x"}, log, line, stop or processes.Stop())
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
    monkeypatch.setattr(processes, "GRACE", 0.3)
    lines: list[str] = []
    with pytest.raises(processes.Stopped, match="timeout"):
        run(STUBBORN, processes.Stop(timeout=1.0), lines)
    wait_until_gone(*map(int, lines[0].split()[1:]))


@pytest.mark.parametrize("number", processes.SIGNALS)
def test_a_signal_ends_the_step_and_its_children(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    lines: list[str] = []
    stop = processes.Stop()
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
    stop = processes.Stop()
    try:
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert stop.signals == 0


def test_asking_twice_is_asking_for_less_patience() -> None:
    stop = processes.Stop()
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in (0.8, 1.2)]
    for timer in timers:
        timer.start()
    begun = time.monotonic()
    with pytest.raises(processes.Stopped), stop.on_signals():
        run(STUBBORN, stop)
    assert time.monotonic() - begun < processes.GRACE / 2


def test_a_step_does_not_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    """kill -9 gives the run no chance to end its step: the watchdog does."""
    code = (
        "import sys; from io import BytesIO; from xlnet_pipeline.targets import processes;"
        f"processes.run([sys.executable, '-c', {STUBBORN!r}], {{}}, BytesIO(), lambda text: print(text, flush=True),"
        " processes.Stop())"
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
        "processes.run(['sh', '-c', 'echo ready; sleep 60'], {}, BytesIO(), lambda text: print(text, flush=True),"
        f" processes.Stop(), after=['touch', {str(ended)!r}])"
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
    status = processes.run([sys.executable, "-c", code], {}, log, lines.append, processes.Stop(), bar.append)
    assert status == 0
    assert bar[:2] == ["10%", "99%"]
    assert lines == ["terminal True", "end"]
    assert log.getvalue() == b"terminal True\nend"
