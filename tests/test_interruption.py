"""Training through kills, signals and notices: it goes on at the exact next step, and ends in the same bits."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from token_rows import RECIPE, write_dataset

from xlnet import provenance
from xlnet.errors import Preempted

MODEL = {"n_layer": 2, "d_model": 64, "n_head": 2, "d_head": 32, "d_inner": 128}
TRAINING = {"steps": 300, "checkpoint_every": 10, "evaluate_every": 50, "token_dropout": 0.1}
LONG = RECIPE.replace(model=MODEL, training=TRAINING)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """Number of ranks → the same training, left alone."""

    @functools.cache
    def whole(ranks):
        trainer = Trainer(tmp_path_factory.mktemp("whole"), dataset, LONG, ranks)
        trainer.finish()
        return trainer

    return whole


class Trainer:
    """``python -m xlnet train`` in a process group of its own, with its checkpoints in ``home``."""

    def __init__(self, home: Path, dataset: str, recipe, ranks: int = 1, **environment: str) -> None:
        self.home, self.out = home, home / "model"
        home.mkdir(exist_ok=True)
        arguments = ["--recipe-json", recipe.part("model", "training"), "--dataset", dataset, "--out", str(self.out)]
        self.log = home / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xlnet", "train", *arguments],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "XLNET_NPROC": str(ranks),
                    "XLNET_CHECKPOINTS": str(home / "checkpoints"),
                    **environment,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints that are there."""
        found = self.home.glob("checkpoints/*/step-*/manifest.json")
        return sorted(int(path.parent.name.split("-")[1]) for path in found)

    def until(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)

    def writing(self) -> bool:
        """Whether a checkpoint is half written at this moment."""
        return any(self.home.glob("checkpoints/*/.step-*.partial/*"))

    def kill(self, number: int) -> int:
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=60)

    def finish(self) -> dict:
        assert self.process.wait(timeout=180) == 0, self.log.read_text()
        return provenance.read(self.out)["artifact"]["metadata"]


def history(trainer: Trainer) -> str:
    return (trainer.out / "history.jsonl").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_kills_change_no_bit(dataset, undisturbed, tmp_path, ranks):
    """At ten random moments, half of them while a checkpoint is being written."""
    whole = undisturbed(ranks)
    expected = whole.finish()
    moments, seen, half_written = random.Random(ranks), 0, 0
    for attempt in range(10):
        trainer = Trainer(tmp_path / "killed", dataset, LONG, ranks)
        wanted = seen + moments.randrange(10, 30)
        trainer.until(lambda wanted=wanted, trainer=trainer: trainer.steps() and trainer.steps()[-1] >= wanted)
        if attempt % 2:
            trainer.until(trainer.writing)
        else:
            time.sleep(moments.random() / 10)
        half_written += trainer.writing()
        assert trainer.kill(signal.SIGKILL) == -signal.SIGKILL
        assert not trainer.out.exists(), "nothing half-written is under the artifact's name"
        seen = trainer.steps()[-1]
    assert half_written >= 1
    last = Trainer(tmp_path / "killed", dataset, LONG, ranks)
    facts = last.finish()
    assert facts["resumed_from"] == seen
    assert facts["interruptions"] == 10
    assert facts["weights_digest"] == expected["weights_digest"]
    assert history(last) == history(whole)
    assert not list(tmp_path.glob("killed/checkpoints/*")), "a finished training leaves no checkpoints"


@pytest.mark.parametrize(
    ("ranks", "number", "status"), [(1, signal.SIGTERM, 75), (2, signal.SIGTERM, 75), (2, signal.SIGINT, 130)]
)
def test_a_signal_leaves_a_checkpoint_within_the_grace_period(dataset, undisturbed, tmp_path, ranks, number, status):
    recipe = LONG.replace(training={"checkpoint_every": 250})
    trainer = Trainer(tmp_path / "run", dataset, recipe, ranks, XLNET_GRACE_SECONDS="10")
    trainer.until(lambda: "training on" in trainer.log.read_text())
    time.sleep(1)
    asked = time.monotonic()
    assert trainer.kill(number) == status == (Preempted.exit_status if number == signal.SIGTERM else 130)
    assert time.monotonic() - asked < 10
    said = rf"stopping on {number.name}: checkpoint of step (\d+) saved; run the same command to go on"
    (step,) = map(int, re.findall(said, trainer.log.read_text()))
    assert trainer.steps() == [step]
    facts = Trainer(tmp_path / "run", dataset, recipe, ranks).finish()
    assert facts["resumed_from"] == step
    assert facts["weights_digest"] == undisturbed(ranks).finish()["weights_digest"]


@pytest.mark.parametrize("seconds", [0.5, 3])
def test_a_signal_before_the_first_step_is_a_preemption_too(dataset, tmp_path, seconds):
    """While modules are loaded, and while a rank waits for another that never comes."""
    other = {"XLNET_NODES": "2", "XLNET_MASTER": "127.0.0.1", "XLNET_PORT": "29475", "JOB_COMPLETION_INDEX": "0"}
    trainer = Trainer(tmp_path / "run", dataset, LONG, XLNET_GRACE_SECONDS="1", **other)
    children = Path(f"/proc/{trainer.process.pid}/task/{trainer.process.pid}/children")
    trainer.until(children.read_text)  # the rank's process
    time.sleep(seconds)
    os.kill(trainer.process.pid, signal.SIGTERM)
    assert trainer.process.wait(timeout=20) == Preempted.exit_status, trainer.log.read_text()


def test_the_clouds_notice_is_a_signal_too(dataset, tmp_path):
    """As Google's metadata server gives it: the answer to a request that hangs until something changes."""
    taken_back = threading.Event()

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            preempted = "/instance/preempted" in self.path and taken_back.wait(30)
            body = b"TRUE" if preempted else b"NONE"
            if not preempted:
                time.sleep(0.2)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        trainer = Trainer(tmp_path / "run", dataset, LONG, GCE_METADATA_HOST=host)
        trainer.until(lambda: trainer.steps())
        taken_back.set()
        assert trainer.process.wait(timeout=20) == Preempted.exit_status
        server.shutdown()
    assert "stopping on the notice 'preempted' of Google Cloud" in trainer.log.read_text()


def test_a_stop_during_validation_validates_after_the_restart(dataset, tmp_path):
    """The step is done, its validation is not: both count exactly once."""
    recipe = LONG.replace(training={"steps": 40, "evaluate_every": 1, "checkpoint_every": 100})
    whole = Trainer(tmp_path / "whole", dataset, recipe)
    expected = whole.finish()
    trainer = Trainer(tmp_path / "run", dataset, recipe)
    for wanted in (5, 12, 20):
        trainer.until(lambda wanted=wanted, trainer=trainer: f"step {wanted}/40" in trainer.log.read_text())
        assert trainer.kill(signal.SIGTERM) == Preempted.exit_status
        trainer = Trainer(tmp_path / "run", dataset, recipe)
    assert trainer.finish()["weights_digest"] == expected["weights_digest"]
    lines = [json.loads(line) for line in history(trainer).splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == list(range(1, 41))
    assert history(trainer) == history(whole)
