"""Predictions: order, errors in place, files of every kind, pairs."""

import io
import json

import pytest

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.evaluation import predict as predicting
from xlnet.evaluation.predict import predict, texts_from


def answers(model, source, **options):
    return list(predict(model, texts_from(source, model, **options)))


def test_a_text_gets_a_label_and_every_probability_in_full(trained):
    (answer,) = answers(trained.model, "what a lovely film")
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-15)
    assert json.loads(json.dumps(answer)) == answer


def test_order_is_kept_across_chunks_and_lengths(trained, monkeypatch):
    texts = [f"{'word ' * (i * 7 % 23)}number {i}" for i in range(40)]
    whole = list(predict(trained.model, ((text, None) for text in texts)))
    monkeypatch.setattr(predicting, "CHUNK_ROWS", 3)
    alone = [next(predict(trained.model, [(text, None)])) for text in texts]
    chunked = list(predict(trained.model, ((text, None) for text in texts)))
    for one, other in ((whole, alone), (whole, chunked)):
        for a, b in zip(one, other, strict=True):
            assert list(a["probabilities"].values()) == pytest.approx(list(b["probabilities"].values()), abs=1e-6)


def test_it_streams(trained, monkeypatch):
    monkeypatch.setattr(predicting, "CHUNK_ROWS", 2)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "again", None

    stream = predict(trained.model, endless())
    assert next(stream)["label"] == next(stream)["label"]
    assert len(taken) == 2


def test_files_lines_and_standard_input(trained, tmp_path, monkeypatch):
    expected = answers(trained.model, "first text") + answers(trained.model, "second text")
    (tmp_path / "a.txt").write_text("first text\nsecond text\n")
    (tmp_path / "a.csv").write_text("other,text\n1,first text\n2,second text\n")
    (tmp_path / "a.jsonl").write_text('{"text": "first text"}\n{"text": "second text"}\n')
    for name in ("a.txt", "a.csv", "a.jsonl"):
        found = answers(trained.model, str(tmp_path / name))
        assert [answer["label"] for answer in found] == [answer["label"] for answer in expected], name
    monkeypatch.setattr("sys.stdin", io.StringIO("first text\n\nsecond text\n"))
    found = answers(trained.model, "-")
    assert found[1] == {"error": "empty text", "line": 2}
    assert [found[0]["label"], found[2]["label"]] == [answer["label"] for answer in expected]


def test_bad_rows_are_told_in_place(trained, tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text\nfine\nb\xffd\n" "\n')
    found = answers(trained.model, str(tmp_path / "a.csv"))
    assert "label" in found[0]
    assert found[1]["error"].startswith("not UTF-8")
    assert found[2] == {"error": "empty text", "line": 4}
    assert answers(trained.model, "  ") == [{"error": "empty text", "line": 1}]


def test_a_long_text_says_that_it_was_cut(trained):
    (answer,) = answers(trained.model, "word " * 10_000)
    assert answer["truncated"] is True
    assert "truncated" not in answers(trained.model, "short")[0]


def test_mistakes(trained, tmp_path):
    (tmp_path / "a.csv").write_text("body\nfine\n")
    with pytest.raises(UserError, match="has no column 'text'; it has: body"):
        answers(trained.model, str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="--pair goes with a text, not with the file"):
        answers(trained.model, str(tmp_path / "a.csv"), pair="x")
    with pytest.raises(UserError, match=r"config.json' does not exist; name a directory with config.json"):
        answers(tmp_path / "nothing", "text")


def test_pairs(tmp_path):
    from xlnet.data.preprocess import preprocess
    from xlnet.training.launch import train

    (tmp_path / "a.csv").write_text("a,b,label\n" + "".join(f"one {i},two {i},{i % 2}\n" for i in range(80)))
    recipe = recipes.Recipe().replace(
        data={"train": [str(tmp_path / "a.csv")], "text": "a", "text_pair": "b"},
        model={"n_layer": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32},
        training={"steps": 3},
    )
    preprocess(recipe.part("data"), "", str(tmp_path / "dataset"))
    train(recipe.part("model", "training"), str(tmp_path / "dataset"), str(tmp_path / "model"))
    (by_text,) = answers(tmp_path / "model", "one 3", pair="two 3")
    by_file = answers(tmp_path / "model", str(tmp_path / "a.csv"))
    assert len(by_file) == 80
    assert by_file[3]["probabilities"] == pytest.approx(by_text["probabilities"], abs=1e-6)
