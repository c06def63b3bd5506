"""Pairs from scratch begin with attention that finds equal tokens in the other text."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from token_rows import write_dataset, write_vocabulary
from transformers import XLNetForSequenceClassification

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset, schema
from xlnet.errors import Preempted, UserError
from xlnet.model.config import XLNetConfig
from xlnet.model.matching import begin_matching, heads
from xlnet.model.weights import load_classifier
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe, budget
from xlnet.training.loop import Training
from xlnet.training.train import make_model, train

VOCABULARY, WORDS = 400, np.arange(9, 400)
SEP, CLS = 4, 3


def write_pairs(path, rows=600):
    """Pairs whose value is the share of the second text's tokens that stand in the first one, too."""
    write_dataset(path, task="regression")
    generator = np.random.default_rng(0)
    for name, count in (("train", rows), ("validation", 200), ("test", 200)):
        values = generator.integers(0, 7, count)
        ids = []
        for shared in values.tolist():
            words = generator.permutation(WORDS)[:12].tolist()
            one, new = words[:6], words[6:]
            two = one[:shared] + new[shared:]
            ids.append([*one, SEP, *generator.permutation(two).tolist(), SEP, CLS])
        columns = {"input_ids": ids, "boundary": [7] * count, "label": (values / 6).tolist()}
        columns |= {"row": list(range(count)), "source": [0] * count, "line": list(range(1, count + 1))}
        layout = pa.schema([field for field in schema("regression") if field.name in columns])
        with pa.ipc.new_file(str(path / name / "00000.arrow"), layout) as file:
            file.write_table(pa.table(columns, schema=layout))
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(card | {"vocab_size": VOCABULARY}))
    write_vocabulary(path / "tokenizer" / "tokenizer.json", VOCABULARY)
    (path / "recipe.json").write_text(Recipe().replace(data={"text_pair": "other"}).part("data"))
    provenance.record(
        path, type="dataset", step="preprocess", started=provenance.now(), parameters={}, metadata={}, inputs=[]
    )
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "dataset")


def tiny(**training):
    shape = {"n_layer": 2, "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128}
    start = {"batch_tokens": 512, "learning_rate": 2e-3, "initialisation": "matching"}
    recipe = Recipe().replace(model=shape, training=start | training)
    return recipe.part("model", "training")


def test_a_few_updates_teach_what_two_texts_share(pairs, tmp_path):
    facts = train(tiny(steps=120), pairs, str(tmp_path / "model"))
    assert facts["validation_pearson"] > 0.6, "random weights get 0.1"
    assert XLNetForSequenceClassification.from_pretrained(tmp_path / "model").config.n_head == 4
    assert load_classifier(tmp_path / "model").config.task == "regression"


def test_equal_tokens_find_each_other(pairs):
    model = make_model(recipes.from_json(tiny()), open_dataset(pairs))
    first, words = model.transformer.layers()[0].rel_attn, torch.arange(9, 209)
    x_TD = model.transformer.word_embedding.weight[words]
    queries, keys = (torch.einsum("td,dh->th", x_TD, first.qkv[:, part, 0]) for part in (0, 1))
    scores = queries @ keys.T / 4
    equal, others = scores.diagonal(), scores[~torch.eye(len(words), dtype=torch.bool)]
    assert equal.mean().item() == pytest.approx(6.0, rel=0.15)
    assert abs(others.mean().item()) < 0.1
    assert (scores.argmax(1) == torch.arange(len(words))).float().mean().item() > 0.6, "one in 200 by chance"
    by_segment = (queries + first.r_s_bias[0]) @ first.seg_embed[:, 0].T / 4
    assert (by_segment[:, 1] - by_segment[:, 0]).mean().item() == pytest.approx(8.0, rel=0.1)
    last = first.qkv[:, :, 3]
    assert last.std().item() == pytest.approx(64**-0.5, rel=0.1), "one head in four begins as usual"


@pytest.mark.parametrize(("start", "matches"), [("matching", True), ("random", False)])
def test_random_weights_can_be_asked_for(start, matches, pairs):
    model = make_model(recipes.from_json(tiny(initialisation=start)), open_dataset(pairs))
    query, key = model.transformer.layers()[0].rel_attn.qkv.unbind(1)[:2]
    assert torch.equal(query[:, 0], key[:, 0]) is matches


PAIRS = {"train": ["a.csv"], "text_pair": "other"}


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"data": PAIRS}, "matching"),
        ({"data": {"train": ["a.csv"]}}, "linear"),
        ({"data": PAIRS, "model": {"pretrained": "some/where"}}, "random"),
        ({"data": PAIRS | {"task": "pretrain"}}, "random"),
        ({"data": PAIRS, "training": {"initialisation": "random"}}, "random"),
    ],
)
def test_only_pairs_from_scratch_begin_so(changes, start):
    recipe = recipes.load(settings=["model.preset=tiny"]).replace(**changes)
    assert budget.decide(recipe, budget.Size(1000, 20_000, 40)).training.initialisation == start


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"train": ["a.csv"]}}, "but data.text_pair names no second text; allowed: auto, random"),
        ({"data": PAIRS, "model": {"pretrained": "some/where"}}, "but model.pretrained gives the weights"),
        ({"data": PAIRS | {"task": "pretrain"}}, "but data.task is 'pretrain'"),
    ],
)
def test_what_cannot_begin_so_is_one_line(changes, says):
    with pytest.raises(UserError, match=f"training.initialisation is 'matching', {says}"):
        Recipe().replace(training={"initialisation": "matching"}, **changes)


def test_pretrained_weights_of_pairs_stay_what_they_are(pairs, tmp_path):
    train(tiny(steps=1), pairs, str(tmp_path / "first"))
    recipe = Recipe().replace(model={"pretrained": str(tmp_path / "first")}, data={"text_pair": "other"})
    again = make_model(recipe, open_dataset(pairs)).transformer.state_dict()
    before = load_classifier(tmp_path / "first").transformer.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.items())


@pytest.mark.parametrize(
    ("width", "count", "head", "matching"),
    [(128, 4, 32, 3), (256, 4, 64, 3), (768, 12, 64, 9), (16, 2, 8, 1), (64, 1, 64, 0), (64, 1, 32, 1), (8, 4, 64, 0)],
)
def test_every_shape_can_begin(width, count, head, matching):
    assert heads(width, count, head) == matching
    config = XLNetConfig(40, 1, width, count, head, 32, classes=("no", "yes"))
    torch.manual_seed(0)
    model = XLNetClassifier(config)
    begin_matching(model)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_the_budget_of_pairs_hides_no_tokens_and_says_how_they_begin():
    given = recipes.load(settings=["model.preset=tiny"])
    size = budget.Size(1000, 20_000, 40)
    for pair, rate in ((None, 0.3), ("other", 0.0)):
        recipe = given.replace(data={"text_pair": pair})
        decided = budget.decide(recipe, size)
        assert decided.training.token_dropout == rate
        assert ("equal tokens in both texts" in budget.explain(recipe, decided, size)) is (pair is not None)
    kept = given.replace(data={"text_pair": "other"}, training={"token_dropout": 0.2})
    assert budget.decide(kept, size).training.token_dropout == 0.2


def test_a_stopped_training_of_pairs_ends_with_equal_bytes(pairs, tmp_path, monkeypatch):
    recipe = tiny(steps=4, checkpoint_every=2)
    whole = train(recipe, pairs, str(tmp_path / "whole"))
    true_update = Training.update

    def stopped(self, share):
        if self.state.step == 2:
            self.leave()
        return true_update(self, share)

    monkeypatch.setattr(Training, "update", stopped)
    with pytest.raises((Preempted, KeyboardInterrupt)):
        train(recipe, pairs, str(tmp_path / "model"))
    monkeypatch.setattr(Training, "update", true_update)
    again = train(recipe, pairs, str(tmp_path / "model"))
    assert (again["resumed_from"], again["weights_digest"]) == (2, whole["weights_digest"])
