"""MLflow's sqlite file appears as a whole, whenever the process that creates it is stopped."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlnet.registry import open_registry
from xlnet.registry.address import sqlite
from xlnet.registry.mlflow_registry import MlflowRegistry

OPEN = (
    "import sys; from xlnet.registry import open_registry;"
    "open_registry(sys.argv[1]).add('m', '', {'model_uri': '/m'}, {}, {})"
)


def tables(file: Path) -> set[str]:
    with sqlite3.connect(file) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_process_killed_while_it_creates_the_file_leaves_none(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    process = subprocess.Popen([sys.executable, "-c", OPEN, sqlite(file)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (half := [one for one in tmp_path.rglob("mlflow.db") if one.stat().st_size]):
        assert time.monotonic() < deadline, "no file was created"
        assert process.poll() is None, "the process ended before it was killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert half[0].parent.name.endswith(".partial"), half
    if file.exists():  # it was complete before the signal came
        assert "webhooks" in tables(file)
    registry = open_registry(sqlite(file))
    registry.add("reviews", "", {"model_uri": str(tmp_path)}, {}, {})
    assert registry.names()[-1] == "reviews"


def test_the_second_of_two_creators_takes_the_first_ones_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xlnet.registry import mlflow_files

    file = tmp_path / "mlflow.db"

    def late(address: str) -> None:
        Path(address.removeprefix("sqlite:///")).touch()
        file.write_text("the first one's")

    mlflow_files.create(file, late)
    assert file.read_text() == "the first one's"
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_file_that_has_not_changed_answers_without_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = sqlite(tmp_path / "mlflow.db")
    registry = open_registry(address, tmp_path)
    tags = {"model_uri": str(tmp_path / "runs" / "model"), "model_digest": "sha256:1"}
    for version in (1, 2):
        registry.add("reviews", f"reason {version}", tags, {}, {})
    registry.set_alias("reviews", "champion", 1)
    asked = [open_registry(address).versions("reviews"), open_registry(address).champion("reviews")]
    monkeypatch.setattr(MlflowRegistry, "_client", None)  # using it is an error from here on
    again = open_registry(address)
    assert [again.versions("reviews"), again.champion("reviews")] == asked
    assert (again.names(), again.find("reviews:2").description) == (["reviews"], "reason 2")
    assert again.champion("reviews").tags == tags
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    (tmp_path / "mlflow.db-answers.json").rename(tmp_path / "moved.db-answers.json")
    with pytest.raises(AssertionError):
        open_registry(sqlite(tmp_path / "moved.db")).names()
