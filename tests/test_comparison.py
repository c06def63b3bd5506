"""The gate's arithmetic: who beats whom on the same rows."""

import numpy as np
import pytest

from xlnet.evaluation.comparison import RowPredictions, compare, primary_metric
from xlnet.recipe import EvaluationRecipe

RECIPE = EvaluationRecipe(resamples=1000)


def model(right, rows=500, seed=0):
    labels = np.arange(rows) % 2
    wrong = np.random.default_rng(seed).random(rows) >= right
    return RowPredictions(labels, np.where(wrong, 1 - labels, labels), 2)


def test_a_clearly_better_model_wins_and_a_worse_one_does_not():
    found = compare(model(0.9), model(0.7, seed=1), "accuracy", RECIPE)
    assert found.wins
    assert 0 < found.low < found.difference < found.high
    assert "beats the champion: accuracy" in found.reason
    back = compare(model(0.7, seed=1), model(0.9), "accuracy", RECIPE)
    assert not back.wins
    assert back.difference == pytest.approx(-found.difference)


@pytest.mark.parametrize("margin", [0.0, -0.5])
def test_equal_predictions_never_win(margin):
    found = compare(model(0.8), model(0.8), "accuracy", EvaluationRecipe(margin=margin))
    assert not found.wins
    assert found.reason.startswith("it predicts the same as the champion")


def test_luck_does_not_win():
    champion = model(0.8)
    predictions = champion.predictions.copy()
    wrong = np.flatnonzero(predictions != champion.labels)[:2]
    predictions[wrong] = champion.labels[wrong]
    right = np.flatnonzero(predictions == champion.labels)[:1]
    predictions[right] = 1 - champion.labels[right]
    found = compare(RowPredictions(champion.labels, predictions, 2), champion, "accuracy", RECIPE)
    assert found.difference > 0
    assert not found.wins
    assert "no more than chance allows" in found.reason


def test_the_margin_is_what_the_difference_must_exceed():
    assert compare(model(0.9), model(0.7, seed=1), "accuracy", EvaluationRecipe(margin=0.1)).wins
    found = compare(model(0.9), model(0.7, seed=1), "accuracy", EvaluationRecipe(margin=0.5))
    assert not found.wins
    assert "by more than the margin 0.5" in found.reason


def test_pairing_is_sharper_than_two_separate_intervals():
    """Same mistakes but a few: the difference is sure although each accuracy alone is not."""
    champion = model(0.7, rows=400)
    predictions = champion.predictions.copy()
    wrong = np.flatnonzero(predictions != champion.labels)[:12]
    predictions[wrong] = champion.labels[wrong]
    found = compare(RowPredictions(champion.labels, predictions, 2), champion, "accuracy", RECIPE)
    assert found.wins
    assert found.difference == pytest.approx(12 / 400)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_regression(metric):
    generator = np.random.default_rng(0)
    labels = generator.normal(size=300)
    good, bad = (RowPredictions(labels, labels + s * generator.normal(size=300), 0) for s in (0.3, 2.0))
    recipe = EvaluationRecipe(resamples=200)
    assert compare(good, bad, metric, recipe).wins
    assert not compare(bad, good, metric, recipe).wins


def test_many_classes_and_other_metrics():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 50, 2000)
    good = RowPredictions(labels, np.where(generator.random(2000) < 0.8, labels, 0), 50)
    bad = RowPredictions(labels, np.where(generator.random(2000) < 0.5, labels, 0), 50)
    for metric in ("accuracy", "macro_f1", "mcc"):
        assert compare(good, bad, metric, EvaluationRecipe(resamples=200)).wins


def test_other_rows_are_refused():
    one = model(0.8)
    with pytest.raises(ValueError, match="not judged on the same rows"):
        compare(one, RowPredictions(1 - one.labels, one.predictions, 2), "accuracy", RECIPE)


def test_the_metric_that_decides():
    assert primary_metric(EvaluationRecipe(), "classification") == "accuracy"
    assert primary_metric(EvaluationRecipe(), "regression") == "pearson"
    assert primary_metric(EvaluationRecipe(metric="mcc"), "classification") == "mcc"
