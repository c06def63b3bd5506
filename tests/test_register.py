"""The registry and its gate: who becomes champion, and why."""

import json
import multiprocessing
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet.registry import open_registry
from xlnet.registry.register import register

RECIPE = recipes.Recipe().replace(registry={"name": "reviews"}).part("evaluation", "registry")
CLASSES = ["neg", "pos"]
ROWS = 400


def record(path, kind, step, inputs=(), **metadata):
    return provenance.record(
        path, type=kind, step=step, started=provenance.now(), parameters={}, metadata=metadata, inputs=inputs
    )


def artifacts(root, name, right, test="sha256:test", seed=0):
    """A dataset, a model and an evaluation in which a share of the test rows is predicted right."""
    generator = np.random.default_rng(seed)
    paths = {kind: root / name / kind for kind in ("dataset", "model", "evaluation")}
    for path in paths.values():
        path.mkdir(parents=True)
    card = {"classes": CLASSES, "task": "classification", "snapshot": "sha256:snapshot", "splits": {}}
    (paths["dataset"] / "card.json").write_text(json.dumps(card))
    record(paths["dataset"], "dataset", "preprocess")
    (paths["model"] / "weights").write_text(name)
    model = record(paths["model"], "model", "train")["artifact"]["digest"]
    labels = np.arange(ROWS) % 2
    predictions = np.where(generator.random(ROWS) < right, labels, 1 - labels)
    columns = {"label": [CLASSES[i] for i in labels], "prediction": [CLASSES[i] for i in predictions]}
    pq.write_table(pa.table(columns), paths["evaluation"] / "predictions.parquet")
    value = float((labels == predictions).mean())
    metrics = {"classes": CLASSES, "primary": "accuracy", "test_digest": test, "model_digest": model}
    metrics["metrics"] = {"accuracy": {"value": value, "low": value, "high": value}}
    (paths["evaluation"] / "metrics.json").write_text(json.dumps(metrics))
    (paths["evaluation"] / "recipe.json").write_text(recipes.Recipe().part("data", "model", "training", "evaluation"))
    record(paths["evaluation"], "evaluation", "evaluate")
    return [str(paths[kind]) for kind in ("dataset", "model", "evaluation")]


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(tmp_path / "home"))
    return open_registry()


def entry(path):
    return json.loads((path / "registration.json").read_text())


def test_the_life_of_a_champion(registry, tmp_path):
    assert registry.names() == []
    assert not (tmp_path / "home").exists(), "looking makes no file"

    first = artifacts(tmp_path, "first", 0.8)
    facts = register(RECIPE, *first, str(tmp_path / "r1"))
    assert (facts["version"], facts["promoted"], facts["reason"]) == (1, "true", "no champion yet")
    lineage = provenance.read(tmp_path / "r1")
    assert [one["artifact"]["type"] for one in lineage["inputs"]] == ["model", "evaluation"]
    assert provenance.verify(tmp_path / "r1")

    again = register(RECIPE, *first, str(tmp_path / "r1b"))
    assert (again["version"], again["promoted"]) == (1, "true")
    assert "this very model" in again["reason"]
    assert len(registry.versions("reviews")) == 1, "the same model is not registered twice"

    worse = register(RECIPE, *artifacts(tmp_path, "worse", 0.6, seed=1), str(tmp_path / "r2"))
    assert (worse["version"], worse["promoted"], worse["champion_version"]) == (2, "false", 1)
    assert "does not beat the champion" in worse["reason"]
    assert entry(tmp_path / "r2")["difference"] < 0

    better = register(RECIPE, *artifacts(tmp_path, "better", 0.97, seed=2), str(tmp_path / "r3"))
    assert (better["version"], better["promoted"]) == (3, "true")
    assert registry.champion("reviews").version == 3
    assert registry.find("reviews").version == 3
    assert registry.find("reviews:2").description == worse["reason"]
    assert registry.find("reviews@champion").tags["run"] == ""

    registry.set_alias("reviews", "champion", 2)
    assert registry.find("reviews").version == 2
    mistakes = {
        "review": "model 'review' is unknown; registered: reviews; did you mean 'reviews'",
        "reviews:9": "no version '9'; it has: 1, 2, 3",
        "reviews@best": "no alias 'best'; it has: champion",
    }
    for reference, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            registry.find(reference)


def test_a_margin_keeps_a_slightly_better_model_out(registry, tmp_path):
    register(RECIPE, *artifacts(tmp_path, "a", 0.80), str(tmp_path / "r1"))
    strict = recipes.Recipe().replace(registry={"name": "reviews"}, evaluation={"margin": 0.5})
    facts = register(strict.to_json(), *artifacts(tmp_path, "b", 0.97, seed=1), str(tmp_path / "r2"))
    assert facts["promoted"] == "false"
    assert "by more than the margin 0.5" in facts["reason"]


def test_a_champion_that_cannot_be_compared_stays(registry, tmp_path):
    register(RECIPE, *artifacts(tmp_path, "a", 0.8), str(tmp_path / "r1"))
    shutil.rmtree(tmp_path / "a")
    facts = register(RECIPE, *artifacts(tmp_path, "b", 0.97, seed=1), str(tmp_path / "r2"))
    assert facts["promoted"] == "false"
    assert "are gone; to decide by hand: xlnet-pipeline models promote reviews:VERSION" in facts["reason"]
    assert registry.champion("reviews").version == 1


def test_a_champion_of_other_test_rows_predicts_them_anew(registry, tmp_path, trained):
    """Real models: the champion's evaluation is of another test set, so it is asked again."""
    dataset, model, evaluation = (str(getattr(trained, name)) for name in ("dataset", "model", "evaluation"))
    register(RECIPE, dataset, model, evaluation, str(tmp_path / "r1"))
    copies = [shutil.copytree(source, tmp_path / name) for name, source in (("m", model), ("e", evaluation))]
    (copies[0] / "history.jsonl").write_text("another model, the same weights\n")
    digest = record(copies[0], "model", "train")["artifact"]["digest"]
    metrics = json.loads((copies[1] / "metrics.json").read_text())
    metrics |= {"model_digest": digest, "test_digest": "sha256:other rows"}
    (copies[1] / "metrics.json").write_text(json.dumps(metrics))
    record(copies[1], "evaluation", "evaluate")
    facts = register(RECIPE, dataset, str(copies[0]), str(copies[1]), str(tmp_path / "r2"))
    assert facts["promoted"] == "false"
    assert facts["reason"].startswith("it predicts the same as the champion")


def test_an_evaluation_of_another_model_or_a_changed_one_is_refused(registry, tmp_path):
    one, other = artifacts(tmp_path, "a", 0.6), artifacts(tmp_path, "b", 0.7)
    with pytest.raises(UserError, match="is not one of model"):
        register(RECIPE, one[0], one[1], other[2], str(tmp_path / "out"))
    (tmp_path / "a" / "model" / "weights").write_text("changed")
    with pytest.raises(CorruptArtifact, match="was changed after it was written"):
        register(RECIPE, *one, str(tmp_path / "out"))
    assert registry.names() == []


def test_a_dead_server_is_told_in_one_line_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(RunError, match=r"registry 'http://127.0.0.1:9' does not answer") as caught:
        register(RECIPE, *artifacts(tmp_path, "a", 0.6), str(tmp_path / "out"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_registrations_at_once_get_two_versions_and_one_champion(registry, tmp_path):
    jobs = [(RECIPE, *artifacts(tmp_path, name, 0.8, seed=i), str(tmp_path / f"r{i}")) for i, name in enumerate("ab")]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=register, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    versions = registry.versions("reviews")
    assert sorted(version.version for version in versions) == [1, 2]
    assert sum("champion" in version.aliases for version in versions) == 1
