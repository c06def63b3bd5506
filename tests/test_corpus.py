"""A corpus before a training: one recipe for pretraining and fine-tuning, and one chain of lineage."""

import json
import os
import re
from pathlib import Path

import pytest
from test_pretraining import text, write

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.data import corpus
from xlnet.data.dataset import open_dataset
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.cli import main as pipeline
from xlnet_pipeline.commands.run import load

TINY = """
[data]
train = ["rows.tsv"]
tokenizer = "train"
vocab_size = 200
max_length = 32

[model]
n_layer = 2
d_model = 32
n_head = 2
d_head = 16
d_inner = 64

[training]
steps = 4
seed = {seed}

[pretraining]
corpus = {corpus}
steps = 6
max_length = 24

[evaluation]
baseline = "none"

[registry]
name = "small"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with rows and a corpus, which is the working directory."""
    folder = tmp_path_factory.mktemp("project")
    write(folder / "rows.tsv", ["text\tlabel", *(f"{line}\t{'good' in line}" for line in text(600, 300))])
    write(folder / "corpus.txt", text(0, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def run(folder: Path, capsys, corpus='"train"', seed=0) -> str:
    (folder / "recipe.toml").write_text(TINY.format(corpus=corpus, seed=seed))
    status = pipeline(["run", "recipe.toml"])
    said = capsys.readouterr()
    assert status == 0, said.err + said.out
    return said.out


def test_one_recipe_pretrains_tunes_and_remembers(project, capsys):
    """The tutorial of docs/pretraining.md: the second fine-tuning takes the first one's pretraining from the cache."""
    first = run(project, capsys)
    assert "pretrain: first time" in first
    assert "corpus of" in first
    again = run(project, capsys, seed=1)
    assert "pretrain: cached, same as in run" in again
    assert "train: recipe changed: training.seed 0 → 1" in again
    assert pipeline(["lineage", "small:2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("├─ model") + shown.count("└─ model") == 3  # the last is named again below the evaluation
    assert "pretrain 0.1.0" in shown
    home = Path(os.environ["XLNET_PIPELINE_HOME"])
    records = [json.loads(path.read_text()) for path in sorted((home / "runs").glob("*/run.json"))]
    outputs = {step["name"]: step["outputs"] for step in records[-1]["steps"]}
    assert list(outputs) == ["snapshot", "preprocess", "pretrain", "train", "evaluate", "register"]
    model = provenance.read(home / outputs["train"]["model"]["uri"])
    dataset, base = model["inputs"]
    assert base["artifact"]["digest"] == outputs["pretrain"]["base"]["digest"]
    assert base["execution"]["step"] == "pretrain"
    (rows,) = base["inputs"]
    assert [one["artifact"]["digest"] for one in rows["inputs"]] == [dataset["artifact"]["digest"]]
    tuned = load(None, ["data.train=rows.tsv", "model.pretrained=runs:/latest"])
    assert tuned.model.pretrained == str(home / outputs["train"]["model"]["uri"])
    with pytest.raises(UserError, match=r"run 'never' is unknown"):
        load(None, ["data.train=rows.tsv", "model.pretrained=runs:/never"])
    assert pipeline(["plan", "recipe.toml"]) == 0
    assert "pretrain" in capsys.readouterr().out


def given(corpus, **changes) -> Recipe:
    data = {"train": "rows.tsv", "tokenizer": "train", "vocab_size": 200, "max_length": 32}
    model = {"n_layer": 2, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64}
    pretraining = {"corpus": corpus, "steps": 2, "max_length": 24} | changes
    return recipes.from_changes({"data": data, "model": model, "pretraining": pretraining})


@pytest.fixture(scope="module")
def dataset(project):
    out = project / "dataset"
    assert main(["preprocess", "--recipe-json", given("train").to_json(), f"--out={out}"]) == 0
    return str(out)


def written(recipe, dataset, folder, pretrained=""):
    folder.mkdir()
    corpus.write(dataset, recipe, corpus.recipe_of(recipe, dataset).data, pretrained, folder)
    return open_dataset(folder)


def test_own_rows_are_those_that_are_trained_on(dataset, tmp_path):
    """Never those of validation or test."""
    own = open_dataset(dataset)
    made = written(given("train"), dataset, tmp_path / "corpus")
    texts = [text for name in ("train", "validation") for text in made.split(name).table()["text"].to_pylist()]
    assert sorted(texts) == sorted(own.split("train").table()["text"].to_pylist())
    assert not set(texts) & set(own.split("test").table()["text"].to_pylist())
    assert provenance.verify(tmp_path / "corpus") == provenance.verify(
        written(given("train"), dataset, tmp_path / "again").path
    )


def test_own_rows_and_files_together(project, dataset, tmp_path):
    made = written(given(["train", str(project / "corpus.txt")]), dataset, tmp_path / "corpus")
    assert sum(len(made.split(name)) for name in ("train", "validation")) == 200 + len(
        open_dataset(dataset).split("train")
    )
    _, snapshot = provenance.read(tmp_path / "corpus")["inputs"]
    assert snapshot["artifact"]["metadata"]["files"][0]["uri"].endswith("corpus.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"too short\n" * 2, r"pretraining\.corpus has .* tokens; they are fewer than the 24 of one segment"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), r"is a picture"),
        (b"word " * 300_000, r"of pretraining\.corpus cannot be used: line is too long"),
        (b"", r"pretraining\.corpus has 0 tokens"),
    ],
    ids=["short", "binary", "endless", "empty"],
)
def test_a_corpus_that_cannot_be_used_says_why(content, message, dataset, tmp_path):
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    recipe = given(str(path))
    small = corpus.recipe_of(recipe, dataset).data
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match=message):
        corpus.write(
            dataset, recipe, Recipe(data=small).replace(data={"max_record_bytes": 2000}).data, "", tmp_path / "made"
        )


def test_a_corpus_that_changed_after_the_snapshot_is_refused(project, dataset, tmp_path):
    with pytest.raises(RunError, match="changed after the snapshot was taken; run again"):
        written(given(str(project / "corpus.txt")), dataset, tmp_path / "corpus", pretrained="sha256:other")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ('"rows.tsv"', r"pretraining\.corpus names .*rows\.tsv', which is data\.train; write corpus = \"train\""),
        ('"absent.txt"', r"pretraining\.corpus: .*absent\.txt' matches no file"),
        ('["train", "copy.tsv"]', r"copy\.tsv', which is data\.train"),
    ],
)
def test_a_run_refuses_a_corpus_before_it_begins(corpus, message, project, capsys):
    (project / "copy.tsv").write_bytes((project / "rows.tsv").read_bytes())
    (project / "bad.toml").write_text(TINY.format(corpus=corpus, seed=0))
    for command in ("check", "run"):
        assert pipeline([command, "bad.toml"]) in (1, 2)
        said = capsys.readouterr()
        assert re.search(message, said.err + said.out), said


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a\nb\n", [], r"corpus: pretraining\.corpus has 4 characters, fewer than the 24 tokens of one segment"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), [], r"is a picture"),
        (b"a text of some words\n" * 9, ["--target", "vertex", "--machine", "v5e-1"], r"does not run on a TPU"),
    ],
    ids=["short", "binary", "tpu"],
)
def test_check_finds_a_corpus_that_a_run_would_refuse(content, options, message, project, capsys, monkeypatch):
    monkeypatch.setenv("VERTEX_PROJECT", "project")
    (project / "other.txt").write_bytes(content)
    (project / "other.toml").write_text(TINY.format(corpus='"other.txt"', seed=0))
    assert pipeline(["check", "other.toml", *options]) in (1, 2)
    said = capsys.readouterr()
    assert re.search(message, said.err + said.out), said


@pytest.mark.parametrize(("documents", "split"), [(12, "train"), (60, "validation")])
def test_check_finds_a_split_shorter_than_a_segment(documents, split, project, capsys):
    (project / "corpus.txt").write_text("".join(f"document {number} here\n\n" for number in range(documents)))
    settings = [f"--set={one}" for one in ("data.task=pretrain", "data.train=corpus.txt", "data.max_length=250")]
    assert pipeline(["check", *settings]) == 2
    said = capsys.readouterr().err
    message = rf"corpus: the {split} split of the corpus has \d+ characters, fewer than .* = 250 tokens"
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pretraining": {"one_in": 3}},
            r'one_in is set, but nothing is pretrained; set pretraining\.corpus = "train"',
        ),
        ({"data": {"task": "pretrain"}, "pretraining": {"steps": 9}}, r"steps is not read .*; set training\.steps"),
        ({"data": {"task": "pretrain"}, "pretraining": {"corpus": "train"}}, r"name the corpus in data\.train"),
        (
            {"pretraining": {"corpus": "train", "mem_len": 300, "reuse_len": 9}},
            r"max_length = 128 at most",
        ),
        (
            {"pretraining": {"corpus": "train", "one_in": 300}},
            r"a segment's 128 tokens; lower it, or raise pretraining",
        ),
        ({"pretraining": {"corpus": "train", "epochs": 0}}, r"epochs and pretraining\.steps are both 0"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        recipes.from_changes(changes)
