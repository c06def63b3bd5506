"""Budgets that fit the data: what "auto" becomes, what it is said to be, and what ends a training early."""

import json

import numpy as np
import pytest
from token_rows import RECIPE, write_dataset

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.evaluation.comparison import refuse_selection
from xlnet.recipe import AUTO, TrainingRecipe, budget
from xlnet.recipe.budget import Size
from xlnet.training import objective
from xlnet.training.train import train


def decided(rows, mean, **model):
    recipe = recipes.from_changes({"model": model})
    return budget.decide(recipe, Size(rows, rows * mean, 4 * mean))


@pytest.mark.parametrize(
    ("rows", "mean", "epochs", "batch"),
    [
        (450, 14, 10, 256),
        (2272, 18, 10, 1024),
        (5_000, 40, 5, 1024),
        (2_800, 200, 3, 1024),
        (61_000, 17, 3, 1024),
        (23_000, 250, 2, 1024),
        (1_000_000, 100, 2, 8192),
        (1, 4, 10, 256),
    ],
)
def test_small_sets_get_more_epochs_and_smaller_updates(rows, mean, epochs, batch):
    training = decided(rows, mean).training
    assert (training.epochs, training.batch_tokens) == (epochs, batch)
    assert not budget.chosen(recipes.Recipe(training=training))
    assert decided(rows, mean).training == training, "the same data and recipe give the same budget"


def test_an_update_holds_the_longest_text():
    assert budget.decide(recipes.tiny(), Size(100, 90_000, 4096)).training.batch_tokens == 4096


def test_wider_networks_learn_slower_and_drop_more():
    tiny, small = decided(2000, 20), decided(2000, 20, preset="small")
    assert small.training.learning_rate < tiny.training.learning_rate
    assert small.model.dropout > tiny.model.dropout


def test_pretrained_weights_are_tuned_gently():
    found = decided(2000, 20, pretrained="weights").training
    assert (found.learning_rate, found.epochs, found.token_dropout) == (3e-5, 3.0, 0.0)


def test_what_is_given_stays():
    recipe = recipes.tiny().replace(training={"epochs": 2.0, "learning_rate": 5e-3}, model={"dropout": 0.3})
    size = Size(100, 2000, 30)
    found = budget.decide(recipe, size)
    assert (found.training.epochs, found.training.learning_rate, found.model.dropout) == (2.0, 5e-3, 0.3)
    said = budget.explain(recipe, found, size)
    begin = "chosen for 100 rows, 2,000 tokens, weights from a linear model of the tokens: summary_dropout 0.1, "
    assert said.startswith(begin + "batch_tokens")
    assert "epochs" not in said
    assert budget.explain(found, found, size) == ""


@pytest.mark.parametrize("preset", ["base", "large"])
def test_published_presets_leave_nothing_open(preset):
    assert not budget.chosen(recipes.PRESETS[preset]())


@pytest.mark.parametrize("name", ["epochs", "batch_tokens", "learning_rate", "warmup", "token_dropout", "patience"])
def test_a_misspelt_auto_gets_the_remedy(name):
    with pytest.raises(UserError, match=rf"training\.{name} is 'auot'; allowed: auto or .*; did you mean 'auto'\?"):
        recipes.load(settings=[f"training.{name}=auot"])
    assert getattr(recipes.load(settings=["model.preset=base", f"training.{name}=auto"]).training, name) == AUTO


@pytest.mark.parametrize("setting", ["training.steps=auto", "training.seed=auto", "training.max_minutes=auto"])
def test_other_numbers_are_no_budget(setting):
    with pytest.raises(UserError, match="is 'auto'; allowed: a "):
        recipes.load(settings=[setting])


def test_a_training_writes_its_budget_down(tmp_path):
    data = write_dataset(tmp_path / "dataset")
    recipe = RECIPE.replace(training={"epochs": AUTO, "steps": 3})
    facts = train(recipe.part("model", "training"), data, str(tmp_path / "model"))
    kept = recipes.of_artifact(tmp_path / "model")
    assert kept.training.epochs == 10
    assert "epochs 10" in facts["budget"]


def test_max_minutes_ends_a_training_and_says_so(tmp_path, capsys):
    data = write_dataset(tmp_path / "dataset")
    recipe = RECIPE.replace(training={"steps": 3000, "max_minutes": 0.001})
    facts = train(recipe.part("model", "training"), data, str(tmp_path / "model"))
    assert 0 < facts["global_step"] < 3000
    assert facts["best_step"] == facts["global_step"]
    assert "0.001 minutes are over" in capsys.readouterr().err


def test_classes_are_weighted_to_count_alike():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    weights = objective.class_weights(TrainingRecipe(class_weights="balanced"), labels, ["a", "b", "c"])
    assert weights * np.bincount(labels) == pytest.approx([100 / 3] * 3, rel=1e-5)
    given = objective.class_weights(TrainingRecipe(class_weights={"c": 5.0}), labels, ["a", "b", "c"])
    assert given[2] / given[0] == pytest.approx(5)
    assert (given[labels]).mean() == pytest.approx(1)
    assert objective.class_weights(TrainingRecipe(), labels, ["a", "b", "c"]) is None


@pytest.mark.parametrize(
    ("weights", "classes", "message"),
    [
        ({"spma": 2.0}, ["ham", "spam"], r"names 'spma', no class of the data; allowed: 'ham', 'spam'; did you mean"),
        ("balanced", [], "leave it out where data.task is 'regression'"),
    ],
)
def test_weights_for_what_does_not_exist(weights, classes, message):
    with pytest.raises(UserError, match=message):
        objective.class_weights(TrainingRecipe(class_weights=weights), np.array([0, 1]), classes)


@pytest.mark.parametrize("value", ["balance", "{a = 0}", "{a = -1}", "{a = 'x'}", "{}", "3", "true"])
def test_class_weights_are_strict(value):
    with pytest.raises(UserError, match=r"training\.class_weights is .*; allowed: none, balanced, or a weight above 0"):
        recipes.load(settings=[f"training.class_weights={value}"])


def test_check_names_a_class_that_does_not_exist(small_csv, capsys):
    from xlnet_pipeline.cli import main

    given = ["--set", f"data.train={small_csv}", "--set", "training.class_weights={9 = 2.0}"]
    assert main(["check", *given]) == 2
    assert "training.class_weights names '9', no class of the data; allowed: '0', '1'" in "".join(capsys.readouterr())


def test_weighted_rows_change_the_training(tmp_path):
    data = write_dataset(tmp_path / "dataset")
    digests = set()
    for number, weights in enumerate(["none", "balanced", {"yes": 3.0}, {"no": 1.0, "yes": 1.0}]):
        recipe = RECIPE.replace(training={"steps": 2, "class_weights": weights})
        digests.add(train(recipe.part("model", "training"), data, str(tmp_path / str(number)))["weights_digest"])
    assert len(digests) == 3, "weights of 1 are no weights"


@pytest.mark.parametrize(
    ("select_by", "new", "old", "wins"),
    [
        ("auto", {"loss": 0.5, "accuracy": 0.8}, {"loss": 0.4, "accuracy": 0.7}, True),
        ("auto", {"loss": 0.5, "accuracy": 0.8}, {"loss": 0.4, "accuracy": 0.8}, False),
        ("auto", {"loss": 0.5, "pearson": 0.3}, {"loss": 0.4, "pearson": 0.2}, True),
        ("auto", {"loss": 0.3}, {"loss": 0.4, "pearson": 0.2}, False),
        ("auto", {"loss": 0.5, "pearson": 0.1}, {"loss": 0.4}, True),
        ("macro_f1", {"loss": 0.5, "macro_f1": 0.6}, {"loss": 0.4, "macro_f1": 0.5}, True),
        ("loss", {"loss": 0.5, "accuracy": 0.9}, {"loss": 0.4, "accuracy": 0.8}, False),
    ],
)
def test_the_metric_that_decides_selects(select_by, new, old, wins):
    scores = ({f"validation_{name}": value for name, value in one.items()} for one in (new, old))
    assert objective.better(*scores, select_by) is wins


def test_the_evaluation_metric_selects_unless_told_otherwise():
    assert recipes.load(settings=["evaluation.metric=macro_f1"]).training.select_by == "macro_f1"
    both = ["evaluation.metric=macro_f1", "training.select_by=loss"]
    assert recipes.load(settings=both).training.select_by == "loss"
    assert json.loads(recipes.load(settings=both[:1]).part("training"))["training"]["select_by"] == "macro_f1"
    with pytest.raises(UserError, match=r"training\.select_by is 'macro_f1'; allowed for regression: auto, loss"):
        refuse_selection("macro_f1", "regression")
