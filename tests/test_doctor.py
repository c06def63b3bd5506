"""The doctor: each probe against a real server or tool, in every state, with the repair; no secret is shown."""

import http.server
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from xlnet.data import objects
from xlnet.errors import UserError
from xlnet_pipeline import cli
from xlnet_pipeline.placement.machines import machine
from xlnet_pipeline.planning import doctor, google_probes
from xlnet_pipeline.planning.diagnosis import BAD, OK, UNSET, Environment
from xlnet_pipeline.planning.doctor import from_terraform

PROJECT = {"VERTEX_PROJECT_ID": "acme", "VERTEX_LOCATION": "us-central1"}
OUTPUTS = json.dumps(
    {
        "environment": {"value": {**PROJECT, "VERTEX_PIPELINE_ROOT": "gs://curves/root", "VERTEX_TENSORBOARD": None}},
        "connect": {"value": None},
    }
)


def look(name: str, environment: Mapping[str, str] | None = None, **where: Any) -> tuple[str, str, str]:
    """State, detail and repair of one probe."""
    found = doctor.PROBES[name](Environment(environment or {}, **where))
    return found[0], found[1], found[2] if len(found) > 2 else ""


class _Server(http.server.ThreadingHTTPServer):
    """Answers by path: status and JSON; 'hang' does not answer."""

    answers: dict[str, tuple[int, Any]]
    seen: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.seen.append(self.headers.get("Authorization", ""))
        status, body = self.server.answers.get(self.path.partition("?")[0], (404, {}))
        if body == "hang":
            time.sleep(2 * doctor.TIMEOUT)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[_Server]:
    """A server on 127.0.0.1 whose answers a test sets."""
    made = _Server(("127.0.0.1", 0), _Handler)
    made.answers, made.seen, made.daemon_threads, made.block_on_close = {}, [], True, False
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in which tools are looked for, empty at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    """Put an executable where tools are looked for."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


# Kubeflow Pipelines


def test_kfp_answers(server: _Server) -> None:
    server.answers["/apis/v2beta1/healthz"] = (200, {"multi_user": True})
    state, detail, _ = look("kfp endpoint", {"KFP_ENDPOINT": url(server) + "/", "KFP_TOKEN": "s3cret"})
    assert (state, detail) == (OK, f"{url(server)}, with users of their own")
    assert server.seen == ["Bearer s3cret"]


@pytest.mark.parametrize(
    ("status", "says"), [(401, "unknown to it"), (403, "refused"), (500, "answers 500"), (404, "404")]
)
def test_kfp_refuses(server: _Server, status: int, says: str) -> None:
    server.answers["/apis/v2beta1/healthz"] = (status, {})
    state, detail, repair = look("kfp endpoint", {"KFP_ENDPOINT": url(server), "KFP_TOKEN": "s3cret"})
    assert state == BAD
    assert says in detail
    assert "s3cret" not in detail + repair
    assert repair


@pytest.mark.parametrize(
    ("endpoint", "state", "repair"),
    [
        ("", UNSET, "export KFP_ENDPOINT=http://127.0.0.1:8080"),
        ("kfp.example.org", BAD, "export KFP_ENDPOINT=https://kfp.example.org"),
        ("http://127.0.0.1:1", BAD, "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"),
    ],
)
def test_kfp_is_not_there(endpoint: str, state: str, repair: str) -> None:
    found = look("kfp endpoint", {"KFP_ENDPOINT": endpoint})
    assert (found[0], found[2]) == (state, repair)


def test_a_server_that_hangs_is_given_up(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.3)
    server.answers["/apis/v2beta1/healthz"] = (200, "hang")
    begun = time.monotonic()
    state, detail, _ = look("kfp endpoint", {"KFP_ENDPOINT": url(server)})
    assert state == BAD
    assert "timed out" in detail
    assert time.monotonic() - begun < 3


# Google Cloud


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an object store with the empty bucket ``curves``."""
    from servers.emulator import create_server

    made = create_server(0, "curves")
    made.start()
    address = f"http://127.0.0.1:{made._api._httpd.socket.getsockname()[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    yield address
    made.stop()


def test_bucket_is_written_read_and_left_as_it_was(storage: str) -> None:
    state, detail, _ = look("bucket", {"VERTEX_PIPELINE_ROOT": "gs://curves/root/"})
    assert (state, detail) == (OK, "gs://curves/root/: wrote, read and deleted an object")
    assert objects.listing("gs://curves") == []


def test_bucket_that_is_not_there(storage: str) -> None:
    state, detail, repair = look("bucket", {"KFP_PIPELINE_ROOT": "gs://nowhere/root"})
    assert (state, detail) == (BAD, "bucket 'nowhere' does not exist")
    assert repair == "gcloud storage buckets create gs://nowhere"
    assert look("bucket")[0] == UNSET
    state, detail, _ = look("bucket", {"KFP_PIPELINE_ROOT": "curves/root"})
    assert state == BAD
    assert "'curves/root' is not gs://BUCKET/OBJECT" in detail


def test_bucket_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    state, detail, repair = look("bucket", {"VERTEX_PIPELINE_ROOT": "gs://curves/root"})
    assert state == BAD
    assert detail.startswith("gs://curves/root: an object could be neither written nor read (")
    assert repair == "gcloud storage ls gs://curves/root"


@pytest.fixture
def nobody() -> Any:
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials()


def test_credentials_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    state, detail, repair = look("credentials", PROJECT)
    assert state == BAD
    assert "none.json" in detail or "no application default" in detail
    assert repair == "gcloud auth application-default login"
    assert look("credentials")[0] == UNSET


def test_credentials_that_are_there(nobody: Any) -> None:
    assert look("credentials", PROJECT, credentials=nobody)[0] == OK


def usage(server: _Server, nobody: Any) -> dict[str, Any]:
    return {"service_usage": url(server), "credentials": nobody}


def test_services_that_are_off_are_named(server: _Server, nobody: Any) -> None:
    states = dict.fromkeys(google_probes.SERVICES, "ENABLED")
    for off in ([], ["aiplatform.googleapis.com"]):
        found = {**states, **dict.fromkeys(off, "DISABLED")}
        services = [{"name": f"projects/1/services/{name}", "state": state} for name, state in found.items()]
        server.answers["/v1/projects/acme/services:batchGet"] = (200, {"services": services})
        state, detail, repair = look("project services", PROJECT, **usage(server, nobody))
        assert state == (BAD if off else OK)
    assert detail == "project 'acme' lacks aiplatform.googleapis.com"
    assert repair == "gcloud services enable aiplatform.googleapis.com --project=acme"
    server.answers["/v1/projects/acme/services:batchGet"] = (403, {})
    state, detail, repair = look("project services", PROJECT, **usage(server, nobody))
    assert (state, detail) == (BAD, "project 'acme': asking was refused (403)")
    assert "roles/serviceusage.serviceUsageConsumer" in repair
    assert look("project services")[0] == UNSET


@pytest.mark.parametrize(("limit", "state"), [(0, BAD), (4, BAD), (8, OK), (-1, OK)])
def test_quota_is_compared_with_what_the_machine_needs(server: _Server, nobody: Any, limit: int, state: str) -> None:
    def metric(name: str, limits: Mapping[str, int]) -> dict[str, Any]:
        buckets = [{"effectiveLimit": str(value), "dimensions": {"region": where}} for where, value in limits.items()]
        return {"metric": f"aiplatform.googleapis.com/{name}", "consumerQuotaLimits": [{"quotaBuckets": buckets}]}

    path = "/v1beta1/projects/acme/services/aiplatform.googleapis.com/consumerQuotaMetrics"
    metrics = [
        metric("custom_model_training_nvidia_l4_gpus", {"us-central1": limit, "europe-west4": 64}),
        metric("custom_model_training_nvidia_t4_gpus", {"us-central1": 64}),
        metric("custom_model_serving_nvidia_l4_gpus", {"us-central1": 64}),
    ]
    server.answers[path] = (200, {"metrics": metrics})
    found = look("quota", PROJECT, machine=machine("l4-8"), **usage(server, nobody))
    assert found[0] == state
    if state == BAD:
        assert found[1] == f"{limit} 'l4' accelerators in us-central1, 'l4-8' needs 8"
    assert look("quota", PROJECT)[0] == UNSET


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("a100-80g-8", "custom_model_training_nvidia_a100_80gb_gpus"),
        ("a100-40g", "custom_model_training_nvidia_a100_gpus"),
        ("v5e-4", "custom_model_training_tpu_v5e"),
        ("h200-8", "custom_model_training_nvidia_h200_gpus"),
    ],
)
def test_quota_metrics_are_known_by_their_names(name: str, metric: str) -> None:
    assert google_probes._is_for(machine(name), f"aiplatform.googleapis.com/{metric}")
    assert not google_probes._is_for(machine("l4"), f"aiplatform.googleapis.com/{metric}")


@pytest.mark.parametrize(("limit", "state"), [(0, BAD), (4, OK)])
@pytest.mark.parametrize(
    ("name", "metric", "family"),
    [
        ("v5e-4", "preemptible_tpu_lite_podslice_v5", {}),
        ("v6e-4", "tpus_per_tpu_family", {"tpu_family": "CT6E"}),
        ("a100-80g-4", "nvidia_a100_80gb_gpus", {}),
    ],
)
def test_a_node_pool_without_quota(
    server: _Server, nobody: Any, name: str, metric: str, family: dict[str, str], limit: int, state: str
) -> None:
    def counted(metric: str, value: int, **dimensions: str) -> dict[str, Any]:
        buckets = [{"effectiveLimit": str(value), "dimensions": {"region": "us-central1", **dimensions}}]
        return {"metric": f"compute.googleapis.com/{metric}", "consumerQuotaLimits": [{"quotaBuckets": buckets}]}

    path = "/v1beta1/projects/acme/services/compute.googleapis.com/consumerQuotaMetrics"
    others = [counted("nvidia_a100_gpus", 64), counted("tpus_per_tpu_family", 64, tpu_family="CT5P")]
    server.answers[path] = (200, {"metrics": [counted(metric, limit, **family), *others]})
    cluster = {**PROJECT, "KFP_PIPELINE_ROOT": "gs://b/kfp"}
    found = look("node quota", cluster, machine=machine(name), **usage(server, nobody))
    assert found[0] == state
    assert found[1].startswith(f"{limit} '{machine(name).family}' accelerators in us-central1")
    assert look("node quota", PROJECT, machine=machine(name))[0] == UNSET


# Tools


@pytest.mark.parametrize("name", ["docker", "kind", "kubectl"])
def test_tools_are_there_or_not_or_fail(path: Path, name: str) -> None:
    assert look(name) == (UNSET, f"{name} is not installed", "")
    tool(path, name, "echo v1.2.3")
    assert look(name) == (OK, "v1.2.3", "")
    tool(path, name, "echo no >&2; exit 1")
    state, _, repair = look(name)
    assert state == BAD
    assert repair


def test_gpus_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("gpu")[0] == UNSET
    tool(path, "nvidia-smi", "echo 'NVIDIA L4, 550.90'; echo 'NVIDIA L4, 550.90'")
    monkeypatch.setattr(doctor, "_version", lambda package: "2.13.0")
    assert look("gpu") == (OK, "NVIDIA L4, 550.90 | NVIDIA L4, 550.90", "")
    monkeypatch.setattr(doctor, "_version", lambda package: "2.13.0+cpu")
    assert look("gpu")[0] == BAD
    tool(path, "nvidia-smi", "exit 9")
    assert look("gpu")[1] == "the driver does not answer"


def test_every_probe_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "plan.md").read_text(encoding="utf-8").replace("\n", " ")
    assert [name for name in doctor.PROBES if name not in page.partition("What doctor looks at")[2]] == []


def test_packages_are_listed() -> None:
    state, detail, _ = look("packages")
    assert state == OK
    assert "kfp 2.17" in detail


# Terraform, and all together


def test_terraform_outputs_become_variables() -> None:
    assert from_terraform(OUTPUTS) == {**PROJECT, "VERTEX_PIPELINE_ROOT": "gs://curves/root"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "was given no JSON"),
        ("[]", "no output 'environment'"),
        ('{"environment": {"value": "x"}}', "no output 'environment'"),
        ('{"environment": {"value": {"a b": "x"}}}', "environment.a b is not a variable"),
        ('{"environment": {"value": {"A": 1}}}', "environment.A is not a variable"),
    ],
)
def test_other_texts_are_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_terraform(text)


def test_variables_that_the_shell_lacks_are_exported() -> None:
    lacking = {"VERTEX_PROJECT_ID": "acme", "KFP_TOKEN": "s3cret", "NAME": "two words"}
    state, _, repair = look("variables", exported=lacking)
    assert state == BAD
    assert repair == "export KFP_TOKEN=… NAME='two words' VERTEX_PROJECT_ID=acme"
    assert look("variables", exported={"KFP_REGISTRY_SECRET": "xlnet-registry"})[2].endswith("=xlnet-registry")
    assert look("variables", exported={})[0] == OK
    assert look("variables")[0] == UNSET


def test_command_prints_a_line_for_each_probe(
    path: Path, storage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isolated_state: Path
) -> None:
    for name in ("KFP_ENDPOINT", "VERTEX_PROJECT_ID", "VERTEX_PIPELINE_ROOT", "KFP_PIPELINE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[4:22].strip() for line in lines] == list(doctor.PROBES)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO('{"environment": {"value": {"VERTEX_PIPELINE_ROOT": "gs://curves/root"}}}')
    )
    assert cli.main(["doctor", "--from-terraform", "-"]) == 1, "the shell has not got the variable"
    printed = capsys.readouterr().out
    assert "ok  bucket            gs://curves/root: wrote, read and deleted an object\n" in printed
    assert "; type: export VERTEX_PIPELINE_ROOT=gs://curves/root\n" in printed
    assert not isolated_state.exists()


def test_settings_of_the_recipe_file_are_used(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    (tmp_path / "recipe.toml").write_text('[target.kfp]\nendpoint = "http://127.0.0.1:1"\n')
    assert cli.main(["doctor", str(tmp_path / "recipe.toml")]) == 1
    assert "bad kfp endpoint      http://127.0.0.1:1 cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--from-terraform", "none.json"], "cannot read 'none.json'"), (["--machine", "l5"], "machine 'l5' is unknown")],
)
def test_command_refuses_what_it_cannot_use(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
