"""The snapshot: the digest is the content's, and a path that names nothing says so."""

import os
import socket

import pytest

from xlnet import recipe as recipes
from xlnet.data.readers import read_rows
from xlnet.data.snapshot import take
from xlnet.errors import UserError


def snapshot(**data):
    return take(recipes.Recipe().replace(data=data).to_json())


def test_the_digest_follows_the_bytes_not_the_times(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,1\n")
    before = snapshot(train=[str(file)]).digest
    os.utime(file, (0, 0))
    assert snapshot(train=[str(file)]).digest == before
    file.write_text("text,label\nb,1\n")
    assert snapshot(train=[str(file)]).digest != before


def test_directories_and_globs_are_stable(tmp_path):
    for name in ("b.csv", "a.tsv.gz", "deep/c.jsonl", "notes.md", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [file.source.name for file in snapshot(train=[str(tmp_path)]).files]
    assert names == ["a.tsv", "b.csv", "c.jsonl"]
    globbed = snapshot(train=[str(tmp_path / "**" / "*.csv"), str(tmp_path / "b.csv")])
    assert [file.source.name for file in globbed.files] == ["b.csv"]


def uris(found):
    return [file.source.uri for file in found.files]


def row(path, text="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"text,label\n{text},1\n")
    return str(path)


@pytest.mark.parametrize("pattern", ["data", "data/**", "data/**/*", "data/**/*.csv", "data/*", "data/*/*.csv"])
def test_links_are_followed_without_cycles_and_nothing_hidden_is_read(tmp_path, pattern, capsys):
    data = tmp_path / "data"
    row(data / "a.csv", "a")
    row(data / "sub" / "b.csv", "b")
    row(tmp_path / "elsewhere" / "c.csv", "c")
    row(tmp_path / "elsewhere" / "deep" / "d.csv", "d")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "up").symlink_to(data)
    (data / "sub" / "round").symlink_to("..")
    for hidden in (".ipynb_checkpoints/a-checkpoint.csv", ".git/x.csv", ".b.csv", "sub/.cache/y.csv", "._a.csv"):
        row(data / hidden, hidden)
    found = snapshot(train=[str(tmp_path / pattern)])
    names = {"data/*": "a", "data/*/*.csv": "abc"}.get(pattern, "abcd")
    assert {file.source.name[0] for file in found.files} == set(names)
    assert len(found.files) == len(names), "each once"
    said = capsys.readouterr().err
    assert said.count("\n") == len(found.remarks) > 0
    assert "that are hidden: '" in said or pattern == "data/*/*.csv"


def test_one_file_of_many_names_is_read_once(tmp_path):
    first = row(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("a.csv")
    os.link(first, tmp_path / "c.csv")
    row(tmp_path / "sub" / "d.csv", "d")
    found = snapshot(train=[str(tmp_path), f"{tmp_path}/sub/../a.csv", f"{tmp_path}/./b.csv"])
    assert uris(found) == [first, str(tmp_path / "sub" / "d.csv")]
    assert [remark.partition(":")[2] for remark in found.remarks] == [
        f" skipped 4 that are there by another name already: '{tmp_path}/b.csv' and others"
    ]
    assert snapshot(train=[first]).digest == snapshot(train=[first, f"{tmp_path}/c.csv"]).digest


@pytest.mark.parametrize("name", ["sub/../a.csv", "soft.csv", "hard.csv", "linked/a.csv", "./a.csv", "so*", "linked"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_same_file_in_two_splits_is_refused_however_it_is_named(tmp_path, name, split):
    first = row(tmp_path / "data" / "a.csv")
    (tmp_path / "data" / "sub").mkdir()
    (tmp_path / "data" / "soft.csv").symlink_to(first)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "data")
    os.link(first, tmp_path / "data" / "hard.csv")
    with pytest.raises(UserError, match=rf"is in both data.train and data.{split}.*; a file belongs to one"):
        snapshot(**{"train": [first], split: [str(tmp_path / "data" / name)]})


def test_a_copy_of_train_is_no_test(tmp_path):
    first, copy, other = row(tmp_path / "a.csv"), row(tmp_path / "b.csv"), row(tmp_path / "c.csv", "c")
    with pytest.raises(UserError, match=r"test is a copy of data.train: '.*b.csv' holds the same bytes as '.*a.csv"):
        snapshot(train=[first], test=[copy])
    with pytest.raises(UserError, match="data.test is a copy of data.validation"):
        snapshot(train=[other], validation=[first], test=[copy])
    some = snapshot(train=[first], test=[copy, other])
    assert some.remarks == (f"data.test: '{copy}' holds the same bytes as '{first}' of data.train",)
    assert snapshot(train=[first, copy]).remarks == (f"data.train: '{copy}' holds the same bytes as '{first}'",)


def test_what_is_left_out_is_said(tmp_path, capsys):
    row(tmp_path / "a.csv")
    for name in ("notes.md", "LICENSE"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone").symlink_to("nowhere")
    snapshot(train=[str(tmp_path)])
    assert capsys.readouterr().err.splitlines() == [
        f"warning: data.train: skipped 2 that are no file: '{tmp_path}/gone' and others",
        f"warning: data.train: skipped 2 that are of another kind: '{tmp_path}/LICENSE' and others",
    ]
    (tmp_path / "gone.csv").symlink_to("nowhere.csv")
    for path in (tmp_path, tmp_path / "gone.csv", tmp_path / "*.csv"):
        with pytest.raises(UserError, match=r"gone.csv' is a link to 'nowhere.csv', which cannot be read; repair "):
            snapshot(train=[str(path)])
    with pytest.raises(UserError, match="pipe.csv' is not a file, directory or glob"):
        snapshot(train=[str(tmp_path / "pipe.csv")])


@pytest.mark.parametrize(
    "path", ["a\0b.csv", "x" * 5000, "a\nb", "[", "**", "a/**/b/**/c", "~nobody-here/a.csv", "/dev/null"]
)
def test_strange_paths_are_one_line(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        snapshot(train=[path])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 6000


def test_a_tokenizer_directory_is_input_too(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "spiece.model").write_text("one")
    arguments = {"train": [str(tmp_path / "a.csv")], "tokenizer": str(tmp_path / "vocabulary")}
    before = snapshot(**arguments)
    assert [file.split for file in before.files] == ["train", "tokenizer"]
    (tmp_path / "vocabulary" / "spiece.model").write_text("two")
    assert snapshot(**arguments).digest != before.digest


def test_mistakes(tmp_path):
    (tmp_path / "rows.csv").write_text("x")
    with pytest.raises(UserError, match="data.train is not set; name your file"):
        snapshot()
    with pytest.raises(UserError, match=r"data.train: '.*row.csv' matches no file; .* did you mean 'rows.csv'"):
        snapshot(train=[str(tmp_path / "row.csv")])
    with pytest.raises(UserError, match="there is no directory '/nowhere'"):
        snapshot(train=["/nowhere/rows.csv"])
    with pytest.raises(UserError, match="unknown scheme; allowed: a local path, gs://"):
        snapshot(train=["ftp://bucket/rows.csv"])
    with pytest.raises(UserError, match="demo data 'uci' is unknown; allowed: uci_sentences"):
        snapshot(train=["demo:uci"])
    with pytest.raises(UserError, match=r"is in both data.train and data.test"):
        snapshot(train=[str(tmp_path / "rows.csv")], test=[str(tmp_path / "*.csv")])


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a storage emulator on this machine."""
    emulator = pytest.importorskip("servers.emulator")
    storage = pytest.importorskip("google.cloud.storage")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server(port)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    from google.auth.credentials import AnonymousCredentials

    client = storage.Client(project="test", credentials=AnonymousCredentials())
    yield client.create_bucket("rows")
    server.stop()


def test_google_cloud_storage_is_listed_without_downloading_and_read(bucket):
    bucket.blob("data/a.csv").upload_from_string("text,label\na,1\n")
    bucket.blob("data/b.csv").upload_from_string("text,label\nb,0\n")
    bucket.blob("data/notes.md").upload_from_string("no data")
    found = snapshot(train=["gs://rows/data"])
    assert [file.source.uri for file in found.files] == ["gs://rows/data/a.csv", "gs://rows/data/b.csv"]
    assert all(file.source.checksum.startswith("crc32c:") for file in found.files)
    rows = [row for source in found.split("train") for row in read_rows(source, recipes.Recipe().data)]
    assert [row.text for row in rows] == ["a", "b"]
    bucket.blob("data/b.csv").upload_from_string("text,label\nc,0\n")
    assert snapshot(train=["gs://rows/data"]).digest != found.digest
    with pytest.raises(UserError, match="matches no file"):
        snapshot(train=["gs://rows/none.csv"])
    bucket.blob("data/.ipynb_checkpoints/a.csv").upload_from_string("text,label\na,1\n")
    bucket.blob("data/copy.csv").upload_from_string("text,label\na,1\n")
    for path in ("gs://rows/data", "gs://rows/data/", "gs://rows/data/**", "gs://rows/data/**.csv"):
        hidden = snapshot(train=[path])
        assert not [file for file in hidden.files if "ipynb" in file.source.uri]
        assert "that is hidden: 'gs://rows/data/.ipynb_checkpoints/a.csv'" in "".join(hidden.remarks)
    with pytest.raises(UserError, match="is in both data.train and data.test"):
        snapshot(train=["gs://rows/data/a.csv"], test=["gs://rows/data/*"])
    with pytest.raises(UserError, match="data.test is a copy of data.train"):
        snapshot(train=["gs://rows/data/a.csv"], test=["gs://rows/data/copy.csv"])
    with pytest.raises(UserError, match="does not exist; check the bucket"):
        snapshot(train=["gs://other-bucket/a.csv"])
