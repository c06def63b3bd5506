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
        snapshot(train=["s3://bucket/rows.csv"])
    with pytest.raises(UserError, match="demo data 'uci' is unknown; allowed: uci_sentences"):
        snapshot(train=["demo:uci"])
    with pytest.raises(UserError, match=r"is in both data.train and data.test"):
        snapshot(train=[str(tmp_path / "rows.csv")], test=[str(tmp_path / "*.csv")])


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a storage emulator on this machine."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    storage = pytest.importorskip("google.cloud.storage")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = server_module.create_server("127.0.0.1", port, in_memory=True)
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
    with pytest.raises(UserError, match="does not exist; check the bucket"):
        snapshot(train=["gs://other-bucket/a.csv"])
