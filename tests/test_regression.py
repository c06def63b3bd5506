"""A number as label: any scale is learnt alike, and the checkpoint answers in the labels' own scale."""

import json

import numpy as np
import pytest
import torch
from token_rows import RECIPE, write_dataset
from transformers import XLNetForSequenceClassification

from xlnet.data.dataset import open_dataset
from xlnet.errors import Preempted
from xlnet.model.inference import predict_logits
from xlnet.model.weights import load_classifier
from xlnet.training import objective
from xlnet.training.export import export
from xlnet.training.loop import Training
from xlnet.training.train import train

SHORT = RECIPE.replace(training={"epochs": 6.0})


def part(recipe):
    return recipe.part("model", "training")


def prices(path):
    return write_dataset(path / "dataset", task="regression", values=(250_000.0, 310_000.0))


def answers(model, dataset):
    split = open_dataset(dataset).split("test")
    return predict_logits(load_classifier(model), split)[:, 0], split.labels


def history(model):
    return [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]


def test_a_price_is_learnt_as_a_share_is_and_answered_as_a_price(tmp_path):
    found = {}
    for name, values in {"share": (0.0, 1.0), "price": (250_000.0, 310_000.0)}.items():
        dataset = write_dataset(tmp_path / name, task="regression", values=values)
        train(part(SHORT), dataset, str(tmp_path / f"{name}-model"))
        found[name] = answers(tmp_path / f"{name}-model", dataset)
    (shares, _), (given, truth) = found["share"], found["price"]
    assert np.abs(given - truth).mean() < 15_000, "always answering the mean is 30,000 off"
    assert given == pytest.approx(250_000 + 60_000 * shares, rel=1e-3), "the same training, in another scale"
    first, last = (history(tmp_path / "price-model")[place]["loss"] for place in (0, -2))
    assert first == pytest.approx(1.0, abs=0.2), "the loss of answering the mean is 1"
    assert last < first


def test_transformers_answers_the_same_price(tmp_path):
    dataset = prices(tmp_path)
    train(part(SHORT.replace(training={"steps": 20})), dataset, str(tmp_path / "model"))
    theirs = XLNetForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    split = open_dataset(dataset).split("test")
    row = torch.tensor(split.tokens[: split.offsets[1]].astype(np.int64))
    segments = torch.zeros_like(row)
    segments[-1] = 2
    with torch.no_grad():
        value = theirs(row[None], token_type_ids=segments[None], use_mems=False).logits.item()
    assert value == pytest.approx(float(answers(tmp_path / "model", dataset)[0][0]), rel=1e-5)
    assert not {"value_mean", "value_deviation"} & json.loads((tmp_path / "model/config.json").read_text()).keys()


def test_a_stopped_training_goes_on_and_exports_in_the_same_scale(tmp_path, monkeypatch):
    dataset, recipe = prices(tmp_path), SHORT.replace(training={"checkpoint_every": 5})
    train(part(recipe), dataset, str(tmp_path / "whole"))
    monkeypatch.setenv("XLNET_CHECKPOINTS", str(tmp_path / "checkpoints"))
    true_update = Training.update

    def stopped(self, share):
        if self.state.step == 12:
            self.leave()
        return true_update(self, share)

    monkeypatch.setattr(Training, "update", stopped)
    with pytest.raises((Preempted, KeyboardInterrupt)):
        train(part(recipe), dataset, str(tmp_path / "model"))
    (place,) = [path.parent for path in (tmp_path / "checkpoints").glob("**/about.json")]
    export(str(place), dataset, str(tmp_path / "exported"), weights="last")
    assert answers(tmp_path / "exported", dataset)[0].mean() == pytest.approx(280_000, rel=0.1)
    monkeypatch.setattr(Training, "update", true_update)
    facts = train(part(recipe), dataset, str(tmp_path / "model"))
    assert facts["resumed_from"] == 12
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "model"))
    assert one == other


def test_a_trained_head_goes_on_in_the_scale_of_other_labels(tmp_path):
    train(part(SHORT), prices(tmp_path), str(tmp_path / "first"))
    dataset = write_dataset(tmp_path / "other", task="regression", values=(200_000.0, 320_000.0))
    first, _ = answers(tmp_path / "first", dataset)
    recipe = SHORT.replace(
        model={"pretrained": str(tmp_path / "first")}, training={"steps": 1, "learning_rate": 1e-9, "warmup": 0.0}
    )
    train(part(recipe), dataset, str(tmp_path / "second"))
    assert answers(tmp_path / "second", dataset)[0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "task", "scale"),
    [
        ([1.0, 3.0], "regression", (2.0, 1.0)),
        ([7.0, 7.0], "regression", (7.0, 1.0)),
        ([], "regression", (0.0, 1.0)),
        ([0, 4], "classification", (0.0, 1.0)),
    ],
)
def test_the_scale_is_that_of_the_labels(labels, task, scale):
    assert objective.label_scale(np.array(labels, np.float32), task) == scale
