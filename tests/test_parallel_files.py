"""Texts in one file, labels in another (data.labels): the same line of both is a row; what does not fit is one line."""

import gzip
import json
from pathlib import Path

import pytest
from servers.s3 import s3_server

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.readers import Reject, Row, read_rows
from xlnet.data.snapshot import of, take
from xlnet.errors import UserError
from xlnet_pipeline.cli import main

TEXTS = [f"a {'lovely' if i % 2 else 'dull'} film, number\t{i}" for i in range(60)]
LABELS = ["pos" if i % 2 else "neg" for i in range(60)]


def lines(values):
    return "".join(f"{value}\n" for value in values)


def recipe_of(folder, **data):
    files = {name: str(folder / value) for name, value in data.items() if name in recipes.INPUTS}
    return recipes.tiny().replace(data={"max_length": 16, **data, **files})


def rows_of(recipe, tell=lambda text: None):
    found = [row for source in of(recipe).split("train") for row in read_rows(source, recipe.data, tell=tell)]
    return [(row.text, row.label) for row in found if isinstance(row, Row)], [
        (one.line, one.reason) for one in found if isinstance(one, Reject)
    ]


@pytest.mark.parametrize("names", [("texts.txt", "labels.txt"), ("train.en", "train.label"), ("a.txt.gz", "b.gz")])
def test_the_same_line_of_both_files_is_a_row(tmp_path, names):
    for name, values in zip(names, (TEXTS, LABELS), strict=True):
        content = lines(values).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, rejects = rows_of(recipe_of(tmp_path, train=names[0], labels=names[1]))
    assert (found, rejects) == (list(zip(TEXTS, LABELS, strict=True)), [])


def test_blank_lines_keep_the_files_parallel(tmp_path):
    (tmp_path / "t").write_text("a\n\nb\n\nc\n \n\n")
    (tmp_path / "l").write_text("1\n\n\n0\n 0 ")
    found, rejects = rows_of(recipe_of(tmp_path, train="t", labels="l"))
    assert found == [("a", "1"), ("c", "0")]
    assert rejects == [(3, "no label"), (4, "empty text")]


@pytest.mark.parametrize(("texts", "labels"), [(60, 59), (59, 60), (60, 1), (1, 60), (60, 0)])
def test_unequal_files_are_one_line_that_names_both_counts(tmp_path, texts, labels, capsys):
    (tmp_path / "t.txt").write_text(lines(TEXTS[:texts]))
    (tmp_path / "l.txt").write_text(lines(LABELS[:labels]) + "\n\n")
    settings = [f"data.train={tmp_path}/t.txt", f"data.labels={tmp_path}/l.txt"]
    assert main(["check", *(word for one in settings for word in ("--set", one))]) == 2
    err = capsys.readouterr().err
    assert f"t.txt' has {texts} lines, but '{tmp_path}/l.txt' has {labels}; each text needs its label" in err
    recipe = recipe_of(tmp_path, train="t.txt", labels="l.txt")
    with pytest.raises(UserError, match=f"has {texts} lines, but .* has {labels};"):
        preprocess(recipe.part("data"), "", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_check_shows_the_rows_and_a_run_has_both_files_in_its_digest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, first in (("train", 0), ("test", 40)):
        Path(f"{name}.txt").write_text(lines(TEXTS[first : first + 40]))
        Path(f"{name}.labels").write_text(lines(LABELS[first : first + 40]))
    Path("recipe.toml").write_text(
        '[data]\ntrain = "train.txt"\ntest = "test.txt"\nlabels = ["train.labels", "test.labels"]\nmax_length = 32\n'
    )
    Path("test.txt").write_text(lines(TEXTS[40:]))
    Path("test.labels").write_text(lines(LABELS[40:]))
    assert main(["check", "recipe.toml"]) == 0
    said = capsys.readouterr()
    assert "a dull film, number" in said.out
    assert f"data.labels: '{tmp_path}/test.labels' has the labels of '{tmp_path}/test.txt'" in said.err
    recipe = recipes.load("recipe.toml")
    before = take(recipe.part("data"))
    assert [file.split for file in before.files] == ["train", "test", "labels", "labels"]
    preprocess(recipe.part("data"), before.digest, str(tmp_path / "out"))
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["splits"]["test"]["rows"] == 20
    assert {file["uri"].rpartition("/")[2] for file in card["files"]} >= {"train.labels", "test.labels"}
    Path("test.labels").write_text(lines(reversed(LABELS[40:])))
    assert take(recipe.part("data")).digest != before.digest


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": "t.txt", "test": "l.txt", "labels": "t.txt"}, "but data.train 1 file, data.test 1 file; give one"),
        ({"train": "t.txt", "labels": "t.txt"}, "is in both data.train and data.labels"),
        ({"train": "t.txt", "labels": "copy.txt"}, "data.labels is a copy of data.train"),
        ({"train": "t.txt", "labels": "nowhere.txt"}, "data.labels: '.*nowhere.txt' matches no file"),
        ({"train": "t.txt", "labels": "l.txt", "format": "csv"}, "data.labels goes with files of one text a line, but"),
        ({"train": "t.txt", "labels": "l.txt", "text_pair": "b"}, "which have no data.text_pair"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, data, says):
    for name, values in (("t.txt", TEXTS), ("l.txt", LABELS), ("copy.txt", TEXTS)):
        (tmp_path / name).write_text(lines(values))
    with pytest.raises(UserError, match=says) as caught:
        rows_of(recipe_of(tmp_path, **data))
    assert str(caught.value).isprintable()


def test_numbers_and_objects_in_a_bucket(monkeypatch):
    with s3_server(monkeypatch) as client:
        client.put_object(Bucket="mlpipeline", Key="texts.txt", Body=lines(TEXTS).encode())
        client.put_object(Bucket="mlpipeline", Key="scores.gz", Body=gzip.compress(lines(range(60)).encode()))
        data = {"train": "s3://mlpipeline/texts.txt", "labels": "s3://mlpipeline/scores.gz", "task": "regression"}
        found, rejects = rows_of(recipes.tiny().replace(data=data))
    assert (found, rejects) == ([(text, str(i)) for i, text in enumerate(TEXTS)], [])


def test_other_machines_cannot_reach_labels_that_lie_here(tmp_path):
    from xlnet_pipeline.targets.remote import check_data

    recipe = recipes.tiny().replace(data={"train": "gs://b/t.txt", "labels": str(tmp_path / "l.txt")})
    with pytest.raises(UserError, match=r"data.labels: '.*l.txt' lies on this machine"):
        check_data(recipe, "kfp")
