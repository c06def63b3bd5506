"""The pages of ``xlnet-pipeline ui`` beyond the runs: comparison, lineage, models, data, schedules and the API."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import Trained
from starlette.testclient import TestClient
from test_ui import HOSTILE, RUN, client, form, make_run

from xlnet.registry import champions, open_registry
from xlnet_pipeline.lineage.world import Known, World
from xlnet_pipeline.targets import record, schedules
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.submission import Submission

IMAGE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """Two runs with equal models, of which one is registered twice and one has a hostile name; a schedule."""
    folder = tmp_path_factory.mktemp("state")
    first, second = make_run(folder, trained), make_run(folder, trained, 2)
    changed = json.loads(trained.recipe.to_json())
    changed["training"]["learning_rate"] = 0.5
    second.recipe = changed
    record.write(second, folder / "runs" / second.id / "run.json")
    registry = open_registry(home=folder)
    for name, run in (("reviews", first), ("reviews", second), (IMAGE, first)):
        model = run.step("train").outputs["model"]
        tags = {"model_uri": model["uri"], "model_digest": model["digest"], "run": run.id, "metric": "accuracy 0.9"}
        registry.add(name, f"the gate said {name}", tags, {}, {})
    champions.make_champion(registry, registry.find("reviews:1"))
    timing = schedules.timing("0 3 * * *", "Europe/Berlin")
    LocalTarget(folder).schedules().create("nightly", timing, Submission(trained.recipe))
    return folder


@pytest.fixture
def pages(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.chdir(home)
    with client(home) as opened:
        yield opened


SECOND = "20261101-000002-0002"


def nodes(pages: TestClient) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for node in pages.get("/api/lineage").json()["nodes"]:
        found.setdefault(node["type"], []).append(node)
    return found


def test_comparison_shows_only_what_differs(pages: TestClient) -> None:
    answer = pages.get(f"/compare?run={RUN}&run={SECOND}")
    text = unescape(answer.text)
    assert answer.status_code == 200
    assert "training.learning_rate" in text
    assert "training.epochs" not in text
    assert "+0.0000" in text, "equal models do not differ"
    assert "perhaps chance" in text
    assert "<svg" in text
    found = pages.get(f"/api/compare?run={RUN}&run={SECOND}").json()
    assert list(found["fields"]) == ["training.learning_rate"]
    assert found["against"][1]["difference"] == 0


@pytest.mark.parametrize("query", ["", f"run={RUN}", f"run={RUN}&run={RUN}", "&".join(f"run={n}" for n in range(9))])
def test_a_comparison_of_too_few_or_many_runs_says_so(pages: TestClient, query: str) -> None:
    answer = pages.get(f"/compare?{query}")
    assert answer.status_code == 422
    assert "chosen" in answer.text


def test_examples_whose_answer_changed_both_ways(pages: TestClient, home: Path, trained: Trained) -> None:
    import pyarrow.parquet as pq

    from xlnet_pipeline.ui.differences import between

    one, other = trained.evaluation, home / "other"
    shutil.copytree(one, other, dirs_exist_ok=True)
    table = pq.read_table(one / "predictions.parquet")
    swap = {"0": "1", "1": "0"}
    given = table["prediction"].to_pylist()
    wrong = [swap[answer] if at < 3 else answer for at, answer in enumerate(given)]
    at = table.column_names.index("prediction")
    pq.write_table(table.set_column(at, "prediction", [wrong]), other / "predictions.parquet")
    found = between(str(one), str(other), "accuracy")
    assert found["same"]
    assert found["difference"] < 0
    assert found["low"] <= found["difference"] <= found["high"]
    counts = found["examples"]["better_count"], found["examples"]["worse_count"]
    assert sum(counts) == 3
    assert between(str(other), str(one), "accuracy")["examples"]["better_count"] == counts[1]


def test_lineage_leads_from_a_file_to_models_and_back(pages: TestClient) -> None:
    found = nodes(pages)
    assert {"file", "snapshot", "dataset", "model", "evaluation"} <= found.keys()
    assert len(found["model"]) == 1, "equal models of two runs are one artifact"
    file, model = found["file"][0], found["model"][0]
    around = pages.get(f"/api/lineage/{file['id']}").json()
    assert model["id"] in {node["id"] for node in around["nodes"]}
    page = pages.get(f"/lineage/{file['id']}?view=down").text
    assert f"node={model['id']}" in page
    assert "What this" not in page
    assert pages.get(f"/lineage/{model['digest']}").url.path == f"/lineage/{model['id']}"
    assert file["id"] not in pages.get(f"/lineage/{model['id']}?view=down").text
    assert "base model" in pages.get(f"/lineage/{file['id']}?node={model['id']}").text


@pytest.mark.parametrize(("name", "kind"), [("graph.svg", "image/svg"), ("graph.json", "json"), ("page.html", "html")])
def test_lineage_is_downloaded(pages: TestClient, name: str, kind: str) -> None:
    model = nodes(pages)["model"][0]
    answer = pages.get(f"/lineage/{model['id']}/{name}")
    assert answer.status_code == 200
    assert kind in answer.headers["content-type"]
    assert "attachment" in answer.headers["content-disposition"]
    assert "/lineage/" not in answer.text or name != "graph.svg"


def test_digests_are_verified_on_demand(home: Path, trained: Trained, tmp_path: Path) -> None:
    make_run(tmp_path / "own", trained)
    with client(tmp_path / "own") as opened:
        model = nodes(opened)["model"][0]
        assert "Verified" in opened.get(f"/lineage/{model['id']}?verify=1").text
        (Path(model["uri"]) / "history.jsonl").write_text("changed")
        text = opened.get(f"/lineage/{model['id']}?verify=1").text
        assert "was changed after it was written" in text
        assert "Verified" not in text


def test_two_thousand_nodes_are_drawn_as_few() -> None:
    file = Known("file-1", "file", "a.csv", "sha256:1", (), ())
    made = {file.id: file}
    for number in range(500):
        above = file.id
        for kind in ("dataset", "model", "evaluation", "registration"):
            one = Known(f"{kind}-{number}", kind, "", f"sha256:{kind}{number}", (), (above,))
            made[one.id], above = one, one.id
    few = World(made).around("file-1").collapsed(["file-1"])
    assert [node.count for node in few.nodes.values()] == [1, 500, 500, 500, 500]
    assert len(World(made).around("registration-3").nodes) == 5
    kept = World(made).around("file-1").collapsed(["model-3"])
    assert "model-3" in kept.nodes


def test_models_show_versions_champion_and_gate(pages: TestClient) -> None:
    assert "version 1" in pages.get("/models").text
    text = pages.get("/models/reviews").text
    assert "the gate said reviews" in text
    assert "champion" in text
    assert pages.get("/models/reviews/champion").status_code == 200
    assert pages.get("/models/reviews/9").status_code == 404
    assert pages.get("/models/revews").status_code == 404
    assert "did you mean &#39;reviews&#39;" in pages.get("/models/revews").text


def test_promote_roll_back_and_delete(pages: TestClient, home: Path) -> None:
    def champion() -> int:
        found = open_registry(home=home).champion("reviews")
        return found.version if found else 0

    token = form(pages)
    answer = pages.post("/models/reviews/2/promote", data=token)
    assert "reviews:2 is now the champion" in answer.text
    assert champion() == 2
    assert "Roll back to version 1" in answer.text
    refused = pages.post("/models/reviews/2/delete", data=token)
    assert refused.status_code == 422
    assert "nothing was deleted" in refused.text
    assert "version 2 could no longer be rolled back to it" in unescape(pages.get("/models/reviews/1").text)
    assert "reviews:1 is the champion again" in pages.post("/models/reviews/rollback", data=token).text
    assert champion() == 1
    assert "deleted reviews:2" in pages.post("/models/reviews/2/delete", data=token).text
    assert [one.version for one in open_registry(home=home).versions("reviews")] == [1]


@pytest.mark.parametrize("text", ["a lovely warm film", f"{HOSTILE} film", "</textarea><b> film", "so \u202egood film"])
def test_trying_a_text_shows_which_words_mattered(pages: TestClient, text: str) -> None:
    answer = pages.post("/models/reviews/1/try", data={**form(pages), "text": text})
    assert answer.status_code == 200
    assert "Which words mattered" in answer.text
    assert "<script>alert" not in answer.text
    assert "</textarea><b>" not in answer.text
    assert "\u202e" not in answer.text
    shades = re.findall(r'class="token (for|against) share-(\d)"', answer.text)
    assert len(shades) >= len(text.split())
    assert "5" in {shade for _, shade in shades}


@pytest.mark.parametrize("fields", [{"text": ""}, {"text": "a", "pair": "b"}, {}])
def test_a_text_that_the_model_cannot_take_is_said(pages: TestClient, fields: dict[str, str]) -> None:
    answer = pages.post("/models/reviews/1/try", data={**form(pages), **fields})
    assert answer.status_code == 200
    assert "cannot be used" in answer.text


def test_a_hostile_model_name_is_text(pages: TestClient) -> None:
    for path in ("/models", f"/models/{IMAGE}", "/lineage"):
        answer = pages.get(path)
        assert "<img" not in answer.text
    assert "&lt;img src=x" in pages.get("/models").text


def test_a_data_card_and_the_difference_of_two(pages: TestClient, trained: Trained) -> None:
    name = nodes(pages)["dataset"][0]["id"]
    assert name in pages.get("/data").text
    text = unescape(pages.get(f"/data/{name}").text)
    assert "Length of the training texts" in text
    assert "sentences.csv" in text
    assert pages.get("/data/dataset-none").status_code == 404
    from xlnet_pipeline.ui.data import differ

    card = json.loads((trained.dataset / "card.json").read_text())
    other = json.loads(json.dumps(card))
    other["files"][0]["checksum"] = "sha256:feedfeedfeed00"
    other["splits"]["train"]["rows"] += 1
    found = differ(card, other)
    assert [row[2] for row in found["files"]] == ["feedfeedfeed"]
    assert [row[0] for row in found["figures"]] == ["train: rows"]
    assert differ(card, card) == {"files": [], "figures": []}


def test_schedules_are_paused_and_resumed(pages: TestClient, home: Path) -> None:
    text = pages.get("/schedules").text
    assert "0 3 * * *" in text
    assert "Europe/Berlin" in text
    assert 'class="next"' in text
    token = form(pages)
    assert "nightly: PAUSED" in pages.post("/schedules/nightly/pause", data=token).text
    assert LocalTarget(home).schedules().all()[0].state == "PAUSED"
    assert "nightly: ACTIVE" in pages.post("/schedules/nightly/resume", data=token).text
    assert pages.post("/schedules/weekly/pause", data=token).status_code in (404, 422)


def test_run_now_starts_the_schedules_recipe(pages: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(command))
    assert "a run has been started" in pages.post("/schedules/nightly/run", data=form(pages)).text
    assert started[0][1:] == ["-m", "xlnet_pipeline.targets.local.scheduled", str(home), "nightly"]


def test_an_unreachable_target_leaves_the_others_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://bucket/root")
    from xlnet_pipeline.ui import catalogue

    monkeypatch.setattr(catalogue, "PATIENCE", 0.1)
    monkeypatch.setattr("xlnet_pipeline.ui.application.LONGEST", 0.2)
    monkeypatch.setattr(catalogue, "LONGEST", 0.2)
    with client(home) as opened:
        for path in ("/runs", "/schedules"):
            answer = opened.get(path)
            assert answer.status_code == 200
            assert "kfp" in answer.text
        assert RUN in opened.get("/runs").text
        assert opened.get(f"/runs/{RUN}?target=vertex").status_code == 422
        for path in (f"/runs/{RUN}?target=kfp", f"/runs/{RUN}/log?target=kfp", f"/api/runs/{RUN}?target=kfp"):
            answer = opened.get(path)
            assert answer.status_code == 504, "long before a command would give up"
            assert "does not answer" in answer.text


@pytest.mark.parametrize("path", ["/models", "/data", "/lineage", "/schedules"])
def test_empty_pages_say_what_to_type(tmp_path: Path, path: str) -> None:
    with client(tmp_path / "none") as opened:
        answer = opened.get(path)
        assert answer.status_code == 200
        assert "xlnet-pipeline " in answer.text.split("<pre>")[1]


def test_the_api_answers_what_it_describes(pages: TestClient) -> None:
    described = pages.get("/api/openapi.json").json()
    parts = {"run": RUN, "name": "reviews", "version": "1", "node": nodes(pages)["model"][0]["id"]}
    parts["dataset"] = nodes(pages)["dataset"][0]["id"]
    for path, methods in described["paths"].items():
        operation = methods["get"]
        address = re.sub(r"\{(\w+)\}", lambda found: parts[found.group(1)], path)
        answer = pages.get(address + (f"?run={RUN}&run={SECOND}" if path.endswith("compare") else ""))
        assert answer.status_code == 200, address
        kind = operation["responses"]["200"]["content"]["application/json"]["schema"]["type"]
        assert isinstance(answer.json(), list if kind == "array" else dict), address
        wrong = pages.get(re.sub(r"\{\w+\}", "none-such", path))
        if "{" in path:
            assert wrong.json()["error"]


def test_the_api_stands_what_schemathesis_asks(pages: TestClient) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.core.result import Ok

    schema = schemathesis.openapi.from_dict(pages.get("/api/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) > 10
    quick = settings(
        max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
    )

    @quick
    @given(data=st.data())
    def ask(data: Any) -> None:
        for operation in operations:
            case = data.draw(operation.as_strategy())
            words = case.as_transport_kwargs(base_url="http://127.0.0.1:8765")
            answer = pages.get(words["url"], params=words.get("params"))
            assert answer.status_code in (200, 404, 409, 422), (case.path, answer.status_code, answer.text)
            assert answer.headers["content-type"].startswith(("application/json", "text/html"))

    ask()
