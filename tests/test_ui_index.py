"""The index file from which the pages take the rows of ended runs, and what the server keeps out of its memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xlnet.steps import STEPS
from xlnet_pipeline.targets import processes, record
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import Run, StepRun
from xlnet_pipeline.ui import catalogue, row_index
from xlnet_pipeline.ui.catalogue import LocalRuns
from xlnet_pipeline.ui.row import RunRow

COUNT = 6


def write(home: Path, number: int, status: str = record.SUCCEEDED) -> Path:
    name = f"20261101-0000{number:02d}-{number:04x}"
    when = f"2026-11-01T00:00:{number:02d}+00:00"
    path = home / "runs" / name / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs = {
        "model": {"uri": str(path.parent / "m"), "type": "system.Model", "digest": f"sha256:{number}", "metadata": {}}
    }
    steps = [StepRun(step, outputs=outputs if step == "train" else {}) for step in STEPS]
    ended = None if status == record.RUNNING else when
    run = Run(name, "local", {"registry": {"name": "reviews"}}, "sha256:0", when, status, ended, steps=steps)
    run.pid, run.pid_started = os.getpid(), processes.started(os.getpid())
    record.write(run, path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of which the index file holds the rows."""
    monkeypatch.setattr(catalogue, "MANY", COUNT)
    folder = tmp_path / "state"
    for number in range(COUNT):
        write(folder, number)
    assert len(rows(folder)) == COUNT
    assert (folder / row_index.NAME).is_file()
    return folder


def rows(home: Path) -> list[RunRow]:
    """What a server that has just been started lists."""
    return LocalRuns(LocalTarget(home)).rows()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs whose records are read from now on."""
    names: list[str] = []
    whole = record.read

    def noted(path: Path) -> Run:
        names.append(path.parent.name)
        return whole(path)

    monkeypatch.setattr(record, "read", noted)
    return names


def test_a_second_server_reads_no_record(home: Path, read: list[str]) -> None:
    found = rows(home)
    assert read == []
    (home / row_index.NAME).unlink()
    assert found == rows(home), "the same as from the records"
    assert len(read) == COUNT


def test_records_that_are_new_or_changed_are_read(home: Path, read: list[str]) -> None:
    changed = write(home, 2, record.FAILED)
    new = write(home, 9)
    shutil.rmtree(home / "runs" / rows(home)[-1].id)
    read.clear()
    found = {row.id: row.status for row in rows(home)}
    assert set(read) == {changed.parent.name, new.parent.name}
    assert found[changed.parent.name] == record.FAILED
    assert len(found) == COUNT, "one new, one removed"


def test_a_running_run_is_read_each_time(home: Path, read: list[str]) -> None:
    running = write(home, 9, record.RUNNING).parent.name
    listed = LocalRuns(LocalTarget(home))
    listed.rows()
    row_index.save(home, listed._known or {})
    read.clear()
    assert rows(home)[0].id == running
    assert running in read


def test_a_record_that_is_replaced_within_one_tick_of_the_clock_is_read(home: Path, read: list[str]) -> None:
    path = home / "runs" / rows(home)[0].id / "run.json"
    before = path.stat()
    other = path.with_name("other")
    other.write_text(path.read_text().replace("reviews", "revenue"))
    os.utime(other, ns=(before.st_mtime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert rows(home)[0].name == "revenue"


@pytest.mark.parametrize(
    "spoil", [lambda text: "", lambda text: text[:-90], lambda text: text.replace("SUCC", "FAIL"), lambda text: "[1]"]
)
def test_a_damaged_index_counts_for_nothing(home: Path, spoil: object) -> None:
    assert callable(spoil)
    file = home / row_index.NAME
    file.write_text(spoil(file.read_text()))
    assert {row.status for row in rows(home)} == {record.SUCCEEDED}
    assert len(rows(home)) == COUNT


def test_in_a_directory_that_was_moved_the_rows_name_the_new_one(home: Path) -> None:
    moved = home.rename(home.with_name("moved"))
    assert {Path(place).parents[2] for row in rows(moved) for _, place in row.digests} == {moved}


def test_a_directory_that_cannot_be_written_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / row_index.NAME).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    assert len(rows(home)) == COUNT
    assert sorted(path.name for path in home.iterdir()) == ["runs"]


def test_the_server_loads_no_large_library() -> None:
    large = {"torch", "numpy", "pyarrow", "kfp", "mlflow", "requests", "tokenizers", "transformers", "google.protobuf"}
    code = f"import sys, xlnet_pipeline.ui.server; print(*({large} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
