"""Text of any script, from the file to a prediction: what the vocabulary knows, and the same numbers outside."""

import random

import pytest
from transformers import AutoTokenizer, pipeline
from words_of_languages import WORDS

from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.errors import UserError
from xlnet.evaluation.predict import predict
from xlnet.training.launch import train


def write(path, texts):
    """A text is good if it has the first words of its language, and bad if it has the last."""
    path.write_text("".join(f"{text}\t{label}\n" for text, label in texts), encoding="utf-8")
    return str(path)


def reviews(language, rows=120, seed=0):
    draw, words = random.Random(seed), WORDS[language].split()
    halves = words[: len(words) // 2], words[len(words) // 2 :]
    return [(" ".join(draw.choices(halves[row % 2], k=6)), "good" if row % 2 else "bad") for row in range(rows)]


def prepared(path, texts, **data):
    given = {"train": write(path / "rows.tsv", texts), "text": 0, "label": 1, "header": "no", "max_length": 64}
    recipe = recipes.tiny().replace(
        data={**given, **data},
        model={"n_layer": 1, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
        training={"steps": 6, "batch_tokens": 512},
    )
    preprocess(recipe.to_json(), take(recipe.to_json()).digest, str(path / "dataset"))
    return recipe


@pytest.mark.parametrize("language", ["Korean", "German", "Hebrew"])
def test_transformers_gives_our_ids_and_probabilities(language, tmp_path):
    texts = reviews(language)
    recipe = prepared(tmp_path, texts, tokenizer="train")
    train(recipe.to_json(), str(tmp_path / "dataset"), str(tmp_path / "model"))
    split = open_dataset(tmp_path / "dataset").split("test").table().to_pylist()
    outside = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert outside([row["text"] for row in split])["input_ids"] == [row["input_ids"] for row in split]
    assert all(0 not in row["input_ids"] for row in split)
    asked = sorted({text for text, _ in texts})[:12]
    ours = [answer["probabilities"] for answer in predict(tmp_path / "model", ((text, None) for text in asked))]
    classify = pipeline("text-classification", str(tmp_path / "model"), top_k=None)
    for mine, theirs in zip(ours, classify(asked), strict=True):
        assert mine == pytest.approx({answer["label"]: answer["score"] for answer in theirs}, abs=1e-6)


@pytest.mark.parametrize("language", ["Korean", "Thai", "Japanese", "Arabic", "Greek", "Hindi"])
def test_a_script_that_the_vocabulary_does_not_know_is_refused(language, tmp_path):
    remedy = r"% of the tokens are <unk>.*'xlnet-base-cased' was not made for this text.*data.tokenizer = \"train\""
    with pytest.raises(UserError, match=remedy):
        prepared(tmp_path, reviews(language))
    assert not (tmp_path / "dataset").exists()


def test_some_unknown_text_is_a_warning_that_names_the_split(tmp_path, capsys):
    english = [(f"an ordinary sentence number {i}, quite long and dull", "ab"[i % 2]) for i in range(200)]
    mixed = [*english, *((text, "a") for text, _ in reviews("Korean", 16))]
    prepared(tmp_path, mixed)
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: train: "))
    assert "rows hold nothing else" in warning
    assert 'data.tokenizer = "train"' in warning


@pytest.mark.parametrize(("size", "remedy"), [(64, "raise data.vocab_size above 64"), (0, "add rows of this kind")])
def test_a_vocabulary_of_ones_own_that_knows_too_little_says_so(size, remedy, tmp_path):
    draw = random.Random(0)
    texts = ["".join(chr(0x4E00 + draw.randrange(500)) for _ in range(9)) for _ in range(400)]
    ideographs = [(text, ("bad", "good")[i % 2]) for i, text in enumerate(texts)]
    test = [write(tmp_path / "test.tsv", ideographs[1:])]  # no copy of the train rows
    with pytest.raises(UserError, match=f"learnt too few of their characters from data.train; {remedy}"):
        prepared(tmp_path, ideographs if size else reviews("Korean"), test=test, tokenizer="train", vocab_size=size)


def test_ordinary_text_is_said_nothing_about(tmp_path, capsys):
    draw = random.Random(0)
    words = ["a", "film", "that", "is", "good", "or", "bad", "and", "café", "naïve", "with", "a", "10", "%", "chance"]
    prepared(tmp_path, [(" ".join(draw.choices(words, k=8)), "ab"[i % 2]) for i in range(100)])
    assert "warning" not in capsys.readouterr().err
