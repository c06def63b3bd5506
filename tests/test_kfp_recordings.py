"""What the real Kubeflow Pipelines answered: replayed through the product, and compared with our own server."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers.argo import Workflow
from servers.execution import Task
from servers.replay import Replay, exchanges, last_run

from xlnet_pipeline.cli import main

S, C, F, K, X, P, R, L = "SUCCEEDED", "CACHED", "FAILED", "SKIPPED", "CANCELLED", "PENDING", "RUNNING", "LOST"
# situation → state of the run, states of its five steps, and what is read
SITUATIONS = {
    "show-succeeded": (S, [S, S, S, S, S], ""),
    "show-cached": (S, [S, C, C, C, C], ""),
    "show-succeeded-all-cached": (S, [S, C, C, C, C], ""),
    "show-failed-step": (F, [S, F, K, K, K], "has 2 columns, so none with index 7; allowed: 0 to 1"),
    "show-failed-before-any-step": (F, [K] * 5, "the run failed before its first step: its driver xlnet-4qjk5(2)"),
    "show-cancelled": (X, [S, C, X, K, K], ""),
    "show-cancelled-2": (X, [S, C, X, K, K], ""),
    "show-lost-workflow": (L, [L, K, K, K, K], "its workflow 'utc1xdxl4-2-957419143' is gone"),
    "show-running-1": (R, [P] * 5, "waited since 14:59:17 UTC for the workflow controller"),
    "show-running-2": (R, [P] * 5, "its pod has waited since 14:59:27 UTC to be started; see: kubectl -n kubeflow"),
    "show-running-3": (R, [P] * 5, "its pod has waited since 14:59:37 UTC to be started"),
    "show-running-4": (R, [S, C, P, P, P], "its pod has waited since 14:59:57 UTC to be started"),
    "show-running-5": (R, [S, C, C, P, P], "its pod has waited since 15:00:08 UTC to be started"),
    "show-running-6": (S, [S, C, C, C, C], ""),
    "show-training": (R, [S, C, P, P, P], ""),
    "show-jobset-running": (R, [S, C, R, P, P], ""),
    "show-uploaded-in-ui": (S, [S, S, S, S, S], ""),
}


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> Path:
    folder = shared_data / "kfp-recordings"
    if not folder.is_dir():
        pytest.skip("the recordings of the real Kubeflow Pipelines are not beside this checkout")
    return folder


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty pipeline root under the recorded name."""
    from servers.storage import bucket_server

    with bucket_server(monkeypatch) as bucket:
        bucket.client.create_bucket("xl")
        monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://xl/root")
        yield


@pytest.mark.parametrize("ui", [False, True], ids=["server", "ui"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_recorded_situation_reads_as_what_it_was(
    situation: str,
    ui: bool,
    recordings: Path,
    root: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state, steps, words = SITUATIONS[situation]
    if ui and situation == "show-failed-step":  # its pod is gone, and the root of this test is empty
        words = "the log of xlnet-gshm7"
    identity = last_run(recordings, situation)["run_id"]
    with Replay(recordings, situation, ui=ui) as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        began = time.monotonic()
        assert main(["runs", "show", identity, "--target", "kfp", "--json"]) == 0
        assert time.monotonic() - began < 5, "nobody waits for a log that is not there"
        record = json.loads(capsys.readouterr().out)
        assert record["status"] == state
        assert [step["status"] for step in record["steps"]] == steps
        told = json.dumps([record["error"], [step["reason"] for step in record["steps"]]])
        assert words in told
        assert server.count("GET", r"/runs$") == 0, "a look-up lists nothing"
        assert server.count("GET", r"/runs/[^/:]+$") == 1


def test_an_unknown_run_is_unknown_and_a_server_in_trouble_is_not(
    recordings: Path, root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xlnet import http

    monkeypatch.setattr(http, "PATIENCE", 0.2)
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.05)
    with Replay(recordings, "show-unknown") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        for run in ("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "20200101-000000-0000"):
            assert main(["runs", "show", run, "--target", "kfp"]) == 2
            assert f"run '{run}' is unknown on target 'kfp'" in capsys.readouterr().err
        server.fault("GET", r"/runs/", 500, times=99)
        assert main(["runs", "show", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "--target", "kfp"]) == 1
        said = capsys.readouterr().err
        assert "unknown" not in said
        assert "goes on failing (500" in said


def test_cancelling(
    recordings: Path, root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xlnet_pipeline.targets import remote

    monkeypatch.setattr(remote, "FIRST_POLL", 0.01)
    with Replay(recordings, "cancel-ended") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["runs", "cancel", "20261126-143006-b2fc", "--target", "kfp"]) == 2
        assert "is SUCCEEDED; only a running one can be cancelled" in capsys.readouterr().err
    with Replay(recordings, "cancel-training") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["runs", "cancel", "20261126-150102-eeba", "--target", "kfp"]) == 0
        assert "run 20261126-150102-eeba: CANCELLED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("situation", "words", "status", "read"),
    [
        ("schedule-list", "list", 0, ["s1", "0 4 * * *", "UTC"]),
        ("schedule-show-paused", "show s1", 0, ["state      PAUSED", "created", "cron: 0 3 * * * → 0 4 * * *"]),
        ("schedule-resume", "resume s1", 0, ["s1"]),
        ("schedule-list", "show s9", 2, ["schedule 's9' is unknown", "s1"]),
        ("schedule-delete-unknown", "delete nowhere", 2, ["schedule 'nowhere' is unknown; there are s"]),
    ],
)
def test_each_recorded_schedule_reads_as_what_it_was(
    situation: str,
    words: str,
    status: int,
    read: list[str],
    recordings: Path,
    root: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Replay(recordings, situation) as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["schedule", *words.split(), "--target", "kfp"]) == status
        shown = capsys.readouterr()
        for word in read:
            assert word in shown.out + shown.err
        assert not [one for one in server.requests if one.method == "DELETE"]
        assert server.count("POST", ":enable") == words.startswith("resume")


def test_a_submission_reads_as_a_run_that_waits(
    recordings: Path, root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server answers to a submission, asked for by the id that we had given the run."""
    with Replay(recordings, "submit-to-cancel") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["runs", "show", "20261126-150102-eeba", "--target", "kfp", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["status"], [step["status"] for step in record["steps"]]) == (R, [P] * 5)


def test_a_list_reads_no_logs_and_no_more_than_is_shown(
    recordings: Path, root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Replay(recordings, "runs-list") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["runs", "list", "--target", "kfp"]) == 0
        shown = capsys.readouterr().out
        assert shown.count("CANCELLED") == 2
        assert (shown.count("LOST"), shown.count("RUNNING")) == (1, 0), "its schedule was deleted while it ran"
        assert not [one.path for one in server.requests if "log" in one.path]
        sizes = [one.query["page_size"] for one in server.requests if one.path.endswith("/v2beta1/runs")]
        assert sizes == ["20"]
        assert main(["runs", "list", "--target", "kfp", "--limit", "3"]) == 0
        assert capsys.readouterr().out.count("\n20261126") <= 3
        assert main(["runs", "list", "--target", "kfp", "--limit", "0"]) == 2


def test_the_log_of_a_failed_step(
    recordings: Path, root: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Replay(recordings, "show-failed-step") as server:
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        assert main(["runs", "logs", "20261126-143513-e1db", "preprocess", "--target", "kfp"]) == 0
    log = capsys.readouterr().out
    assert "xlnet.errors.UserError: 'gs://xl/data/amazon_cells_labelled.txt' has 2 columns" in log
    assert "launcher_v2.go" not in log
    assert "KFP Executor" not in log


@pytest.mark.parametrize(
    ("scheme", "folder", "spec"),
    [("minio://", "xlnet", ""), ("s3://", "xlnet", "xlnet"), ("minio://", "reviews", "reviews")],
    ids=["as-the-workflow", "s3", "another-name"],
)
def test_a_log_that_only_an_s3_root_has_is_read_there(
    scheme: str,
    folder: str,
    spec: str,
    recordings: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The pods are gone, and the address is the UI's; the folder is named after the pipeline, whoever uploaded it."""
    from servers.s3 import s3_server

    run = last_run(recordings, "show-failed-step")["run_id"]
    with s3_server(monkeypatch) as client, Replay(recordings, "show-failed-step", ui=True) as server:
        for one in server.answers[run]:
            one["runtime_config"]["pipeline_root"] = f"{scheme}mlpipeline/v2/artifacts"
            one["pipeline_spec"] = {"pipelineInfo": {"name": spec}} if spec else None
        key = f"v2/artifacts/{folder}/{run}/preprocess/9f06abb2-ee5e-4dce-a09c-14a11cee7009/executor-logs-0"
        client.put_object(Bucket="mlpipeline", Key=key, Body=b"error: column 7 is none\n")
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        monkeypatch.setenv("KFP_PIPELINE_ROOT", f"{scheme}mlpipeline/v2/artifacts")
        assert main(["runs", "logs", run, "preprocess", "--target", "kfp"]) == 0
        assert "error: column 7 is none" in capsys.readouterr().out


# What our own server says in the same situations. ----------------------------------------------------------------


def task(name: str, state: str, seconds: int = 10) -> Task:
    made = Task(name, name, state)
    seconds = 30 if state == X or name == "train" else seconds
    if state not in ("PENDING", "NOT_TRIGGERED"):
        made.started = datetime(2026, 11, 26, 14, tzinfo=UTC) + timedelta(seconds=20)
        made.ended = None if state in ("RUNNING", "WAITING") else made.started + timedelta(seconds=seconds)
    return made


def ours(spec: dict[str, Any], states: list[str], state: str, broken: str = "") -> list[dict[str, Any]]:
    """The tasks that our server lists when the five steps are in these states."""
    names = ["snapshot", "preprocess", "train", "evaluate", "register"]
    began = datetime(2026, 11, 26, 14, tzinfo=UTC)
    ended = None if state == "RUNNING" else began + timedelta(seconds=90)
    tasks = {name: task(name, one) for name, one in zip(names, states, strict=True)}
    execution: Any = SimpleNamespace(spec=spec, tasks=tasks, state=state, began=began, ended=ended, broken=broken)
    return Workflow("xlnet-abcde", execution, began).details("run")


def shape(tasks: list[dict[str, Any]]) -> Counter[str]:
    """Each task without its ids and times: which fields it has, its name, state, history and number of children."""
    found: Counter[str] = Counter()
    for one in tasks:
        if "display_name" not in one:
            found[f"cache entry {sorted(one)}"] += 1
            continue
        name = re.sub(r"^xlnet-\w{5}", "WORKFLOW", one["display_name"])
        history = [moment.get("state") for moment in one["state_history"]]
        under_way = one["end_time"].startswith("0001")
        children = len(one.get("child_tasks", []))
        found[f"{name} {one.get('state')} {history} {children} {under_way} {sorted(one)}"] += 1
    return found


@pytest.mark.parametrize(
    ("situation", "states", "state"),
    [
        ("show-succeeded", [S] * 5, S),
        ("show-succeeded-all-cached", [S, C, C, C, C], S),
        ("show-failed-step", [S, F, "NOT_TRIGGERED", "NOT_TRIGGERED", "NOT_TRIGGERED"], F),
        ("show-failed-before-any-step", ["NOT_TRIGGERED"] * 5, F),
        ("show-cancelled", [S, C, X, "NOT_TRIGGERED", "NOT_TRIGGERED"], X),
        ("show-running-3", ["WAITING", P, P, P, P], R),
        ("show-jobset-running", [S, C, R, P, P], R),
    ],
)
def test_our_server_lists_the_tasks_that_the_real_one_listed(
    situation: str, states: list[str], state: str, recordings: Path
) -> None:
    spec = json.loads((recordings / "spec-1.json").read_text())["pipeline_spec"]
    broken = "driver said no" if situation == "show-failed-before-any-step" else ""
    recorded = last_run(recordings, situation)["run_details"]["task_details"]
    assert shape(ours(spec, states, state, broken)) == shape(recorded)


def test_node_ids_are_those_that_the_real_server_listed(recordings: Path) -> None:
    import kfp_server_api

    from xlnet_pipeline.targets.kfp.nodes import Nodes

    for situation in SITUATIONS:
        run = last_run(recordings, situation)
        raw = SimpleNamespace(data=json.dumps(run))
        details = kfp_server_api.ApiClient().deserialize(raw, "V2beta1Run").run_details
        listed = details.task_details if details else []
        nodes = list(Nodes(listed))
        listed = [one for one in listed if one.display_name]
        assert len(nodes) == len(listed), f"every task of {situation} has a place"
        assert all(node.started for node in nodes)
        assert len({node.id for node in nodes}) == len(nodes)


def test_the_recorded_refusals_are_ours(recordings: Path, tmp_path: Path) -> None:
    from servers.kfp_server import KfpServer
    from servers.web import Refused, Request

    recorded = next(one for one in exchanges(recordings, "show-unknown") if one["status"] == 404)
    with KfpServer(tmp_path / "kfp") as server:
        request = Request("GET", recorded["path"], {}, None, {})
        status, body, _ = server.answer(request)
        assert (status, body) == (404, recorded["response"])
        server.ui = True
        for one in exchanges(recordings, "ui-server"):
            if "/nodes/" in one["path"]:
                path = one["path"].partition("?")[0]
                assert server.answer(Request("GET", path, {}, None, {}))[:2] == (404, one["response"])
    assert Refused


def whole(run: dict[str, Any]) -> dict[str, Any]:
    """A run's fields without ids, times and what was sent; task lists are compared by :func:`shape`."""
    own = {key: "…" for key in run if key.endswith(("_id", "_at")) or key in ("display_name", "pipeline_spec")}
    if "state_history" in run:
        own["state_history"] = [(one["state"], sorted(one)) for one in run["state_history"]]
    if "run_details" in run:
        own["run_details"] = sorted(run["run_details"])
    return {**run, **own, "runtime_config": sorted(run["runtime_config"])}


def test_our_server_answers_whole_runs_as_the_real_one(recordings: Path, tmp_path: Path) -> None:
    from servers.kfp_server import KfpServer
    from servers.web import Request

    runs = "/apis/v2beta1/runs"
    submitted = exchanges(recordings, "submit")[-1]
    spec = json.loads((recordings / submitted["request"]["pipeline_spec"]["$recorded"]).read_text())
    with KfpServer(tmp_path / "kfp") as server:
        server.run_pipelines = False

        def ask(method: str, path: str, body: Any = None, **query: str) -> Any:
            status, answer, _ = server.answer(Request(method, path, query, body, {}))
            assert status == 200, answer
            return answer

        experiment = ask("POST", "/apis/v2beta1/experiments", {"display_name": "xlnet"})
        real = exchanges(recordings, "submit")[0]["response"]["experiments"][0]
        assert sorted(experiment) == sorted(real)
        own = {"experiment_id": experiment["experiment_id"], "pipeline_spec": spec}
        for situation, states, state in (
            ("show-running-1", [P] * 5, P),
            ("show-running-3", ["WAITING", P, P, P, P], R),
            ("show-succeeded", [S] * 5, S),
            ("show-failed-step", [S, F, "NOT_TRIGGERED", "NOT_TRIGGERED", "NOT_TRIGGERED"], F),
            ("show-cancelled-2", [S, C, X, "NOT_TRIGGERED", "NOT_TRIGGERED"], X),
        ):
            made = ask("POST", runs, {**submitted["request"], **own})
            assert whole(made) == whole(submitted["response"])
            execution = server.executions[made["run_id"]]
            if state != P:
                execution.began, execution.state = datetime.now(UTC), R
                ask("GET", f"{runs}/{made['run_id']}")
            if state == X:
                ask("POST", f"{runs}/{made['run_id']}:terminate", {})
            names = list(execution.tasks)
            execution.tasks = {name: task(name, one) for name, one in zip(names, states, strict=True)}
            execution.state, execution.ended = state, None if state in (P, R) else datetime.now(UTC)
            shown = ask("GET", f"{runs}/{made['run_id']}")
            assert whole(shown) == whole(last_run(recordings, situation)), situation
            listed = ask("GET", runs, sort_by="created_at desc", page_size="1")
            assert sorted(whole(listed["runs"][0])) == sorted(whole(shown)), "a list holds whole runs"
        real = exchanges(recordings, "runs-list")[1]["response"]
        assert set(ask("GET", runs)) == set(real)
