"""The supervisor of a step's program: one retry, none for a user's mistake or a stop, none twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlnet_steps import supervisor

ARGUMENTS = ["--component_module_path", "x.py", "--function_to_execute", "train", "--executor_input", "{}"]


def program(folder: Path, ends: list[int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of kfp's executor, that ends with one of these after the other; counts its starts."""
    count = folder / "count"
    count.write_text("0")
    code = (
        f"import pathlib, sys; file = pathlib.Path({str(count)!r}); number = int(file.read_text())\n"
        f"file.write_text(str(number + 1)); sys.exit({ends}[number])"
    )
    start = subprocess.Popen

    def instead(words: list[str], **options: object) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", code], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(supervisor.subprocess, "Popen", instead)
    return count


@pytest.mark.parametrize(
    ("ends", "node", "status", "starts"),
    [
        ([0], "(0).root(0).train(0).executor(0)", 0, 1),
        ([1, 0], "(0).root(0).train(0).executor(0)", 0, 2),
        ([1, 1, 0], "(0).root(0).train(0).executor(0)", 1, 2),
        ([2, 0], "(0).root(0).train(0).executor(0)", 2, 1),
        ([75, 0], "(0).root(0).train(0).executor(0)", 75, 1),
        ([143, 0], "(0).root(0).train(0).executor(0)", 143, 1),
        ([137, 0], "(0).root(0).train(0).executor(0)", 0, 2),
        ([1, 0], "(0).root(0).train(0).executor(1)", 1, 1),
        ([1, 0], "(0).root(0).train(1).executor(0)", 1, 1),  # Always holds for every template
        ([1, 0], "(2).root(0).train(0).executor(0)", 1, 1),
        ([1, 0], "(0).root(0).train(0).executor(10)", 1, 1),
        ([1, 0], "(0).root(0).loop(0).iterations(3:3)(0).item(0).train(0).executor(0)", 0, 2),
        ([1, 0], "(0).root(0).loop(0).iterations(3:3)(0).item(1).train(0).executor(0)", 1, 1),
        ([1, 0], ".root.train.executor", 0, 2),  # an installation without retries numbers nothing
    ],
)
def test_how_often_a_program_is_started(
    ends: list[int], node: str, status: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(supervisor.NODE, f"xlnet-abcde{node}")
    monkeypatch.delenv(supervisor.INDEX, raising=False)
    count = program(tmp_path, ends, monkeypatch)
    assert supervisor.main(ARGUMENTS) == status
    assert int(count.read_text()) == starts


@pytest.mark.parametrize("node", ["(0).root(0).train(0).executor(1)", "(0).root(1).train(0).executor(0)"])
def test_a_later_pod_of_a_step_that_has_failed_does_not_begin_anew(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xlnet.data import index

    monkeypatch.setenv(supervisor.NODE, f"xlnet-abcde{node}")
    monkeypatch.setenv(supervisor.INDEX, "gs://bucket/root/index")
    monkeypatch.setenv(supervisor.RUN, "a-run")
    why = {"status": 2, "words": "xlnet.errors.UserError: no such column"}
    monkeypatch.setattr(index, "failed", lambda place, run, step: why)
    count = program(tmp_path, [0], monkeypatch)
    assert supervisor.main(ARGUMENTS) == 2
    assert int(count.read_text()) == 0
    assert capsys.readouterr().out.endswith(
        "Traceback (most recent call last):\nxlnet.errors.UserError: no such column\n"
    )


@pytest.mark.parametrize(("shard", "status"), [(3, 2), (13, 0)])
def test_a_shard_that_has_failed_says_nothing_of_another(
    shard: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xlnet.data import index

    kept = {"train-3": {"status": 2, "words": "xlnet.errors.UserError: no such column"}}
    node = f"xlnet-abcde(0).root(0).loop(0).iterations({shard}:{shard})(1).item(0).train(0).executor(0)"
    monkeypatch.setenv(supervisor.NODE, node)
    monkeypatch.setenv(supervisor.INDEX, "gs://bucket/root/index")
    monkeypatch.setenv(supervisor.RUN, "a-run")
    monkeypatch.setattr(index, "failed", lambda place, run, step: kept.get(step))
    monkeypatch.setattr(supervisor, "_enter", lambda *given: None)
    program(tmp_path, [0], monkeypatch)
    assert supervisor.main(ARGUMENTS) == status


def test_sigterm_reaches_the_program_and_ends_all(tmp_path: Path) -> None:
    body = f"import time, pathlib; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    code = (
        "import subprocess, sys\nfrom xlnet_steps import supervisor\nstart = subprocess.Popen\n"
        f"supervisor.subprocess.Popen = lambda words: start([sys.executable, '-c', {body!r}])\n"
        f"sys.exit(supervisor.main({ARGUMENTS!r}))"
    )
    environment = {**os.environ, supervisor.NODE: "executor(0)"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
