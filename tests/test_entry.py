"""A container's first process: where signals go, and what exit status comes back.

tests/test_containers.py has it as process 1 of a container, above a trainer.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENTRY = Path(__file__).resolve().parent.parent / "containers" / "entry.py"
TRAINER = """import signal, sys, time
def end(*_):
    time.sleep(0.3)
    print('checkpoint saved', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print('ready', flush=True)
time.sleep(60)"""
INSIDE = f'program=$(mktemp); printf "%s" "$0" >"$program"\n{sys.executable} "$program"\n'  # as kfp wraps a step


def start(*command: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", "-S", str(ENTRY), *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", TRAINER),
        ("sh", "-ec", INSIDE, TRAINER),
        ("sh", "-c", 'sh -ec "$@"; exit $?', "sh", INSIDE, TRAINER),
    ],
    ids=["itself", "below a shell", "below two"],
)
def test_the_trainer_has_time_to_save_and_its_status_comes_back(command: tuple[str, ...]) -> None:
    process = start(*command)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("checkpoint saved\n", "")
    assert process.returncode == 75


def test_a_shell_with_nothing_below_it_gets_the_signal_itself() -> None:
    process = start("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do :; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(20) == 9


def test_other_signals_reach_it_too() -> None:
    process = start(sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].endswith("KeyboardInterrupt\n")
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(("code", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
def test_the_status_is_the_commands(code: str, status: int) -> None:
    process = start("sh", "-c", code)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == status


def test_a_command_that_is_not_there() -> None:
    process = start("no-such-program")
    assert process.communicate(timeout=20)[1] == "error: 'no-such-program' cannot be run: No such file or directory\n"
    assert process.returncode == 127


def test_it_costs_little() -> None:
    def seconds() -> float:
        begun = time.process_time() + sum(os.times()[2:4])
        assert start("true").wait(20) == 0
        return time.process_time() + sum(os.times()[2:4]) - begun

    assert min(seconds() for _ in range(5)) < 0.15
