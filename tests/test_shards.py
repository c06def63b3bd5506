"""Rows tokenised in shards, by tasks of their own or by Beam: the bytes of one machine, and nothing done twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_preprocess import rows_of, write

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.data import shards
from xlnet.data.dividing import survey
from xlnet.data.preprocess import join, preprocess
from xlnet.data.shard_tokens import tokenise
from xlnet.errors import CorruptArtifact, RunError, UserError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("xlnet.data.split_files.BATCH_ROWS", 30)
    monkeypatch.setattr("xlnet.data.shards.SHARD_BYTES", 4000)


def in_disorder(done):
    """A runner of another machine: it shares nothing but what can be pickled, and takes the last shard first."""
    import pickle

    def run(function, names):
        for name in reversed(names):
            pickle.loads(pickle.dumps(function))(name)
            done.append(name)

    return run


RECIPES = [
    {"max_length": 16},
    {"id": "id", "text_pair": "id", "max_length": 16},
    {"task": "regression", "label": "id"},
    {"task": "pretrain"},
    {"tokenizer": "train"},
]


@pytest.mark.parametrize("data", RECIPES, ids=lambda data: data.get("task", "-".join(data)))
def test_shards_give_the_bytes_of_one_machine(data, small, tmp_path):
    rows = [(f"sentence {i} {'é ' * (i % 9)}", "abc"[i % 3] if i % 50 else "", i) for i in range(500)]
    train = [write(tmp_path / "a.csv", rows, ("text", "label", "id"))]
    recipe = recipes.Recipe().replace(data={"train": train, **data}).part("data")
    one = preprocess(recipe, "", str(tmp_path / "one"))
    done = []
    other = preprocess(recipe, "", str(tmp_path / "other"), str(tmp_path / "work"), in_disorder(done))
    assert other == one
    assert provenance.verify(tmp_path / "other") == one["dataset_digest"]
    assert len(set(done)) == len(done) > 3
    assert not list((tmp_path / "work").iterdir()), "shards go when all of them are in the dataset"


def survey_of(recipe, number, folder):
    """Survey an input; return the keys of its shards, and a function that tokenises one and returns its directory."""
    keys = survey(recipe, "", number, str(folder / "survey"))[1]

    def tokens(key):
        tokenise(recipe, key, str(folder / "survey"), str(folder / key))
        return str(folder / key)

    return keys, tokens


@pytest.mark.parametrize("data", RECIPES, ids=lambda data: data.get("task", "-".join(data)))
def test_tasks_of_the_pipeline_give_the_bytes_of_one_machine(data, small, tmp_path):
    """Several files, rejects, duplicate ids, a split of its own; shards that cut files, and shards without rows."""
    rows = [(f"sentence {i} {'é ' * (i % 9)}", "abc"[i % 3] if i % 50 else "", i % 397) for i in range(400)]
    train = [write(tmp_path / f"{n}.csv", rows[n::3], ("text", "label", "id")) for n in range(3)]
    test = [write(tmp_path / "test.csv", [(f"test {i}", "abc"[i % 3], i) for i in range(50)], ("text", "label", "id"))]
    recipe = recipes.Recipe().replace(data={"train": train, "test": test, **data}).part("data")
    one = preprocess(recipe, "", str(tmp_path / "one"))
    for number in (2, 7):
        folder = tmp_path / str(number)
        keys, tokens = survey_of(recipe, number, folder)
        assert len(keys) == number
        done = [tokens(key) for key in dict.fromkeys(reversed(keys))]  # in any order; equal keys are equal work
        assert join(recipe, str(folder / "survey"), done, str(folder / "dataset")) == one
        assert provenance.verify(folder / "dataset") == one["dataset_digest"]


def test_more_shards_than_rows(tmp_path):
    train = write(tmp_path / "a.csv", rows_of(30))
    recipe = recipes.Recipe().replace(data={"train": [train]}).part("data")
    keys, tokens = survey_of(recipe, 100, tmp_path)
    assert (len(keys), len(set(keys))) == (100, 31), "shards without rows are one piece of work"
    done = [tokens(key) for key in dict.fromkeys(keys)]
    facts = join(recipe, str(tmp_path / "survey"), done, str(tmp_path / "dataset"))
    assert facts == preprocess(recipe, "", str(tmp_path / "one"))


def test_a_change_in_one_file_leaves_the_other_files_shards(tmp_path):
    (tmp_path / "rows").mkdir()
    files = [
        Path(write(tmp_path / "rows" / f"{n}.csv", [(f"{n} {i}", "ab"[i % 2]) for i in range(100)])) for n in range(6)
    ]
    recipe = recipes.Recipe().replace(data={"train": [str(tmp_path / "rows")]}).part("data")
    before, _ = survey_of(recipe, 6, tmp_path / "before")
    files[2].write_text(files[2].read_text().replace("2 17", "two 17"))
    after, _ = survey_of(recipe, 6, tmp_path / "after")
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True, True, True]


def test_shards_of_another_input_are_refused(tmp_path):
    train = Path(write(tmp_path / "a.csv", rows_of(60)))
    recipe = recipes.Recipe().replace(data={"train": [str(train)]}).part("data")
    keys, tokens = survey_of(recipe, 3, tmp_path)
    done = [tokens(key) for key in keys[:2]]
    place = str(tmp_path / "survey")
    with pytest.raises(RunError, match="1 of 3 shards are not tokenised"):
        join(recipe, place, done, str(tmp_path / "dataset"))
    with pytest.raises(UserError, match="shard 'abc' is not in the survey"):
        tokenise(recipe, "abc", place, str(tmp_path / "x"))
    with pytest.raises(UserError, match="is not a survey: it has no survey.json"):
        tokenise(recipe, "abc", done[0], str(tmp_path / "x"))
    whole = train.read_text()
    for damage, says in ((whole.replace("7", "seven"), "changed after the survey"), (whole[:400], "rows less than")):
        train.write_text(damage)
        with pytest.raises(RunError, match=says):
            tokens(keys[2])
    train.write_text(whole)
    tokens(keys[2])
    result = tmp_path / keys[2] / "tokens.arrow"
    for damage in (result.read_bytes()[:900], b""):
        result.write_bytes(damage)
        with pytest.raises(CorruptArtifact, match="is damaged"):
            join(recipe, place, [*done, str(tmp_path / keys[2])], str(tmp_path / "dataset"))
    assert not (tmp_path / "dataset").exists()


def test_the_steps_by_hand(tmp_path, capsys):
    """What a cluster without a pipeline engine needs: three commands, of which the second runs anywhere."""
    given = ["--set", f"data.train={write(tmp_path / 'a.csv', rows_of(60))}"]
    place, out = str(tmp_path / "survey"), str(tmp_path / "dataset")
    assert main(["survey", *given, "--shards", "2", "--out", place]) == 0
    text = capsys.readouterr().out
    keys = json.loads(text[text.index("{") :])["keys"]
    for key in keys:
        assert main(["tokenise", *given, "--survey", place, "--shard", key, "--out", str(tmp_path / key)]) == 0
    tokens = [str(tmp_path / key) for key in keys]
    assert main(["preprocess", *given, "--survey", place, "--tokens", *tokens, "--out", out]) == 0
    assert main(["preprocess", *given, "--out", str(tmp_path / "one")]) == 0
    assert provenance.verify(out) == provenance.verify(tmp_path / "one")
    capsys.readouterr()
    for command, says in (
        (["survey", *given, "--shards", "0", "--out", place], "the number of shards is 0; allowed: 1 to 100"),
        (["preprocess", *given, "--survey", place, "--out", out], "--survey and --tokens go together"),
    ):
        assert main(command) == 2
        assert says in capsys.readouterr().err


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(small, tmp_path):
    recipe = recipes.Recipe().replace(data={"train": [write(tmp_path / "a.csv", rows_of(400))]}).part("data")
    tried, done = [], []

    def breaks(function, names):
        for name in names:
            if len(tried) == 2:
                raise RunError("the machine is gone")
            function(name)
            tried.append(name)

    out, work = str(tmp_path / "out"), tmp_path / "work"
    with pytest.raises(RunError, match="the machine is gone"):
        preprocess(recipe, "", out, str(work), breaks)
    assert not (tmp_path / "out").exists()
    facts = preprocess(recipe, "", out, str(work), in_disorder(done))
    assert set(tried).isdisjoint(done)
    assert len(tried) == 2
    assert facts["dataset_digest"] == preprocess(recipe, "", str(tmp_path / "one"))["dataset_digest"]


def test_another_length_is_another_shard(small, tmp_path):
    data = {"train": [write(tmp_path / "a.csv", rows_of(400))]}
    names = []
    for length in (16, 32):
        recipe = recipes.Recipe().replace(data={**data, "max_length": length}).part("data")
        done = []
        preprocess(recipe, "", str(tmp_path / "out"), str(tmp_path / "work"), in_disorder(done))
        names.append(set(done))
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_result_that_cannot_be_read_is_one_line(damage, small, tmp_path):
    recipe = recipes.Recipe().replace(data={"train": [write(tmp_path / "a.csv", rows_of(400))]}).part("data")
    work = tmp_path / "work"

    def damages(function, names):
        for name in names:
            function(name)
        result = work / f"{names[0]}.tokens"
        result.unlink() if damage == "gone" else result.write_bytes(result.read_bytes()[: 2000 * (damage == "cut")])

    with pytest.raises(RunError if damage == "gone" else CorruptArtifact, match="is gone; run|damaged .*; remove it"):
        preprocess(recipe, "", str(tmp_path / "out"), str(work), damages)


def test_shards_may_lie_in_a_bucket(small, tmp_path, monkeypatch):
    """A bucket of files stands for a real one; what the workers get is an address."""
    kept = tmp_path / "bucket"

    class Stored:
        def __init__(self, uri):
            self.uri = uri

    def place(uri):
        return kept / uri.removeprefix("gs://")

    def put(uri, content):
        place(uri).parent.mkdir(parents=True, exist_ok=True)
        place(uri).write_bytes(content)

    monkeypatch.setattr(shards.objects, "write", put)
    monkeypatch.setattr(shards.objects, "read", lambda uri: place(uri).read_bytes())
    monkeypatch.setattr(shards.objects, "delete", lambda uri: place(uri).unlink(missing_ok=True))
    monkeypatch.setattr(shards.objects, "listing", lambda uri: [Stored(uri)] if place(uri).is_file() else [])
    monkeypatch.setattr(shards.objects, "upload", lambda folder, uri: shutil.copytree(folder, place(uri)))
    monkeypatch.setattr(shards.objects, "local_directory", place)
    recipe = recipes.Recipe().replace(data={"train": [write(tmp_path / "a.csv", rows_of(400))]}).part("data")
    one = preprocess(recipe, "", str(tmp_path / "one"))
    done = []
    assert preprocess(recipe, "", str(tmp_path / "other"), "gs://b/work", in_disorder(done)) == one
    assert len(done) > 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--work", "elsewhere"], "--work goes with --runner beam"),
        (["--beam-options", "--runner X"], "--beam-options goes with --runner beam"),
        (["--runner", "beam", "--beam-options", "'"], "--beam-options cannot be read"),
    ],
)
def test_options_of_beam_that_mean_nothing_are_refused(options, says, tmp_path, capsys):
    train = write(tmp_path / "a.csv", rows_of(60))
    assert main(["preprocess", "--set", f"data.train={train}", "--out", str(tmp_path / "out"), *options]) == 2
    assert says in capsys.readouterr().err


def test_without_beam_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    train = write(tmp_path / "a.csv", rows_of(60))
    command = ["preprocess", "--set", f"data.train={train}", "--out", str(tmp_path / "out"), "--runner", "beam"]
    assert main(command) == 2
    assert "pip install 'xlnet-pipeline[beam]'" in capsys.readouterr().err


def test_beam_gives_the_bytes_of_one_machine(tmp_path):
    """In a process of its own, so that Beam's threads stay there."""
    own = Path(__file__).parents[1] / ".beam"  # make beam-env
    if not (own / "installed").is_file():
        pytest.importorskip("apache_beam", reason="Beam has a folder of its own; type: make beam-env")
    train = write(tmp_path / "a.csv", rows_of(400))
    given = ["preprocess", "--set", f"data.train={train}", "--out"]
    assert main([*given, str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "xlnet", *given]
    around = {**os.environ, "PYTHONPATH": str(own)}
    beam = [*command, str(tmp_path / "beam"), "--runner", "beam"]
    subprocess.run(beam, check=True, capture_output=True, env=around)
    assert provenance.verify(tmp_path / "beam") == provenance.verify(tmp_path / "one")
    failing = [*command, str(tmp_path / "none"), "--runner", "beam", "--beam-options", "--runner NoSuchRunner"]
    done = subprocess.run(failing, check=False, capture_output=True, text=True, env=around)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the Beam pipeline failed: ")
