"""The pages of ``xlnet-pipeline ui``, asked for in this process: what they show, and whom they refuse."""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import Trained
from starlette.testclient import TestClient

from xlnet import provenance
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.execution import described
from xlnet_pipeline.targets.record import Run, StepRun
from xlnet_pipeline.ui.application import application
from xlnet_pipeline.ui.site import Site
from xlnet_pipeline.ui.worker import Worker

HOSTILE = "<script>alert(1)</script>"
BIDI = "good\u202egpj.exe"


EXECUTOR = "[KFP Executor 2026-11-26 INFO]: Got executor_input:\n{\n  a_secret_of_kfp\n}\n"


def client(home: Path, token: str = "", **options: Any) -> TestClient:
    site = Site(home, worker=Worker(inline=True))
    return TestClient(application(site, token), base_url="http://127.0.0.1:8765", **options)


def pages_show(home: Path, run: str, target: str) -> None:
    """Open the pages of a run that has succeeded on another target."""
    site = Site(home, worker=Worker(inline=True))
    with TestClient(application(site), base_url="http://127.0.0.1:8765") as opened:
        deadline = time.monotonic() + 60
        while run not in (listed := opened.get(f"/runs?target={target}").text):
            assert time.monotonic() < deadline, f"the list never showed run {run} of {target}"
            time.sleep(0.1)
        assert f"/runs/{run}?target={target}" in listed
        tabs = {
            "": "Train XLNet",
            "/log": "step",
            "/lineage": "rows.csv",
            "/metrics": "<svg",
            "/evaluation": "accuracy",
            "/report": "<h1>",
        }
        for tab, words in tabs.items():
            answer = opened.get(f"/runs/{run}{tab}?target={target}")
            assert answer.status_code == 200, (tab, answer.text)
            assert words in answer.text, tab
        assert opened.get(f"/api/runs/{run}?target={target}").json()["status"] == "SUCCEEDED"
        assert opened.get(f"/runs/{run}-not?target={target}").status_code == 404
    site.close()


def make_run(home: Path, trained: Trained, number: int = 1, **changes: Any) -> Run:
    """Write the record and the artifacts of a run that ended well."""
    run_id = f"20261101-0000{number:02d}-{number:04x}"
    folder = home / "runs" / run_id
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "train.log").write_text(EXECUTOR + "step 1/9  loss 0.7\nstep 9/9  loss 0.1\n")
    places = {}
    for step, name in (("preprocess", "dataset"), ("train", "model"), ("evaluate", "evaluation")):
        places[name] = folder / "artifacts" / step / name
        shutil.copytree(getattr(trained, name), places[name])
    steps = [StepRun(name, record.SUCCEEDED, seconds=1.0, reason="first time") for name in
             ("snapshot", "preprocess", "train", "evaluate", "register")]  # fmt: skip
    for step, (name, kind) in zip(
        steps[1:4], (("dataset", "Dataset"), ("model", "Model"), ("evaluation", "Artifact")), strict=True
    ):
        facts = provenance.read(places[name])["artifact"]["metadata"]
        made = {"name": name, "uri": str(places[name]), "type": {"schemaTitle": f"system.{kind}"}, "metadata": facts}
        step.outputs = {name: described(made)}
    steps[2].log = "logs/train.log"
    fields = {
        "id": run_id, "target": "local", "recipe": json.loads(trained.recipe.to_json()), "recipe_digest": "sha256:0",
        "created": f"2026-11-01T00:00:{number:02d}+00:00", "ended": f"2026-11-01T00:01:{number:02d}+00:00",
        "status": record.SUCCEEDED, "steps": steps,
    }  # fmt: skip
    run = Run(**{**fields, **changes})
    record.write(run, folder / "run.json")
    return run


@pytest.fixture
def home(tmp_path: Path, trained: Trained) -> Path:
    make_run(tmp_path / "state", trained)
    return tmp_path / "state"


@pytest.fixture
def open_pages(home: Path) -> Iterator[TestClient]:
    with client(home) as opened:
        yield opened


RUN = "20261101-000001-0001"
PAGES = ["/runs", f"/runs/{RUN}", f"/runs/{RUN}/log", f"/runs/{RUN}/metrics", f"/runs/{RUN}/evaluation", "/api"]


@pytest.mark.parametrize("path", PAGES)
def test_pages_open_with_nothing_inline(open_pages: TestClient, path: str) -> None:
    answer = open_pages.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert " style=" not in answer.text
    assert "<style" not in answer.text
    assert " onclick" not in answer.text
    assert all("src=" in tag.split(">")[0] for tag in answer.text.split("<script")[1:])


def test_an_empty_home_says_what_to_type(tmp_path: Path) -> None:
    with client(tmp_path / "none") as opened:
        assert "xlnet-pipeline run" in opened.get("/runs").text
        assert "there are no runs yet" in unescape(opened.get("/runs/latest").text)
    assert not (tmp_path / "none").exists(), "looking changes nothing"


def test_runs_are_searched_filtered_and_sorted_by_the_address(home: Path, trained: Trained) -> None:
    make_run(home, trained, 2, status=record.FAILED, error=record.RunFailure("train", "loss is nan", "run"))
    with client(home) as opened:
        rows = opened.get("/api/runs").json()
        assert [row["status"] for row in rows] == ["FAILED", "SUCCEEDED"]
        assert rows[1]["metric"] == "accuracy"
        assert rows[1]["low"] <= rows[1]["value"] <= rows[1]["high"]
        assert rows[1]["baseline"] is not None
        assert len(opened.get("/api/runs?search=nan").json()) == 1
        assert [row["id"] for row in opened.get("/api/runs?sort=created").json()] == [RUN, rows[0]["id"]]
        page = opened.get("/runs?status=FAILED&column=machine").text
        assert rows[0]["id"] in page
        assert RUN not in page
        assert 'data-head="Machine"' in page
        assert 'data-head="Metric"' not in page
        assert opened.get("/runs/latest", follow_redirects=False).headers["location"] == f"/runs/{rows[0]['id']}"


@pytest.mark.parametrize("sort", ["nonsense", "-nonsense", "metric", "-duration"])
@pytest.mark.parametrize("page", ["0", "-1", "99999999999", "x", ""])
def test_a_strange_address_shows_the_list(open_pages: TestClient, sort: str, page: str) -> None:
    assert RUN in open_pages.get("/runs", params={"sort": sort, "page": page}).text


def test_a_run_shows_steps_recipe_and_the_command_that_repeats_it(open_pages: TestClient) -> None:
    text = unescape(open_pages.get(f"/runs/{RUN}").text)
    assert "first time" in text
    assert f"xlnet-pipeline run {RUN}.toml" in text
    toml = open_pages.get(f"/runs/{RUN}/recipe.toml").text
    place = Path(os.environ["XLNET_PIPELINE_HOME"]).parent / "again.toml"
    place.write_text(toml)
    from xlnet import recipe as recipes

    shown = open_pages.get(f"/api/runs/{RUN}").json()["recipe"]
    assert json.loads(recipes.load(place).to_json()) == shown


def test_a_part_of_an_id_leads_to_the_run(open_pages: TestClient) -> None:
    assert open_pages.get("/runs/0001").url.path == f"/runs/{RUN}"


def test_metrics_as_curves_and_csv(open_pages: TestClient) -> None:
    found = open_pages.get(f"/api/runs/{RUN}/curves").json()
    assert found["kept"] in found["steps"]
    assert {"loss", "validation_loss", "learning_rate", "gradient_norm", "tokens_per_second"} <= found["series"].keys()
    table = open_pages.get(f"/runs/{RUN}/metrics.csv").text.splitlines()
    assert table[0].startswith("step,loss,")
    assert len(table) == len(found["steps"]) + 1
    assert "<svg" in open_pages.get(f"/runs/{RUN}/metrics").text


def test_predictions_are_filtered(open_pages: TestClient) -> None:
    every = open_pages.get(f"/api/runs/{RUN}/predictions?only=all").json()
    wrong = open_pages.get(f"/api/runs/{RUN}/predictions").json()
    right = open_pages.get(f"/api/runs/{RUN}/predictions?only=right").json()
    assert every["found"] == every["total"] == wrong["found"] + right["found"]
    assert all(row["label"] == row["prediction"] for row in right["rows"])
    zeros = open_pages.get(f"/api/runs/{RUN}/predictions?only=all&label=0&sort=confidence").json()["rows"]
    assert {row["label"] for row in zeros} == {"0"}
    assert [row["confidence"] for row in zeros] == sorted(row["confidence"] for row in zeros)
    assert open_pages.get(f"/api/runs/{RUN}/predictions?only=all&low=2").json()["found"] == 0
    assert open_pages.get(f"/api/runs/{RUN}/predictions?low=x&page=x&sort=drop").status_code == 200


def test_the_report_may_run_nothing(open_pages: TestClient) -> None:
    answer = open_pages.get(f"/runs/{RUN}/report")
    assert answer.headers["content-security-policy"].startswith("sandbox;")
    assert "<h1>" in answer.text


def test_a_log_is_searched_and_downloaded(open_pages: TestClient) -> None:
    shown = open_pages.get(f"/runs/{RUN}/log?step=train").text
    assert "loss 0.7" in shown
    assert "KFP Executor" not in shown
    assert "a_secret_of_kfp" not in shown
    assert "No line" in open_pages.get(f"/runs/{RUN}/log?step=train&search=a_secret").text
    found = open_pages.get(f"/runs/{RUN}/log?step=train&search=LOSS 0.1").text
    assert "loss 0.1" in found
    assert "loss 0.7" not in found
    answer = open_pages.get(f"/runs/{RUN}/log/train.txt")
    assert answer.text.endswith("loss 0.1\n")
    assert "attachment" in answer.headers["content-disposition"]
    assert open_pages.get(f"/runs/{RUN}/log/nonsense.txt").status_code == 404


def test_a_log_of_two_gigabytes_shows_its_end(home: Path, open_pages: TestClient) -> None:
    path = home / "runs" / RUN / "logs" / "train.log"
    with path.open("r+b") as file:
        file.truncate(2 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last line\n")
    text = open_pages.get(f"/runs/{RUN}/log?step=train").text
    assert "the last line" in text
    assert len(text) < 400_000
    assert "the last line" in open_pages.get(f"/runs/{RUN}/log?step=train&search=LAST").text


def test_bad_records_leave_the_others_shown(home: Path, trained: Trained) -> None:
    def spoil(number: int, text: str) -> None:
        path = home / "runs" / make_run(home, trained, number).id / "run.json"
        path.write_text(text)

    spoil(2, '{"id": "half')
    spoil(3, "[]")
    newer = dataclasses.asdict(make_run(home, trained, 4)) | {"schema": record.SCHEMA + 1, "wings": 2}
    (home / "runs" / newer["id"] / "run.json").write_text(json.dumps(newer, default=str))
    (home / "runs" / "a file").write_text("")
    with client(home) as opened:
        rows = {row["id"]: row for row in opened.get("/api/runs").json()}
        assert [row["status"] for row in rows.values()].count("DAMAGED") == 3
        assert rows[RUN]["status"] == "SUCCEEDED"
        assert "newer version" in rows[newer["id"]]["error"]
        text = unescape(opened.get("/runs").text)
        assert "remove its directory" in text or "newer version" in text
        answer = opened.get(f"/runs/{newer['id']}")
        assert answer.status_code == 409
        assert "newer version" in answer.text
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("tab", ["metrics", "evaluation", "report"])
def test_a_vanished_artifact_is_named(home: Path, open_pages: TestClient, tab: str) -> None:
    shutil.rmtree(home / "runs" / RUN / "artifacts")
    answer = open_pages.get(f"/runs/{RUN}/{tab}")
    assert answer.status_code == 422
    assert "is gone" in answer.text
    assert open_pages.get(f"/runs/{RUN}").status_code == 200


def test_an_artifact_outside_the_state_directory_is_not_opened(home: Path, trained: Trained, tmp_path: Path) -> None:
    run = make_run(home, trained, 2)
    shutil.copytree(trained.evaluation, tmp_path / "elsewhere")
    run.step("evaluate").outputs["evaluation"]["uri"] = str(tmp_path / "elsewhere")
    run.step("train").log = "../../../secret"
    (tmp_path / "secret").write_text("a secret")
    record.write(run, home / "runs" / run.id / "run.json")
    with client(home) as opened:
        for path in (f"/runs/{run.id}/evaluation", f"/runs/{run.id}/report", f"/runs/{run.id}/log/train.txt"):
            answer = opened.get(path)
            assert answer.status_code == 422
            assert "outside the state directory" in answer.text
            assert "a secret" not in answer.text


@pytest.mark.parametrize(
    "name",
    ["nope", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e%2f%2e%2e%2fmlflow.db", "a%00b", "%F0%9F%92%A5", HOSTILE],
)
@pytest.mark.parametrize("tail", ["", "/log", "/metrics", "/evaluation", "/report", "/recipe.toml", "/log/train.txt"])
def test_an_unknown_id_is_a_page_that_says_so(open_pages: TestClient, name: str, tail: str) -> None:
    answer = open_pages.get(f"/runs/{name}{tail}")
    assert answer.status_code in (404, 422)
    assert "<script>alert" not in answer.text
    assert "Traceback" not in answer.text


def test_a_history_with_nan_is_drawn_without_it(home: Path, open_pages: TestClient) -> None:
    history = home / "runs" / RUN / "artifacts/train/model/history.jsonl"
    lines = (
        history.read_text()
        + '{"step": 9999, "loss": NaN}\n{"step": 10000, "loss": Infinity}\n{"half\n[1]\n{"step": "x"}\n'
    )
    history.write_text(lines)
    found = json.loads(open_pages.get(f"/api/runs/{RUN}/curves").text, parse_constant=pytest.fail)
    assert found["lost"] == 2
    assert found["series"]["loss"][-2:] == [None, None]
    assert all(math.isfinite(y) for y in found["series"]["loss"] if y is not None)
    assert "2 values are not numbers" in open_pages.get(f"/runs/{RUN}/metrics").text


@pytest.mark.parametrize("name", [HOSTILE, "</textarea>", BIDI, '" onload="x', "{{ 7*7 }}", "a\x1b[31mb", "\ud800"])
def test_hostile_names_are_text(home: Path, trained: Trained, name: str) -> None:
    recipe = json.loads(trained.recipe.to_json())
    recipe["registry"]["name"], recipe["data"]["train"] = name, [name]
    recipe["data"]["text"] = name
    failure = record.RunFailure("train", name, "run", [name])
    folder = home / "runs" / make_run(home, trained, 2).id
    fields = json.loads((folder / "run.json").read_text()) | {"recipe": recipe, "schedule": name, "status": "FAILED"}
    (folder / "run.json").write_text(json.dumps(fields | {"error": dataclasses.asdict(failure), "notes": [name]}))
    metrics = folder / "artifacts/evaluate/evaluation/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"classes": [name, "b"]}))
    with client(home) as opened:
        for path in ("/runs", f"/runs/{folder.name}", f"/runs/{folder.name}/evaluation", f"/runs?search={name!a}"):
            answer = opened.get(path)
            assert answer.status_code == 200
            assert "<script>alert" not in answer.text
            assert "</textarea>" not in answer.text
            assert "\u202e" not in answer.text
            assert "\x1b" not in answer.text
            assert 'onload="' not in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", "[::2]", "["])
def test_another_hosts_name_is_refused(open_pages: TestClient, host: str) -> None:
    answer = open_pages.get("/runs", headers={"host": host})
    assert answer.status_code == 421
    assert RUN not in answer.text


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:8765"])
def test_the_names_of_this_machine_are_answered(open_pages: TestClient, host: str) -> None:
    assert open_pages.get("/runs", headers={"host": host}).status_code == 200


def posting(opened: TestClient) -> list[str]:
    return [route.path for route in opened.app.app.routes if "POST" in (getattr(route, "methods", None) or ())]


def form(opened: TestClient) -> dict[str, str]:
    """Return the token that a page's form carries."""
    from starlette.requests import Request

    from xlnet_pipeline.ui import safety

    session = opened.cookies.get(safety.SESSION) or str(opened.get("/runs").cookies[safety.SESSION])
    scope = {"type": "http", "app": opened.app.app, "state": {"session": session}}
    return {safety.FIELD: safety.form_token(Request(scope))}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_form_of_another_site_changes_nothing(open_pages: TestClient, headers: dict[str, str]) -> None:
    assert posting(open_pages)
    for path in posting(open_pages):
        answer = open_pages.post(path.replace("{run}", RUN), data=form(open_pages), headers=headers)
        assert answer.status_code == 403
        assert "nothing was changed" in answer.text


@pytest.mark.parametrize("token", ["", "x", "0" * 64])
def test_every_form_needs_its_token(open_pages: TestClient, token: str) -> None:
    for path in posting(open_pages):
        answer = open_pages.post(path.replace("{run}", RUN), data={"form_token": token} if token else {})
        assert answer.status_code == 403
        assert "reload the page" in answer.text
        assert open_pages.get(path.replace("{run}", RUN)).status_code in (404, 405), "a link changes nothing"


def test_another_machine_needs_the_token(home: Path) -> None:
    with client(home, "secret-token", follow_redirects=False) as opened:
        refused = opened.get("/runs", headers={"host": "box.example"})
        assert refused.status_code == 401
        assert "?token=" in refused.text
        assert opened.get("/runs?token=wrong").status_code == 401
        assert opened.get("/api/runs", headers={"authorization": "Bearer secret-token"}).status_code == 200
        answer = opened.get("/runs?token=secret-token&status=FAILED")
        assert answer.headers["location"] == "/runs?status=FAILED"
        assert "secret-token" not in answer.headers["set-cookie"]
        assert opened.get("/runs").status_code == 200
        assert opened.get("//evil.example?token=secret-token").headers.get("location", "/") == "/"


def test_cancelling_a_run_that_has_ended_says_so(open_pages: TestClient) -> None:
    answer = open_pages.post(f"/runs/{RUN}/cancel", data=form(open_pages))
    assert answer.status_code == 422
    assert "only a running one can be cancelled" in answer.text


def test_vendored_files_are_what_was_published() -> None:
    import hashlib

    from xlnet_pipeline.ui.application import STATIC

    listed = json.loads((STATIC / "vendor" / "SOURCES.json").read_text())
    there = {path.name for path in (STATIC / "vendor").iterdir()} - {"SOURCES.json"}
    assert there == set(listed)
    for name, facts in listed.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == facts["sha256"], name
        assert facts["licence"]


@pytest.mark.parametrize("words", [["--port", "x"], ["--port", "70000"], ["--host", "256.1.1.1"]])
def test_a_wrong_address_is_a_users_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from xlnet_pipeline.cli import main

    assert main(["ui", "--no-open", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
