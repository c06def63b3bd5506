"""The gate is fair: rows that a model was trained on do not judge it, and nothing becomes champion by default."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import seen
from xlnet.errors import RunError
from xlnet.recipe import EvaluationRecipe
from xlnet.registry.challenger import Challenger
from xlnet.registry.gate import gate
from xlnet.registry.register import register
from xlnet.registry.versions import ModelVersion

RECIPE = EvaluationRecipe(resamples=200)
ROWS = 200


def model(root, name, right=1.0, *, classes=("neg", "pos"), trained_on=(), values=None, truth=None, test="sha256:t"):
    """A challenger whose evaluation has a share of ROWS test rows right, or gives these values."""
    paths = {kind: root / name / kind for kind in ("dataset", "model", "evaluation")}
    for path in paths.values():
        path.mkdir(parents=True)
    seen.write(paths["model"] / seen.FILE, np.array([seen.key(text, None) for text in trained_on], np.int64))
    (paths["model"] / "name").write_text(name)
    card = {"classes": list(classes), "task": "classification", "snapshot": "sha256:s", "splits": {}}
    (paths["dataset"] / "card.json").write_text(json.dumps(card))
    truth = truth or [classes[i % 2] for i in range(ROWS)]
    if values is None:
        wrong = np.random.default_rng(0).random(len(truth)) >= right
        values = [classes[1 - classes.index(t)] if w else t for t, w in zip(truth, wrong, strict=True)]
    columns = {"label": truth, "prediction": values, "loss": [0.1] * len(truth)}
    columns |= {"text": [f"row {i}" for i in range(len(truth))], "text_pair": pa.nulls(len(truth), pa.string())}
    pq.write_table(pa.table(columns), paths["evaluation"] / "predictions.parquet")
    digests = {kind: written(paths[kind], kind) for kind in ("dataset", "model")}
    primary = "accuracy" if classes else "pearson"
    figure = {"value": 0.9, "low": 0.8, "high": 0.95}
    metrics = {"classes": list(classes), "primary": primary, "metrics": {primary: figure}, "test_digest": test}
    (paths["evaluation"] / "metrics.json").write_text(json.dumps({**metrics, "model_digest": digests["model"]}))
    (paths["evaluation"] / "recipe.json").write_text(recipes.Recipe().part("data", "model", "training", "evaluation"))
    written(paths["evaluation"], "evaluation")
    return Challenger(paths["dataset"], paths["model"], paths["evaluation"], digests["model"])


def written(path, kind):
    lineage = provenance.record(path, type=kind, step="train", started=provenance.now(), parameters={}, metadata={})
    return lineage["artifact"]["digest"]


def champion(of: Challenger) -> ModelVersion:
    tags = {"model_uri": str(of.model), "evaluation_uri": str(of.evaluation), "model_digest": of.model_digest}
    tags["test_digest"] = of.metrics["test_digest"]
    return ModelVersion("reviews", 1, ("champion",), "", "", tags)


def rewritten(one: Challenger, **changes):
    """The challenger with other fields in its metrics."""
    (one.evaluation / "metrics.json").write_text(json.dumps({**one.metrics, **changes}))
    written(one.evaluation, "evaluation")
    return Challenger(one.dataset, one.model, one.evaluation, one.model_digest)


@pytest.mark.parametrize("who", ["champion", "challenger", "both"])
def test_rows_that_either_was_trained_on_do_not_count(tmp_path, who):
    """The champion knows the first 149 rows by heart: only the other 51 say who is better."""
    rows = [f"row {i}" for i in range(ROWS)]
    truth = [("neg", "pos")[i % 2] for i in range(ROWS)]
    by_heart = truth[:149] + [{"neg": "pos", "pos": "neg"}[t] for t in truth[149:]]
    old = model(tmp_path, "old", values=by_heart, trained_on=rows[:149] if who != "challenger" else ["other"])
    new = model(tmp_path, "new", 0.7, trained_on=rows[:149] if who != "champion" else ["another"])
    found = gate(new, champion(old), RECIPE)
    assert found.promote, found.reason
    assert "on the 51 of 200 test rows that neither was trained on" in found.reason


def test_too_few_rows_decide_nothing(tmp_path):
    rows = [f"row {i}" for i in range(ROWS)]
    old, new = model(tmp_path, "old", 0.6, trained_on=rows[:180]), model(tmp_path, "new", 0.97)
    found = gate(new, champion(old), RECIPE)
    assert not found.promote
    assert "180 of 200 test rows are among those that one of the two was trained on, and 20 are too few" in found.reason
    assert gate(new, champion(old), RECIPE, force=True).promote


def test_a_champion_that_does_not_say_what_it_saw(tmp_path):
    """Its own test rows are safe, others are not."""
    old, new = model(tmp_path, "old", 0.6), model(tmp_path, "new", 0.97)
    (old.model / seen.FILE).unlink()
    assert gate(new, champion(old), RECIPE).promote
    written(old.model, "model")
    other = rewritten(new, test_digest="sha256:other rows")
    found = gate(other, champion(old), RECIPE)
    assert not found.promote
    assert "cannot be compared with champion 1" in found.reason


@pytest.mark.parametrize("lacks", ["challenger", "champion"])
def test_a_class_that_only_one_of_them_knows(tmp_path, lacks):
    three, two = ("neg", "pos", "so-so"), ("neg", "pos")
    truth = [(two if lacks == "challenger" else three)[i % (2 if lacks == "challenger" else 3)] for i in range(ROWS)]
    said = (
        [three[(i + (i % 2)) % 3] for i in range(ROWS)] if lacks == "challenger" else [two[i % 2] for i in range(ROWS)]
    )
    old = model(tmp_path, "old", classes=three if lacks == "challenger" else two, truth=truth, values=said)
    new = model(tmp_path, "new", classes=two if lacks == "challenger" else three, truth=truth, values=truth)
    found = gate(new, champion(old), RECIPE)
    assert found.promote, found.reason
    assert ("it also answers 'so-so'" in found.reason) == (lacks == "challenger")


@pytest.mark.parametrize("right", [0.0, 0.45, 0.55])
def test_no_better_than_the_commonest_class(tmp_path, right):
    found = gate(model(tmp_path, "new", right), None, RECIPE)
    assert not found.promote
    assert found.reason.startswith("it is no better than always answering 'neg': accuracy 0.")
    assert "training.epochs" in found.reason
    assert "--force" in found.reason
    forced = gate(model(tmp_path, "again", right), None, RECIPE, force=True)
    assert forced.promote
    assert "by registry.force, although it is no better" in forced.reason


def test_always_the_commonest_of_a_skewed_set(tmp_path):
    truth = ["neg"] * 180 + ["pos"] * 20
    assert not gate(model(tmp_path, "lazy", truth=truth, values=["neg"] * ROWS), None, RECIPE).promote
    assert gate(model(tmp_path, "keen", truth=truth, values=truth), None, RECIPE).promote


@pytest.mark.parametrize("value", [math.nan, None, math.inf])
def test_a_correlation_that_cannot_be_computed_beats_nobody(tmp_path, value):
    truth = [float(i) for i in range(ROWS)]
    new = model(tmp_path, "new", classes=(), truth=truth, values=[1.0] * ROWS)
    new = rewritten(new, metrics={"pearson": {"value": value, "low": value, "high": value}})
    found = gate(new, None, RECIPE)
    assert not found.promote
    assert "pearson cannot be computed" in found.reason
    good = model(tmp_path, "good", classes=(), truth=truth, values=[x + 1 for x in truth])
    assert gate(good, champion(new), RECIPE).promote
    assert "the champion's pearson cannot be computed" in gate(good, champion(new), RECIPE).reason


def test_a_model_of_classes_against_one_of_values(tmp_path):
    old = model(tmp_path, "old", classes=(), truth=[1.0, 2.0] * 100, values=[1.0, 2.0] * 100, test="sha256:other")
    found = gate(model(tmp_path, "new"), champion(old), RECIPE)
    assert not found.promote
    assert "cannot be compared with champion 1" in found.reason


@pytest.mark.parametrize("where", ["weights", "answers"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_model_that_is_not_finite_is_not_registered(tmp_path, where, value):
    one = model(tmp_path, "new", classes=(), truth=[1.0, 2.0] * 100, values=[1.0, value] * 100)
    if where == "weights":
        one = model(tmp_path, "weights")
        save_file({"a": np.ones(3), "b": np.array([1.0, value], np.float32)}, one.model / "model.safetensors")
        one = Challenger(one.dataset, one.model, one.evaluation, written(one.model, "model"))
        rewritten(one, model_digest=one.model_digest)
    section = recipes.Recipe().replace(registry={"name": "reviews"}).part("evaluation", "registry")
    with pytest.raises(
        RunError, match=r"is not registered: (its weight 'b' holds|100 of its answers .* are) nan or inf"
    ):
        register(section, *(str(place) for place in (one.dataset, one.model, one.evaluation)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_rows_that_were_seen(tmp_path):
    """The hashes say who was there, small and merged; none for a missing or foreign file."""
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 20_000, dtype=np.int64)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    seen.write(tmp_path / "a" / seen.FILE, np.concatenate([keys[:15_000], keys[:100]]))
    seen.write(tmp_path / "b" / seen.FILE, keys[15_000:15_010])
    one = seen.read(tmp_path / "a")
    assert one.among(keys[:15_000]).all()
    assert not one.among(keys[15_000:]).any()
    assert (tmp_path / "a" / seen.FILE).stat().st_size < 5 * 15_000
    (tmp_path / "c").mkdir()
    seen.merge(tmp_path / "c" / seen.FILE, [tmp_path / "a", tmp_path / "none", tmp_path / "b"])
    both = seen.read(tmp_path / "c")
    assert both.among(keys[:15_010]).all()
    assert not both.among(keys[15_010:]).any()
    assert seen.read(tmp_path / "none") is None
    (tmp_path / "b" / seen.FILE).write_bytes(b"PAR1 but not")
    assert seen.read(tmp_path / "b") is None


def test_an_empty_list_of_rows(tmp_path):
    seen.write(tmp_path / seen.FILE, np.array([], np.int64))
    assert not seen.read(tmp_path).among(np.array([1, 2], np.int64)).any()


def test_the_steps_hand_the_rows_on(trained):
    """The model knows the train and validation rows of its dataset, and no test row but one of equal text."""
    rows = seen.read(trained.model)
    table = pq.read_table(trained.evaluation / "predictions.parquet").to_pylist()
    card = json.loads((trained.dataset / "card.json").read_text())
    tested = rows.among(np.array([seen.key(row["text"], row["text_pair"]) for row in table], np.int64))
    assert tested.sum() == card["duplicates"]["train_test"] == 0
    with pa.ipc.open_file(next((trained.dataset / "validation").glob("*.arrow"))) as file:
        texts = file.read_all()["text"].to_pylist()
    assert rows.among(np.array([seen.key(text, None) for text in texts], np.int64)).all()
    assert len(rows) == card["splits"]["train"]["rows"] + card["splits"]["validation"]["rows"]


@pytest.mark.parametrize("has_champion", [False, True])
@pytest.mark.parametrize(
    ("verdict", "promoted"), [("worse", False), ("level", True), ("better", True)], ids=["worse", "level", "better"]
)
def test_a_model_that_a_linear_one_beats_is_no_champion(tmp_path, verdict, promoted, has_champion):
    apart = {"metric": "accuracy", "value": -0.05, "low": -0.08, "high": -0.02}
    base = {"kind": "tfidf", "name": "TF-IDF with logistic regression", "verdict": verdict, "difference": apart}
    new = rewritten(model(tmp_path, "new", 0.97), baseline=base)
    present = champion(model(tmp_path, "old", 0.6)) if has_champion else None
    found = gate(new, present, RECIPE)
    assert found.promote is promoted, found.reason
    if not promoted:
        assert "is worse than TF-IDF with logistic regression on the same rows: accuracy -0.0500" in found.reason
        assert "to promote it all the same: run --force" in found.reason
        assert gate(new, present, RECIPE, force=True).promote
