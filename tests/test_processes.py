"""Several processes of one machine: order, errors, and that none outlives its parent."""

import json
import math
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_preprocess import run, write

from xlnet.data import processes
from xlnet.data.processes import Processes
from xlnet.errors import RunError, UserError


def results(function, items, count):
    found = []
    with Processes(function, count) as pool:
        for item in items:
            pool.do(item, found.append)
        pool.finish()
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_results_come_in_order_whatever_the_number(count):
    assert results(operator.neg, range(50), count) == [-i for i in range(50)]


def test_what_a_function_prints_does_not_mix_with_results(capfd):
    assert results(print, ["one", "two"], 2) == [None, None]
    assert sorted(capfd.readouterr().err.split()) == ["one", "two"]


def test_an_error_arrives_as_it_was_raised_with_its_place():
    with pytest.raises(ValueError, match="math domain error") as caught:
        results(math.sqrt, [1, -1], 2)
    assert "in _work" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("function", "item", "says"),
    [(signal.raise_signal, signal.SIGKILL, "memory runs out; .*XLNET_PROCESSES=1"), (os._exit, 3, "exit status 3")],
)
def test_a_process_that_ends_is_one_line(function, item, says):
    with pytest.raises(RunError, match=says):
        results(function, [item], 2)


def test_memory_holds_a_bounded_number_of_results():
    waiting = []
    with Processes(operator.neg, 2) as pool:
        for item in range(20):
            pool.do(item, lambda _: waiting.pop())
            waiting.append(item)
            assert len(waiting) <= 4
        pool.finish()


PARENT = """
import sys, time
from xlnet.data.processes import Processes
with Processes(time.sleep, 2) as pool:
    pool.do(600, print), pool.do(600, print)
    print(*(one._process.pid for one in pool._processes), flush=True)
    pool.finish()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    children = list(map(int, parent.stdout.readline().split()))
    assert len(children) == 2
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.send_signal(number)
    assert parent.wait(timeout=60) != 0
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline, f"processes {children} are still there after signal {number}"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_dataset_has_the_same_bytes_whatever_the_number(tmp_path, monkeypatch):
    monkeypatch.setattr("xlnet.data.split_files.BATCH_ROWS", 40)
    rows = [(f"sentence {i} {'é ' * (i % 5)}", "abc"[i % 3] if i % 50 else "", i) for i in range(600)]
    train = [write(tmp_path / "a.csv", rows, ("text", "label", "id"))]
    found = {}
    for count in ("1", "2"):
        monkeypatch.setenv(processes.NUMBER, count)
        facts, data = run(tmp_path / count, train=train, id="id", text_pair="id", max_length=16)
        found[facts["dataset_digest"]] = json.dumps(data.card)
    assert len(found) == 1


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5"])
def test_a_number_that_is_none_is_refused(given, monkeypatch):
    monkeypatch.setenv(processes.NUMBER, given)
    with pytest.raises(UserError, match=f"XLNET_PROCESSES is '{given}'; allowed: a whole number"):
        processes.number(100)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"memory.max": str(3 * processes.MEMORY)}, 3),
        ({"memory.max": "1000"}, 1),
        ({"memory.max": "max"}, 8),
    ],
)
def test_a_container_gets_as_many_processes_as_it_may_use(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", lambda _: 1 << 20)
    monkeypatch.delenv(processes.NUMBER, raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert processes.number(1000) == expected
    assert processes.number(1.9) == 1, "a work of two seconds is not worth a second process"
