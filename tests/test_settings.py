"""A target's settings: variables before the table, nothing unknown, and no secret where it can be read."""

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
        ("", "target 'kfp' needs endpoint: set KFP_ENDPOINT, or write endpoint under"),
        ('[target.kfp]\nendpiont = "x"', "unknown setting 'target.kfp.endpiont'.*did you mean 'endpoint'"),
        ('[target.kpf]\nendpoint = "x"', r"unknown table \[target.kpf\]"),
        ('[target.kfp]\ntoken = "x"', "is a secret; set KFP_TOKEN instead"),
        ("[target.kfp]\nendpoint = 3", "must be a string"),
        ('[target.kfp]\nendpoint = "http://h"\npipeline_root = "/tmp"', "is no gs://BUCKET/FOLDER"),
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
