"""Which steps run again, and which do not, through the command line and the real steps.

The tests share one state directory: what one has made is there for the next, as it is for a user.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_sentences

import xlnet
from xlnet.registry import open_registry

STEPS = ["snapshot", "preprocess", "train", "evaluate", "register"]
SETTINGS = {
    "data.max_length": 6,  # so that texts are cut
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 1,
    "model.d_head": 16,
    "model.d_inner": 16,
    "training.steps": 4,
    "training.batch_tokens": 256,
    "evaluation.resamples": 100,
}
ENDLESS = {"training.steps": 100_000, "training.checkpoint_every": 50}


class Project:
    """A CSV, a state directory, and the command line over both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.csv = write_sentences(folder / "sentences.csv", rows=60)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
            "XLNET_PIPELINE_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, **settings: Any) -> subprocess.Popen[str]:
        """``xlnet-pipeline run --set …``; dots in names are written as two underscores."""
        chosen = {"data.train": str(self.csv), **SETTINGS}
        chosen |= {name.replace("__", "."): value for name, value in settings.items()}
        words = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
        return subprocess.Popen(
            [sys.executable, "-m", "xlnet_pipeline.cli", "run", *words],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **settings: Any) -> dict[str, Any]:
        """Run to a good end and return the record."""
        with self.start(**settings) as process:
            shown = process.communicate(timeout=120)[0]
        assert process.returncode == 0, shown
        return self.newest()

    def newest(self) -> dict[str, Any]:
        path = max(self.home.glob("runs/*/run.json"), key=lambda path: path.parent.stat().st_ctime_ns)
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "xlnet_pipeline.cli", *words]
        return subprocess.run(line, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)

    def wait_for_training(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait until the run that ``process`` does is within its train step."""
        patience = time.monotonic() + 60
        while time.monotonic() < patience and process.poll() is None:
            for path in self.home.glob("runs/*/run.json"):
                record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                log = path.parent / "logs" / "train.log"
                if record["pid"] == process.pid and log.exists() and "training on" in log.read_text(encoding="utf-8"):
                    return record
            time.sleep(0.1)
        raise AssertionError(f"no training began: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose pipeline has run once."""
    project = Project(tmp_path_factory.mktemp("project"))
    first = project.run()
    assert [step["status"] for step in first["steps"]] == ["SUCCEEDED"] * 5
    assert {step["reason"] for step in first["steps"][1:]} == {"first time"}
    return project


def ran(record: dict[str, Any]) -> list[str]:
    assert {step["status"] for step in record["steps"]} <= {"SUCCEEDED", "CACHED"}
    return [step["name"] for step in record["steps"] if step["status"] == "SUCCEEDED"]


def reason(record: dict[str, Any], name: str) -> str:
    return str(record["steps"][STEPS.index(name)]["reason"])


def artifact(project: Project, record: dict[str, Any], step: str, name: str) -> Path:
    return project.home / str(record["steps"][STEPS.index(step)]["outputs"][name]["uri"])


def test_an_unchanged_rerun_takes_a_snapshot_and_nothing_else(project: Project) -> None:
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    with project.start() as process:
        shown = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert ran(project.newest()) == ["snapshot"]
    assert "Lineage of" in artifact(project, project.newest(), "register", "lineage").read_text()
    said = shown[shown.index("preprocess: cached") : shown.index("train: cached")]
    assert said.count("warning: ") == 1
    assert "texts are longer than data.max_length = 6 tokens and lose their ends" in said
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of processor time: tests share a machine.
    assert ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime < 5


def test_a_recipe_field_reruns_what_depends_on_it(project: Project) -> None:
    record = project.run(evaluation__margin=0.01)
    assert ran(record) == ["snapshot", "evaluate", "register"]
    assert reason(record, "evaluate") == "recipe changed: evaluation.margin 0.0 → 0.01"
    assert ran(project.run(registry__name="other")) == ["snapshot", "register"]


def test_a_changed_byte_of_data_reruns_everything(project: Project) -> None:
    before = project.csv.read_bytes()
    try:
        project.csv.write_bytes(before.replace(b"a dull cold film", b"a dull cold filM", 1))
        record = project.run()
    finally:
        project.csv.write_bytes(before)
    assert ran(record) == STEPS
    assert reason(record, "preprocess") == "input data changed"
    assert ran(project.run()) == ["snapshot"], "the bytes are back, and so are their results"


def test_a_changed_line_of_code_reruns_what_reaches_it(project: Project, tmp_path: Path) -> None:
    source = Path(xlnet.__file__).parent
    copy = tmp_path / "changed" / "xlnet"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    earlier = project.environment
    project.environment = {**earlier, "PYTHONPATH": str(copy.parent)}
    try:
        assert ran(project.run()) == ["snapshot"], "the same code in another place is the same code"
        with (copy / "evaluation" / "report.py").open("a") as file:
            file.write("# changed\n")
        record = project.run()
        assert ran(record) == ["snapshot", "evaluate"], "an evaluation of equal bytes is registered already"
        assert reason(record, "evaluate") == "code changed: xlnet.evaluation.report"
        with (copy / "data" / "readers.py").open("a") as file:
            file.write("# changed\n")
        assert ran(project.run()) == ["snapshot", "preprocess"], "a dataset of equal bytes is trained on already"
    finally:
        project.environment = earlier


def test_a_damaged_artifact_is_made_again_and_the_user_told(project: Project) -> None:
    dataset = artifact(project, project.run(), "preprocess", "dataset")
    shard = next(dataset.glob("train/*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    record = project.run()
    assert ran(record)[:2] == ["snapshot", "preprocess"]
    assert "train" not in ran(record), "the dataset made again has the same bytes"
    assert "cached dataset is damaged" in reason(record, "preprocess")
    assert artifact(project, record, "preprocess", "dataset") != dataset
    shutil.rmtree(artifact(project, record, "train", "model"))
    record = project.run()
    assert "cached model is gone" in reason(record, "train")
    assert "evaluate" not in ran(record), "the model made again has the same bytes"
    assert "model is gone" in reason(record, "register"), "the registered version pointed to the model that is gone"


def test_a_registration_is_made_again_where_its_registry_is_gone(project: Project) -> None:
    (project.home / "mlflow.db").rename(project.home / "mlflow.db.gone")
    record = project.run()
    assert ran(record) == ["snapshot", "register"]
    changed = r"registry changed: mlflow.db with champion 1 .* → mlflow.db without a champion"
    assert re.search(changed, reason(record, "register"))


def test_a_registration_is_made_again_whose_version_was_deleted(project: Project) -> None:
    project.run()
    record = project.run(training__seed=2)  # not shown to be better, so that the champion stays the same
    registry = open_registry(home=project.home)
    newest = registry.versions(record["recipe"]["registry"]["name"])[0]
    assert not newest.aliases
    registry.delete(newest.name, newest.version)
    record = project.run(training__seed=2)
    assert ran(record) == ["snapshot", "register"]
    assert "is not in the registry any more" in reason(record, "register")


@pytest.mark.slow
def test_no_cache_runs_everything(project: Project) -> None:
    process = project.command(
        "run",
        "--no-cache",
        *(f"--set={name}={value}" for name, value in {"data.train": project.csv, **SETTINGS}.items()),
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert ran(project.newest()) == STEPS


def test_two_equal_runs_at_once_do_the_work_once(project: Project) -> None:
    project.run()  # what the next ones are compared with
    processes = [project.start(training__seed=1) for _ in range(2)]
    shown = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    records = [json.loads(path.read_text()) for path in project.home.glob("runs/*/run.json")]
    pair = [record for record in records if record["pid"] in {process.pid for process in processes}]
    by_step = {name: [record["steps"][STEPS.index(name)] for record in pair] for name in STEPS}
    assert [step["status"] for step in by_step["preprocess"]] == ["CACHED", "CACHED"]
    for name in ("train", "evaluate", "register"):
        assert sorted(step["status"] for step in by_step[name]) == ["CACHED", "SUCCEEDED"]
    assert "recipe changed: training.seed 0 → 1" in {step["reason"] for step in by_step["train"]}
    assert len({step["outputs"]["model"]["digest"] for step in by_step["train"]}) == 1
    (first,) = [record for record in pair if record["steps"][STEPS.index("train")]["status"] == "SUCCEEDED"]
    waited = f"train: waiting for run {first['id']} (process {first['pid']}), which does the same work"
    assert [waited in text for text in shown].count(True) == 1, shown


def training_files(project: Project, run: str) -> list[Path]:
    return list((project.home / "runs" / run / "artifacts" / "train").glob("model*"))


def test_ctrl_c_leaves_a_clean_cancelled_record(project: Project) -> None:
    process = project.start(**{name.replace(".", "__"): value for name, value in ENDLESS.items()})
    run = project.wait_for_training(process)["id"]
    process.send_signal(signal.SIGINT)
    shown = process.communicate(timeout=30)[0]
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    record = json.loads((project.home / "runs" / run / "run.json").read_text())
    assert record["status"] == "CANCELLED"
    assert [step["status"] for step in record["steps"]][1:] == ["CACHED", "CANCELLED", "SKIPPED", "SKIPPED"]
    assert training_files(project, run) == []


def test_cancel_from_another_terminal(project: Project) -> None:
    process = project.start(**{name.replace(".", "__"): value for name, value in ENDLESS.items()})
    run = project.wait_for_training(process)["id"]
    cancelled = project.command("runs", "cancel", run)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    process.communicate(timeout=30)
    assert process.returncode == 130
    again = project.command("runs", "cancel", run)
    assert again.returncode == 2
    assert "CANCELLED" in again.stderr


def test_a_killed_run_has_failed_and_left_nothing_that_looks_whole(project: Project) -> None:
    process = project.start(**{name.replace(".", "__"): value for name, value in ENDLESS.items()})
    run = project.wait_for_training(process)["id"]
    process.kill()
    process.communicate(timeout=30)
    shown = project.command("runs", "show", run).stdout
    assert "FAILED" in shown
    assert "process died" in shown
    assert training_files(project, run) == []
    kept = [json.loads(path.read_text())["run"] for path in project.home.glob("cache/train-*.json")]
    assert run not in kept
