"""Lineage: what a run, a model or a directory came from, as one graph, as text and as JSON."""

import json
import re
import shutil
from pathlib import Path

import pytest
from lineage_samples import BREAKOUT, FOREIGN, REASON, many_files, source, write_artifacts

from xlnet import provenance
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet.registry import open_registry
from xlnet.steps import STEPS
from xlnet_pipeline.lineage import graph, rendering
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun

RUN = "20261123-160000-ab12"


def kinds(found: graph.Lineage) -> list[str]:
    return [node.type for node in found.nodes.values()]


def write_run(home: Path, steps: list[StepRun], error: RunFailure | None = None, name: str = RUN) -> None:
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    status = "FAILED" if error else "SUCCEEDED"
    given = {step.name: step for step in steps}
    steps = [given.get(name, StepRun(name)) for name in STEPS]
    run = Run(name, "local", {}, "sha256:0", "2026-11-23T16:00:00.000+00:00", status, error=error, steps=steps)
    record.write(run, folder / "run.json")


def step_of(artifact: Path, step: str, status: str) -> StepRun:
    digest = provenance.read(artifact)["artifact"]["digest"]
    output = {"uri": str(artifact), "type": "system.Artifact", "digest": digest, "metadata": {}}
    return StepRun(step, status, reason="same inputs", outputs={artifact.name: output})


def register(home: Path, registration: Path) -> None:
    model, evaluation = registration.with_name("model"), registration.with_name("evaluation")
    tags = {f"{path.name}_uri": str(path) for path in (registration, model, evaluation)}
    tags |= {f"{path.name}_digest": provenance.digest_directory(path) for path in (model, evaluation)}
    registry = open_registry(home=home)
    registry.add("reviews", "first", tags, {}, {})
    registry.set_alias("reviews", "champion", 1)


def test_what_is_reached_twice_is_one_node(tmp_path: Path) -> None:
    found = graph.collect(str(write_artifacts(tmp_path)))
    assert sorted(kinds(found)) == sorted(
        ["registration", "evaluation", "model", "dataset", "snapshot", "file", "file", "file", "file"]
    )
    by_id = found.nodes
    pairs = {(by_id[start].type, by_id[end].type) for start, end in found.edges}
    assert pairs == {
        ("file", "snapshot"),
        ("snapshot", "dataset"),
        ("dataset", "model"),
        ("dataset", "evaluation"),
        ("model", "evaluation"),
        ("model", "registration"),
        ("evaluation", "registration"),
    }
    assert len(found.edges) == 4 + 6
    assert by_id[found.root].title == "reviews:2"


def test_equal_files_of_one_split_are_one_node_and_of_two_splits_are_two(tmp_path: Path) -> None:
    files = [source("train", "a.csv"), source("train", "b.csv"), source("test", "a.csv")]
    found = graph.collect(str(write_artifacts(tmp_path, files)))
    assert kinds(found).count("file") == 3


@pytest.mark.parametrize(("count", "types"), [(8, ["file"] * 10), (9, ["files", "file", "file"])])
def test_many_files_of_a_split_become_one_node(tmp_path: Path, count: int, types: list[str]) -> None:
    found = graph.collect(str(write_artifacts(tmp_path, many_files(count))))
    leaves = [node for node in found.nodes.values() if not node.inputs]
    assert [node.type for node in leaves] == types
    held = [file["uri"] for node in leaves for file in node.metadata.get("files", [node.metadata])]
    assert held == [file["uri"] for file in many_files(count)]


def test_text_leads_to_the_checksums_of_the_files(tmp_path: Path) -> None:
    text = rendering.to_text(graph.collect(str(write_artifacts(tmp_path))), width=120)
    lines = text.splitlines()
    assert lines[0].startswith("registration reviews:2 ")
    assert f"kept: {REASON}" in text
    assert "validation accuracy 0.8345" in text
    assert "accuracy 0.7525 [0.7200, 0.7800] · rows 1,821" in text
    assert f"sha256:{7001:064x}" in text
    assert text.count("train 0.1.0") == 1
    assert len([line for line in lines if line.endswith("(shown above)")]) == 2
    assert len([line for line in lines if re.search(r"─ dataset \w{12}$", line)]) == 1
    assert max(len(line) for line in lines if "gs://" not in line) <= 120
    assert FOREIGN.partition("评")[0] in text  # an address stays whole, to be copied
    assert "\x1b" not in text
    assert r"\x1b[31m\n.csv" in text


def test_colour_changes_nothing_but_colour(tmp_path: Path) -> None:
    found = graph.collect(str(write_artifacts(tmp_path)))
    coloured = rendering.to_text(found, colour=True)
    assert "\x1b[1mregistration\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == rendering.to_text(found)


@pytest.mark.parametrize("width", [1, 60, 200])
def test_any_width(tmp_path: Path, width: int) -> None:
    text = rendering.to_text(graph.collect(str(write_artifacts(tmp_path, many_files(300)))), width=width)
    assert "300 files" in text
    assert f"sha256:{7001:064x}" in text  # whole, however narrow
    prose = [
        line for line in text.splitlines() if "sha256:" not in line and "gs://" not in line and "data/" not in line
    ]
    assert max(map(len, prose)) <= max(width, rendering.MIN_WIDTH + 24)


def test_json_holds_every_file(tmp_path: Path) -> None:
    found = graph.collect(str(write_artifacts(tmp_path, many_files(300))))
    written = json.loads(rendering.to_json(found))
    ids = {node["id"] for node in written["nodes"]}
    assert written["root"] in ids
    assert {end for edge in written["edges"] for end in edge} <= ids
    (group,) = [node for node in written["nodes"] if node["type"] == "files"]
    assert len(group["metadata"]["files"]) == 300
    assert BREAKOUT in [node["uri"] for node in written["nodes"]]


def test_run_says_which_artifacts_were_kept_ones(tmp_path: Path, isolated_state: Path) -> None:
    root = write_artifacts(tmp_path / "made").parent
    snapshot = provenance.read(root / "dataset")["inputs"][0]["artifact"]["digest"]
    first = StepRun("snapshot", "SUCCEEDED", outputs={"digest": snapshot})
    steps = [first, step_of(root / "dataset", "preprocess", "CACHED"), step_of(root / "model", "train", "SUCCEEDED")]
    failure = RunFailure("evaluate", "no space left on device", "run")
    write_run(isolated_state, [*steps, StepRun("evaluate", "FAILED"), StepRun("register", "SKIPPED")], failure)
    for subject in (RUN, "ab12", "20261123", str(isolated_state / "runs" / RUN)):
        found = graph.collect(subject)
        assert found.nodes[found.root].type == "model"
        cached = {node.type: node.cached for node in found.nodes.values()}
        assert cached == {"model": False, "dataset": True, "snapshot": False, "file": None}
    text = rendering.to_text(found)
    assert text.startswith(f"run {RUN} FAILED in evaluate: no space left on device")
    said = re.findall(r"│\s+((?:not )?cached.*)", text)
    assert said == ["not cached: same inputs", "cached: same inputs", "not cached"]


def test_run_without_an_artifact_says_why(isolated_state: Path) -> None:
    failure = RunFailure("preprocess", "data.label 'lable' is no column", "user")
    write_run(isolated_state, [StepRun("preprocess", "FAILED")], failure)
    with pytest.raises(UserError, match="left no artifact: data.label 'lable' is no column"):
        graph.collect(RUN)


def test_registered_model(tmp_path: Path, isolated_state: Path) -> None:
    registration = write_artifacts(tmp_path / "made")
    register(isolated_state, registration)
    for subject in ("reviews", "reviews:1", "reviews@champion"):
        found = graph.collect(subject)
        assert found.nodes[found.root].type == "registration"
    located = {node.type for node in found.nodes.values() if node.uri and node.execution}
    assert located == {"registration", "model", "evaluation"}
    with pytest.raises(UserError, match="no alias 'best'; it has: champion"):
        graph.collect("reviews@best")
    with pytest.raises(UserError, match="did you mean 'reviews'"):
        graph.collect("review")
    (registration / provenance.LINEAGE).unlink()
    assert kinds(graph.collect("reviews"))[0] == "model"
    (registration.with_name("model") / provenance.LINEAGE).unlink()
    with pytest.raises(RunError, match="'reviews:1' are gone from"):
        graph.collect("reviews")


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("nothing", "'nothing' is not a run or model in .*; the latest run is '20261123-160000-ab12'"),
        ("20261123-160000-ab13", "did you mean '20261123-160000-ab12'"),
        ("", "'' is not a run or model"),
        ("no/such/place", "directory 'no/such/place' does not exist"),
        ("gs://bucket/model", "is a URI; copy the artifact here"),
        (".", "'.' has no lineage.json"),
    ],
)
def test_unknown_subject(subject: str, message: str, isolated_state: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(isolated_state, [StepRun("snapshot", "RUNNING")])
    with pytest.raises(UserError, match=message):
        graph.collect(subject)


def test_looking_makes_no_state(isolated_state: Path) -> None:
    with pytest.raises(UserError, match="there are no runs yet"):
        graph.collect("nothing")
    assert not isolated_state.exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"artifact": {}, "execution": {}, "inputs": []}', '{"artifact": 1, "execution": 2, "inputs": 3}'],
)
def test_damaged_lineage(tmp_path: Path, text: str) -> None:
    (tmp_path / provenance.LINEAGE).write_text(text)
    with pytest.raises(CorruptArtifact, match="run the step again|run its step again"):
        graph.collect(str(tmp_path))


def test_verify(tmp_path: Path, isolated_state: Path) -> None:
    root = write_artifacts(tmp_path / "made").parent
    names = {"dataset": "preprocess", "model": "train", "evaluation": "evaluate", "registration": "register"}
    write_run(isolated_state, [step_of(root / name, step, "SUCCEEDED") for name, step in names.items()])
    found = graph.collect(RUN)
    assert graph.verify(found) == []
    shutil.rmtree(root / "registration")
    (root / "model" / "content.txt").write_text("another model")
    (root / "evaluation" / provenance.LINEAGE).unlink()
    dataset = root / "dataset"
    (dataset / "content.txt").write_text("another dataset")
    changed = provenance.read(dataset)
    changed["artifact"]["digest"] = provenance.digest_directory(dataset)
    (dataset / provenance.LINEAGE).write_text(json.dumps(changed))
    problems = sorted(graph.verify(found))
    assert [problem.partition(" ")[0] for problem in problems] == ["dataset", "evaluation", "model", "registration"]
    assert "now holds another dataset" in problems[0]
    assert "has no lineage.json" in problems[1]
    assert "was changed after it was written" in problems[2]
    assert "gone from" in problems[3]
