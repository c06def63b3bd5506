"""A run that is stopped as people stop it: Ctrl-C in a terminal, a closed window, ``runs cancel``, twice.

Each run has a terminal of its own (a pseudo-terminal): Ctrl-C is a byte that is typed there, and the kernel sends the
signal to whoever is in the foreground. The tests share one state directory, so that later runs begin with training.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import write_sentences

from xlnet_pipeline import cli

SETTINGS = {
    "data.max_length": 24,
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 1,
    "model.d_head": 16,
    "model.d_inner": 16,
    "training.batch_tokens": 256,
    "training.steps": 100_000,  # nobody waits for the end, and for no validation or checkpoint of its own
    "training.evaluate_every": 100_000,
    "training.checkpoint_every": 100_000,
    "evaluation.resamples": 100,
}
CTRL_C = b"\x03"


class Project:
    """A CSV and a state directory."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.csv = write_sentences(folder / "sentences.csv", rows=60)

    def words(self, *more: str, **settings: Any) -> list[str]:
        chosen = {"data.train": self.csv, **SETTINGS}
        chosen |= {name.replace("__", "."): value for name, value in settings.items()}
        words = [sys.executable, "-m", "xlnet_pipeline", "--home", str(self.home), "run", *more]
        return words + [f"--set={name}={value}" for name, value in chosen.items()]

    def records(self) -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in sorted(self.home.glob("runs/*/run.json"))]
        return sorted(found, key=lambda one: str(one["created"]))

    def log(self, run: str, step: str = "train") -> str:
        return (self.home / "runs" / run / "logs" / f"{step}.log").read_text()

    def checkpoints(self) -> set[int]:
        found = self.home.glob("checkpoints/*/step-*/manifest.json")
        return {int(path.parent.name.split("-")[1]) for path in found}


class Terminal:
    """A command in a terminal of its own, in the foreground."""

    def __init__(self, words: list[str], **environment: str) -> None:
        self.master, slave = pty.openpty()

        def take() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=take,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        os.close(slave)
        self.shown = ""

    def read(self, seconds: float) -> bool:
        """Take what has been shown; whether there may be more."""
        readable, _, _ = select.select([self.master], [], [], seconds)
        if not readable:
            return True
        try:
            chunk = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def until(self, pattern: str, seconds: float = 90.0) -> None:
        """Until it has shown this."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown
            assert self.read(0.1), self.shown

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        """As a window is closed."""
        os.close(self.master)
        self.master = -1

    def status(self, seconds: float = 60.0) -> int:
        """The exit status."""
        deadline = time.monotonic() + seconds
        while self.master >= 0 and self.read(0.1):
            assert time.monotonic() < deadline, self.shown
        return self.process.wait(timeout=seconds)


@contextmanager
def terminal(words: list[str], **environment: str) -> Iterator[Terminal]:
    one = Terminal(words, **environment)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        if one.master >= 0:
            os.close(one.master)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("stopped"))


TRAINING = r"\] step ([2-9]|\d\d+)/100000"  # the bar, beyond the first step


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_leaves_the_checkpoint_of_that_very_step(project: Project, ranks: int) -> None:
    with terminal(project.words("--nproc", str(ranks), training__seed=ranks)) as window:
        window.until(TRAINING if ranks == 1 else "training on")
        time.sleep(0.5)
        window.type(CTRL_C)
        assert window.status() == 130, window.shown
    assert "stopping step 'train': it has 30 s to save a checkpoint; Ctrl-C again ends it at once" in window.shown
    (step,) = set(re.findall(r"checkpoint of step (\d+) saved; run the same command to go on", window.shown))
    assert window.shown.rstrip().splitlines()[-1] == f"checkpoint of step {step} saved; run the same command to go on"
    assert int(step) in project.checkpoints()
    assert f"step {step}/100000  validation" not in window.shown, "not a step at which a checkpoint is due anyway"
    record = project.records()[-1]
    assert [one["status"] for one in record["steps"]][1:] in (
        ["SUCCEEDED", "CANCELLED", "SKIPPED", "SKIPPED"],
        ["CACHED", "CANCELLED", "SKIPPED", "SKIPPED"],
    )
    assert f"checkpoint of step {step} saved; run the same command to go on" in project.log(record["id"])
    assert record["notes"] == [f"checkpoint of step {step} saved; run the same command to go on"]
    assert "Traceback" not in window.shown
    assert not list(project.home.glob(f"runs/{record['id']}/artifacts/train/*model*"))


def test_the_same_command_goes_on_and_a_second_ctrl_c_says_what_is_lost(project: Project) -> None:
    saved = max(project.checkpoints())
    with terminal(project.words(training__seed=1)) as window:
        window.until(r"from step ([\d,]+) on")
        window.until(TRAINING)
        (trainer,) = _children(window.process.pid)
        os.kill(trainer, signal.SIGSTOP)  # it cannot answer
        window.type(CTRL_C)
        window.until("Ctrl-C again ends it at once")
        time.sleep(1.2)  # a person's second thought
        began = time.monotonic()
        window.type(CTRL_C)
        assert window.status() == 130
        assert time.monotonic() - began < 10
    last = window.shown.rstrip().splitlines()[-1]
    assert re.fullmatch(
        r"step 'train' was ended at once: what it did since the checkpoint of step \d+ is lost; "
        "run the same command to go on",
        last,
    ), window.shown
    assert saved in project.checkpoints()
    assert last in project.log(project.records()[-1]["id"])


def _children(root: int) -> list[int]:
    """The trainers below a run: who writes checkpoints and reads no signals while it is stopped."""
    parents = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == root]  # forks of the run's fork server


def test_a_trainer_that_does_not_answer_is_ended_late_and_the_loss_is_told(project: Project) -> None:
    with terminal(project.words(training__seed=3), XLNET_GRACE_SECONDS="0") as window:
        window.until(TRAINING)
        (trainer,) = _children(window.process.pid)
        os.kill(trainer, signal.SIGSTOP)
        window.type(CTRL_C)
        assert window.status() == 130
    expected = "step 'train' did not end within 5 s, and was ended before its first checkpoint: what it did is lost; "
    assert f"{expected}run the same command to start it again" in window.shown


def test_a_closed_window_saves_the_work_too(project: Project) -> None:
    with terminal(project.words(training__seed=4)) as window:
        window.until(TRAINING)
        window.close()
        window.process.wait(timeout=60)
    record = project.records()[-1]
    assert record["status"] == "CANCELLED"
    (note,) = record["notes"]
    (step,) = re.fullmatch(r"checkpoint of step (\d+) saved; run the same command to go on", note).groups()  # type: ignore[union-attr]
    assert int(step) in project.checkpoints()


def test_cancel_from_elsewhere_says_what_was_saved(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal(project.words(training__seed=5)) as window:
        window.until(TRAINING)
        run = project.records()[-1]["id"]
        assert cli.main(["--home", str(project.home), "runs", "cancel", run]) == 0
        shown = capsys.readouterr().out
        assert window.status() == 130
    assert re.search(rf"run {run}: CANCELLED\ncheckpoint of step \d+ saved; run the same command to go on\n", shown)
    assert cli.main(["--home", str(project.home), "runs", "show", run]) == 0
    assert "saved; run the same command to go on" in capsys.readouterr().out


def test_ctrl_c_before_there_is_anything_to_save(project: Project) -> None:
    with terminal(project.words(training__seed=6)) as window:
        window.until("train: (recipe|no result|first)")
        window.type(CTRL_C)
        assert window.status() == 130
    assert "Traceback" not in window.shown
    assert re.search(
        r"training was stopped before its first checkpoint: what it did is lost; run the same command to start it again"
        r"|checkpoint of step \d+ saved; run the same command to go on",
        window.shown,
    )


@pytest.mark.parametrize("step", ["snapshot", "preprocess", "evaluate", "register"])
def test_ctrl_c_in_a_step_that_has_nothing_to_save(project: Project, step: str) -> None:
    """The step is stopped at its very start, where Ctrl-C finds it whatever the machine has to do."""
    seed = 100 + len(step)
    settings = {"training__steps": 2, "training__seed": 7, "data__split_seed": seed} if step == "preprocess" else {}
    settings |= {"training__steps": 2, "training__seed": 7}
    if step == "evaluate":
        settings["evaluation__margin"] = 0.01
    if step == "register":
        settings["registry__name"] = "other"
    with terminal(project.words(**settings)) as window:
        window.until(rf"(?m)^{step}: (?!cached)")
        window.type(CTRL_C)
        assert window.status() == 130, window.shown
    assert "Traceback" not in window.shown
    record = project.records()[-1]
    states = {one["name"]: one["status"] for one in record["steps"]}
    assert states[step] == "CANCELLED", window.shown
    expected = f"step '{step}' was stopped, and starts anew next time; finished steps are kept; run the same command"
    assert f"{expected} to go on" in window.shown
    assert not list(project.home.glob(f"runs/{record['id']}/artifacts/{step}/*partial*"))
