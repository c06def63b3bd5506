"""Targets are one interface: each can be asked the same, and says what it cannot do."""

import dataclasses
from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet.errors import RunError, UserError
from xlnet_pipeline import cli
from xlnet_pipeline.targets import NAMES, Submission, Target, open_target, remote
from xlnet_pipeline.targets.submission import refuse

RECIPE = recipes.tiny().replace(data={"train": "demo:uci_sentences"})


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XLNET_IMAGE", "registry.example/xlnet@sha256:" + "0" * 64)
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "KFP_ENDPOINT": "http://127.0.0.1:9",
        "KFP_PIPELINE_ROOT": "gs://bucket/root",
        "VERTEX_PROJECT_ID": "project",
        "VERTEX_PIPELINE_ROOT": "gs://bucket/root",
        "VERTEX_ENDPOINT": "http://127.0.0.1:9",
        "GOOGLE_OAUTH_ACCESS_TOKEN": "a-token",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("name", NAMES)
def test_a_target_can_be_asked_all_of_the_interface(name: str) -> None:
    target = open_target(name)
    assert target.name == name
    asked = {member for member in vars(Target) if not member.startswith("_")}
    assert {"submit", "runs", "status", "logs", "cancel", "schedules", "models", "artifacts"} <= asked
    assert not [member for member in asked if not hasattr(target, member)]
    fields = {field.name for field in dataclasses.fields(Submission)}
    assert set(target.cannot) <= fields | asked, "it cannot do what nobody can ask for"


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--target local --spot", "--spot is for the targets kfp and vertex; the local target is this machine"),
        ("--target local --nodes 2", "--nodes is for the targets kfp and vertex; the local"),
        ("--target local --memory 4g", "--memory is for --target docker; target 'local' runs no containers"),
        ("--target local --dry-run", "--dry-run is for the targets kfp and vertex; "),
        ("--target docker --device cpu", "--device is for the target local; on docker the image says what there is"),
        ("--target docker --machine l4", "--machine is for the targets kfp and vertex; "),
        ("--target docker --dry-run", "--dry-run is for the targets kfp and vertex; "),
        ("--target kfp --nproc 2", "--nproc is for the targets local and docker; elsewhere --machine says how many"),
        ("--target vertex --device cuda", "--device is for the target local; elsewhere --machine says what there is"),
        ("--target kfp --memory 4g", "--memory is for --target docker; elsewhere --machine says what there is"),
        ("--nproc 0", "--nproc is 0; allowed: 1 or more"),
        ("--target vertex --nodes 0", "--nodes is 0; allowed: 1 or more"),
        ("--target vertx", "unknown --target 'vertx'; allowed: local"),
    ],
)
def test_what_a_target_cannot_do_is_one_line_before_anything_runs(
    words: str, expected: str, capsys: pytest.CaptureFixture[str], isolated_state: Path
) -> None:
    assert cli.main(["run", *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {expected}")
    assert shown.err.count("\n") == 1
    assert not isolated_state.exists()


def test_schedules_run_without_containers() -> None:
    with pytest.raises(UserError, match="without containers; leave --target docker out"):
        open_target("docker").schedules()


def test_the_runs_of_docker_are_listed_without_an_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["runs", "list", "--target", "docker"]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"allowed: local, docker, kfp, vertex; did you mean 'vertex'\?"):
        open_target("vertx")


def test_a_submission_asks_for_nothing_by_default() -> None:
    for name in ("local", "docker"):
        refuse(Submission(RECIPE), open_target(name).cannot)


@pytest.mark.parametrize(
    ("gigabytes", "shards"),
    [([3.9], "auto"), ([1.5, 2.5], 4), ([0.5] * 21, 11), ([500], 100)],
    ids=["small", "four", "many", "huge"],
)
def test_a_large_input_is_divided_on_remote_targets(
    gigabytes: list[float], shards: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte for each shard, from four on; a number that was given stays."""
    sizes = enumerate(int(size * 2**30) for size in gigabytes)
    files = [objects.Stored(f"gs://b/{n}.csv", f"{n}.csv", size, "crc32c:x", "1") for n, size in sizes]
    monkeypatch.setattr(objects, "listing", lambda uri: files)
    recipe = recipes.Recipe().replace(data={"train": "gs://b/*.csv"})
    assert remote.with_shards(recipe).data.shards == shards
    given = recipe.replace(data={"shards": 2})
    assert remote.with_shards(given) == given


def test_an_input_that_cannot_be_listed_is_preprocessed_by_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise RunError("no rights")

    monkeypatch.setattr(objects, "listing", refuse)
    recipe = recipes.Recipe().replace(data={"train": "gs://b/*.csv"})
    assert remote.with_shards(recipe) == recipe
