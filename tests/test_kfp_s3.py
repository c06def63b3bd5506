"""A pipeline whose data and artifacts lie in the cluster's own S3, from ``make kind-up``'s settings file to lineage.

The steps get no keys from us: they take them from the cluster's secret, and the address from the cluster's DNS.
"""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, PINNED_IMAGE
from servers.kfp_server import KfpServer
from servers.kubernetes_server import KubernetesServer
from servers.s3 import s3_server

from xlnet import http
from xlnet.data import s3
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets import remote

INSIDE = "http://seaweedfs.kubeflow:9000"  # what pods call the cluster's S3
SECRET = {"accesskey": "the-clusters-key", "secretkey": "the-clusters-secret"}
STEPS = ("snapshot", "preprocess", "train", "evaluate", "register")


class Installation:
    """A kind cluster's Kubeflow Pipelines with its own S3, and the folder that ``make kind-up`` was run in."""

    def __init__(self, server: KfpServer, bucket: Any, scheme: str) -> None:
        self.server, self.bucket, self.scheme = server, bucket, scheme
        self.first: tuple[str, int, str] | None = None

    def say(self, *words: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = main([*words, "--target", "kfp"])
        return status, text.getvalue()

    def run(self, *more: str) -> tuple[str, int, str]:
        """Run the recipe to its end: the run's id, exit status, and what was said."""
        status, said = self.say("run", "recipe.toml", "--wait", *more)
        assert "run " in said, said
        return said.split("run ", 1)[1].split()[0], status, said

    def succeeded(self) -> str:
        """The id of the first run, made once; an s3:// one trains in a JobSet."""
        self.first = self.first or self.run(*(["--spot"] if self.scheme == "s3://" else []))
        assert self.first[1] == 0, self.first[2]
        return self.first[0]

    def names(self, prefix: str = "") -> list[str]:
        """The names of the bucket's objects."""
        found = self.bucket.get_paginator("list_objects_v2").paginate(Bucket="mlpipeline", Prefix=prefix)
        return [one["Key"] for page in found for one in page.get("Contents", [])]


RECIPE = """
[data]
train = "{scheme}mlpipeline/data/*.txt"
format = "tsv"
header = "no"
text = 0
label = 1
max_length = 32
[model]
n_layer = 1
d_model = 32
n_head = 2
d_head = 16
d_inner = 64
[training]
steps = 6
batch_tokens = 512
[evaluation]
resamples = 100
[registry]
name = "reviews"
"""


@pytest.fixture(scope="module", params=["minio://", "s3://"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("s3")
    kept = dict(os.environ)
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(patch) as bucket,
        KfpServer(folder / "kfp") as server,
        KubernetesServer(folder / "cluster") as server.cluster,
    ):
        sentences = CHECKOUT / "components/xlnet/demo/uci_sentences/amazon_cells_labelled.txt"
        lines = sentences.read_text(encoding="utf-8").splitlines(keepends=True)
        for name, some in (("a.txt", lines[:200]), ("b.txt", lines[200:400])):
            bucket.put_object(Bucket="mlpipeline", Key=f"data/{name}", Body="".join(some).encode())
        bucket.put_object(Bucket="mlpipeline", Key="data/SOURCE.md", Body=b"no rows\n")
        bucket.put_object(Bucket="mlpipeline", Key="data/old/c.txt", Body=b"no rows either\n")
        outside = os.environ["AWS_ENDPOINT_URL_S3"]
        assert server.cluster
        server.backend.hosts[INSIDE] = outside
        server.cluster.hosts, server.cluster.secrets = server.backend.hosts, server.backend.secrets
        server.backend.secrets["mlpipeline-minio-artifact"] = SECRET
        server.backend.secrets["xlnet-registry"] = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'registry.db'}"}
        own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        settings = {
            "KFP_ENDPOINT": server.url,
            "KFP_PIPELINE_ROOT": f"{request.param}mlpipeline/v2/artifacts",
            "KFP_REGISTRY_SECRET": "xlnet-registry",
            "AWS_ENDPOINT_URL_S3": outside,
            "AWS_ACCESS_KEY_ID": own["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": own["AWS_SECRET_ACCESS_KEY"],
        }
        if request.param == "s3://":  # nobody knows where that is but who sets it
            settings |= {"KFP_S3_ENDPOINT": INSIDE, "KFP_S3_SECRET": "mlpipeline-minio-artifact"}
        assert server.backend.s3, "the server keeps its client"
        for name in (*settings, "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        (folder / "kind.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (folder / "recipe.toml").write_text(RECIPE.format(scheme=request.param))
        patch.chdir(folder)
        patch.setenv("XLNET_IMAGE", PINNED_IMAGE)
        patch.setattr(remote, "FIRST_POLL", 0.1)
        patch.setattr(remote, "LONGEST_POLL", 0.3)
        patch.setattr(http, "FIRST_PAUSE", 0.02)
        try:
            yield Installation(server, bucket, request.param)
        finally:
            for name in set(os.environ) - set(kept):
                del os.environ[name]


@pytest.fixture(autouse=True)
def image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_IMAGE", PINNED_IMAGE)


def test_it_runs_from_snapshot_to_registration(installation: Installation) -> None:
    installation.succeeded()
    assert installation.first
    said = installation.first[2]
    assert "registered reviews:1" in said
    assert "accuracy" in said


def test_a_glob_reads_no_other_files(installation: Installation) -> None:
    log = installation.say("runs", "logs", installation.succeeded(), "snapshot")[1]
    assert "2 files" in log, log
    tree = installation.say("lineage", installation.succeeded())[1]
    assert "data/a.txt" in tree
    assert "data/b.txt" in tree
    assert "SOURCE.md" not in tree
    assert "c.txt" not in tree


def test_steps_have_the_clusters_keys_and_not_ours(installation: Installation) -> None:
    installation.succeeded()
    (run,) = list(installation.server.runs.values())[:1]
    for task in installation.server.executions[run["run_id"]].tasks.values():
        variables = installation.server.fields(run, task)
        assert variables["AWS_ACCESS_KEY_ID"] == SECRET["accesskey"]
        assert variables["AWS_SECRET_ACCESS_KEY"] == SECRET["secretkey"]
    sent = json.dumps(run["pipeline_spec"])
    assert "the-clusters-secret" not in sent
    assert INSIDE in sent
    assert "AWS_SECRET_ACCESS_KEY" in sent


def test_everything_lies_below_the_root(installation: Installation) -> None:
    run = installation.succeeded()
    record = json.loads(installation.say("runs", "show", run, "--json")[1])
    root = os.environ["KFP_PIPELINE_ROOT"]
    assert record["status"] == "SUCCEEDED"
    places = [out["uri"] for step in record["steps"] for out in step["outputs"].values()]
    assert len(places) == 4
    assert all(place.startswith(f"{root}/xlnet/") for place in places)
    kinds = ("/model/model.safetensors", "/executor-logs-0", "/report.html", "/lineage")
    names = installation.names("v2/artifacts/")
    for kind in kinds:
        assert any(name.endswith(kind) for name in names), kind
    assert {name.split("/")[2] for name in names} <= {"xlnet", "index", "checkpoints"}


def test_a_training_that_is_cancelled_leaves_its_checkpoints_there(installation: Installation) -> None:
    if installation.scheme == "s3://":
        pytest.skip("as with minio://")
    said = installation.say(
        "run", "recipe.toml", "--no-check", "--set", "training.steps=100000", "--set", "training.patience=0"
    )[1]
    run = said.split("run ", 1)[1].split()[0]
    for line in main_lines(installation, run):
        if re.match(r"step \d+", line):
            break
    assert installation.say("runs", "cancel", run) == (0, f"run {run}: CANCELLED\n")
    names = [name.rpartition("/")[2] for name in installation.names("v2/artifacts/checkpoints/")]
    assert "about.json" in names
    assert "manifest.json" in names


def main_lines(installation: Installation, run: str) -> Iterator[str]:
    """The lines of a run's log, as far as it is written, until somebody has seen enough."""
    while True:
        yield from installation.say("runs", "logs", run)[1].splitlines()
        time.sleep(0.5)


@pytest.mark.parametrize("place", ["server", "ui", "root"])
def test_each_step_has_a_log(place: str, installation: Installation) -> None:
    run = installation.succeeded()
    server = installation.server
    server.ui, server.pods_deleted = place != "server", place == "root"
    try:
        status, said = installation.say("runs", "logs", run)
    finally:
        server.ui = server.pods_deleted = False
    assert status == 0
    headings = [line for line in said.splitlines() if line.startswith("==>")]
    assert headings == [f"==> {one} (SUCCEEDED) <==" for one in STEPS]
    assert " is gone" not in said
    assert "step 6" in said


def test_its_list_model_and_lineage(installation: Installation, tmp_path: Path) -> None:
    run = installation.succeeded()
    assert run in installation.say("runs", "list")[1]
    tree = installation.say("lineage", run)[1]
    for word in ("registration reviews:1", "evaluation", "model", "dataset", "snapshot"):
        assert word in tree
    page = tmp_path / "lineage.html"
    assert installation.say("lineage", run, "--html", str(page))[0] == 0
    assert "mlpipeline/data/a.txt" in page.read_text()


def test_a_model_there_answers_here(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(installation.say("runs", "show", installation.succeeded(), "--json")[1])
    assert main(["predict", record["steps"][2]["outputs"]["model"]["uri"], "a lovely warm film"]) == 0
    assert "probabilities" in capsys.readouterr().out


def test_the_same_again_is_cached(installation: Installation) -> None:
    if installation.scheme == "s3://":
        pytest.skip("as with minio://")
    first = installation.succeeded()
    again, status, said = installation.run()
    assert status == 0, said
    assert said.count(f"cached (same as in run {first})") == 3
    record = json.loads(installation.say("runs", "show", again, "--json")[1])
    assert [step["status"] for step in record["steps"]] == ["SUCCEEDED", *["CACHED"] * 3, "SUCCEEDED"]
    assert "data/a.txt" in installation.say("lineage", again)[1]


def test_a_jobset_trains_from_and_into_it(installation: Installation) -> None:
    if installation.scheme == "minio://":
        pytest.skip("the train step's own pod did it")
    log = installation.say("runs", "logs", installation.succeeded(), "train")[1]
    assert "of 1 pod was created" in log
    assert "step 6" in log


def test_a_failing_step_says_so_in_its_own_words(installation: Installation) -> None:
    status, said = installation.say("run", "recipe.toml", "--wait", "--no-check", "--set", "data.label=7")
    assert status == 2
    assert "so none with index 7" in said


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_ENDPOINT_URL_S3": ""}, ()),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ("no credentials", "set AWS_ACCESS_KEY_ID")),
    ],
    ids=["no address", "no keys"],
)
def test_a_root_that_we_cannot_read_says_what_is_missing(
    variables: dict[str, str], words: tuple[str, ...], installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = installation.succeeded()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3._client.cache_clear()
    try:
        if "AWS_ENDPOINT_URL_S3" in variables and installation.scheme == "s3://":
            pytest.skip("s3:// without an address is Amazon's")
        status, said = installation.say("runs", "show", run)
    finally:
        s3._client.cache_clear()
    assert status == 0
    assert "SUCCEEDED" in said
    for word in words or ("set AWS_ENDPOINT_URL_S3", "port-forward"):
        assert word in said
