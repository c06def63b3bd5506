"""The baseline beside a model's score: fitted on the same rows, said where it wins, and heard by the gate."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.data.preprocess import preprocess
from xlnet.errors import UserError
from xlnet.evaluation import baseline, linear
from xlnet.evaluation.linear import Effort
from xlnet.recipe import EvaluationRecipe

TOPICS = {"sport": ["goal", "match", "league"], "money": ["bank", "shares", "loan"], "food": ["soup", "bread", "cook"]}
FILLER = ["the", "a", "of", "and", "in", "on", "with", "for", "to", "from", "at", "by", "it", "was", "is"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dataset(folder, rows, **data):
    recipe = recipes.tiny().replace(
        data={"train": written(folder / "rows.jsonl", rows), "test_fraction": 0.3, "max_length": 32, **data}
    )
    preprocess(recipe.part("data"), "", str(folder / "dataset"))
    return open_dataset(folder / "dataset")


def topics(count=240):
    draw = random.Random(0)
    for number in range(count):
        label = list(TOPICS)[number % 3]
        words = [*draw.choices(FILLER, k=6), draw.choice(TOPICS[label]), str(number)]
        yield {"text": " ".join(draw.sample(words, len(words))), "label": label}


def pairs(count=300, number=False):
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(200)]
    for row in range(count):
        one, share = draw.sample(vocabulary, 8), row % 9
        two = one[:share] + draw.sample(vocabulary, 8 - share)
        yield {"text": " ".join(one), "text_pair": " ".join(two), "label": share / 2 if number else int(share > 3)}


def numbers(count=240):
    draw = random.Random(0)
    for row in range(count):
        good = row % 5
        yield {"text": " ".join(["good"] * good + draw.choices(FILLER, k=5)) + f" {row}", "label": good + 0.5}


@pytest.mark.parametrize(
    ("rows", "settings", "least"),
    [
        (topics, {}, 0.95),
        (lambda: pairs(), {"text_pair": "text_pair"}, 0.9),
        (lambda: pairs(number=True), {"text_pair": "text_pair", "task": "regression"}, 0.9),
        (numbers, {"task": "regression"}, 0.9),
        (lambda: ({**row, "text": row["text"].replace(" ", "")} for row in topics()), {}, 0.8),
    ],
    ids=["classes", "pairs", "similarity", "number", "no spaces between words"],
)
def test_the_linear_model_learns_what_words_tell(tmp_path, rows, settings, least):
    data = dataset(tmp_path, rows(), **settings)
    train, test = data.split("train"), data.split("test")
    given = linear.predict(train, test, len(data.classes), Effort())
    score = (given == test.labels).mean() if data.classes else np.corrcoef(given, test.labels)[0, 1]
    assert score >= least
    assert np.array_equal(given, linear.predict(train, test, len(data.classes), Effort())), "repeats to the bit"


def test_a_fit_that_streams_finds_about_the_same(tmp_path, monkeypatch):
    data = dataset(tmp_path, topics())
    monkeypatch.setattr(linear, "LARGE_FIT", 0)
    given = linear.predict(data.split("train"), data.split("test"), 3, Effort(every=2))
    assert (given == data.split("test").labels).mean() > 0.9


@pytest.mark.parametrize(
    ("train", "test", "seconds", "effort"),
    [
        (10_000, 1_000, 0.0, Effort()),
        (6_000_000, 1_000_000, 0.0, Effort()),
        (33_000_000, 3_000_000, 60.0, Effort(characters=False, every=2)),
        (33_000_000, 3_000_000, 900.0, Effort()),
        (1_000_000_000, 1_000_000, 600.0, Effort(characters=False, every=12)),
        (10_000_000, 900_000_000, 10.0, Effort(characters=False, every=2)),
    ],
)
def test_many_texts_are_read_in_part(train, test, seconds, effort):
    assert baseline.effort_for(train, test, seconds) == effort


def test_the_effort_is_said():
    assert str(Effort()) == "words and characters"
    assert str(Effort(characters=False, every=4)) == "words, one train row in 4"


def content(confusion, classes, **base):
    figures = {"kind": "tfidf", "name": "TF-IDF with logistic regression", "train_rows": 90, "verdict": "better"}
    apart = {"metric": "accuracy", "value": -0.1, "low": -0.2, "high": -0.05}
    return {"confusion": confusion, "classes": classes, "baseline": {**figures, "difference": apart, **base}}


@pytest.mark.parametrize(
    ("confusion", "verdict", "said"),
    [
        ([[5, 1], [1, 5]], "better", []),
        ([[5, 1], [1, 5]], "worse", ["is worse than TF-IDF with logistic regression", "to try: pretrained weights"]),
        ([[5, 1], [1, 5]], "level", ["is not shown to be better than TF-IDF", "more rows to train on"]),
        ([[6, 0], [4, 0]], "better", ["answers 'a' to every test row"]),
        ([[6, 0, 1], [4, 0, 0], [0, 0, 3]], "better", ["recall is 0 for class 'b': none of 4 test rows found"]),
        ([[0, 6, 1], [4, 0, 0], [0, 0, 3]], "better", ["recall is 0 for classes 'a', 'b': none of 11 test rows"]),
        ([[6, 0, 1], [0, 0, 0], [0, 0, 3]], "better", []),
    ],
)
def test_remarks_name_what_a_user_must_know(confusion, verdict, said):
    found = baseline.remarks(content(confusion, list("abc")[: len(confusion)], verdict=verdict), recipes.tiny())
    assert len(found) == (2 if verdict != "better" else len(said))
    assert all(words in "; ".join(found) for words in said)


def test_proposals_leave_out_what_was_done():
    recipe = recipes.tiny().replace(data={"tokenizer": "train"}, model={"pretrained": "weights"})
    (_, proposals) = baseline.remarks(content([[1, 0], [0, 1]], ["a", "b"], verdict="worse"), recipe)
    assert "pretrained" not in proposals
    assert "vocabulary" not in proposals


@pytest.mark.parametrize(("kind", "uses"), [("tfidf", "words and characters"), ("majority", ""), ("none", None)])
def test_evaluate_writes_the_baseline(trained, tmp_path, kind, uses, capsys):
    from xlnet.evaluation.evaluate import evaluate

    recipe = trained.recipe.replace(evaluation={"baseline": kind})
    facts = evaluate(recipe.part("evaluation"), str(trained.dataset), str(trained.model), str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    if kind == "none":
        assert found["baseline"] is None
        assert "baseline" not in table.column_names
        return
    base = found["baseline"]
    assert (base["kind"], base["uses"]) == (kind, uses)
    assert base["rows"] == base["train_rows"] == 160
    share = np.mean([row["label"] == row["baseline"] for row in table.to_pylist()])
    assert base["metrics"]["accuracy"]["value"] == pytest.approx(share) == pytest.approx(facts["baseline_score"])
    apart = found["metrics"]["accuracy"]["value"] - share
    assert base["difference"]["value"] == pytest.approx(apart)
    assert "difference in accuracy" in capsys.readouterr().out
    assert "Model − baseline" in (tmp_path / "out" / "report.html").read_text()


def test_a_dataset_of_an_earlier_release_has_no_baseline(tmp_path, capsys):
    from token_rows import write_dataset

    data = open_dataset(write_dataset(tmp_path / "dataset"))
    assert baseline.answers(EvaluationRecipe(), data, 0.0) is None
    assert "run preprocess again" in capsys.readouterr().out


def test_without_scikit_learn_the_error_names_the_remedy(trained, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install scikit-learn, or choose \"majority\" or \"none\""):
        baseline.answers(EvaluationRecipe(), open_dataset(trained.dataset), 0.0)
