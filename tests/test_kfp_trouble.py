"""A server's trouble is never told as absence: of a run, a schedule, a log, a model or an experiment."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import PINNED_IMAGE
from servers.kfp_server import KfpServer
from servers.web import Request

from xlnet import http
from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet_pipeline.cli import main
from xlnet_pipeline.placement import placement
from xlnet_pipeline.placement.machines import machine
from xlnet_pipeline.targets.kfp import api
from xlnet_pipeline.targets.kfp.target import KfpTarget
from xlnet_pipeline.targets.settings import KfpSettings

# What stands between a user and the server may say anything: status, body.
TROUBLE: dict[str, tuple[int, Any]] = {
    "403": (403, {"code": 7, "message": "User 'ann' is not authorized"}),
    "404 of a proxy": (404, {"code": 5, "message": "Not Found"}),
    "404 page": (404, "<!DOCTYPE html>\n<html>no such page</html>"),
    "404 text": (404, "404 page not found\n"),
    "429": (429, {"message": "too many requests"}),
    "500": (500, {"code": 13, "message": "InternalServerError: the database is not there"}),
    "502": (502, "<!DOCTYPE html>\n<html>Bad Gateway</html>"),
    "503": (503, "no healthy upstream"),
    "cut": (0, "cut"),
    "drop": (0, "drop"),
    "hang": (0, "hang"),
}
ABSENCE = ("is unknown", "no runs", "no schedules", "are no runs", " is gone", "(deleted)", "LOST", "no log of")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KfpServer]:
    """A server with a schedule, whose run has gone on for a day."""
    target = KfpTarget(KfpSettings(endpoint="http://there", pipeline_root="gs://bucket/root"))
    where = placement("kfp", PINNED_IMAGE, machine("cpu"))
    with KfpServer(tmp_path_factory.mktemp("kfp")) as made:
        made.run_pipelines = False
        experiment = made.create_experiment(Request("POST", "", {}, {"display_name": "xlnet"}, {}))["experiment_id"]
        wanted = target.body(
            recipes.tiny().replace(data={"train": "gs://bucket/rows.csv"}), where, "nightly", experiment
        )
        times = {"max_concurrency": "1", "mode": "ENABLE", "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}}}
        body = {**wanted, **times}
        schedule = made.recurring_runs.create(Request("POST", "", {}, body, {}))["recurring_run_id"]
        execution = made.executions[made.fire(schedule)["run_id"]]
        execution.began, execution.state = datetime(2026, 11, 26, tzinfo=UTC), "RUNNING"
        snapshot = execution.tasks["snapshot"]
        snapshot.state, snapshot.started, snapshot.log = "RUNNING", execution.began, "a line of the snapshot's\n"
        yield made


@pytest.fixture
def there(server: KfpServer, monkeypatch: pytest.MonkeyPatch) -> KfpServer:
    """That server, as settings name it; the bucket is nowhere."""
    for name, value in (("KFP_ENDPOINT", server.url), ("KFP_PIPELINE_ROOT", "gs://bucket/root")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(http, "PATIENCE", 0.0)
    monkeypatch.setattr(http, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr(api, "LOOK", (0.2, 0.2))
    monkeypatch.setattr(objects, "listing", nothing)
    return server


def nothing(uri: str, pattern: str | None = None) -> list[Any]:
    """An empty bucket."""
    return []


@contextlib.contextmanager
def broken(server: KfpServer, path: str, trouble: str) -> Iterator[None]:
    """Have requests for a path end in trouble."""
    status, body = TROUBLE[trouble]
    true = server.answer

    def answer(request: Request) -> tuple[int, Any, dict[str, str]]:
        return (status, body, {}) if re.search(path, request.path) else true(request)

    if status:
        server.answer = answer  # type: ignore[method-assign]
    for method in () if status else ("GET", "POST", "DELETE"):
        server.fault(method, path, body, times=99)
    yield
    server.answer = true  # type: ignore[method-assign]
    server.faults.clear()


COMMANDS = [
    (["runs", "show", "RUN"], "/runs/[^/]+$"),
    (["runs", "logs", "RUN"], "/runs/[^/]+$"),
    (["runs", "cancel", "RUN"], "/runs/[^/]+$"),
    (["runs", "cancel", "RUN"], ":terminate$"),
    (["lineage", "RUN"], "/runs/[^/]+$"),
    (["runs", "show", "abcd"], "/runs$"),
    (["runs", "list"], "/runs$"),
    (["runs", "list"], "/experiments$"),
    (["runs", "list"], "/recurringruns$"),
    (["schedule", "list"], "/recurringruns$"),
    (["schedule", "list"], "/experiments$"),
    (["schedule", "show", "nightly"], "/recurringruns$"),
    (["schedule", "pause", "nightly"], ":disable$"),
    (["schedule", "delete", "nightly"], "/recurringruns"),
]


@pytest.mark.parametrize(("words", "path"), COMMANDS, ids=lambda one: " ".join(one) if isinstance(one, list) else one)
def test_trouble_is_told_as_trouble(
    words: list[str], path: str, there: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = there.runs
    given = [run if word == "RUN" else word for word in words]
    for trouble in TROUBLE:
        with broken(there, path, trouble):
            status = main([*given, "--target", "kfp"])
        said = capsys.readouterr()
        assert status in (1, 2), trouble
        assert not [word for word in ABSENCE if word in said.out + said.err], trouble
        assert said.err.splitlines()[-1].startswith("error: "), trouble


@pytest.mark.parametrize("ui", [False, True], ids=["server", "ui"])
def test_a_log_that_cannot_be_read_is_not_gone(ui: bool, there: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = there.runs
    there.ui = ui
    path = "/k8s/pod/logs" if ui else "/nodes/"
    for trouble in TROUBLE:
        if trouble.startswith("404") or (ui and trouble == "500"):  # such a server has no such path, or no such pod
            continue
        with broken(there, path, trouble):
            assert main(["runs", "logs", run, "snapshot", "--target", "kfp"]) == 0
            said = capsys.readouterr()
            assert main(["runs", "show", run, "--target", "kfp"]) == 0
            shown = capsys.readouterr()
        assert "cannot be read: Kubeflow Pipelines at " in said.out, trouble
        assert not [word for word in ABSENCE if word in said.out + shown.out], trouble
    there.ui = False


def test_trouble_with_the_archive_loses_no_run(
    there: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The API server reads logs from the cluster, and then from its archive; the last error is what it answers."""
    (run,) = there.runs
    monkeypatch.setitem(
        TROUBLE, "archive", (200, '{"error_message":"... error fetching the log file: ... dial tcp: i/o timeout"}')
    )
    with broken(there, "/nodes/", "archive"):
        assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert "RUNNING" in capsys.readouterr().out


def test_whoever_may_not_see_schedules_sees_runs(there: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = there.runs
    (schedule,) = there.recurring
    with broken(there, "/recurringruns/", "403"):
        assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert f"schedule {schedule}" in capsys.readouterr().out


def test_looking_makes_no_experiment(
    there: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of another experiment is found by its id, and knows its schedule."""
    (run,) = there.runs
    monkeypatch.setenv("KFP_EXPERIMENT", "nothing-yet")
    start = "no runs on target 'kfp'; start one with: xlnet-pipeline run --target kfp\n"
    for words, told in ((["runs", "list"], start), (["schedule", "list"], "no schedules")):
        assert main([*words, "--target", "kfp"]) == 0
        assert told in capsys.readouterr().out
    monkeypatch.setenv("KFP_EXPERIMENT", "xlnet")
    assert main(["runs", "list", "--limit", "1", "--target", "kfp"]) == 0
    assert "all of them: xlnet-pipeline runs list --all --target kfp\n" in capsys.readouterr().out
    monkeypatch.setenv("KFP_EXPERIMENT", "nothing-yet")
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    assert "schedule nightly 20" in capsys.readouterr().out
    assert [one["display_name"] for one in there.experiments.values()] == ["xlnet"]
