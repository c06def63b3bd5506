"""Rows tokenised in shards on other machines: the bytes of a run on one machine, and nothing done twice."""

import shutil
import subprocess
import sys

import pytest
from test_preprocess import rows_of, write

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.__main__ import main
from xlnet.data import shards
from xlnet.data.preprocess import preprocess
from xlnet.errors import CorruptArtifact, RunError


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
    pytest.importorskip("apache_beam", reason="Beam's newest release refuses the Arrow that is pinned here")
    train = write(tmp_path / "a.csv", rows_of(400))
    command = [sys.executable, "-m", "xlnet", "preprocess", "--set", f"data.train={train}", "--out"]
    beam = [str(tmp_path / "beam"), "--runner", "beam"]
    for arguments in ([str(tmp_path / "one")], beam):
        subprocess.run([*command, *arguments], check=True, capture_output=True)
    assert provenance.verify(tmp_path / "beam") == provenance.verify(tmp_path / "one")
    failing = [*command, str(tmp_path / "none"), "--runner", "beam", "--beam-options", "--runner NoSuchRunner"]
    done = subprocess.run(failing, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the Beam pipeline failed: ")
