"""Servers that fail in every way: a retry that succeeds, or one clear line; and nothing submitted twice."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PINNED_IMAGE
from servers.execution import now
from servers.kfp_server import KfpServer

from xlnet import http
from xlnet.errors import RunError, UserError
from xlnet_pipeline import dag
from xlnet_pipeline.cli import main
from xlnet_pipeline.dag import documents
from xlnet_pipeline.targets import open_target, record, remote

SUBMIT = ["run", "--set", "data.train=demo:uci_sentences", "--set", "data.label=1", "--no-check"]


def new_server(target: str, root: Path) -> Any:
    if target == "kfp":
        return KfpServer(root)
    pytest.importorskip("google.cloud.aiplatform_v1", reason="pip install google-cloud-aiplatform")
    from servers.vertex_server import VertexServer

    return VertexServer(root)


COMPILED: dict[str, list[dict[str, Any]]] = {}


def compiled_once(where: Any, pretrains: bool = False, shards: int = 1) -> list[dict[str, Any]]:
    """The real documents, compiled once for all tests: what they say is not what is tested here."""
    key = repr((where, pretrains, shards))
    if key not in COMPILED:
        COMPILED[key] = documents(where, pretrains=pretrains, shards=shards)
    return copy.deepcopy(COMPILED[key])


@pytest.fixture(params=["kfp", "vertex"])
def faulty(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server whose runs do not run; its ``target`` and the path of ``creating`` a run."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with new_server(request.param, tmp_path / "server") as server:
        server.target = request.param
        server.creating = "/runs$" if request.param == "kfp" else "/pipelineJobs$"
        server.run_pipelines = False
        monkeypatch.setattr("servers.execution.Execution.start", lambda execution: None)
        monkeypatch.setattr(dag, "documents", compiled_once)
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://bucket/root")
        monkeypatch.setenv("VERTEX_ENDPOINT", server.url)
        monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "a-token")
        monkeypatch.setenv("VERTEX_PROJECT_ID", "demo")
        monkeypatch.setenv("VERTEX_PIPELINE_ROOT", "gs://bucket/root")
        monkeypatch.setenv("XLNET_IMAGE", PINNED_IMAGE)
        monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
        monkeypatch.setattr(http, "PATIENCE", 1.0)
        monkeypatch.setattr(http, "TIMEOUT", (1.0, 0.4))
        yield server


def submit(server: Any) -> int:
    return main([*SUBMIT, "--target", server.target])


def made(server: Any) -> int:
    return len(server.runs if server.target == "kfp" else server.jobs)


@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "drop", "hang"])
def test_trouble_that_passes_is_waited_out_and_nothing_is_submitted_twice(faulty: Any, fault: int | str) -> None:
    faulty.fault("POST", faulty.creating, fault)
    assert submit(faulty) == 0
    assert made(faulty) == 1


def test_a_server_that_says_when_to_come_back_is_obeyed(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE", 5.0)
    faulty.fault("POST", faulty.creating, 429, Retry_After="1")
    started = time.monotonic()
    assert submit(faulty) == 0
    assert time.monotonic() - started > 1.0


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (401, 2, "does not accept the credentials (expired?)"),
        (403, 2, "denies access: injected"),
        (404, 2, "check"),
        (400, 2, "refused the request (400): injected"),
        (503, 1, "goes on failing (503: injected); try again later"),
        ("drop", 0, ""),
        ("hang", 1, "does not answer"),
    ],
)
def test_trouble_that_stays_is_one_line(
    faulty: Any, fault: int | str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty.fault("POST", faulty.creating, fault, times=99)
    assert submit(faulty) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") <= 1
    assert made(faulty) == (1 if fault == "drop" else 0)


def test_an_expired_token_is_named_and_never_shown(
    faulty: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "ya29.secret-that-nobody-may-see"
    monkeypatch.setenv("KFP_TOKEN", secret)
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", secret)
    faulty.token = secret
    assert submit(faulty) == 0, "a good one"
    faulty.token = "another"
    assert submit(faulty) == 2
    shown = capsys.readouterr()
    assert "does not accept the credentials (expired?)" in shown.err
    assert main([*SUBMIT, "--target", faulty.target, "--dry-run"]) == 0
    shown_too = capsys.readouterr()
    assert secret not in shown.out + shown.err + shown_too.out + shown_too.err
    assert secret not in repr(open_target(faulty.target).settings)


def test_a_wrong_endpoint_is_one_line(
    faulty: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("VERTEX_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "a-token")
    assert submit(faulty) == 1
    assert "http://127.0.0.1:9 does not answer (" in capsys.readouterr().err
    monkeypatch.setenv("KFP_ENDPOINT", f"{faulty.url}/wrong")
    monkeypatch.setenv("VERTEX_ENDPOINT", f"{faulty.url}/wrong")
    assert submit(faulty) == 2
    assert "check" in capsys.readouterr().err


def test_a_server_that_is_waited_for_is_named_while_we_wait(
    faulty: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http, "QUIET", 0.0)
    faulty.fault("POST", faulty.creating, 503, times=2)
    assert submit(faulty) == 0
    first, second = capsys.readouterr().err.splitlines()
    for line in (first, second):
        assert f"at {faulty.url} goes on failing (503: injected); trying again in 0 s, and for 1 s in all" in line


def test_pauses_differ_so_that_clients_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    endpoint = http.Endpoint("a server", "http://x", "", "")
    for _ in range(2):
        answers = iter([http.HttpError(503, "busy")] * 4)

        def call(left: Any = answers) -> str:
            if (error := next(left, None)) is not None:
                raise error
            return "done"

        assert http.repeated(call, endpoint) == "done"
    assert all(one != other for one, other in zip(pauses[:4], pauses[4:], strict=True))
    assert all(0.5 * 2**n * http.FIRST_PAUSE <= one <= 2**n * http.FIRST_PAUSE for n, one in enumerate(pauses[:4]))


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_pages_within_seconds(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", (5.0, 30.0))
    assert submit(faulty) == 0
    if faulty.target == "kfp":
        (one,) = faulty.runs.values()
        for number in range(999):
            faulty.runs[str(number)] = {**one, "run_id": str(number), "display_name": f"other {number}"}
    else:
        (first,) = faulty.jobs
        for number in range(999):
            name = f"{first}-{number}"
            faulty.jobs[name] = {**faulty.jobs[first], "name": name}
            faulty.executions[name] = faulty.executions[first]
    target = open_target(faulty.target)
    started = time.perf_counter()
    assert len(target.runs()) == 1000
    assert time.perf_counter() - started < 15, "the server's own time, in this process, included"


def test_a_cancelled_run_has_ended_when_the_command_does(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_POLL", 0.01)
    assert submit(faulty) == 0
    (execution,) = faulty.executions.values()
    execution.state = "RUNNING"
    target = open_target(faulty.target)
    (run,) = target.runs()

    def cancel() -> None:
        execution.state, execution.ended = "CANCELLED", now()

    monkeypatch.setattr(execution, "cancel", cancel)
    assert target.cancel(run.id).status == record.CANCELLED
    with pytest.raises(UserError, match="is CANCELLED; only a running one"):
        target.cancel(run.id)


def test_an_unknown_run_names_the_nearest(faulty: Any) -> None:
    assert submit(faulty) == 0
    target = open_target(faulty.target)
    (run,) = target.runs()
    with pytest.raises(UserError, match=f"did you mean '{run.id}'"):
        target.cancel(run.id[:-1] + "x")


def test_data_on_this_machine_is_refused_before_anything_is_sent(faulty: Any, small_csv: Path) -> None:
    target = f"--target={faulty.target}"
    assert main(["run", "--set", f"data.train={small_csv}", target, "--no-check"]) == 2
    assert not faulty.requests


def test_a_bucket_that_is_gone_is_a_failed_run_not_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from xlnet.data import gcs, objects

    monkeypatch.setattr(gcs, "DEADLINE", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="could not be transferred"):
        objects.read("gs://bucket/a")
