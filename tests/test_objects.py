"""gs:// objects over a real connection to an emulator: parallel, checked, resumed, mounted."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from xlnet.data import gcs, objects, transfer
from xlnet.errors import CorruptArtifact, UserError


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from servers.emulator import create_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server(port)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield storage.Client(project="test", credentials=AnonymousCredentials()).create_bucket("bucket")
    server.stop()


def fill(folder: Path, count: int, size: int = 100) -> Path:
    for number in range(count):
        path = folder / f"part-{number % 7}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(4, "big") * (size // 4))
    return folder


def test_a_directory_there_and_back_moves_each_object_once(bucket: Any, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 30)
    assert objects.upload(source, "gs://bucket/a/b") == 30
    assert objects.upload(source, "gs://bucket/a/b") == 0, "equal bytes are left alone"
    copy = objects.download("gs://bucket/a/b", tmp_path / "copy")
    assert {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*.bin")} == {
        p.relative_to(source): p.read_bytes() for p in source.rglob("*.bin")
    }
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.bin")}
    objects.download("gs://bucket/a/b", copy)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*.bin")}


def test_empty_files_and_json_are_sent_as_they_are(bucket: Any, tmp_path: Path) -> None:
    written = {
        "empty.txt": b"",
        "empty.json": b"",
        "state.json": b'{"a": 1}',
        "lines.jsonl": b'{"a": 1}\n',
        "r.html": b"<p>",
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    assert objects.upload(tmp_path, "gs://bucket/all") == len(written)
    copy = objects.download("gs://bucket/all", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == written
    kinds = {blob.name: blob.handle.content_type for blob in objects.listing("gs://bucket/all")}
    assert (kinds["all/state.json"], kinds["all/r.html"]) == ("application/json", "text/html")


def test_a_large_object_goes_on_where_it_was_broken_off(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "CHUNK", 1000)
    monkeypatch.setattr(gcs, "WORKERS", 1)
    content = bytes(range(256)) * 40
    bucket.blob("large.bin").upload_from_string(content)
    asked: list[int] = []
    real = transfer.receive

    def broken(client: Any, blob: Any, file: Any, first: int, *rest: Any) -> str:
        asked.append(first)
        if len(asked) == 5:
            raise KeyboardInterrupt  # the process ends here
        return real(client, blob, file, first, *rest)

    monkeypatch.setattr(transfer, "receive", broken)
    blob = objects.listing("gs://bucket/large.bin")[0]
    with pytest.raises(KeyboardInterrupt):
        objects.fetch(blob, tmp_path / "large.bin")
    assert not (tmp_path / "large.bin").exists()
    objects.fetch(blob, tmp_path / "large.bin")
    assert (tmp_path / "large.bin").read_bytes() == content
    first = asked.index(4000, 5)
    assert len(set(asked[first:]) & {0, 1000, 2000, 3000}) == 0, (
        "the four ranges that had arrived were not fetched again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["large.bin"]


def test_bytes_that_are_not_the_buckets_are_never_given_out(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.blob("a.bin").upload_from_string(b"abc")
    blob = objects.listing("gs://bucket/a.bin")[0]

    def damaged(client: Any, blob: Any, file: Any, *rest: Any) -> str:
        file.write(b"abX")
        return transfer.crc32c(b"abX")

    monkeypatch.setattr(transfer, "receive", damaged)
    with pytest.raises(CorruptArtifact, match="arrived damaged twice"):
        objects.fetch(blob, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_mounted_bucket_is_read_where_it_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_GCS_MOUNT", str(tmp_path))
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.txt").write_text("here")
    assert objects.read("gs://bucket/a.txt") == b"here"
    assert objects.address(tmp_path / "bucket" / "a.txt") == "gs://bucket/a.txt"
    assert objects.local_directory("gs://bucket") == tmp_path / "bucket"


def test_what_is_not_there_is_one_line(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gs://bucket/none.txt' does not exist; check the bucket's name"):
        objects.read("gs://bucket/none.txt")
    with pytest.raises(UserError, match="holds no object"):
        objects.download("gs://bucket/none", tmp_path)
    with pytest.raises(UserError, match="is not gs://BUCKET/OBJECT"):
        objects.read("ftp://bucket/a")


class Flaky(threading.Thread):
    """A proxy before the emulator that cuts answers in mid-body, or refuses, as often as it is told to."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.cuts, self.seen = port, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.own = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.own}"

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=self.pump, args=(connection, server), daemon=True).start()
            while data := server.recv(1 << 16):
                data = data.replace(b":%d/" % self.port, b":%d/" % self.own)  # the emulator's links to itself
                if self.cuts and len(data) > 2000:
                    self.cuts -= 1
                    self.seen += 1
                    connection.sendall(data[: len(data) // 2])
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(data)

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("chunk", [1 << 20, 4000])
def test_connections_that_are_cut_in_mid_body_are_made_again(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    content = os.urandom(40_000)
    bucket.blob("many/large.bin").upload_from_string(content)
    bucket.blob("many/small.bin").upload_from_string(b"small")
    proxy = Flaky(int(os.environ["STORAGE_EMULATOR_HOST"].rpartition(":")[2]))
    proxy.start()
    proxy.cuts = 2
    monkeypatch.setattr(gcs, "CHUNK", chunk)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    copy = objects.download("gs://bucket/many", tmp_path / "copy")
    assert (copy / "large.bin").read_bytes() == content
    assert proxy.seen == 2, "it did cut"
