"""The target for Vertex AI against a server that runs what it is sent, over real connections."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.aiplatform_v1", reason="pip install google-cloud-aiplatform: its messages check ours")

from conftest import PINNED_IMAGE, write_real_sentences
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.pipeline_service.transports import PipelineServiceRestTransport
from servers.storage import bucket_server, texts
from servers.vertex_server import VertexServer, checked
from test_kfp_target import recipe_file
from test_ui import pages_show

from xlnet import http
from xlnet.registry import open_registry, vertex_api
from xlnet.serving.connections import HEALTH, PREDICT
from xlnet_pipeline import dag
from xlnet_pipeline.cli import main
from xlnet_pipeline.placement import placement
from xlnet_pipeline.placement.machines import Machine, offered
from xlnet_pipeline.targets import remote


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    """A server, a bucket with real sentences, and settings that name both."""
    with bucket_server(monkeypatch) as bucket:
        bucket.blob("data/rows.csv").upload_from_filename(str(write_real_sentences(tmp_path / "rows.csv")))
        with VertexServer(tmp_path / "vertex") as started:
            monkeypatch.setenv("VERTEX_ENDPOINT", started.url)
            monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "a-token")
            monkeypatch.setenv("VERTEX_LOGGING_ENDPOINT", started.url)
            monkeypatch.setenv("VERTEX_PROJECT_ID", "demo")
            monkeypatch.setenv("VERTEX_PIPELINE_ROOT", "gs://bucket/root")
            monkeypatch.setenv("VERTEX_SA_EMAIL", "trainer@demo.iam.gserviceaccount.com")
            monkeypatch.setenv("XLNET_IMAGE", PINNED_IMAGE)
            monkeypatch.setattr(remote, "FIRST_POLL", 0.1)
            monkeypatch.setattr(remote, "LONGEST_POLL", 0.3)
            monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
            monkeypatch.setattr(vertex_api, "FIRST_POLL", 0.02)
            yield started


def test_a_run_from_submission_to_lineage(
    server: VertexServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks tokenise a shard each."""
    recipe = recipe_file(tmp_path / "recipe.toml")
    recipe.write_text(recipe.read_text().replace("[data]", "[data]\nshards = 2"))
    submit = ["run", str(recipe), "--target", "vertex", "--machine", "v5e-4", "--spot", "--wait"]
    assert main(submit) == 0
    shown = capsys.readouterr().out
    run = shown.split("run ", 1)[1].split()[0]
    assert "registered reviews:1 as champion" in shown

    (job,) = server.custom_jobs.values()
    spec = job["jobSpec"]
    assert spec["workerPoolSpecs"][0]["machineSpec"] == {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}
    assert spec["scheduling"]["strategy"] == "SPOT"
    assert spec["serviceAccount"] == "trainer@demo.iam.gserviceaccount.com"
    assert spec["baseOutputDirectory"]["outputUriPrefix"] == f"gs://bucket/root/custom-jobs/xlnet-{run}"

    assert main(["runs", "show", run, "--target", "vertex", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [step["status"] for step in record["steps"]] == ["SUCCEEDED"] * 7
    shards = record["steps"][2]
    assert [one["status"] for one in shards["iterations"]] == ["SUCCEEDED"] * 2
    assert shards["reason"] == "2 of 2 shards are done"
    assert set(shards["outputs"]) == {"tokens-0", "tokens-1"}
    assert main(["runs", "logs", run, "tokenise", "--target", "vertex"]) == 0
    assert capsys.readouterr().out.count("rows, ") == 2
    assert main(["runs", "logs", run, "train", "--target", "vertex"]) == 0
    assert "step" in capsys.readouterr().out, "what the custom job wrote"

    assert main(["lineage", run, "--target", "vertex"]) == 0
    tree = capsys.readouterr().out
    for word in ("registration reviews:1", "evaluation", "model", "dataset", "snapshot", "gs://bucket/data/rows.csv"):
        assert word in tree
    (page,) = texts("/lineage")
    assert "Lineage of reviews:1" in page

    pages_show(tmp_path / "home", run, "vertex")
    registry = ["--target", "vertex"]
    assert main(["models", "list", *registry]) == 0
    listed = capsys.readouterr().out
    assert "reviews:1" in listed
    assert "champion" in listed
    (model,) = server.models["reviews"]
    served = model["containerSpec"]
    assert served["args"] == ["python", "-m", "xlnet", "serve", "--host", "0.0.0.0"]
    assert {served["predictRoute"], served["healthRoute"]} <= {PREDICT, HEALTH}
    assert model["labels"]["decision"] == "promoted"
    assert server.evaluations[model["name"]][0]["metrics"]["accuracy"] > 0.5

    assert main(submit) == 0, "equal work"
    assert capsys.readouterr().out.count("cached") >= 3
    seeded = [*submit, "--set", "training.seed=1"]
    assert main(seeded) == 0, "a second version, compared with the champion in its bucket"
    assert "reviews:2" in capsys.readouterr().out
    assert [one["versionId"] for one in server.models["reviews"]] == ["1", "2"]
    registry = ["--uri", "vertex://demo/us-central1"]
    assert main(["models", "promote", "reviews:2", *registry]) == 0
    assert "champion" in server.models["reviews"][1]["versionAliases"]


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("classification", {"accuracy": 0.8, "macro_f1": 0.79, "mcc": 0.6}),
        ("regression", {"pearson": 0.7, "spearman": 0.69}),
        ("general_text_generation", {"bits_per_byte": 1.9, "perplexity": 40.0}),
    ],
)
def test_an_evaluation_in_the_registry_names_the_schema_of_its_task(
    kind: str, metrics: dict[str, float], server: VertexServer
) -> None:
    made = open_registry("vertex://demo/us-central1").add("reviews", "", {}, {}, metrics)
    ((evaluation,),) = server.evaluations.values()
    assert evaluation["metricsSchemaUri"].endswith(f"/modelevaluation/{kind}_metrics_1.0.0.yaml")
    assert evaluation["metrics"] == metrics
    assert made.version == 1


def test_googles_own_client_reads_what_was_submitted(server: VertexServer, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path / "recipe.toml")
    assert main(["run", str(recipe), "--target", "vertex", "--set", "data.text=body", "--no-check"]) == 0
    host = server.url.removeprefix("http://")
    transport = PipelineServiceRestTransport(host=host, url_scheme="http", credentials=AnonymousCredentials())
    (job,) = v1.PipelineServiceClient(transport=transport).list_pipeline_jobs(parent=server.parent)
    assert job.labels["created-by"] == "xlnet-pipeline"
    assert main(["runs", "cancel", job.name.rpartition("/")[2].removeprefix("xlnet-"), "--target", "vertex"]) == 0


@pytest.mark.parametrize("run", ["../schedules", "x?filter=y", "x#y", "a b", "%2F"])
def test_a_runs_name_is_no_part_of_another_address(
    run: str, server: VertexServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "show", run, "--target", "vertex"]) == 2
    assert f"run '{run}' is unknown on target 'vertex'" in capsys.readouterr().err
    asked, listed = (one.path for one in server.requests[-2:])
    assert asked.startswith(f"{listed}/xlnet-")
    assert not server.requests[-2].query


@pytest.mark.slow
def test_a_schedule_is_made_changed_paused_fired_and_deleted(
    server: VertexServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(recipe_file(tmp_path / "recipe.toml"))
    create = ["schedule", "create", "weekly", recipe, "--target", "vertex", "--cron", "0 3 * * 1"]
    assert main(create) == 0
    assert main(create) == 0
    assert "weekly: unchanged" in capsys.readouterr().out
    assert main([*create, "--timezone", "Asia/Tokyo", "--machine", "l4"]) == 0
    shown = capsys.readouterr().out
    assert "timezone: UTC → Asia/Tokyo" in shown
    assert "g2-standard-12 NVIDIA_L4" in shown
    ((name, schedule),) = server.schedules.items()
    assert schedule["cron"] == "TZ=Asia/Tokyo 0 3 * * mon"
    assert main(["schedule", "pause", "weekly", "--target", "vertex"]) == 0
    assert schedule["state"] == "PAUSED"
    assert main(["schedule", "resume", "weekly", "--target", "vertex"]) == 0
    made = server.fire(name)
    server.executions[made["name"]].join(60)
    run = made["name"].rpartition("/")[2]
    assert main(["lineage", run, "--target", "vertex"]) == 0
    assert "registration reviews:1" in capsys.readouterr().out
    assert main(["schedule", "list", "--target", "vertex", "--recipe", recipe]) == 0
    assert "none" in capsys.readouterr().out, "no drift"
    assert main(["schedule", "delete", "weekly", "--target", "vertex"]) == 0
    assert not server.schedules


@pytest.mark.parametrize("machine", offered("vertex"), ids=lambda row: row.name)
def test_every_machine_is_a_job_that_googles_messages_know(machine: Machine) -> None:
    where = placement("vertex", PINNED_IMAGE, machine, nodes=2, spot=True)
    (spec,) = dag.documents(where)
    checked(v1.PipelineJob, {"displayName": "x", "pipelineSpec": spec})
    arguments = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["args"]
    job = checked(v1.CustomJob, json.loads(arguments[arguments.index("--payload") + 1]))
    first, others = job["jobSpec"]["workerPoolSpecs"]
    assert first["machineSpec"]["machineType"] == machine.machine_type
    assert int(others["replicaCount"]) == 1
    kind = first["machineSpec"].get("acceleratorType")
    assert kind is None or kind in v1.AcceleratorType.__members__
