"""The released TensorFlow checkpoints: TensorFlow wrote the one here, and our reader finds every number of it."""

import importlib.util
import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import WORDS, write_random

from xlnet.__main__ import main
from xlnet.data.tokenizer import train_tokenizer
from xlnet.errors import CorruptArtifact, UserError
from xlnet.model import pretrained, released, tensorflow_files
from xlnet.model.pretrained import expected
from xlnet.model.weights import load_language_model, load_pretrained

GOLDEN = Path(__file__).parent / "golden" / "tensorflow"
INDEX, DATA = "xlnet_model.ckpt.index", "xlnet_model.ckpt.data-00000-of-00001"


def golden_variables():
    spec = importlib.util.spec_from_file_location("make_checkpoint", GOLDEN / "make_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.variables())


@pytest.fixture
def archive(tmp_path):
    """What a released archive holds: weights, configuration and vocabulary."""
    folder = tmp_path / "xlnet_cased_L-2_H-16_A-2"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    train_tokenizer([WORDS] * 30, 46, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    return folder


def test_every_variable_is_read_as_tensorflow_wrote_it():
    checkpoint = tensorflow_files.open_checkpoint(tensorflow_files.find(GOLDEN))
    variables = golden_variables()
    assert checkpoint.entries.keys() == {*variables, "global_step"}
    for name, value in variables.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


def test_weights_have_hugging_faces_names_and_shapes():
    found, variables = released.read(GOLDEN / INDEX), golden_variables()
    model = load_language_model(GOLDEN)
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {**expected(model.config), "lm_loss.bias": (46,)} == released.shapes(GOLDEN / INDEX)
    scope = "model/transformer/layer_1"
    for ours, theirs in {
        "rel_attn.o": variables[f"{scope}/rel_attn/o/kernel"],
        "rel_attn.r_s_bias": variables["model/transformer/r_s_bias"][1],
        "rel_attn.seg_embed": variables["model/transformer/seg_embed"][1],
        "rel_attn.layer_norm.weight": variables[f"{scope}/rel_attn/LayerNorm/gamma"],
        "ff.layer_2.weight": variables[f"{scope}/ff/layer_2/kernel"].T,
        "ff.layer_norm.bias": variables[f"{scope}/ff/LayerNorm/beta"],
    }.items():
        np.testing.assert_array_equal(found[f"transformer.layer.1.{ours}"], theirs)


@pytest.mark.parametrize("task", ["classification", "pretrain"])
def test_it_is_a_start_for_every_task(archive, task, capsys):
    pretrained.check(str(archive), archive)
    model = load_pretrained(str(archive), archive, task, ["a", "b"] if task == "classification" else [])
    given = golden_variables()["model/transformer/word_embedding/lookup_table"]
    np.testing.assert_array_equal(model.transformer.word_embedding.weight.detach(), given)
    said = capsys.readouterr().err
    assert said == "", "a language model never has the head of a classifier"


def test_it_trains_from_the_archive(archive, tmp_path, monkeypatch):
    """Through the steps: rows, tokens of the archive's vocabulary, one update."""
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(tmp_path))
    rows = tmp_path / "rows.tsv"
    rows.write_text(
        "text\tlabel\n" + "".join(f"{word} was {word}\t{i % 2}\n" for i, word in enumerate(WORDS.split() * 3))
    )
    start = [f"data.tokenizer={archive}", f"model.pretrained={archive}", f"data.train={rows}", "data.max_length=16"]
    words = [part for one in (*start, "training.steps=1", "registry.name=x") for part in ("--set", one)]
    dataset, model = f"--dataset={tmp_path / 'dataset'}", tmp_path / "model"
    assert main(["preprocess", *words, f"--out={tmp_path / 'dataset'}"]) == 0
    assert main(["train", *words, dataset, f"--out={model}"]) == 0
    assert json.loads((model / "config.json").read_text())["d_model"] == 16


def test_it_generates(archive, capsys):
    assert main(["generate", str(archive), "the film was", "--tokens", "3", "--past-end"]) == 0
    assert capsys.readouterr().out.startswith("the film was")


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def compressed(path):
    """The first block says that it is compressed, with a checksum that is right."""
    content = path.read_bytes()
    _, at = tensorflow_files._handle(content[-48:], 0)
    place, _ = tensorflow_files._handle(content[-48:], at)
    ((_, value), *_) = tensorflow_files._block(content, place, path)
    (offset, size), _ = tensorflow_files._handle(value, 0)
    crc = tensorflow_files._masked(tensorflow_files.crc32c_function()(content[offset : offset + size] + b"\1"))
    trailer = struct.pack("<BI", 1, crc)
    path.write_bytes(content[: offset + size] + trailer + content[offset + size + 5 :])


DAMAGE = {
    "a number": (lambda folder: flipped(folder / DATA, 40), CorruptArtifact, r"is damaged: the checksum of model/"),
    "a name": (lambda folder: flipped(folder / INDEX, 100), CorruptArtifact, r"is not an index .* or is damaged"),
    "the index's end": (lambda folder: cut(folder / INDEX, 900), CorruptArtifact, r"is not an index .* or is damaged"),
    "an empty index": (lambda folder: cut(folder / INDEX, 0), CorruptArtifact, r"is not an index .* or is damaged"),
    "the data's end": (lambda folder: cut(folder / DATA, 9000), CorruptArtifact, r"ends within model/"),
    "no data": (lambda folder: (folder / DATA).unlink(), CorruptArtifact, r"cannot be read: No such file"),
    "two": (
        lambda folder: shutil.copyfile(folder / INDEX, folder / "model.ckpt-7.index"),
        UserError,
        r"has 2 TensorFlow checkpoints \(model\.ckpt-7\.index, xlnet_model\.ckpt\.index\); leave one",
    ),
    "compressed": (lambda folder: compressed(folder / INDEX), UserError, r"is compressed; allowed"),
    "no config": (lambda folder: (folder / "xlnet_config.json").unlink(), UserError, r"config\.json' does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_refused_in_one_line(kind, archive):
    harm, error, message = DAMAGE[kind]
    harm(archive)
    with pytest.raises(error, match=message) as caught:
        load_language_model(archive)
    assert "\n" not in str(caught.value)


def test_any_flipped_byte_of_the_index_is_found(archive):
    """Nothing but the footer's unused bytes can change unseen."""
    content = (archive / INDEX).read_bytes()
    expected_weights = released.read(archive / INDEX)
    for place in range(0, len(content), 7):
        flipped(archive / INDEX, place)
        try:
            found = released.read(archive / INDEX)
        except (CorruptArtifact, UserError):
            found = None
        if found is not None:
            assert len(content) - 48 <= place or found.keys() == expected_weights.keys()
            assert all(np.array_equal(found[name], value) for name, value in expected_weights.items())
        (archive / INDEX).write_bytes(content)


def test_configurations_that_do_not_fit_say_so(archive):
    (archive / "xlnet_config.json").write_text(
        json.dumps({**json.loads((archive / "xlnet_config.json").read_text()), "n_layer": 3})
    )
    with pytest.raises(UserError, match=r"lacks transformer\.layer\.2"):
        load_language_model(archive)
    with pytest.raises(UserError, match=r"does not fit its config\.json: transformer\.layer\.2.* is missing"):
        pretrained.check(str(archive), archive)
    (archive / "xlnet_config.json").write_text('{"untie_r": false, "n_token": 46}')
    with pytest.raises(UserError, match="sets untie_r = False"):
        load_language_model(archive)


def test_a_checkpoint_of_another_model_is_refused(monkeypatch):
    entries = {"bert/x": tensorflow_files.TensorEntry(1, (2,))}
    checkpoint = tensorflow_files.TensorFlowCheckpoint(GOLDEN / "model.ckpt", 1, entries)
    monkeypatch.setattr(released, "open_checkpoint", lambda index: checkpoint)
    with pytest.raises(UserError, match=r"it is not a checkpoint of XLNet's released code"):
        released.read(GOLDEN / INDEX)


def test_transformers_and_we_exchange_language_models(tmp_path):
    """Theirs to ours is in test_language_model; here ours, read from TensorFlow's file, goes to transformers."""
    from transformers import XLNetLMHeadModel

    from xlnet.model.weights import save_model

    model = load_language_model(GOLDEN)
    save_model(model.state_dict(), model.config, tmp_path)
    theirs = XLNetLMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(theirs.lm_loss.weight, model.transformer.word_embedding.weight)
    found = theirs.state_dict()
    for name, value in released.read(GOLDEN / INDEX).items():
        np.testing.assert_array_equal(found[name], value)
    assert re.search("XLNetLMHeadModel", (tmp_path / "config.json").read_text())
    assert write_random(tmp_path / "other").config.model_type == "xlnet"
