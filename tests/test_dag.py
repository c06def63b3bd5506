"""The DAG as its compiled file: one document, content-keyed caching, pinned images."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlnet.errors import UserError
from xlnet.steps import of_run
from xlnet_pipeline import dag
from xlnet_pipeline.placement import placement
from xlnet_pipeline.placement.machines import MACHINES

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"registry.example/team/xlnet@{DIGEST}"
STEPS = ["snapshot", "preprocess", "train", "evaluate", "register"]


def compiled(path: Path, image: str | None = None) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(dag.compile(path, image).read_text(encoding="utf-8")))
    assert len(documents) == 1, "the Vertex client refuses a second document"
    return dict(documents[0])


def images(spec: dict[str, Any]) -> set[str]:
    return {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}


def test_five_steps_in_a_row_and_one_parameter(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "pipeline.yaml")
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == set(STEPS)
    assert list(spec["root"]["inputDefinitions"]["parameters"]) == ["recipe"]
    for before, after in itertools.pairwise(STEPS):
        assert tasks[after]["dependentTasks"] == [before], "each edge more would be drawn"


def edges(spec: dict[str, Any]) -> dict[str, set[tuple[str, str]]]:
    """What the page of Kubeflow Pipelines draws: between tasks, one for each pair; and to and from each artifact."""
    tasks = spec["root"]["dag"]["tasks"]
    drawn: dict[str, set[tuple[str, str]]] = {"tasks": set(), "artifacts": set()}
    for name, task in tasks.items():
        drawn["tasks"] |= {(before, name) for before in task.get("dependentTasks", [])}
        for one in task.get("inputs", {}).get("parameters", {}).values():
            if "taskOutputParameter" in one:
                drawn["tasks"].add((one["taskOutputParameter"]["producerTask"], name))
        for one in task.get("inputs", {}).get("artifacts", {}).values():
            drawn["artifacts"].add((one["taskOutputArtifact"]["outputArtifactKey"], name))
        outputs = spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {}).get("artifacts", {})
        drawn["artifacts"] |= {(name, one) for one in outputs}
    return drawn


def test_the_page_of_kubeflow_pipelines_draws_no_tangle(tmp_path: Path) -> None:
    """A row of steps, and beside it only what the snapshot tells the steps that a backend may take from its cache."""
    drawn = edges(compiled(tmp_path / "pipeline.yaml"))
    assert drawn["tasks"] == {*itertools.pairwise(STEPS), ("snapshot", "train"), ("snapshot", "evaluate")}
    assert len(drawn["artifacts"]) == 8 + 6, "written and read"
    drawn = edges(dag.documents(pretrains=True)[0])
    row = itertools.pairwise([*STEPS[:2], "pretrain", *STEPS[2:]])
    assert drawn["tasks"] == {*row, *(("snapshot", name) for name in ("pretrain", "train", "evaluate"))}


@pytest.mark.parametrize(
    ("needs", "left"),
    [
        ({"a": [], "b": ["a"], "c": ["a", "b"]}, {"a": [], "b": ["a"], "c": ["b"]}),
        ({"a": [], "b": [], "c": ["a", "b"]}, {"a": [], "b": [], "c": ["a", "b"]}),
        (
            {"a": [], "b": ["a"], "c": ["a"], "d": ["a", "b", "c"], "e": ["a", "d"]},
            {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d"]},
        ),
        ({"a": None, "b": ["a"]}, {"a": None, "b": ["a"]}),
    ],
)
def test_a_dependency_that_others_imply_is_dropped(needs: dict[str, Any], left: dict[str, Any]) -> None:
    tasks = {name: {} if before is None else {"dependentTasks": before} for name, before in needs.items()}
    dag.without_implied(tasks)
    assert {name: task.get("dependentTasks") for name, task in tasks.items()} == left


def test_what_lies_outside_of_a_backends_keys_is_never_cached(tmp_path: Path) -> None:
    """The input's bytes behind a path, and the registry with its champion."""
    tasks = compiled(tmp_path / "pipeline.yaml")["root"]["dag"]["tasks"]
    assert [name for name in STEPS if not tasks[name]["cachingOptions"].get("enableCache")] == ["snapshot", "register"]


def test_a_step_is_given_its_own_part_of_the_recipe_and_its_code(tmp_path: Path) -> None:
    tasks = compiled(tmp_path / "pipeline.yaml")["root"]["dag"]["tasks"]
    for name in STEPS[1:]:
        parameters = tasks[name]["inputs"]["parameters"]
        if name == "register":  # a backend never takes it from its cache
            assert parameters["recipe"] == {"componentInputParameter": "recipe"}
        else:
            assert parameters["recipe"]["taskOutputParameter"]["outputParameterKey"] == name
        assert parameters["code"]["runtimeValue"]["constant"].startswith("sha256:")


@pytest.mark.parametrize("target", ["kfp", "vertex"])
def test_a_pipeline_with_the_step_that_pretrains(target: str) -> None:
    """Its train step continues the base model; the pretrain step has the machine, and keeps checkpoints."""
    place = dataclasses.replace(placement(target, IMAGE, MACHINES["l4"]), output_root="gs://bucket/root")
    documents = dag.documents(place, pretrains=True)
    assert len(documents) == (2 if target == "kfp" else 1)
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert list(of_run(pretrains=True)) == sorted(tasks, key=[*STEPS[:2], "pretrain", *STEPS[2:]].index)
    made = tasks["train"]["inputs"]["artifacts"]["base"]["taskOutputArtifact"]
    assert made == {"outputArtifactKey": "base", "producerTask": "pretrain"}
    assert tasks["pretrain"]["cachingOptions"]["enableCache"]
    assert tasks["pretrain"]["inputs"]["parameters"]["pretrained"]["taskOutputParameter"]
    container = documents[0]["deploymentSpec"]["executors"]["exec-pretrain"]["container"]
    assert {"name": "XLNET_CHECKPOINTS", "value": "gs://bucket/root/checkpoints"} in container["env"]
    if target == "vertex":
        assert container["resources"]["accelerator"]["resourceType"] == "NVIDIA_L4"


def test_a_pinned_image_is_the_identity_of_the_code(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "pipeline.yaml", IMAGE)
    assert images(spec) == {IMAGE}
    code = {
        task["inputs"]["parameters"]["code"]["runtimeValue"]["constant"]
        for name, task in spec["root"]["dag"]["tasks"].items()
        if name != "snapshot"
    }
    assert code == {DIGEST}
    for executor in spec["deploymentSpec"]["executors"].values():
        assert {"name": "XLNET_IMAGE_DIGEST", "value": DIGEST} in executor["container"]["env"]


def test_an_image_does_not_leak_into_the_next_compilation(tmp_path: Path) -> None:
    compiled(tmp_path / "one.yaml", IMAGE)
    assert IMAGE not in images(compiled(tmp_path / "two.yaml"))


def test_nothing_is_installed_when_a_step_starts(tmp_path: Path) -> None:
    assert "pip install" not in dag.compile(tmp_path / "pipeline.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("image", ["xlnet:latest", "xlnet@sha256:12", f"x y@{DIGEST}"])
def test_an_image_that_can_change_behind_its_name_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(UserError, match="is not pinned; give it as REGISTRY/NAME@sha256"):
        dag.compile(tmp_path / "pipeline.yaml", image)


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.yaml"):
        dag.compile(tmp_path / "pipeline.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        dag.compile(tmp_path / "file" / "pipeline.yaml")
