"""Pretraining from text to a registered model, and a fine-tuning that continues it."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Trained
from test_ui import client, make_run
from transformers import XLNetLMHeadModel

import xlnet
from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.data.dataset import open_dataset
from xlnet.data.documents import rows_of
from xlnet.data.readers import Row
from xlnet.data.storage import list_sources
from xlnet.data.tokenizer import TOKENIZER_FILES, train_tokenizer
from xlnet.errors import UserError
from xlnet.model import streams
from xlnet.model.config import XLNetConfig
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.neighbours import begin_neighbours
from xlnet.model.positions import distance_encoding
from xlnet.model.pretrained import check
from xlnet.model.weights import load_language_model, load_pretrained
from xlnet.registry import open_registry
from xlnet.registry.locate import with_weights
from xlnet.training.train import make_model
from xlnet_pipeline.cli import main as cli

SENTENCES = Path(xlnet.__file__).parent / "demo" / "uci_sentences"
OUTPUT = {"preprocess": "dataset", "train": "model", "evaluate": "evaluation", "register": "registration"}


def text(first, count):
    """Sentences of the demo's data."""
    lines = [line for file in sorted(SENTENCES.glob("*.txt")) for line in file.read_text("utf-8").splitlines()]
    return [line.split("\t")[0] for line in lines[first : first + count]]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_of(corpus, **changes):
    return recipes.from_changes(
        {
            "data": {
                "train": [str(corpus)],
                "task": "pretrain",
                "tokenizer": "train",
                "vocab_size": 200,
                "max_length": 32,
            },
            "model": {"n_layer": 2, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
            "training": {"steps": 20, "batch_tokens": 256, "evaluate_every": 10, "checkpoint_every": 4},
            "pretraining": {"mem_len": 24, "reuse_len": 16},
            "registry": {"name": "lm"},
            **changes,
        }
    )


def step(name, recipe, folder, *inputs):
    out = folder / OUTPUT[name]
    given = [f"--{one}={folder / one}" for one in inputs]
    assert main([name, "--recipe-json", recipe.to_json(), f"--out={out}", *given]) == 0
    return out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """All steps of a pretraining: the folder of its artifacts."""
    folder = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLNET_PIPELINE_HOME", str(folder / "home"))
        recipe = recipe_of(write(folder / "corpus.txt", text(0, 500)))
        step("preprocess", recipe, folder)
        step("train", recipe, folder, "dataset")
        step("evaluate", recipe, folder, "dataset", "model")
        step("register", recipe, folder, "dataset", "model", "evaluation")
    return folder


def test_it_learns_and_is_judged(pretrained):
    metrics = json.loads((pretrained / "evaluation" / "metrics.json").read_text())
    figures = {name: one["value"] for name, one in metrics["metrics"].items()}
    assert metrics["primary"] == "bits_per_byte"
    assert 0 < figures["bits_per_byte"] < 8
    assert 1 < figures["perplexity"] < 200
    assert 0 < figures["permutation_loss"] < 5.2
    assert all(one["low"] < one["value"] < one["high"] for one in metrics["metrics"].values())
    page = (pretrained / "evaluation" / "report.html").read_text()
    assert "Hardest documents" in page
    entry = json.loads((pretrained / "registration" / "registration.json").read_text())
    assert entry["promoted"] is True
    XLNetLMHeadModel.from_pretrained(pretrained / "model")
    assert load_language_model(pretrained / "model").memory is None  # what a training remembers is not kept


@torch.no_grad()
def test_new_weights_begin_with_the_frequencies_of_tokens(pretrained):
    """Before the first update the loss is that of the train tokens' frequencies, and not of an even guess."""
    data = open_dataset(pretrained / "dataset")
    model = make_model(recipe_of(pretrained / "corpus.txt"), data)
    share_V = model.lm_loss.bias.exp().detach()
    assert float(share_V.sum()) == pytest.approx(1, abs=1e-5)
    assert int(share_V.argmax()) == np.bincount(data.split("train").tokens).argmax()
    logits_PV = model.logits(torch.nn.functional.layer_norm(torch.randn(400, 32), [32]))
    targets_P = torch.from_numpy(data.split("validation").tokens[:400]).long()
    losses = [torch.nn.functional.cross_entropy(one, targets_P) for one in (logits_PV, logits_PV - model.lm_loss.bias)]
    assert losses[0] < losses[1] - 0.5
    assert losses[1] == pytest.approx(math.log(200), abs=0.1)


@pytest.mark.parametrize(("width", "heads", "head"), [(32, 2, 16), (128, 4, 32), (96, 5, 8), (256, 1, 64), (16, 3, 1)])
@torch.no_grad()
def test_new_heads_begin_with_one_neighbour_each(width, heads, head):
    """The first layer looks at the token before, the one after, the second before, and so on, and mostly at them."""
    torch.manual_seed(0)
    model = XLNetLanguageModel(XLNetConfig(50, 2, width, heads, head, 64, task="pretrain"))
    usual = [one.clone() for one in model.parameters()]
    begin_neighbours(model)
    changed = [name for (name, one), old in zip(model.named_parameters(), usual, strict=True) if not one.equal(old)]
    assert changed == [f"transformer.layer.0.rel_attn.{name}" for name in ("r", "r_r_bias")]
    attention, length = model.transformer.layers()[0].rel_attn, 60
    encoding_RD = distance_encoding(length, width, -1)
    for number, distance in zip(range(heads), (1, -1, 2, -2, 3), strict=False):
        score_R = encoding_RD @ attention.r[:, number] @ attention.r_r_bias[number] / math.sqrt(head)
        share_R = score_R.softmax(0)
        assert int(share_R.argmax()) == length - distance
        if width >= 32:
            assert float(share_R[length - distance - 1 : length - distance + 2].sum()) > 0.5


def test_the_gate_compares_bits_per_byte(pretrained, tmp_path, monkeypatch):
    """A model of fewer steps and another vocabulary loses to the champion on the same documents."""
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(pretrained / "home"))
    recipe = recipe_of(pretrained / "corpus.txt").replace(training={"steps": 1}, data={"vocab_size": 150})
    step("preprocess", recipe, tmp_path)
    step("train", recipe, tmp_path, "dataset")
    step("evaluate", recipe, tmp_path, "dataset", "model")
    step("register", recipe, tmp_path, "dataset", "model", "evaluation")
    entry = json.loads((tmp_path / "registration" / "registration.json").read_text())
    assert entry["promoted"] is False
    assert "does not beat the champion" in entry["reason"]
    assert "bits per byte" in entry["reason"]


def test_a_fine_tuning_continues_the_champion(pretrained, tmp_path, monkeypatch):
    """One chain leads from the classifier through both data sets."""
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(pretrained / "home"))
    rows = [f"{line}\t{'good' in line}" for line in text(600, 150)]
    data = {"train": [str(write(tmp_path / "rows.tsv", ["text\tlabel", *rows]))], "max_length": 32}
    given = recipes.from_changes(
        {"data": data, "model": {"pretrained": "models:/lm@champion"}, "training": {"steps": 2}}
    )
    recipe = with_weights(given)
    assert recipe.model.pretrained == recipe.data.tokenizer == str(pretrained / "model")
    assert with_weights(given.replace(model={"pretrained": "models:/lm/1"})) == recipe
    of_run = given.replace(model={"pretrained": "runs:/one"})
    assert with_weights(of_run, run=lambda run: str(pretrained / "model")) == recipe
    in_bucket = with_weights(of_run, run=lambda run: f"gs://bucket/{run}/model")
    assert in_bucket.model.pretrained == in_bucket.data.tokenizer == "gs://bucket/one/model"
    with pytest.raises(UserError, match=r"'runs:/one', and python -m xlnet keeps no runs; name the model's directory"):
        with_weights(of_run)
    step("preprocess", recipe, tmp_path)
    model = step("train", recipe, tmp_path, "dataset")
    (dataset, base) = provenance.read(model)["inputs"]
    assert dataset["artifact"]["digest"] == provenance.read(tmp_path / "dataset")["artifact"]["digest"]
    assert base["artifact"]["digest"] == provenance.read(pretrained / "model")["artifact"]["digest"]
    (corpus,) = base["inputs"]
    assert corpus["inputs"][0]["artifact"]["metadata"]["files"][0]["uri"].endswith("corpus.txt")
    with pytest.raises(UserError, match="nobody"):
        with_weights(given.replace(model={"pretrained": "models:/nobody@champion"}), open_registry)


@pytest.mark.parametrize("impl", ["native", "dense"])
def test_a_killed_pretraining_continues_to_the_same_bits(pretrained, tmp_path, monkeypatch, impl):
    """Memory included: the steps after the checkpoint see what the killed run remembered."""
    from xlnet.training.train import train

    situation = ("cpu", "torch.float32", 16)
    monkeypatch.setitem(streams.CHOICE.known, situation, impl)
    monkeypatch.setenv("XLNET_CHECKPOINTS", str(tmp_path / "checkpoints"))
    recipe = recipe_of(pretrained / "corpus.txt").to_json()
    dataset = str(pretrained / "dataset")
    code = (
        "import os, signal, sys\n"
        "from xlnet.model import streams\n"
        "from xlnet.training import loop, train\n"
        f"streams.CHOICE.known[{situation}] = {impl!r}\n"
        "update = loop.Training.update\n"
        "def killed(self, share):\n"
        "    if self.state.step == 11: self.checkpoints._writer.wait(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(self, share)\n"
        "loop.Training.update = killed\n"
        "train.train(*sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, recipe, dataset, str(tmp_path / "model")]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -9
    facts = train(recipe, dataset, str(tmp_path / "model"))
    assert facts["resumed_from"] in (8, 10)
    monkeypatch.setenv("XLNET_CHECKPOINTS", str(tmp_path / "others"))
    whole = train(recipe, dataset, str(tmp_path / "whole"))
    assert whole["resumed_from"] == 0
    assert facts["weights_digest"] == whole["weights_digest"]
    if impl == "native":  # what auto took
        first = provenance.read(pretrained / "model")["artifact"]["metadata"]
        assert whole["weights_digest"] == first["weights_digest"]


def test_documents_of_plain_text(tmp_path):
    recipe = recipe_of(tmp_path / "x.txt").data

    def documents(content):
        (tmp_path / "x.txt").write_bytes(content)
        (source,) = list_sources("data.train", (str(tmp_path / "x.txt"),))
        return [row.text for row in rows_of(source, recipe) if isinstance(row, Row)]

    assert documents(b"one\ntwo\nthree\n") == ["one", "two", "three"]
    assert documents(b"one\ntwo\n\nthree\n\n\n") == ["one two", "three"]
    assert documents(b"one\n\n\n") == ["one"]


BAD = {
    "short": ("".join(f"one two three {i}\n" for i in range(40)), {}, r"fewer than the 512 of one segment"),
    "endless": ("word " * 300_000, {"max_record_bytes": 2000}, r"line is too long"),
    "binary": (b"\x89PNG\r\n\x1a\n" + bytes(500), {}, r"is a picture"),
    "binary, with a tab": (b"col\tabc\n" + bytes(range(32)) * 20, {}, r"is not text: .* control characters"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_corpus_that_cannot_be_used_says_why(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(tmp_path))
    content, settings, message = BAD[kind]
    path = tmp_path / "corpus.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    recipe = recipe_of(path).replace(
        data={"tokenizer": "xlnet-base-cased", "max_length": 512, "vocab_size": 0, **settings}
    )
    arguments = ["--recipe-json", recipe.replace(pretraining={"mem_len": 0, "reuse_len": 0}).to_json()]
    status = main(["preprocess", *arguments, f"--out={tmp_path / 'dataset'}"])
    if not status:
        status = main(["train", *arguments, f"--dataset={tmp_path / 'dataset'}", f"--out={tmp_path / 'model'}"])
    said = capsys.readouterr().err
    assert status == 2, said
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mem_len": 8, "reuse_len": 0}, r"reuse_len is 0 and pretraining\.mem_len is 8; memory needs both"),
        ({"mem_len": 64, "reuse_len": 8}, r"mem_len is 64, longer than a segment; allowed: data\.max_length = 32"),
        ({"one_in": 0}, r"one_in is 0; allowed: 1 to 1000"),
        ({"one_in": 17}, r"one_in = 17 predicts none of a segment's 16 tokens; lower it"),
        ({"mem_len": 0, "reuse_len": 0, "one_in": 33}, r"predicts none of a segment's 32 tokens; lower it"),
        ({"reuse_len": 28}, r"max_length is 32, too few for pretraining\.reuse_len = 28 .*; allowed: 33 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        recipe_of(tmp_path / "x.txt").replace(pretraining=changes)


def test_pretraining_hides_no_input(tmp_path):
    with pytest.raises(UserError, match=r"token_dropout is 0\.1, but pretraining never hides its input; leave it out"):
        recipe_of(tmp_path / "x.txt").replace(training={"token_dropout": 0.1})


def test_a_tokenizer_that_does_not_match_the_weights_is_refused(pretrained, tmp_path, capsys):
    recipe = recipe_of(pretrained / "corpus.txt").replace(data={"vocab_size": 150})
    step("preprocess", recipe, tmp_path)
    given = recipe.replace(model={"pretrained": str(pretrained / "model")})
    arguments = ["--recipe-json", given.to_json(), f"--dataset={tmp_path / 'dataset'}", f"--out={tmp_path / 'model'}"]
    assert main(["train", *arguments]) == 2
    assert "tokens, the dataset's tokenizer 150; set data.tokenizer" in capsys.readouterr().err


def test_its_pages_show_curves_and_documents(pretrained, trained, tmp_path):
    places = {name: pretrained / name for name in ("dataset", "model", "evaluation")}
    recipe = recipe_of(pretrained / "corpus.txt")
    first, second = (make_run(tmp_path, Trained(recipe, "", **places), number).id for number in (1, 2))
    classifier = make_run(tmp_path, trained, 3).id
    with client(tmp_path) as pages:
        curves = pages.get(f"/api/runs/{first}/curves").json()["series"]
        assert {"loss", "validation_loss", "validation_bits_per_byte"} <= curves.keys()
        assert "Bits per byte" in pages.get(f"/runs/{first}/metrics").text
        shown = pages.get(f"/runs/{first}/evaluation")
        assert shown.status_code == 200, shown.text
        assert '<th scope="col" class="n">Bits per byte</th>' in shown.text
        rows = pages.get(f"/api/runs/{first}/predictions?only=all").json()["rows"]
        bits = [row["bits_per_byte"] for row in rows]
        assert bits == sorted(bits, reverse=True)
        assert bits[0] == pytest.approx(rows[0]["loss"] / rows[0]["bytes"] / math.log(2))
        found = pages.get(f"/api/compare?run={first}&run={second}").json()
        assert found["against"][1]["difference"] == 0
        for address in (
            f"/compare?run={first}&run={classifier}",
            f"/compare?run={first}&run={second}",
            f"/runs/{first}/lineage",
            f"/runs/{first}",
        ):
            assert pages.get(address).status_code == 200, address


def other_pieces(folder):
    train_tokenizer(text(2000, 500), 200, folder)


def other_order(folder):
    """Two of the tokenizer's pieces change places."""
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    pieces = values["model"]["vocab"]
    pieces[150], pieces[151] = pieces[151], pieces[150]
    file.write_text(json.dumps(values), "utf-8")


def other_special_tokens(folder):
    file = folder / "tokenizer.json"
    renamed = file.read_text("utf-8").replace('"<eop>"', '"<end>"')
    file.write_text(renamed, "utf-8")


def other_case(folder):
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**values, "tokenizer_class": "XLNetTokenizer", "do_lower_case": True}), "utf-8")


FOREIGN = {
    other_pieces: "trained with another",
    other_order: "trained with another",
    other_special_tokens: "trained with another",
    other_case: "trained with another",
    lambda folder: train_tokenizer(text(0, 500), 210, folder): "210",
    lambda folder: train_tokenizer(text(0, 500), 190, folder): "190",
}


@pytest.mark.parametrize(("exchange", "message"), FOREIGN.items())
def test_an_exchanged_tokenizer_is_found_wherever_the_model_is_opened(pretrained, tmp_path, capsys, exchange, message):
    """Also if it has the right size, and data.tokenizer names the same directory."""
    model = shutil.copytree(pretrained / "model", tmp_path / "model")
    (model / "spiece.model").unlink()
    exchange(model)
    assert cli(["generate", str(model), "the film was", "--tokens", "3"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    for tokenizer, expected in ((model, message), (pretrained / "dataset/tokenizer", "tokenizer")):
        with pytest.raises(UserError, match=expected):
            check(str(model), tokenizer)
        with pytest.raises(UserError, match=expected):
            load_pretrained(str(model), tokenizer, "classification", ["a", "b"])


def test_weights_without_a_tokenizer_know_theirs(pretrained, tmp_path):
    """A model directory that lost its tokenizer fits the dataset's tokenizer, and no other of its size."""
    model = shutil.copytree(pretrained / "model", tmp_path / "model")
    for name in TOKENIZER_FILES:
        (model / name).unlink()
    check(str(model), pretrained / "dataset/tokenizer")
    load_pretrained(str(model), pretrained / "dataset/tokenizer", "pretrain", [])
    other_pieces(tmp_path / "other")
    with pytest.raises(UserError, match="was trained with another tokenizer than the dataset's; set data.tokenizer"):
        check(str(model), tmp_path / "other")


def test_a_model_needs_its_tokenizer_json(pretrained, tmp_path, capsys):
    """``spiece.model`` alone removes the marks that this tokenizer knows, so texts would be split otherwise."""
    for name, status in (("spiece.model", 0), ("tokenizer.json", 2)):
        model = shutil.copytree(pretrained / "model", tmp_path / name)
        (model / name).unlink()
        assert cli(["generate", str(model), "the film was", "--tokens", "3"]) == status, capsys.readouterr().err
