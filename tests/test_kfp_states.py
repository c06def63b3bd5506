"""What a user reads of a run on Kubeflow Pipelines while it waits, fails, is lost, or cannot be asked about."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from servers.kfp_server import KfpServer
from servers.web import WebServer
from test_kfp_target import recipe_file

from xlnet import http
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets import remote
from xlnet_pipeline.targets.kfp import target as kfp_target


def started(recipe: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The id of a run that has been submitted."""
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", *more]) == 0
    return capsys.readouterr().out.split("run ", 1)[1].split()[0]


def test_a_run_that_no_node_takes_says_so_and_is_cancelled_with_130(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.3)
    kfp.unschedulable = {"snapshot": threading.Event()}
    recipe = recipe_file(tmp_path / "recipe.toml")

    def cancel() -> None:
        while not kfp.executions:  # a busy machine submits late
            time.sleep(0.1)
        time.sleep(3)
        (identity,) = kfp.runs
        kfp.executions[identity].cancel()
        kfp.runs[identity]["state_history"].append({"update_time": "2026-11-26T15:01:53Z", "state": "CANCELING"})

    threading.Thread(target=cancel, daemon=True).start()
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", "--wait"]) == 130
    said = capsys.readouterr().out
    assert said.count("snapshot: its pod has waited since ") == 1, "and not again and again"
    assert "see: kubectl -n kubeflow describe pods -l workflows.argoproj.io/workflow=xlnet-" in said
    assert "CANCELLED" in said


@pytest.mark.parametrize("ui", [False, True], ids=["server", "ui"])
def test_a_failure_before_any_step_is_in_the_drivers_words(
    ui: bool, kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.ui = ui
    kfp.broken = "F1126 14:35:55.920542      35 main.go:59] failed to resolve inputs: no bucket 'xl'"
    recipe = recipe_file(tmp_path / "recipe.toml")
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", "--wait"]) == 1
    assert "the run failed before its first step: failed to resolve inputs: no bucket 'xl'" in capsys.readouterr().out


@pytest.mark.parametrize("pods", ["server", "ui", "gone"])
def test_a_failed_steps_words_are_found_where_they_are(
    pods: str, kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.ui, kfp.pods_deleted = pods != "server", pods == "gone"
    recipe = recipe_file(tmp_path / "recipe.toml")
    began = time.monotonic()
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", "--wait", "--set", "data.text=body"]) == 2
    said = capsys.readouterr().out
    assert "column 'body'" in said
    run = said.split("run ", 1)[1].split()[0]
    assert main(["runs", "logs", run, "preprocess", "--target", "kfp"]) == 0
    assert "column 'body'" in capsys.readouterr().out
    assert time.monotonic() - began < 60


def test_a_run_whose_schedule_is_deleted_is_lost(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kfp_target, "GONE_AFTER", -1.0)
    kfp.unschedulable = {"snapshot": threading.Event()}
    recipe = recipe_file(tmp_path / "recipe.toml")
    run = started(recipe, capsys)
    (identity,) = kfp.runs
    time.sleep(0.3)
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert "LOST" not in capsys.readouterr().out, "it waits for a node"
    kfp.runs[identity]["recurring_run_id"] = "106a9f5d-b39e-4ffc-981d-2cdf1df8b48b"
    kfp.lose(identity)
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    shown = capsys.readouterr().out
    assert "LOST" in shown
    assert "is gone from the cluster" in shown


class Pages(WebServer):
    """An address that answers everything with one page: a login, or an application of one page."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def answer(self, request: object) -> tuple[int, object, dict[str, str]]:
        return self.status, "<!DOCTYPE html>\n<html><body>Sign in</body></html>", {}


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("words", [["runs", "list"], ["runs", "show", "4f2a"], ["schedule", "list"]])
def test_an_address_with_web_pages_is_one_line(
    status: int,
    words: list[str],
    kfp: KfpServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.1)
    with Pages(status) as pages:
        monkeypatch.setenv("KFP_ENDPOINT", pages.url)
        assert main([*words, "--target", "kfp"]) == 2
    said = capsys.readouterr().err
    assert "answers with a web page" in said
    assert "KFP_TOKEN" in said
    assert len(said.splitlines()) == 1


def test_a_root_that_cannot_be_read_costs_the_artifacts_and_not_the_states(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xlnet.data import objects
    from xlnet.errors import UserError

    run = started(recipe_file(tmp_path / "recipe.toml"), capsys, "--set", "data.text=body")

    def refused(uri: str, pattern: str | None = None) -> list[object]:
        raise UserError(f"'{uri}': no valid credentials; type: gcloud auth application-default login")

    monkeypatch.setattr(objects, "listing", refused)
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    shown = capsys.readouterr().out
    assert "preprocess" in shown
    assert "note: its artifacts are not shown: " in shown
    assert "gcloud auth application-default login" in shown


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_server_that_is_away_for_a_while_ends_no_wait(
    fault: int | str,
    kfp: KfpServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.3)
    kfp.run_pipelines = False

    def come_back() -> None:
        (execution,) = until(lambda: list(kfp.executions.values()))
        kfp.fault("GET", "/apis/v2beta1/runs/", fault, times=1000)
        time.sleep(2)
        kfp.faults.clear()
        execution.start()

    threading.Thread(target=come_back, daemon=True).start()
    recipe = recipe_file(tmp_path / "recipe.toml")
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", "--wait", "--set", "data.text=body"]) == 2
    said = capsys.readouterr().out
    assert "the run goes on meanwhile, and this command goes on waiting" in said
    assert "column 'body'" in said


def test_one_that_stays_away_ends_the_wait_in_the_end(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.1)
    monkeypatch.setattr(remote, "OUTAGE", 0.5)
    kfp.run_pipelines = False
    kfp.fault("GET", "/apis/v2beta1/runs/", 503, times=1000)
    recipe = recipe_file(tmp_path / "recipe.toml")
    assert main(["run", str(recipe), "--target", "kfp", "--no-check", "--wait"]) == 1
    assert "goes on failing (503" in capsys.readouterr().err


def test_a_run_that_is_cancelled_before_it_began(
    kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.run_pipelines = False
    run = started(recipe_file(tmp_path / "recipe.toml"), capsys)
    ((identity, execution),) = kfp.executions.items()
    history = kfp.runs[identity]["state_history"]
    history.append({"update_time": "2026-11-26T15:01:53Z", "state": "CANCELING"})
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert "note: somebody asked for its end at 15:01:53 UTC; it has not ended yet" in capsys.readouterr().out
    execution.state, execution.began = "FAILED", datetime.now(UTC)
    execution.ended = execution.began
    history.append({"update_time": "2026-11-26T15:01:59Z", "state": "FAILED"})
    kfp.runs[identity]["storage_state"] = "ARCHIVED"
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    shown = capsys.readouterr().out
    assert f"run {run}  CANCELLED" in shown
    assert shown.count("SKIPPED") == 5
    assert main(["runs", "list", "--target", "kfp"]) == 0
    assert "CANCELLED" in capsys.readouterr().out
    assert main(["runs", "logs", run, "--target", "kfp"]) == 0
    assert f"no step of run {run} has written anything" in capsys.readouterr().err


def test_a_run_that_somebody_started_in_the_ui_is_known_by_the_servers_id(
    kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(recipe_file(tmp_path / "recipe.toml"), capsys, "--set", "data.text=body")
    ((identity, execution),) = kfp.executions.items()
    execution.join(60)
    kfp.runs[identity]["display_name"] = "Run of reviews (1b2c3)"
    del kfp.runs[identity]["runtime_config"]["pipeline_root"]
    for name in (identity, identity[:6], identity[-6:]):
        assert main(["runs", "show", name, "--target", "kfp"]) == 0
        shown = capsys.readouterr().out
        assert f"run {identity}  FAILED" in shown
        assert "has no column 'body'; it has: text, label" in shown
    assert "Traceback" not in shown
    assert "Traceback" not in shown, "a mistake of the user's is no bug"
    assert main(["runs", "logs", identity, "preprocess", "--target", "kfp"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 8


def test_a_huge_log_with_strange_bytes_is_read_in_seconds(
    kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(recipe_file(tmp_path / "recipe.toml"), capsys, "--set", "data.text=body")
    (execution,) = kfp.executions.values()
    execution.join(60)
    lines = "".join(f"step {number}/200000  loss 0.6931\n" for number in range(200_000))
    execution.tasks["preprocess"].logs[-1] = f"{lines}\x00\x1b[31mred\x1b[0m\n{execution.tasks['preprocess'].logs[-1]}"
    began = time.monotonic()
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert "has no column 'body'" in capsys.readouterr().out
    assert main(["runs", "logs", run, "preprocess", "--target", "kfp"]) == 0
    said = capsys.readouterr().out
    assert time.monotonic() - began < 30
    assert said.count("\n") > 200_000
    assert "\x1b" not in said


def until(look: Callable[[], Any]) -> Any:
    """What ``look`` returns, once that is true."""
    while not (found := look()):
        time.sleep(0.02)
    return found
