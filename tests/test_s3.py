"""s3:// and minio:// objects over a real connection to moto's server: artifacts, input, checkpoints, errors."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.s3 import s3_server

from xlnet.data import objects, s3, storage
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet.training.checkpoint_store import MANIFEST, open_checkpoint_store


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as client:
        yield client


@pytest.fixture
def bucket(server: Any) -> Iterator[Any]:
    """The server with an empty bucket."""
    yield server
    for one in server.list_objects_v2(Bucket="mlpipeline").get("Contents", []):
        server.delete_object(Bucket="mlpipeline", Key=one["Key"])


def put(server: Any, name: str, content: bytes) -> None:
    server.put_object(Bucket="mlpipeline", Key=name, Body=content)


@pytest.mark.parametrize("scheme", ["s3://", "minio://"])
def test_a_directory_there_and_back(bucket: Any, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHUNK", 5 << 20)
    files = {"model.bin": os.urandom(11 << 20), "a b/ü#.json": b"{}", "empty": b"", "deep/er/x.txt": b"x"}
    for name, content in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place = f"{scheme}mlpipeline/run/model"
    assert objects.upload(tmp_path / "source", place) == len(files)
    assert objects.upload(tmp_path / "source", place) == 0, "equal bytes are left alone"
    copy = objects.download(place, tmp_path / "copy")
    assert {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == files
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    objects.download(place, copy)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert objects.read(f"{place}/deep/er/x.txt") == b"x"
    objects.delete(f"{place}/empty")
    assert len(objects.listing(place)) == len(files) - 1


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("s3://mlpipeline/data/*.txt", ["data/a.txt", "data/b.txt"]),
        ("s3://mlpipeline/data/**/*.txt", ["data/a.txt", "data/b.txt", "data/sub/c.txt"]),
        ("s3://mlpipeline/data/[ab].txt", ["data/a.txt", "data/b.txt"]),
        ("s3://mlpipeline/data/?.txt", ["data/a.txt", "data/b.txt"]),
        ("s3://mlpipeline/data/*/c.txt", ["data/sub/c.txt"]),
        ("s3://mlpipeline/data", ["data/a.txt", "data/b.txt", "data/sub/c.txt"]),
        ("s3://mlpipeline/data/a.txt", ["data/a.txt"]),
        ("minio://mlpipeline/other/what?.txt", ["other/what?.txt"]),
    ],
)
def test_globs_are_matched_here(bucket: Any, path: str, names: list[str]) -> None:
    for name in ("data/a.txt", "data/b.txt", "data/SOURCE.md", "data/sub/c.txt", "database.txt", "other/what?.txt"):
        put(bucket, name, b"x")
    found = storage.list_sources("data.train", (path,))
    assert [objects.split(one.uri)[1] for one in found] == names
    assert all(one.checksum.startswith("etag:") for one in found)


def test_input_is_read_as_it_was_listed(bucket: Any) -> None:
    content = b"".join(b"%07d\n" % number for number in range(100_000))  # several ranges
    put(bucket, "rows.txt", content)
    (source,) = storage.list_sources("data.train", ("s3://mlpipeline/rows.txt",))
    with storage.open_binary(source) as file:
        assert file.read() == content
    with storage.open_binary(source) as file:
        assert file.readline() == b"0000000\n"
        put(bucket, "rows.txt", content[::-1])
        with pytest.raises(RunError, match="has changed since it was listed; run again"):
            file.read()


def test_bytes_that_are_not_the_buckets_are_never_given_out(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "a.bin", b"abc")
    (stored,) = objects.listing("s3://mlpipeline/a.bin")
    real = s3.client("s3://mlpipeline/a.bin")

    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def download_file(self, bucket: str, name: str, path: str, **_: Any) -> None:
            Path(path).write_bytes(b"abX")

    monkeypatch.setattr(s3, "client", lambda uri: Damaged())
    with pytest.raises(CorruptArtifact, match="arrived damaged twice"):
        objects.fetch(stored, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_lie_in_the_bucket(bucket: Any, tmp_path: Path) -> None:
    store = open_checkpoint_store("minio://mlpipeline/checkpoints/one")
    store.prepare(100)
    with store.folder("step-00000001-best-00000000") as folder:
        (folder / "weights").write_bytes(b"w" * 100)
        (folder / MANIFEST).write_text("{}")
        store.put_files("step-00000001-best-00000000", folder, ["weights"])
        assert store.names() == [], "no manifest yet"
        store.commit("step-00000001-best-00000000", folder)
    assert store.names() == ["step-00000001-best-00000000"]
    assert (store.fetch("step-00000001-best-00000000") / "weights").read_bytes() == b"w" * 100
    store.remove("step-00000001-best-00000000")
    assert store.names() == []


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_a_name_that_leads_out_of_the_directory_is_refused(bucket: Any, tmp_path: Path, name: str) -> None:
    put(bucket, f"model/{name}", b"x")
    with pytest.raises(UserError, match="cannot be a file's"):
        objects.download("s3://mlpipeline/model", tmp_path / "copy")
    assert list(tmp_path.rglob("x")) == []


def test_what_cannot_be_is_one_line(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'s3://mlpipeline/none' does not exist; check the bucket's name"):
        objects.read("s3://mlpipeline/none")
    with pytest.raises(UserError, match="'s3://nobody/none' does not exist"):
        objects.listing("s3://nobody/none")
    with pytest.raises(UserError, match="holds no object"):
        objects.download("minio://mlpipeline/none", tmp_path)
    with pytest.raises(UserError, match="is not gs://BUCKET/OBJECT, s3://"):
        objects.read("ftp://mlpipeline/a")
    with pytest.raises(UserError, match="is not gs://BUCKET/OBJECT"):
        objects.read("s3://")


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*s3.ENDPOINT, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="set AWS_ENDPOINT_URL_S3 to its address, such as http://localhost:9000"):
        objects.read("minio://mlpipeline/a")
    with pytest.raises(UserError, match="no credentials .*; set AWS_ACCESS_KEY_ID"):
        objects.read("s3://mlpipeline/a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "TRIES", 1)
    with pytest.raises(RunError, match="could not be transferred: Could not connect"):
        objects.read("minio://mlpipeline/a")


def test_mounts_are_known_by_their_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_MINIO_MOUNT", str(tmp_path))
    (tmp_path / "mlpipeline").mkdir()
    (tmp_path / "mlpipeline" / "a.txt").write_text("here")
    assert objects.read("minio://mlpipeline/a.txt") == b"here"
    assert objects.address(tmp_path / "mlpipeline" / "a.txt") == "minio://mlpipeline/a.txt"
    assert objects.address("/s3/bucket/x") == "s3://bucket/x"
    assert objects.address("/gcs/bucket/x") == "gs://bucket/x"
