"""Predictions: order, errors in place, files of every kind, pairs."""

import gzip
import io
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.errors import UserError
from xlnet.evaluation import predict as predicting
from xlnet.evaluation import questions
from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.evaluation.questions import texts_from


def answers(model, source, **options):
    predictor = Predictor(model)
    return list(predict(predictor, texts_from(source, predictor, **options)))


@pytest.fixture
def said(trained, capsysbinary, monkeypatch):
    """The answers, errors and exit status of the command line, in this process."""

    def run(*words, stdin=b"", model=trained.model):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(["predict", str(model), *words])
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return [json.loads(line) for line in out.splitlines()], err.decode(), status

    return run


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


def test_files_lines_and_standard_input(trained, said, tmp_path):
    expected = answers(trained.model, "first text") + answers(trained.model, "second text")
    (tmp_path / "a.txt").write_text("first text\nsecond text\n")
    (tmp_path / "a.csv").write_text("other,text\n1,first text\n2,second text\n")
    (tmp_path / "a.jsonl").write_text('{"text": "first text"}\n{"text": "second text"}\n')
    for name in ("a.txt", "a.csv", "a.jsonl"):
        found = answers(trained.model, str(tmp_path / name))
        assert [answer["label"] for answer in found] == [answer["label"] for answer in expected], name
    found, _, _ = said("-", stdin=b"first text\n\nsecond text")
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


BAD_BYTES = b"good\n\n \nb\xffd\nn\0l\n\xed\xa0\xbd\ngood\r\n\xef\xbb\xbf\nlast"
BAD_LINES = {
    2: "empty text",
    3: "empty text",
    4: "not UTF-8: byte 0xff at column 2",
    5: "NUL byte",
    6: "not UTF-8: byte 0xed at column 1",
    8: "empty text",
}


def test_bad_lines_are_answered_with_an_error_and_good_ones_with_a_label(said, tmp_path):
    (tmp_path / "lines.txt").write_bytes(BAD_BYTES)
    for words in (["-"], ["-", "--format", "text"], [str(tmp_path / "lines.txt")]):
        found, err, status = said(*words, stdin=BAD_BYTES)
        assert {one["line"]: one["error"] for one in found if "error" in one} == BAD_LINES
        assert [one["line"] for one in found if "label" in one] == [1, 7, 9]
        assert status == 0
        assert err == "6 of 9 answers are errors; their 'error' says why\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\ud83d", "half of a surrogate pair: U+D83D at column 1"),
        ("a\udcff", "not UTF-8: byte 0xff at column 2"),  # what Python makes of the argument's byte
        ("a\0b", "NUL byte"),
        ("", "empty text"),
        (" \n", "empty text"),
        ("\u200b\ufeff", "empty text"),
    ],
)
def test_a_bad_argument_is_answered_with_an_error(said, text, reason):
    for words in ([text], ["--text", text]):
        assert said(*words)[0] == [{"error": reason, "line": 1}]
    found, err, status = said("good", "--pair", text or " ")
    assert (found, status) == ([], 2)
    assert err == "error: there is a text_pair, and this model reads single texts; leave out --pair\n"


@pytest.mark.parametrize(
    "name",
    [
        "nofile.csv",
        "nofile.JSONL",
        "no.parquet.gz",
        "no.txt",
        "data/nofile",
        "./nofile",
        "/no/file",
        "../x",
        "my data/a b",
        "a.csv/b",
        "\ud83d.csv",
        "no/",
    ],
)
def test_a_mistyped_file_is_no_text(said, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\nfine\n")
    found, err, status = said(name)
    assert (found, status) == ([], 2)
    assert err.startswith("error: there is no file '")
    assert err.endswith("; if it is a text, put --text before it\n")
    assert err.count("\n") == 1
    (answer,) = said("--text", name)[0]
    assert "label" in answer or answer["error"].startswith("half of a surrogate pair")


def test_what_is_no_path_is_a_text(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film").mkdir()
    texts = ("a lovely film", "5/10\nnever again", "and/or " * 400, "it costs 3.50", "tell me.csv?", "demo:x", "a.b")
    for text in texts:
        assert "label" in said(text)[0][0], text
    _, err, status = said("film")
    assert err == "error: 'film' is a directory; name a file in it, or if it is a text, put --text before it\n"
    assert status == 2
    assert "label" in said("--text", "film")[0][0]
    (tmp_path / "words").write_text("fine\n")  # a file that is there is a file, whatever it is called
    assert said("words", "--format", "text")[0][0]["line"] == 1
    (tmp_path / "reviews.csv").touch()
    assert "did you mean 'reviews.csv'?" in said("review.csv")[1]


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.csv", b"id,text\nx1,first text\n\n,second text\n", None),
        ("a.tsv", b"id\ttext\nx1\tfirst text\n\n\tsecond text\n", None),
        ("a.jsonl", b'\n{"id": "x1", "text": "first text"}\n{"text": ""}\n{"text": "second text", "id": null}\n', None),
        ("a", b"id,text\nx1,first text\n\n,second text\n", "csv"),
        ("a.csv", b"id\ttext\nx1\tfirst text\n\n\tsecond text\n", "tsv"),
        ("a.dat", b'\n{"id": "x1", "text": "first text"}\n{"text": ""}\n{"text": "second text", "id": [1]}\n', "jsonl"),
    ],
)
def test_answers_to_a_file_carry_line_and_id(said, tmp_path, name, content, form):
    (tmp_path / name).write_bytes(content)
    words = ["--format", form] if form else []
    found, _, _ = said(str(tmp_path / name), *words)
    first = 1 if content.startswith(b"\n") else 0
    assert [one.get("line") for one in found] == ([1] if first else []) + [2, 3, 4]
    assert found[first]["id"] == "x1"
    assert found[first + 1] == {"error": "empty text", "line": 3}
    assert "id" not in found[first + 2]
    assert "label" in found[first + 2]
    if form:
        by_stdin, _, _ = said("-", "--format", form, stdin=content)
        assert [one.get("line") for one in by_stdin] == [one.get("line") for one in found]


def test_parquet_and_pipes(said, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [7, None], "text": ["first text", "second text"]}), tmp_path / "a.parquet")
    found, _, _ = said(str(tmp_path / "a.parquet"))
    assert [(one["line"], one.get("id")) for one in found] == [(1, "7"), (2, None)]
    again, _, _ = said("-", "--format", "parquet", stdin=(tmp_path / "a.parquet").read_bytes())
    assert again == found
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"first text\n"))
    writer.start()
    assert said(str(tmp_path / "pipe"))[0][0]["label"] == found[0]["label"]
    writer.join()


def test_what_is_no_file_is_one_line_and_no_wait(said, tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "PIPE_WAIT", 0.1)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    os.mkfifo("recipe.toml")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.csv")
    Path("zeros.csv").symlink_to("/dev/zero")
    Path("broken.csv").symlink_to("nowhere")
    for name, message in {
        "pipe.csv": "is a named pipe to which nobody writes (0 s); name a file",
        "socket.csv": "is a socket; name a file or a pipe",
        "zeros.csv": "is a device; name a file or a pipe",
        "broken.csv": "is a link to 'nowhere', which does not exist; if it is a text, put --text before it",
    }.items():
        found, shown, status = said(name)
        assert (found, shown.strip(), status) == ([], f"error: '{name}' {message}", 2)
    with pytest.raises(UserError, match="recipe 'recipe.toml' is a pipe, a socket or a device; name a .toml file"):
        recipes.load("recipe.toml")


def test_a_label_that_the_terminal_cannot_show(trained, tmp_path, monkeypatch):
    model = shutil.copytree(trained.model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"id2label": {"0": "schön", "1": "\ud83d"}}))
    for encoding in ("ascii", "latin-1", "utf-8"):
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding=encoding, write_through=True))
        assert main(["predict", str(model), "a film"]) == 0
        assert list(json.loads(out.getvalue().decode(encoding))["probabilities"]) == ["schön", "\ud83d"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a film", "--format", "csv"], "--format csv goes with a file or with -, not with a text"),
        (["-", "--format", "xml"], "--format is 'xml'; allowed: csv, tsv, jsonl, parquet, xlsx, text"),
        (["-", "--pair", "b"], "--pair goes with a text, not with standard input"),
        (["bare"], "name 'bare' does not tell the file's format; add --format csv, tsv, jsonl, parquet, xlsx or text"),
        (["torn.parquet"], "is not a Parquet file"),
        (["utf16.csv"], "looks like UTF-16 without a mark; set data.encoding to 'utf-16-le'"),
        (["torn.txt"], "is damaged: "),
        (["torn.csv.gz"], "is damaged: "),
        (["empty.csv"], "is empty; give a file with rows"),
        (["body.csv"], "has no column 'text'; it has: body"),
        (["body.csv", "--pair", "x"], "--pair goes with a text, not with the file"),
        (["-", "--format", "parquet"], "'standard input' is not a Parquet file"),
    ],
)
def test_mistakes_are_one_line(said, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "bare": b"x\n",
        "torn.parquet": b"PAR1",
        "utf16.csv": "text\nfine\n".encode("utf-16-le"),
        "torn.txt": gzip.compress(b"text\nfine\n" * 99)[:30],
        "torn.csv.gz": gzip.compress(b"text\nfine\n" * 99)[:30] + b"\1" * 9,
        "empty.csv": b"",
        "body.csv": b"body\nfine\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    found, err, status = said(*words, stdin=b"x\n")
    assert (found, status) == ([], 1 if "damaged" in message else 2)
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_is_not_there(said, tmp_path):
    _, err, status = said("a film", model=tmp_path / "nothing")
    assert err.startswith(f"error: there is no model directory '{tmp_path}/nothing'; name a directory")
    assert status == 2
    (tmp_path / "empty").mkdir()
    assert "config.json' does not exist" in said("a film", model=tmp_path / "empty")[1]
    for reference in ("reviews", "models:/reviews/1", "models:/reviews@champion"):
        assert "no model is registered yet" in said("a film", model=reference)[1]


def test_a_model_of_pairs(said, capsysbinary, tmp_path):
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
    model = tmp_path / "model"
    capsysbinary.readouterr()
    (by_text,), _, _ = said("one 3", "--pair", "two 3", model=model)
    by_file, _, _ = said(str(tmp_path / "a.csv"), model=model)
    assert len(by_file) == 80
    assert by_file[3]["probabilities"] == pytest.approx(by_text["probabilities"], abs=1e-6)
    lines = b'{"a": "one 3", "b": "two 3"}\n{"a": "one 3"}\n{"a": "one 3", "b": ""}\n'
    (good, missing, empty), _, status = said("-", "--format", "jsonl", stdin=lines, model=model)
    assert good["probabilities"] == pytest.approx(by_text["probabilities"], abs=1e-6)
    assert (missing["error"], empty["error"], status) == ("field is missing: 'b'", "empty text_pair", 0)
    (tmp_path / "a.txt").write_text("one\n")
    for words in (["one 3"], ["-"], ["-", "--format", "text"], [str(tmp_path / "a.txt")]):
        found, err, status = said(*words, stdin=b"one 3\n", model=model)
        assert (found, status) == ([], 2)
        assert err.startswith("error: there is no text_pair, and this model reads pairs of texts; ")
