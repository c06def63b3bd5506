"""Weights that start from a linear model: the untrained network answers as it does, and training goes on from there."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from token_rows import RECIPE, write_dataset

from xlnet import recipe as recipes
from xlnet.data.tokenizer import SHIPPED
from xlnet.errors import UserError
from xlnet.model import config as configs
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import AUTO, budget
from xlnet.recipe.budget import Size
from xlnet.training import linear_model, linear_start, loop, objective, tasks
from xlnet.training.device import Device
from xlnet.training.train import train
from xlnet.training.validation import validation_logits

EACH_ALONE = linear_model.Spellings.of([], 64)
LINEAR = RECIPE.replace(training={"initialisation": "linear", "steps": 4})


@dataclass
class Rows:
    """Rows in memory, as a split of a dataset has them."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @property
    def offsets(self):
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def boundaries(self):
        return self.lengths - 1


def made_up(classes, rows, seed=0):
    """Rows that have token 10 + class among others; for values, as many tokens 10 as the value says."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes or 4, rows)
    texts = []
    for label in labels:
        telling = [10 + label] if classes else [10] * label
        texts.append([*telling, *generator.integers(20, 60, 9 - len(telling)).tolist(), 4, 3])
    kept = labels.astype(np.int32) if classes else labels.astype(np.float32)
    return Rows(np.concatenate(texts).astype(np.int32), np.array([len(text) for text in texts]), kept)


def network(classes, scale=(0.0, 1.0)):
    torch.manual_seed(0)
    task, names = ("classification", [str(one) for one in range(classes)]) if classes else ("regression", [])
    return XLNetClassifier(configs.from_recipe(recipes.tiny().model, 64, 5, task, names, scale)).eval()


def answers(model, rows):
    return validation_logits(model, rows, Device(), goes_on=lambda: True)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_untrained_network_finds_the_classes(classes):
    train_rows, others = made_up(classes, 600), made_up(classes, 200, seed=1)
    model = network(classes)
    before = (answers(model, others).argmax(1) == others.labels).mean()
    linear_start.write(model, linear_model.fit(train_rows, EACH_ALONE, classes))
    logits = answers(model, others)
    assert before < 0.75 < 0.97 < (logits.argmax(1) == others.labels).mean()
    assert logits.std() < 2, "it is not surer than a model that will be trained on may be"


def test_the_untrained_network_answers_as_the_linear_model_does():
    model, others = network(2), made_up(2, 200, seed=1)
    linear = linear_model.fit(made_up(2, 600), EACH_ALONE, 2)
    linear_start.write(model, linear)
    texts = np.split(others.tokens, others.offsets[1:-1])
    weights_V, cls = linear.table_VK[:, 0].numpy(), others.tokens[-1]
    expected = [weights_V[text].mean() + weights_V[cls] for text in texts] * linear.directions_KC[0, 1].sign().numpy()
    found = answers(model, others)
    assert np.corrcoef(found[:, 1] - found[:, 0], expected)[0, 1] > 0.9999


def test_a_token_that_one_class_has_more_often_speaks_for_it():
    rows = made_up(3, 300)
    bags = linear_model._Bags.of(rows, np.arange(300), EACH_ALONE)
    ratios_FC = bags.by_class(bags.rows_with(torch.from_numpy(rows.labels).long(), 3))
    assert bags.tokens_U[2:5].tolist() == [10, 11, 12]
    for telling_CC in (ratios_FC[2:5], ratios_FC[len(bags.tokens_U) :][2:5]):  # the tokens, and their spellings
        assert telling_CC.argmax(1).tolist() == [0, 1, 2]
        assert (telling_CC.diagonal() > 0).all()


def test_a_token_counts_as_its_spelling_and_the_runs_of_characters_in_it():
    pieces = ["<cls>", "▁good", "Good", "GOOD", "▁", "bad", "▁好", "好"]
    spellings = linear_model.Spellings.of(pieces, 10)
    features = [set(some.tolist()) for some in np.split(spellings.features_N, spellings.offsets_V[1:])]
    assert features[2] == features[3] < features[1], "▁goo, ▁good and ▁go are runs of a word's start only"
    assert len(features[2]) == 4, "its spelling, goo, ood, good"
    assert features[6] == features[7]
    assert len(features[6]) == 1
    alone = [0, 4, 5, 6, 8, 9]
    assert all(not features[one] & features[other] for one in alone for other in alone if one != other)
    assert spellings.lengths_V.tolist() == [len(some) for some in features]
    assert max(map(max, features)) == spellings.count - 1
    assert linear_model.Spellings.of(pieces, 10, classes=1000).lengths_V.tolist() == [1] * 10, (
        "they would take gigabytes"
    )


def test_rows_are_counted_once_for_each_feature_that_they_have(monkeypatch):
    spellings = linear_model.Spellings.of(["<cls>", "fine", "finely", "Fine", "bad"], 5)
    tokens, lengths = np.array([1, 2, 1, 0, 3, 0, 4, 0], np.int32), np.array([4, 2, 2])
    rows = Rows(tokens, lengths, np.array([1, 1, 0], np.int32))
    bags = linear_model._Bags.of(rows, np.arange(3), spellings)
    whole = bags.rows_with(torch.tensor([1, 1, 0]), 2)
    assert whole[:5].tolist() == [[1, 2], [0, 1], [0, 1], [0, 1], [1, 0]]
    fine = 5 + bags.spellings.features_N[bags.spellings.offsets_V[1:2]]
    assert whole[fine].tolist() == [[0, 2]]
    monkeypatch.setattr(linear_model, "AT_ONCE", 1)  # a row at a time
    assert torch.equal(bags.rows_with(torch.tensor([1, 1, 0]), 2), whole)


def test_a_spelling_that_no_row_has_counts_as_the_others():
    rows = made_up(2, 600)
    with_11 = rows.tokens == 11
    rows.tokens[with_11 & (np.arange(len(rows.tokens)) % 2 == 0)] = 12  # of the same group as 11, like 13
    pieces = [*map(str, range(11)), "▁fine", "Fine", "fine"]
    linear = linear_model.fit(rows, linear_model.Spellings.of(pieces, 64), 2)
    said = linear.table_VK[:, 0] * linear.directions_KC[0, 1].sign()
    assert said[13] > 0.3 * said[11] > 0, "the train rows do not have this spelling"
    assert said[12] > said[13] > said[14:20].abs().max()


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.5, 1.1)])
def test_the_untrained_network_finds_values(scale):
    model = network(0, scale)
    linear_start.write(model, linear_model.fit(made_up(0, 600), EACH_ALONE, 0))
    others = made_up(0, 200, seed=1)
    found = answers(model, others)[:, 0]
    assert np.corrcoef(found, others.labels)[0, 1] > 0.9
    assert abs(found.mean() - others.labels.mean()) < 0.3
    assert 0.5 < found.std() / others.labels.std() < 1.5


@pytest.mark.parametrize("classes", [0, 2, 7])
def test_a_pretrained_network_takes_the_linear_model_in(classes, tmp_path):
    split = made_up(classes, 600)
    model = network(classes)
    for name, weights in model.transformer.named_parameters():  # as far from new weights as a training leads
        weights.data.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.15)
    before = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    recipe = recipes.load(settings=["model.pretrained=weights", "training.initialisation=linear"])
    Path(tmp_path, "tokenizer").symlink_to(SHIPPED / "xlnet-base-cased")
    data = SimpleNamespace(path=tmp_path, split=lambda _: split, classes=[str(one) for one in range(classes)])
    linear_start.begin(model, Device(), data, recipe)
    others = made_up(classes, 200, seed=1)
    found = answers(model, others)
    if classes:
        assert (found.argmax(1) == others.labels).mean() > 0.97
        assert found.std() < 2, "it is not surer than a model that will be trained on may be"
    else:
        assert np.corrcoef(found[:, 0], others.labels)[0, 1] > 0.9
    kept = [
        (value[max(1, classes - 1) :] == before[name][max(1, classes - 1) :]).float().mean()
        for name, value in model.transformer.state_dict().items()
        if name.endswith(("ff.layer_2.weight", "rel_attn.o"))
    ]
    assert min(kept) > 0.8, "what was learnt stays, but for one head and the dimensions of the answers"


def test_more_classes_than_a_head_is_wide_keep_the_main_directions():
    rows = made_up(7, 600)
    linear = linear_model.fit(rows, EACH_ALONE, 7, most=3)
    assert linear.directions_KC.shape == (3, 7)
    assert torch.allclose(linear.directions_KC @ linear.directions_KC.T, torch.eye(3), atol=1e-5)


def test_few_of_many_rows_are_enough(monkeypatch):
    monkeypatch.setattr(linear_model, "MOST_COUNTS", 2_000)
    model, others = network(2), made_up(2, 200, seed=1)
    linear_start.write(model, linear_model.fit(made_up(2, 900), EACH_ALONE, 2))
    assert (answers(model, others).argmax(1) == others.labels).mean() > 0.9


def test_class_weights_move_the_linear_model():
    rows = made_up(2, 300)
    rows.tokens[:] = np.where(rows.tokens == 11, 10, rows.tokens)  # nothing tells the classes apart
    shares = []
    for weights in (np.array([9.0, 1.0], np.float32), np.array([1.0, 9.0], np.float32)):
        model = network(2)
        linear_start.write(model, linear_model.fit(rows, EACH_ALONE, 2, weights))
        shares.append(answers(model, rows).argmax(1).mean())
    assert shares[0] < 0.2 < 0.8 < shares[1]


@pytest.mark.parametrize("labels", [np.zeros(300, np.int32), np.full(300, 2.5, np.float32)])
def test_labels_that_are_all_equal_teach_nothing(labels):
    rows = made_up(2, 300)
    rows.labels = labels
    assert linear_model.fit(rows, EACH_ALONE, 2 if labels.dtype == np.int32 else 0) is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("linear") / "dataset")


def test_the_start_is_validated_and_kept_if_training_makes_it_worse(dataset, tmp_path):
    recipe = LINEAR.replace(training={"learning_rate": 3.0, "clip_norm": 0.0})
    facts = train(recipe.part("model", "training"), dataset, str(tmp_path / "model"))
    first = json.loads(Path(tmp_path, "model", "history.jsonl").read_text().splitlines()[0])
    assert (first["step"], facts["best_step"], facts["global_step"]) == (0, 0, 4)
    assert facts["validation_accuracy"] == pytest.approx(first["validation_accuracy"], abs=1e-6)
    assert first["validation_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("accuracies", "steps", "best"),
    [
        ([0.80, 0.70, 0.72, 0.74, 0.76, 0.90], 5, 5),  # it gets better all the time, and passes the start in the end
        ([0.80, 0.70, 0.72, 0.71, 0.72, 0.90], 4, 0),
        ([0.80, 0.83, 0.82, 0.81, 0.90, 0.95], 3, 0),  # 0.83 is within a standard error of the start
        ([0.80, 0.90, 0.89, 0.88, 0.95, 0.95], 3, 1),
    ],
)
def test_patience_ends_once_the_trained_network_gets_no_better(dataset, tmp_path, monkeypatch, accuracies, steps, best):
    scripted = iter({"validation_loss": 0.5, "validation_accuracy": accuracy} for accuracy in accuracies)
    monkeypatch.setattr(tasks.Supervised, "validate", lambda *_: next(scripted))
    recipe = LINEAR.replace(training={"steps": 5, "evaluate_every": 1, "patience": 2})
    facts = train(recipe.part("model", "training"), dataset, str(tmp_path / "model"))
    assert (facts["global_step"], facts["best_step"]) == (steps, best)


@pytest.mark.parametrize(
    ("name", "select_by", "start", "other", "wins"),
    [
        ("accuracy", "auto", 0.80, 0.83, False),  # one standard error of 100 rows is 0.04
        ("accuracy", "accuracy", 0.80, 0.85, True),
        ("macro_f1", "macro_f1", 0.80, 0.83, False),
        ("mcc", "mcc", 0.5, 0.6, True),
        ("pearson", "auto", 0.5, 0.57, False),
        ("pearson", "spearman", 0.5, 0.57, False),  # neither has it
    ],
)
def test_the_start_is_kept_unless_another_is_better_by_a_standard_error(name, select_by, start, other, wins):
    old, new = ({"validation_loss": 0.5, f"validation_{name}": value} for value in (start, other))
    margin = objective.standard_error(old, 100, select_by)
    assert objective.better(new, old, select_by, margin) is wins


def test_a_lower_loss_is_better_however_small_the_difference():
    old, new = {"validation_loss": 0.5, "validation_accuracy": 0.9}, {"validation_loss": 0.49}
    assert objective.better(new, old, "loss", objective.standard_error(old, 100, "loss"))


def test_the_same_bits_twice_and_after_a_kill(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XLNET_CHECKPOINTS", str(tmp_path / "checkpoints"))
    recipe = LINEAR.replace(training={"checkpoint_every": 2}).part("model", "training")
    digests = [train(recipe, dataset, str(tmp_path / name))["weights_digest"] for name in ("one", "two")]
    assert digests[0] == digests[1]
    update = loop.Training.update

    def killed(training, share):
        if training.state.step == 3:
            raise RuntimeError("killed")
        return update(training, share)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "update", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(recipe, dataset, str(tmp_path / "killed"))
    resumed = train(recipe, dataset, str(tmp_path / "killed"))
    assert (resumed["resumed_from"], resumed["weights_digest"]) == (2, digests[0])


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "linear"),
        ({"model": {"preset": "small"}}, "linear"),
        ({"data": {"task": "regression"}}, "linear"),
        ({"data": {"text_pair": "other"}}, "matching"),
        ({"data": {"task": "pretrain"}}, "random"),
        ({"model": {"pretrained": "weights"}}, "random"),
        ({"data": {"text_pair": "other"}, "pretraining": {"corpus": ["train"]}}, "random"),
        ({"pretraining": {"corpus": ["train"]}}, "linear"),
        ({"model": {"preset": "base"}}, "random"),
        ({"training": {"initialisation": "random"}}, "random"),
        ({"model": {"preset": "base"}, "training": {"initialisation": AUTO}}, "linear"),
    ],
)
def test_what_auto_chooses(changes, chosen):
    recipe = recipes.from_changes(changes)
    size = Size(2000, 40_000, 60)
    decided = budget.decide(recipe, size)
    assert decided.training.initialisation == chosen
    said = budget.explain(recipe, decided, size)
    assert ("linear model of the tokens" in said) == (chosen == "linear" and bool(said))


@pytest.mark.parametrize(
    ("width", "text_pair", "chosen"), [(128, None, "linear"), (128, "other", "random"), (768, None, "random")]
)
def test_pretrained_weights_of_a_small_network_take_a_linear_model_in(width, text_pair, chosen):
    recipe = recipes.from_changes({"model": {"pretrained": "weights"}, "data": {"text_pair": text_pair}})
    assert budget.decide(recipe, Size(2000, 40_000, 60, width)).training.initialisation == chosen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.text_pair=other"], "is 'linear', but data.text_pair makes the rows pairs; allowed: auto, random"),
        (["data.task=pretrain"], "is 'linear', but data.task is 'pretrain'; allowed: auto, random"),
    ],
)
def test_a_linear_start_where_it_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        recipes.load(settings=["training.initialisation=linear", *settings])


def test_a_misspelt_start_names_those_there_are():
    with pytest.raises(UserError, match=r"training\.initialisation is 'liner'; allowed: .*linear"):
        recipes.load(settings=["training.initialisation=liner"])
