"""Metrics against scikit-learn and scipy, and intervals that cover."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from xlnet.evaluation import metrics


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
    present = np.unique([*labels, *predictions])
    assert metrics.accuracy(confusion) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    f1 = sklearn.metrics.f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1(confusion) == pytest.approx(f1)
    assert metrics.mcc(confusion) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(77))
    assert confusion.tolist() == expected.tolist()


@pytest.mark.parametrize("rounding", [6, 1, 0])
@pytest.mark.parametrize("rows", [3, 50, 1000])
def test_correlations_equal_scipy(rows, rounding):
    generator = np.random.default_rng(rows)
    x = np.round(generator.normal(size=rows), rounding)
    y = np.round(x * 0.5 + generator.normal(size=rows), rounding)
    if x.std() == 0 or y.std() == 0:
        assert metrics.pearson(x, y) == metrics.spearman(x, y) == 0
        return
    assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert metrics.ranks(x).tolist() == scipy.stats.rankdata(x).tolist()


def test_a_constant_correlates_with_nothing():
    assert metrics.pearson(np.ones(9), np.arange(9.0)) == 0
    assert metrics.spearman(np.arange(9.0), np.ones(9)) == 0


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
        samples.append(metrics.macro_f1(metrics.confusion_matrix(labels[rows], predictions[rows], 3)))
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
