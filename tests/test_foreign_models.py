"""Directories that ``transformers`` wrote: read as it reads them, or refused in one line."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer

from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.data.tokenizer import SHIPPED, load_tokenizer
from xlnet.errors import CorruptArtifact, UserError
from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import LONGEST, Predictor
from xlnet.model import config as configs
from xlnet.model import pretrained
from xlnet.model.weights import load_classifier, load_pretrained

TEXTS = ["a lovely warm film", "Naïve  ``quoted'' ½ ﬁlm", "x", "word " * 300, "한국어 😀 <sep> text"]
VOCABULARY = SHIPPED / "xlnet-base-cased"


@dataclass(frozen=True)
class Foreign:
    """A directory that transformers wrote, and what its own pipeline answers."""

    path: Path

    def scores(self, *texts: str | dict[str, str], **options: Any) -> list[dict[str, float]]:
        pipeline = transformers.pipeline("text-classification", model=str(self.path))
        return [{one["label"]: one["score"] for one in pipeline(text, top_k=None, **options)} for text in texts]

    def answers(self, *texts: str) -> list[dict[str, Any]]:
        return list(predict(self.path, [(text, None) for text in texts]))

    def answer(self, text: str, pair: str | None = None) -> dict[str, Any]:
        return next(predict(self.path, [(text, pair)]))

    def edit(self, file: str, **fields: Any) -> "Foreign":
        """Change fields of a JSON file; None removes one."""
        place = self.path / file
        given = json.loads(place.read_text()) if place.is_file() else {}
        place.write_text(json.dumps({key: value for key, value in (given | fields).items() if value is not None}))
        return self


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[..., Path]:
    """Writes a classifier with random weights and its tokenizer, once for each set of options."""
    known: dict[str, Path] = {}

    def write(**options: Any) -> Path:
        if (key := repr(options)) not in known:
            torch.manual_seed(len(known))
            shape = {"vocab_size": 32000, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}
            model = transformers.XLNetForSequenceClassification(transformers.XLNetConfig(**shape, **options)).eval()
            with torch.no_grad():
                for parameter in model.parameters():  # far from initialisation, so that every text has its own answer
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            folder = tmp_path_factory.mktemp("foreign")
            model.save_pretrained(folder)
            transformers.AutoTokenizer.from_pretrained(VOCABULARY).save_pretrained(folder)
            known[key] = folder
        return known[key]

    return write


@pytest.fixture
def foreign(written, tmp_path: Path) -> Callable[..., Foreign]:
    """A copy of such a directory, which may be changed."""

    def copy(**options: Any) -> Foreign:
        return Foreign(Path(shutil.copytree(written(**options), tmp_path / f"model{len(list(tmp_path.iterdir()))}")))

    return copy


# --- the answers of transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, ["input_ids", "token_type_ids", "attention_mask"], ["input_ids"]])
def test_the_probabilities_are_those_of_its_pipeline(foreign, names) -> None:
    model = foreign(num_labels=3)
    if names:
        model.edit("tokenizer_config.json", model_input_names=names)
    both = {"text": "one text", "text_pair": "and another"}
    *expected, expected_of_pair = model.scores(*TEXTS, both)
    for answer, scores in zip(model.answers(*TEXTS), expected, strict=True):
        assert answer["probabilities"] == pytest.approx(scores, abs=1e-6)
    assert model.answer(*both.values())["probabilities"] == pytest.approx(expected_of_pair, abs=1e-6)


def test_a_directory_of_transformers_4_is_given_segments(foreign) -> None:
    model = foreign(num_labels=3)
    without = model.answer("a film", "and another")
    model.edit("config.json", transformers_version="4.57.1")
    with_segments = model.answer("a film", "and another")
    assert with_segments != without
    model.edit("tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    (expected,) = model.scores({"text": "a film", "text_pair": "and another"})
    assert with_segments["probabilities"] == pytest.approx(expected, abs=1e-6)


def test_our_own_directory_gives_the_pipeline_our_probabilities(trained) -> None:
    ours = Foreign(trained.model)
    for answer, scores in zip(ours.answers(*TEXTS), ours.scores(*TEXTS, truncation=True), strict=True):
        assert scores == pytest.approx(answer["probabilities"], abs=1e-6)
    pipeline = transformers.pipeline("text-classification", model=str(trained.model), top_k=None)
    for size in (2, 3, 5):  # lists of equally many texts, of all at once, and a rest
        batched = pipeline(TEXTS, batch_size=size, truncation=True)
        for answer, scores in zip(ours.answers(*TEXTS), batched, strict=True):
            given = {one["label"]: one["score"] for one in scores}
            assert given == pytest.approx(answer["probabilities"], abs=1e-6)
    settings = json.loads((trained.model / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    assert settings["model_max_length"] == trained.recipe.data.max_length


def test_one_output_is_a_value(foreign) -> None:
    model = foreign(num_labels=1)
    (scores,) = model.scores("a film", function_to_apply="none")
    assert model.answer("a film") == {"value": pytest.approx(scores["LABEL_0"], abs=1e-5)}
    assert model.edit("config.json", problem_type="regression").answer("a film") == model.answer("a film")


@pytest.mark.parametrize("names", [["spam"], ["a", "b", "c"]])
def test_labels_of_their_own_are_no_softmax(foreign, names) -> None:
    options = {"problem_type": "multi_label_classification", "id2label": dict(enumerate(names))}
    model = foreign(num_labels=len(names), **options)
    for answer, scores in zip(model.answers(*TEXTS), model.scores(*TEXTS), strict=True):
        assert answer["probabilities"] == pytest.approx(scores, abs=1e-6)
        assert answer["labels"] == [name for name, share in answer["probabilities"].items() if share >= 0.5]


@pytest.mark.parametrize(
    ("id2label", "expected"),
    [
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"0": "a", "1": "b", "2": "c"}, ["a", "b", "c"]),
        ({"2": "c", "0": "a", "1": "b"}, ["a", "b", "c"]),
        ({"0": "a", "2": "c"}, ["a", "LABEL_1", "c"]),
        ({"0": 1, "1": 2.5, "2": "\ud83d"}, ["1", "2.5", "\ud83d"]),
    ],
)
def test_names_of_outputs(foreign, id2label, expected) -> None:
    model = foreign(num_labels=3).edit("config.json", id2label=id2label, label2id=None, num_labels=None)
    assert list(model.answer("a film")["probabilities"]) == expected


def test_texts_are_cut_where_the_directory_says_so(foreign) -> None:
    model, long = foreign(num_labels=2), "word " * 1000
    assert "truncated" not in model.answer(long)
    assert model.answer(long)["probabilities"] == pytest.approx(model.scores(long)[0], abs=1e-6)
    model.edit("tokenizer_config.json", model_max_length=64)
    answer = model.answer(long)
    assert answer["truncated"] is True
    assert answer["probabilities"] == pytest.approx(model.scores(long, truncation=True)[0], abs=1e-6)
    model.edit("tokenizer_config.json", model_max_length=None)
    assert Predictor(model.path).max_length == LONGEST
    model.edit("tokenizer.json", truncation={"max_length": 50, "strategy": "LongestFirst", "stride": 0})
    assert Predictor(model.path).max_length == 50


@pytest.mark.parametrize("spiece_alone", [False, True])
def test_lower_case_is_followed(foreign, tmp_path, spiece_alone) -> None:
    model = foreign(num_labels=2).edit("tokenizer_config.json", do_lower_case=True)
    text = "Hello BIG World Ärger"
    expected = transformers.AutoTokenizer.from_pretrained(model.path)(text).input_ids
    if spiece_alone:
        (model.path / "tokenizer.json").unlink()
        shutil.copyfile(VOCABULARY / "spiece.model", model.path / "spiece.model")
    tokenizer = load_tokenizer(model.path)
    assert tokenizer.encode([text], None, 100).input_ids == [expected]
    tokenizer.save(tmp_path / "saved")  # as a dataset made with it keeps it
    saved = tmp_path / "saved"
    assert load_tokenizer(saved).encode([text], None, 100).input_ids == [expected]
    assert transformers.AutoTokenizer.from_pretrained(saved)(text).input_ids == expected
    assert RustTokenizer.from_file(str(saved / "tokenizer.json")).encode(text).ids == expected


# --- weights in every form --------------------------------------------------------------------------------------------


def in_shards(model: Foreign, *, safe: bool) -> None:
    tensors = load_file(model.path / "model.safetensors")
    (model.path / "model.safetensors").unlink()
    names = sorted(tensors)
    form = "model-0000{}-of-00002.safetensors" if safe else "pytorch_model-0000{}-of-00002.bin"
    places = {name: form.format(1 + (i >= 5)) for i, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        save_file(part, model.path / file, {"format": "pt"}) if safe else torch.save(part, model.path / file)
    index = "model.safetensors.index.json" if safe else "pytorch_model.bin.index.json"
    (model.path / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("form", ["shards", "shards of pickles", "one pickle", "half precision"])
def test_weights_in_every_form(foreign, form) -> None:
    model = foreign(num_labels=3)
    expected = model.answer("a film")
    file = model.path / "model.safetensors"
    if form == "half precision":
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    elif form == "one pickle":
        torch.save(load_file(file), model.path / "pytorch_model.bin")
        file.unlink()
    else:
        in_shards(model, safe=form == "shards")
    near = 1e-2 if form == "half precision" else 1e-9
    assert model.answer("a film")["probabilities"] == pytest.approx(expected["probabilities"], abs=near)


class Bomb:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-called"),)


def pickled(model: Foreign, content: Any) -> None:
    (model.path / "model.safetensors").unlink()
    torch.save(content, model.path / "pytorch_model.bin")


def without_head(model: Foreign) -> None:
    file = model.path / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "logits" not in name}, file)


def not_finite(model: Foreign) -> None:
    tensors = load_file(model.path / "model.safetensors")
    tensors["transformer.mask_emb"][0, 0, 0] = float("nan")
    save_file(tensors, model.path / "model.safetensors")


def shard_elsewhere(model: Foreign) -> None:
    in_shards(model, safe=True)
    index = model.path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


def shard_gone(model: Foreign) -> None:
    in_shards(model, safe=True)
    (model.path / "model-00002-of-00002.safetensors").unlink()


def shard_list(text: str) -> Callable[[Foreign], None]:
    def write(model: Foreign) -> None:
        (model.path / "model.safetensors").unlink()
        (model.path / "model.safetensors.index.json").write_text(text)

    return write


def smaller_vocabulary(model: Foreign) -> None:
    tensors = load_file(model.path / "model.safetensors")
    name = "transformer.word_embedding.weight"
    save_file({**tensors, name: tensors[name][:100].clone()}, model.path / "model.safetensors")
    model.edit("config.json", vocab_size=100)


def one_output(model: Foreign) -> None:
    tensors = load_file(model.path / "model.safetensors")
    cut = {name: value[:1].clone() for name, value in tensors.items() if name.startswith("logits_proj")}
    save_file(tensors | cut, model.path / "model.safetensors")
    model.edit("config.json", problem_type="single_label_classification", id2label={"0": "spam"})


def config(**fields: Any) -> Callable[[Foreign], Any]:
    return lambda model: model.edit("config.json", **fields)


def text_of(file: str, text: str | bytes) -> Callable[[Foreign], Any]:
    return lambda model: (model.path / file).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(d_inner=64), "layer_1.* of shape .*, and its config.json asks for"),
        (config(vocab_size=31999), "weight of shape .32000, 16., and its config.json asks for .31999, 16."),
        (config(n_layer=2), "lacks transformer.layer.1"),
        (config(id2label={"0": "a", "1": "b"}), "does not fit the weights: id2label ends with output 1, .* 0 to 2"),
        (config(id2label={"1": "a", "2": "b", "3": "c"}), "id2label ends with output 3"),
        (config(id2label=None, num_labels=5), "num_labels is 5"),
        (config(id2label={"0": "a", "1": "a", "2": "b"}), "names 2 outputs 'a'"),
        (config(id2label={"a": "0", "b": "1", "c": "2"}), "keys are not whole numbers"),
        (config(id2label=["a", "b", "c"]), "not a table of numbers and names"),
        (config(id2label={"0": "a", "1": None, "2": "c"}), "not a table of numbers and names"),
        (config(problem_type="regression"), "regression with 3 values; allowed: one"),
        (one_output, "one output and problem_type 'single_label_classification', a certainty; allowed: regression"),
        (config(problem_type="ranking"), "problem_type 'ranking'; allowed: single_label"),
        (config(n_head=0), "n_head = 0; allowed: 1 to"),
        (config(d_model=15), "d_model = 15; allowed: even numbers"),
        (config(d_model="16"), "no whole number 'd_model'"),
        (config(vocab_size=10**15), "vocab_size = 1000000000000000; allowed"),
        (config(n_layer=10**9), "n_layer = 1000000000; allowed: 1 to 1000"),
        (config(dropout="much"), "no number 'dropout'"),
        (config(model_type="bert"), "describes a 'bert' model"),
        (text_of("config.json", "[1]"), "is not an XLNet configuration"),
        (text_of("config.json", "[" * 100_000), "is not JSON"),
        (text_of("config.json", b"\xff\xfe{"), "is not JSON"),
        (text_of("tokenizer.json", "{}"), "is not a tokenizer"),
        (text_of("tokenizer_config.json", "{"), "tokenizer_config.json' cannot be read"),
        (lambda model: (model.path / "tokenizer.json").unlink(), "neither tokenizer.json nor spiece.model"),
        (lambda model: (model.path / "model.safetensors").unlink(), "has no weights; allowed: model.safetensors or py"),
        (lambda model: pickled(model, {"weight": Bomb()}), "holds Python objects or is damaged, and is not opened"),
        (lambda model: pickled(model, [1]), "does not hold a model's tensors"),
        (text_of("model.safetensors", b"torn"), "cannot be read"),
        (without_head, "it is not a trained classifier; to fine-tune it, name it in model.pretrained"),
        (not_finite, "are not all finite: transformer.mask_emb"),
        (shard_elsewhere, "names the file '../model-00001-of-00002.safetensors'; allowed: files of its own"),
        (shard_gone, "cannot be read"),
        (shard_list("{}"), "it lists no weights"),
        (shard_list('{"weight_map": {"a": 1}}'), "names the file 1"),
        (smaller_vocabulary, "a tokenizer of 32000 tokens and weights for 100"),
    ],
)
def test_what_does_not_fit_is_one_line(foreign, capsys, monkeypatch, tmp_path, damage, message) -> None:
    monkeypatch.chdir(tmp_path)
    model = foreign(num_labels=3)
    damage(model)
    capsys.readouterr()
    assert main(["predict", str(model.path), "a film"]) in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert re.search(message, said)
    assert not Path("was-called").exists()


@pytest.mark.parametrize("kind", ["LMHeadModel", "Model", "ForMultipleChoice", "ForTokenClassification"])
def test_another_kind_of_model_is_no_classifier(tmp_path, kind) -> None:
    shape = {"vocab_size": 32000, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}
    getattr(transformers, f"XLNet{kind}")(transformers.XLNetConfig(**shape)).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(VOCABULARY).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a trained classifier; to fine-tune it, name it in model.pretrained"):
        next(predict(tmp_path, [("a", None)]))


# --- to start from ----------------------------------------------------------------------------------------------------


def test_pretrained_weights_with_other_pieces_are_refused(foreign, tmp_path) -> None:
    model = foreign(num_labels=2)
    assert load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])
    vocabulary = json.loads((model.path / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces[20][0], pieces[30][0] = pieces[30][0], pieces[20][0]
    (model.path / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="another tokenizer than the dataset: token 20 is .* here, and .* there; set"):
        load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])


def test_pretrained_weights_of_lower_case_are_refused_for_a_cased_dataset(foreign) -> None:
    model = foreign(num_labels=2).edit("tokenizer_config.json", do_lower_case=True)
    with pytest.raises(UserError, match="the same tokens, but .* is split otherwise; set data.tokenizer"):
        load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])
    assert load_pretrained(str(model.path), model.path, "classification", ["a", "b"])


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "LMHeadModel", "Model"])
def test_the_shapes_that_a_config_asks_for_are_those_of_transformers(kind, tmp_path) -> None:
    shape = {"vocab_size": 97, "d_model": 24, "n_layer": 3, "n_head": 2, "d_head": 12, "d_inner": 40}
    getattr(transformers, f"XLNet{kind}")(transformers.XLNetConfig(**shape)).save_pretrained(tmp_path)
    prefix = pretrained.BODY if kind == "Model" else ""
    theirs = {
        f"{prefix}{name}": tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    wanted = pretrained.expected(configs.read(tmp_path / "config.json"))
    assert {name: shape for name, shape in theirs.items() if name.startswith(pretrained.BODY)} == wanted


def without_a_weight(model: Foreign) -> None:
    weights = load_file(model.path / "model.safetensors")
    del weights["transformer.layer.0.rel_attn.k"]
    save_file(weights, model.path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: None, ""),
        (lambda model: in_shards(model, safe=True), ""),
        (lambda model: in_shards(model, safe=False), ""),
        (without_head, ""),
        (lambda model: pickled(model, load_file(model.path / "model.safetensors")), ""),
        (without_a_weight, "layer.0.rel_attn.k is missing"),
        (config(d_inner=64), "layer.0.ff.layer_1.bias is of shape .32. instead of .64., 2 more do not fit"),
        (config(n_layer=2), "layer.1.ff.layer_1.bias is missing, 16 more do not fit"),
        (config(vocab_size=31999), "has 31999 tokens, the dataset's tokenizer 32000"),
        (config(model_type="bert"), "describes a 'bert' model"),
        (text_of("config.json", "["), "is not JSON"),
        (text_of("model.safetensors", b"torn"), "cannot be read"),
        (text_of("model.safetensors", b""), "cannot be read"),
        (shard_elsewhere, "allowed: files of its own directory"),
        (shard_gone, "cannot be read"),
        (shard_list("{}"), "it lists no weights"),
    ],
)
def test_headers_tell_what_loading_tells(foreign, damage, message) -> None:
    model = foreign(num_labels=3)
    damage(model)
    asked = [
        lambda: pretrained.check(str(model.path), VOCABULARY),
        lambda: load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b", "c"]),
    ]
    for ask in asked:
        if message:
            with pytest.raises((UserError, CorruptArtifact), match=message):
                ask()
        else:
            ask()


def test_weights_that_were_not_found_are_a_warning(foreign, capsys) -> None:
    model = foreign(num_labels=2)
    capsys.readouterr()  # what transformers says while it writes the model
    load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])
    assert capsys.readouterr().err == ""
    load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b", "c"])
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert "logits_proj.bias, logits_proj.weight: training starts these from random values" in said
    tensors = load_file(model.path / "model.safetensors")
    body = {name: value for name, value in tensors.items() if name.startswith("transformer.")}
    bias = torch.zeros(len(body["transformer.word_embedding.weight"]))
    save_file({**body, "lm_loss.bias": bias}, model.path / "model.safetensors", metadata={"format": "pt"})
    load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])
    assert capsys.readouterr().err == "", "a language model never has a classifier's head"
    (model.path / "tokenizer.json").unlink()
    load_pretrained(str(model.path), VOCABULARY, "classification", ["a", "b"])
    assert "comes without a tokenizer" in capsys.readouterr().err


def test_a_run_from_pretrained_weights_shows_the_warning(foreign, trained, tmp_path, capfd) -> None:
    model = foreign(num_labels=3)
    recipe = recipes.tiny().replace(model={"pretrained": str(model.path)}, training={"steps": 1})
    given = ["--recipe-json", recipe.part("model", "training"), "--dataset", str(trained.dataset)]
    assert main(["train", *given, "--out", str(tmp_path / "out")]) == 0
    assert "training starts these from random values" in capfd.readouterr().err


def test_pickle_is_what_the_bomb_is_in() -> None:
    assert b"touch" in pickle.dumps(Bomb())


def test_large_weights_whose_sum_overflows_are_finite(foreign) -> None:
    model = foreign(num_labels=3)
    tensors = load_file(model.path / "model.safetensors")
    tensors["transformer.mask_emb"][:] = 3e38
    save_file(tensors, model.path / "model.safetensors")
    assert load_classifier(model.path).transformer.mask_emb.isfinite().all()
