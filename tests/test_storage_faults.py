"""gs:// over real connections to a server that keeps to preconditions and checksums, and fails in every way."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import PreconditionFailed
from google.cloud.storage import blob as google_blob
from google.cloud.storage.retry import DEFAULT_RETRY
from servers.strict_storage import StrictStorage, crc32c

from xlnet.data import gcs, objects, storage
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet.training.checkpoint_store import MANIFEST, BucketStore

CHUNK = 256 << 10  # the least that a piece of a resumable upload may have


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictStorage]:
    with StrictStorage("bucket") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setattr(gcs, "retry", lambda: DEFAULT_RETRY.with_delay(0.01, 0.1).with_timeout(1.5))
        monkeypatch.setattr(gcs, "TIMEOUT", (1.0, 0.4))
        monkeypatch.setattr(gcs, "CHUNK", CHUNK)
        monkeypatch.setattr(gcs, "WHOLE", CHUNK)
        monkeypatch.setattr(google_blob, "_MAX_MULTIPART_SIZE", CHUNK)
        yield server


def bucket() -> Any:
    return gcs.storage_client().bucket("bucket")


# ------------------------------------------------------------------------------ that the server is a strict one


def test_the_server_holds_everybody_to_preconditions(strict: StrictStorage) -> None:
    blob = bucket().blob("one")
    blob.upload_from_string(b"first", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket().blob("one").upload_from_string(b"second", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket().blob("one").delete(if_generation_match=blob.generation + 1)
    bucket().blob("two").upload_from_string(b" and more")
    whole = bucket().blob("whole")
    with pytest.raises(PreconditionFailed):
        whole.compose([blob, bucket().blob("two")], if_generation_match=7)
    whole.compose([blob, bucket().blob("two")], if_generation_match=0)
    assert objects.read("gs://bucket/whole") == b"first and more"
    bucket().blob("one").delete(if_generation_match=blob.generation)
    assert [one.name for one in objects.listing("gs://bucket/")] == ["two", "whole"]


def test_of_many_that_create_the_same_object_one_succeeds(strict: StrictStorage) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            bucket().blob("lock").upload_from_string(str(number), if_generation_match=0)
            won.append(number)
        except PreconditionFailed:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert objects.read("gs://bucket/lock") == str(won[0]).encode()
    assert len(won) == 1


# -------------------------------------------------------------------------------------- every call, every fault


def some_files(folder: Path, size: int = 100) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * size)
    return folder


def downloaded(tmp_path: Path) -> bool:
    objects.download("gs://bucket/many", tmp_path / "copy")
    return [path.read_bytes()[:1] for path in sorted((tmp_path / "copy").iterdir())] == [b"\0", b"\1", b"\2"]


def uploaded(tmp_path: Path, strict: StrictStorage, size: int) -> bool:
    objects.upload(some_files(tmp_path / f"source-{size}", size), "gs://bucket/sent")
    sent = {name: one.content for name, one in strict.objects["bucket"].items() if name.startswith("sent/")}
    return sent == {f"sent/{number}.bin": bytes([number]) * size for number in range(3)}


def read_as_source(strict: StrictStorage) -> bool:
    (source,) = storage.list_sources("data.train", ("gs://bucket/rows.csv",))
    with storage.open_binary(source) as file:
        return file.read() == b"text,label\n"


# What is called, and the request that goes wrong on its way: method and path.
CALLS: dict[str, tuple[str, str, Callable[[Path, StrictStorage], bool]]] = {
    "list": ("GET", "/o$", lambda path, strict: len(objects.listing("gs://bucket/many/")) == 3),
    "read": ("GET", "many/0.bin", lambda path, strict: objects.read("gs://bucket/many/0.bin") == b"\0" * 100),
    "read rows": ("GET", "rows.csv", lambda path, strict: read_as_source(strict)),
    "write": ("POST", "/upload/", lambda path, strict: objects.write("gs://bucket/a", b"x") is None),
    "delete": ("DELETE", "many/0.bin", lambda path, strict: objects.delete("gs://bucket/many/0.bin") is None),
    "download": ("GET", "many/1.bin", lambda path, strict: downloaded(path)),
    "upload": ("POST", "/upload/", lambda path, strict: uploaded(path, strict, 100)),
    "upload in pieces, begun": ("POST", "/upload/", lambda path, strict: uploaded(path, strict, CHUNK * 2 + 9)),
    "upload in pieces": ("PUT", "/upload/", lambda path, strict: uploaded(path, strict, CHUNK * 2 + 9)),
}


@pytest.fixture
def filled(strict: StrictStorage) -> StrictStorage:
    for number in range(3):
        strict.put("bucket", {"name": f"many/{number}.bin"}, bytes([number]) * 100, {})
    strict.put("bucket", {"name": "rows.csv"}, b"text,label\n", {})
    return strict


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, "cut", "drop", "hang"])
@pytest.mark.parametrize("call", CALLS)
def test_trouble_that_passes_is_waited_out(filled: StrictStorage, tmp_path: Path, call: str, fault: int | str) -> None:
    method, path, work = CALLS[call]
    filled.fault(method, path, fault, times=2, Retry_After="1")
    assert work(tmp_path, filled)
    assert sum(one.times for one in filled.faults) < 2, "it did go wrong"


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (401, UserError, "no valid credentials"),
        (403, UserError, "access denied .*injected.*ask for a role on the bucket"),
        (409, RunError, "could not be transferred: .*injected"),
        (412, RunError, "could not be transferred: .*injected"),
        (429, RunError, "could not be transferred"),
        (503, RunError, "could not be transferred"),
        ("hang", RunError, "could not be transferred"),
        ("drop", RunError, "could not be transferred"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_trouble_that_stays_is_one_line(
    filled: StrictStorage, tmp_path: Path, call: str, fault: int | str, kind: type[Exception], message: str
) -> None:
    method, path, work = CALLS[call]
    filled.fault(method, path, fault, times=999)
    with pytest.raises(kind, match=message) as raised:
        work(tmp_path, filled)
    assert "\n" not in str(raised.value)
    assert "gs://bucket" in str(raised.value)
    assert not list(tmp_path.rglob("copy/[0-9].bin")) or call == "download"


@pytest.mark.parametrize("call", ["list", "read", "write", "upload"])
def test_an_unknown_bucket_is_the_users_mistake(filled: StrictStorage, tmp_path: Path, call: str) -> None:
    filled.objects.clear()
    with pytest.raises(UserError, match="does not exist; check the bucket's name"):
        CALLS[call][2](tmp_path, filled)


def test_an_expired_token_is_named_and_never_shown(filled: StrictStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.oauth2.credentials import Credentials

    client = gcs.storage_client()
    monkeypatch.setattr(client._http, "credentials", Credentials(token="ya29.nobody-may-see"))
    filled.token = "ya29.nobody-may-see"
    assert objects.read("gs://bucket/many/0.bin") == b"\0" * 100
    filled.token = "another"
    with pytest.raises(UserError, match="no valid credentials .*; type: gcloud auth application-default login") as told:
        objects.read("gs://bucket/many/0.bin")
    assert "nobody" not in str(told.value)


# --------------------------------------------------------------------------------------- large objects, checksums


def test_a_large_object_is_read_from_one_generation_or_not_at_all(strict: StrictStorage, tmp_path: Path) -> None:
    strict.put("bucket", {"name": "large"}, b"a" * (3 * CHUNK), {})
    (blob,) = objects.listing("gs://bucket/large")
    strict.put("bucket", {"name": "large"}, b"b" * (3 * CHUNK), {})
    with pytest.raises(UserError, match="does not exist"):
        objects.fetch(blob, tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_ranges_that_were_cut_are_fetched_again(strict: StrictStorage, tmp_path: Path) -> None:
    content = os.urandom(5 * CHUNK + 1)
    strict.put("bucket", {"name": "large"}, content, {})
    strict.fault("GET", "large", "cut", times=3)
    strict.fault("GET", "large", 503, times=2)
    (blob,) = objects.listing("gs://bucket/large")
    objects.fetch(blob, tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_an_upload_in_pieces_goes_on_after_each_kind_of_break(strict: StrictStorage, tmp_path: Path) -> None:
    content = os.urandom(6 * CHUNK + 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "large").write_bytes(content)
    for kind in ("drop", 503, "drop", "cut", "hang"):
        strict.fault("PUT", "/upload/", kind)
    objects.upload(tmp_path / "out", "gs://bucket/x")
    stored = strict.objects["bucket"]["x/large"]
    assert (stored.content, stored.crc32c) == (content, crc32c(content))
    assert objects.upload(tmp_path / "out", "gs://bucket/x") == 0, "its checksum says that it is there"


def test_bytes_that_were_changed_on_their_way_are_noticed(
    strict: StrictStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict.put("bucket", {"name": "d/a"}, b"abc", {})
    strict.objects["bucket"]["d/a"].content = b"abX"
    with pytest.raises(CorruptArtifact, match="arrived damaged twice"):
        objects.download("gs://bucket/d", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
    whole = StrictStorage.put

    def flipped(server: StrictStorage, place: str, metadata: Any, content: bytes, *rest: Any) -> Any:
        return whole(server, place, metadata, b"X" + content[1:], *rest)

    monkeypatch.setattr(StrictStorage, "put", flipped)
    with pytest.raises((RunError, CorruptArtifact), match="CRC32C|crc32c"):
        objects.write("gs://bucket/b", b"abc")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "large").write_bytes(os.urandom(2 * CHUNK))
    with pytest.raises((RunError, CorruptArtifact)):
        objects.upload(tmp_path / "out", "gs://bucket/x")


# ------------------------------------------------------------------------------------------ checkpoints in a bucket


def store(place: BucketStore, name: str, content: bytes) -> None:
    with place.folder(name) as folder:
        (folder / "weights").write_bytes(content)
        (folder / MANIFEST).write_bytes(b"{}")
        place.put_files(name, folder, ["weights"])
        place.commit(name, folder)


def test_a_checkpoint_is_there_whole_or_not_at_all(strict: StrictStorage) -> None:
    place = BucketStore("gs://bucket/checkpoints")
    place.prepare(1)
    store(place, "step-00000001-best-00000000", b"one")
    strict.fault("POST", "/upload/", 403, times=99)
    with place.folder("step-00000002-best-00000000") as folder:
        (folder / "weights").write_bytes(b"two")
        with pytest.raises(UserError, match="access denied"):
            place.put_files("step-00000002-best-00000000", folder, ["weights"])
    assert place.names() == ["step-00000001-best-00000000"]
    strict.faults.clear()
    store(place, "step-00000002-best-00000000", b"two")
    assert place.names() == ["step-00000001-best-00000000", "step-00000002-best-00000000"]
    assert (place.fetch("step-00000002-best-00000000") / "weights").read_bytes() == b"two"


def test_a_checkpoint_that_is_half_removed_is_none(strict: StrictStorage) -> None:
    place = BucketStore("gs://bucket/checkpoints")
    store(place, "step-00000001-best-00000000", b"one")
    strict.fault("DELETE", "weights", 403, times=99)
    with pytest.raises(UserError, match="access denied"):
        place.remove("step-00000001-best-00000000")
    assert place.names() == []
    strict.faults.clear()
    place.remove("step-00000001-best-00000000")
    assert strict.objects["bucket"] == {}


def test_an_answer_to_a_removal_that_is_lost_does_no_harm(strict: StrictStorage) -> None:
    place = BucketStore("gs://bucket/checkpoints")
    store(place, "step-00000001-best-00000000", b"one")
    strict.fault("DELETE", MANIFEST, "drop")
    strict.fault("DELETE", "weights", "drop")
    place.remove("step-00000001-best-00000000")
    assert strict.objects["bucket"] == {}


def test_two_that_write_the_same_checkpoint_leave_a_whole_one(strict: StrictStorage) -> None:
    """A pod that is being ended and the one that takes its place may both write: the same bytes, by design."""
    places = [BucketStore("gs://bucket/checkpoints") for _ in range(2)]
    threads = [
        threading.Thread(target=store, args=(place, "step-00000003-best-00000000", b"three" * 99)) for place in places
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places[0].names() == ["step-00000003-best-00000000"]
    assert (places[0].fetch("step-00000003-best-00000000") / "weights").read_bytes() == b"three" * 99


def test_a_transfer_uses_one_request_and_one_connection_for_each_worker_not_one_for_each_object(
    strict: StrictStorage, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(100):
        (source / f"{number}.bin").write_bytes(os.urandom(1000))
    strict.latency = 0.002
    objects.upload(source, "gs://bucket/d")
    objects.download("gs://bucket/d", tmp_path / "copy")
    assert strict.count("POST", "/upload/") == 100
    assert strict.count("GET", "bin$") == 100, "its bytes alone: what is known of it came with the list"
    assert strict.count("GET", "/o$") == 2
    assert strict.connections <= 2 * gcs.WORKERS


def test_time_is_spent_waiting_at_once_not_in_turn(strict: StrictStorage, tmp_path: Path) -> None:
    for number in range(32):
        strict.put("bucket", {"name": f"d/{number}"}, b"x", {})
    strict.latency = 0.1
    objects.download("gs://bucket/d", tmp_path / "copy")
    assert 2 <= strict.most_waiting <= gcs.WORKERS
