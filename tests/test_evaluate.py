"""The evaluate step: figures that follow from the predictions, and a page that is safe and whole."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet.evaluation import evaluate as evaluating
from xlnet.evaluation.evaluate import evaluate, judge
from xlnet.evaluation.predict import predict
from xlnet.model.weights import load_classifier

RECIPE = recipes.Recipe().replace(evaluation={"resamples": 100, "worst": 5}).part("evaluation")


def metrics_of(path):
    return json.loads((path / "metrics.json").read_text())


def test_figures_follow_from_the_predictions(trained):
    content = metrics_of(trained.evaluation)
    table = pq.read_table(trained.evaluation / "predictions.parquet").to_pylist()
    assert content["rows"] == len(table) == sum(map(sum, content["confusion"]))
    right = [row["label"] == row["prediction"] for row in table]
    assert content["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    for row in table:
        shares = dict(zip(content["classes"], row["probabilities"], strict=True))
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
        assert max(shares, key=shares.get) == row["prediction"]
        assert row["loss"] == pytest.approx(-np.log(shares[row["label"]]))
    lineage = provenance.read(trained.evaluation)
    assert [one["artifact"]["type"] for one in lineage["inputs"]] == ["dataset", "model"]
    assert content["model_digest"] == provenance.verify(trained.model)


def test_predict_says_what_evaluate_said(trained):
    table = pq.read_table(trained.evaluation / "predictions.parquet").to_pylist()
    answers = list(predict(trained.model, ((row["text"], None) for row in table)))
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in table]
    for answer, row in zip(answers, table, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row["probabilities"], abs=1e-6)


def test_equal_work_gives_equal_digests(trained, tmp_path):
    paths = str(trained.dataset), str(trained.model)
    first, second = (evaluate(RECIPE, *paths, str(tmp_path / name)) for name in "ab")
    assert first["evaluation_digest"] == second["evaluation_digest"]


def test_the_page_is_one_safe_file(trained, tmp_path):
    """A dataset whose texts are markup, judged by the same model."""
    from xlnet.data.preprocess import preprocess

    rows = [f'<script>alert({i})</script> & "quotes" {"long " * 200},{i % 2}' for i in range(60)]
    data = tmp_path / "a.jsonl"
    classes = metrics_of(trained.evaluation)["classes"]
    data.write_text("".join(json.dumps({"text": row, "label": classes[i % 2]}) + "\n" for i, row in enumerate(rows)))
    recipe = recipes.Recipe().replace(data={"train": [str(data)], "test_fraction": 0.4, "max_length": 32})
    preprocess(recipe.part("data"), "", str(tmp_path / "dataset"))
    evaluate(RECIPE, str(tmp_path / "dataset"), str(trained.model), str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?:", page), "nothing is loaded from elsewhere"
    assert page.rstrip().endswith("</html>")


def test_a_regression_has_correlations_and_a_page(tmp_path):
    from xlnet.data.preprocess import preprocess
    from xlnet.training.launch import train

    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "".join(f"{'good ' * (i % 7)}{i},{i % 7}.5\n" for i in range(140)))
    small = {"n_layer": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
    recipe = recipes.Recipe().replace(
        data={"train": [str(data)], "task": "regression"},
        model=small,
        training={"steps": 4},
        evaluation={"resamples": 100},
    )
    text, paths = recipe.to_json(), [str(tmp_path / name) for name in ("dataset", "model", "out")]
    preprocess(recipe.part("data"), "", paths[0])
    train(text, *paths[:2])
    facts = evaluate(text, *paths)
    assert facts["primary_metric"] == "pearson"
    content = metrics_of(tmp_path / "out")
    assert content["confusion"] is None
    assert set(content["metrics"]) == {"pearson", "spearman"}
    assert "Spearman" in (tmp_path / "out" / "report.html").read_text()
    answer = next(predict(paths[1], [("good good", None)]))
    assert isinstance(answer["value"], float)


@pytest.mark.parametrize("classes", [2, 77])
def test_judging_many_classes(classes):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 500)
    logits = generator.normal(size=(500, classes)).astype(np.float32)
    names = [f"class {i}" for i in range(classes)]
    content = judge(logits, labels, names, recipes.EvaluationRecipe(resamples=100))
    assert (content["roc"] is None) == (classes > 2)
    assert len(content["confusion"]) == classes
    json.dumps(content, allow_nan=False)


def test_mismatches_are_refused(trained, tmp_path):
    from xlnet.data.preprocess import preprocess

    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "".join(f"row {i},{'xyz'[i % 3]}\n" for i in range(90)))
    recipe = recipes.Recipe().replace(data={"train": [str(data)]})
    preprocess(recipe.part("data"), "", str(tmp_path / "dataset"))
    with pytest.raises(UserError, match="the dataset's labels are x, y, z; evaluate it on a dataset with its labels"):
        evaluate(RECIPE, str(tmp_path / "dataset"), str(trained.model), str(tmp_path / "out"))
    wrong = recipes.Recipe().replace(evaluation={"metric": "pearson"}).part("evaluation")
    with pytest.raises(UserError, match="evaluation.metric is 'pearson'; allowed for classification: auto, accuracy"):
        evaluate(wrong, str(trained.dataset), str(trained.model), str(tmp_path / "out"))
    shutil.copytree(trained.model, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff")
    with pytest.raises(CorruptArtifact, match="was changed after it was written"):
        evaluate(RECIPE, str(trained.dataset), str(tmp_path / "model"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["logits_proj.bias", "transformer.word_embedding.weight"])
def test_a_model_that_is_no_number_is_not_judged(trained, tmp_path, monkeypatch, place):
    broken = load_classifier(trained.model)
    with torch.no_grad():
        dict(broken.named_parameters())[place].view(-1)[-1] = float("nan")
    monkeypatch.setattr(evaluating, "load_classifier", lambda _: broken)
    with pytest.raises(RunError, match=f"weights that are not numbers, such as {place}; train it again"):
        evaluate(RECIPE, str(trained.dataset), str(trained.model), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "values", "words"),
    [
        (np.arange(5.0), np.full(5, 0.1), "the model's predictions are the same for all 5 rows"),
        (np.full(5, 0.3), np.arange(5.0), "the test labels are the same for all 5 rows"),
    ],
)
def test_a_correlation_that_cannot_be_computed_ends_the_evaluation(labels, values, words):
    with pytest.raises(RunError, match=f"pearson cannot be computed: {words}"):
        judge(values.astype(np.float32)[:, None], labels, [], recipes.EvaluationRecipe(resamples=100))


def test_the_page_names_model_run_and_date_and_marks_the_kept_step(trained):
    page = (trained.evaluation / "report.html").read_text()
    made = provenance.read(trained.model)
    facts = made["artifact"]["metadata"]
    assert f"<dt>Digest</dt><dd>{made['artifact']['digest'][7:19]}</dd>" in page
    assert made["execution"]["ended"][:16].replace("T", " ") + " UTC" in page
    assert f"kept step {facts['best_step']:,} of {facts['global_step']:,}" in page
    assert page.count(f">kept: step {facts['best_step']:,}</text>") == 2, "in the loss and in the accuracy"
    assert "@media print" in page
