"""A target's settings: variables before the table, nothing unknown, and no secret where it can be read."""

import json
from pathlib import Path

import pytest

from xlnet.errors import UserError
from xlnet_pipeline import dag
from xlnet_pipeline.cli import main
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.placement.machines import MACHINES
from xlnet_pipeline.targets.settings import KfpSettings, VertexSettings, image_of, read

IMAGE = "registry.example/team/xlnet@sha256:" + "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_ENDPOINT", "KFP_PIPELINE_ROOT", "VERTEX_PROJECT_ID", "VERTEX_LOCATION", "VERTEX_PIPELINE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def recipe(text: str) -> Path:
    Path("recipe.toml").write_text(text)
    return Path("recipe.toml")


def test_a_table_is_read_and_a_variable_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe('[target.vertex]\nproject = "one"\nlocation = "europe-west4"\npipeline_root = "gs://b/r"')
    assert read(VertexSettings).parent == "projects/one/locations/europe-west4"
    monkeypatch.setenv("VERTEX_PROJECT_ID", "two")
    assert read(VertexSettings).project == "two"


def test_a_recipe_with_targets_is_the_same_recipe() -> None:
    from xlnet import recipe as recipes

    with_target = recipes.load(recipe('[data]\ntrain = "gs://b/x.csv"\n[target.kfp]\nendpoint = "http://h"'))
    assert with_target == recipes.load(recipe('[data]\ntrain = "gs://b/x.csv"'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs endpoint and pipeline_root: set KFP_ENDPOINT and KFP_PIPELINE_ROOT, or write them under"),
        ('[target.kfp]\nendpoint = "http://h"', "target 'kfp' needs pipeline_root: set KFP_PIPELINE_ROOT, or"),
        ('[target.kfp]\nendpiont = "x"', "unknown setting 'target.kfp.endpiont'.*did you mean 'endpoint'"),
        ('[target.kpf]\nendpoint = "x"', r"unknown table \[target.kpf\]"),
        ('[target.kfp]\ntoken = "x"', "is a secret; set KFP_TOKEN instead"),
        ("[target.kfp]\nendpoint = 3", "must be a string"),
        ('[target.kfp]\nendpoint = "http://h"\npipeline_root = "/tmp"', "is not gs://BUCKET/FOLDER"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    recipe(text)
    with pytest.raises(UserError, match=message):
        read(KfpSettings)


def test_a_password_never_gets_into_a_compiled_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://b/r")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:hunter2@db.example/mlflow")
    arguments = ["run", "--set", "data.train=demo:uci_sentences", "--target", "kfp", "--image", IMAGE, "--dry-run"]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "holds a password" in shown.err
    assert "hunter2" not in shown.out + shown.err
    place = Placement("kfp", IMAGE, MACHINES["cpu"], registry_secret="registry")
    wishes = dag.documents(place)[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-register"]
    assert wishes["secretAsEnv"][0]["keyToEnv"][0]["envVar"] == "MLFLOW_TRACKING_URI"


def test_an_image_without_registry_gets_the_settings_own() -> None:
    settings = KfpSettings(image_registry="registry.example/team")
    assert image_of(settings, "xlnet@sha256:1") == "registry.example/team/xlnet@sha256:1"
    assert image_of(settings, "other.example/xlnet@sha256:1") == "other.example/xlnet@sha256:1"
    with pytest.raises(UserError, match="no image: type --image"):
        image_of(settings, None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection, and every look for an account, be a failed test."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"something was asked of the network: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("google.auth.default", refuse)
    for name in ("XLNET_IMAGE", "KFP_TOKEN", "MLFLOW_TRACKING_URI", "VERTEX_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("words", ["compile -o x.yaml", "run --dry-run", "run --dry-run --no-check"])
@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("kfp", "pipeline_root and image: set KFP_PIPELINE_ROOT and XLNET_IMAGE, or write them under [target.kfp] ("),
        ("vertex", "project, pipeline_root and image: set VERTEX_PROJECT_ID, VERTEX_PIPELINE_ROOT and XLNET_IMAGE"),
    ],
)
def test_all_missing_settings_are_named_at_once(
    words: str, target: str, missing: str, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--target", target]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: target '{target}' needs {missing}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("target", ["kfp", "vertex"])
@pytest.mark.parametrize("machine", ["l4", "auto"])
def test_compile_and_dry_run_need_no_account_no_endpoint_and_no_network(
    target: str,
    machine: str,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://b/r")
    monkeypatch.setenv("VERTEX_PIPELINE_ROOT", "gs://b/r")
    monkeypatch.setenv("VERTEX_PROJECT_ID", "demo")
    place = ["--target", target, "--machine", machine, "--image", IMAGE]
    assert main(["compile", "-o", "x.yaml", *place]) == 0
    assert "exec-train" in Path("x.yaml").read_text()
    assert ("the cheapest" in capsys.readouterr().err) is (machine == "auto")
    data = [] if machine == "auto" else ["--set", "data.train=gs://nobody/asks/for.csv"]
    assert main(["run", "--dry-run", *data, *place]) == 0
    assert json.loads(capsys.readouterr().out)[0]["method"] == "POST"


def test_the_file_that_kind_up_wrote_is_used_where_no_other_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setattr(os, "environ", {"AWS_ACCESS_KEY_ID": "ours"})
    Path("kind.env").write_text(
        "KFP_ENDPOINT=http://localhost:8080\nKFP_PIPELINE_ROOT=minio://mlpipeline/v2/artifacts\n"
        "AWS_ACCESS_KEY_ID=minio\nAWS_SECRET_ACCESS_KEY=a=b\n"
    )
    recipe('[target.kfp]\nendpoint = "http://another"\npipeline_root = "gs://b/r"')
    assert read(KfpSettings).pipeline_root == "gs://b/r"
    Path("recipe.toml").unlink()
    monkeypatch.setitem(os.environ, "KFP_ENDPOINT", "http://named")
    with pytest.raises(UserError, match="set KFP_PIPELINE_ROOT"):
        read(KfpSettings)
    monkeypatch.delitem(os.environ, "KFP_ENDPOINT")
    found = read(KfpSettings)
    assert (found.endpoint, found.pipeline_root) == ("http://localhost:8080", "minio://mlpipeline/v2/artifacts")
    assert os.environ["AWS_ACCESS_KEY_ID"] == "ours", "a variable that is set keeps its value"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "a=b"
