"""Metrics against scikit-learn and scipy, and intervals that cover."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from xlnet.evaluation import comparison, metrics
from xlnet.recipe import EvaluationRecipe


def draw(classes, rows, seed, skew=0.5):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    noise = generator.integers(0, classes, rows)
    return labels, np.where(generator.random(rows) < skew, labels, noise)


DEGENERATE = {
    "one class predicted": (np.array([0, 1, 2, 1]), np.array([1, 1, 1, 1])),
    "one class true": (np.array([1, 1, 1, 1]), np.array([0, 1, 2, 1])),
    "all wrong": (np.array([0, 1, 2]), np.array([1, 2, 0])),
    "one row": (np.array([2]), np.array([2])),
}
CASES = {f"{c} classes, {n} rows": draw(c, n, c * n) for c in (2, 3, 77) for n in (5, 200, 3000)} | DEGENERATE


@pytest.mark.parametrize("case", CASES)
def test_classification_equals_scikit_learn(case):
    labels, predictions = CASES[case]
    confusion = metrics.confusion_matrix(labels, predictions, 77)
    present, counts = np.unique([*labels, *predictions]), metrics.Counts.of(confusion)
    assert metrics.accuracy(counts) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    f1 = sklearn.metrics.f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1(counts) == pytest.approx(f1)
    assert metrics.mcc(counts) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(77))
    assert confusion.tolist() == expected.tolist()


@pytest.mark.parametrize("rounding", [6, 1, 0])
@pytest.mark.parametrize("rows", [3, 50, 1000])
def test_correlations_equal_scipy(rows, rounding):
    generator = np.random.default_rng(rows)
    x = np.round(generator.normal(size=rows), rounding)
    y = np.round(x * 0.5 + generator.normal(size=rows), rounding)
    if x.std() == 0 or y.std() == 0:
        assert np.isnan(metrics.pearson(x, y))
        return
    assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert metrics.ranks(x).tolist() == scipy.stats.rankdata(x).tolist()


@pytest.mark.parametrize("odd", [1.0, 0.1, 1e300, np.nan, np.inf, 0.0])
def test_a_correlation_that_cannot_be_computed_is_no_number(odd):
    """Not 0: that is a value, and better than a negative one. A mean of equal values may differ from them."""
    constant, values = np.full(9, odd), np.arange(9.0)
    for correlation in (metrics.pearson, metrics.spearman):
        if np.isfinite(odd) or correlation is metrics.pearson:
            assert np.isnan(correlation(constant, values))
            assert np.isnan(correlation(values, constant))
    figures = metrics.regression_figures(values, np.full(9, 0.1), 0.95, 100, 0)
    assert np.isnan([figures["pearson"].value, figures["pearson"].low]).all()


def before(confusion, seed, resamples):
    """The draws of whole matrices at once, which take memory with resamples × classes²."""
    rows = int(confusion.sum())
    draws = np.random.default_rng(seed).multinomial(rows, confusion.ravel() / rows, resamples)
    return metrics.Counts.of(draws.reshape(resamples, *confusion.shape))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_batches_of_occurring_cells_draw_the_same_numbers_as_whole_matrices(classes, last, monkeypatch):
    monkeypatch.setattr(metrics, "BATCH_VALUES", 1000)
    labels, predictions = draw(classes if last else max(2, classes - 1), 150, classes)
    confusion = metrics.confusion_matrix(labels, predictions, classes)
    found, whole = metrics.classification_figures(confusion, 0.9, 300, 5), before(confusion, 5, 300)
    for name, f in metrics.OF_CONFUSION.items():
        low, high = np.quantile(f(whole), [0.05, 0.95])
        assert (found[name].low, found[name].high) == (pytest.approx(low, rel=1e-15), pytest.approx(high, rel=1e-15))


def test_a_thousand_classes_take_little_memory():
    """The figures of a model, and its comparison with another one: below 200 MB, where whole matrices took 16 GB."""
    labels, predictions = draw(1000, 20_000, 0, skew=0.7)
    other = draw(1000, 20_000, 1)[1]
    tracemalloc.start()
    confusion = metrics.confusion_matrix(labels, predictions, 1000)
    figures = metrics.classification_figures(confusion, 0.95, 200, 0)
    pair = comparison.RowPredictions(labels, predictions, 1000), comparison.RowPredictions(labels, other, 1000)
    found = comparison.compare(*pair, "macro_f1", EvaluationRecipe(resamples=200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert figures["accuracy"].low < figures["accuracy"].value < figures["accuracy"].high
    assert found.low < found.difference < found.high


@pytest.mark.parametrize("digits", [6, 1])
def test_roc_equals_scikit_learn(digits):
    generator = np.random.default_rng(digits)
    labels = generator.integers(0, 2, 400)
    scores = np.round(labels * 0.3 + generator.random(400), digits)
    fpr, tpr, thresholds, area = metrics.roc_curve(labels, scores)
    assert area == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    expected = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert fpr == pytest.approx(expected[0])
    assert tpr == pytest.approx(expected[1])
    assert thresholds[1:] == pytest.approx(expected[2][1:])
    assert np.isnan(metrics.roc_curve(np.ones(5, int), np.arange(5.0))[3])


def test_the_multinomial_bootstrap_is_the_bootstrap_of_rows():
    labels, predictions = draw(3, 300, 1)
    figure = metrics.classification_figures(metrics.confusion_matrix(labels, predictions, 3), 0.95, 4000, 0)["macro_f1"]
    generator = np.random.default_rng(1)
    samples = []
    for _ in range(4000):
        rows = generator.integers(0, 300, 300)
        drawn = metrics.confusion_matrix(labels[rows], predictions[rows], 3)
        samples.append(metrics.macro_f1(metrics.Counts.of(drawn)))
    low, high = np.quantile(samples, [0.025, 0.975])
    assert (figure.low, figure.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        right = generator.random(400) < 0.8
        confusion = np.array([[right.sum(), 400 - right.sum()], [0, 0]])
        figure = metrics.classification_figures(confusion, 0.9, 400, trial)["accuracy"]
        covered += figure.low <= 0.8 <= figure.high
    assert 0.84 <= covered / 300 <= 0.95


def test_regression_figures_are_seeded_and_ordered():
    generator = np.random.default_rng(0)
    x = generator.normal(size=200).astype(np.float32)
    y = (x + generator.normal(size=200)).astype(np.float32)
    one, two = (metrics.regression_figures(x, y, 0.95, 200, 7) for _ in range(2))
    assert one == two
    for figure in one.values():
        assert figure.low < figure.value < figure.high
