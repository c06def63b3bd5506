"""Checkpoint stores: a directory, or a prefix in a bucket. Every checkpoint in a store is complete.

One last action makes a checkpoint visible: the rename of its folder, or the upload of its manifest.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import RunError, UserError

MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}-best-\d{8,}")  # a checkpoint's name
CHECKPOINTS_AT_ONCE = 2.5  # disk space to ask for: two are kept, and the next is written before one is removed


class CheckpointStore:
    """A directory of checkpoints and files; also the interface of every checkpoint store."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._path = Path(root)
        self._lock: IO[str] | None = None

    def __str__(self) -> str:
        return self.root

    def prepare(self, size: int) -> None:
        """Check that checkpoints of ``size`` bytes can be written.

        Raises:
            UserError: they cannot be written.
        """
        remedy = "name another place in XLNET_CHECKPOINTS"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path):
                pass
            free = shutil.disk_usage(self._path).free
        except OSError as error:
            raise UserError(f"checkpoints cannot be written to '{self.root}': {error.strerror}; {remedy}") from None
        needed = CHECKPOINTS_AT_ONCE * size - sum(file.stat().st_size for file in self._path.glob("step-*/*"))
        if free < needed:
            raise UserError(
                f"checkpoints need {needed / 1e9:.1f} GB at '{self.root}', where {free / 1e9:.1f} GB are free; "
                f"make room, or {remedy}"
            )

    def lock(self, seconds: float) -> None:
        """Keep other processes from writing to this store while this process lives.

        Raises:
            RunError: another process still holds the lock after ``seconds``.
        """
        lock = self._lock = (self._path / "lock").open("a+")
        deadline = time.monotonic() + seconds
        while not _locked(lock):
            if time.monotonic() > deadline:
                lock.seek(0)
                raise RunError(f"the same training is already running ({lock.read()}); wait for it, or end it")
            time.sleep(0.1)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def local(self) -> Path:
        """Return a local directory for files that are not checkpoints."""
        return self._path

    def programs(self) -> Path:
        """Return a local directory for compiled programs, which several trainings share."""
        return self._path.parent / "programs"

    def clean(self) -> None:
        """Remove incomplete files that a killed process has left."""
        for partial in self._path.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def names(self) -> list[str]:
        """List complete checkpoints, oldest first."""
        found = (manifest.parent.name for manifest in self._path.glob(f"step-*/{MANIFEST}"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def read(self, name: str) -> bytes | None:
        """Return a small file's content; None if it does not exist."""
        path = self._path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._aside(name) as aside:
            aside.write_bytes(content)

    def fetch(self, name: str) -> Path:
        """Return a local path of a checkpoint's folder or of a file, after downloading it if needed."""
        return self._path / name

    def add(self, path: Path, name: str) -> None:
        """Move a local file into the store."""
        with self._aside(name) as aside:
            shutil.move(path, aside)
            provenance.sync(aside)

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        aside = self._path / f".{name}.partial"
        yield aside
        os.replace(aside, self._path / name)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Provide a local folder for a new checkpoint's files; ranks that share the store get the same folder."""
        folder = self._path / f".{name}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder

    def put_files(self, name: str, folder: Path, files: list[str]) -> None:
        """Store this rank's files of a new checkpoint durably."""
        for file in files:
            provenance.sync(folder / file)

    def commit(self, name: str, folder: Path) -> None:
        """Make a checkpoint visible, after all its files are stored and the folder has its manifest."""
        provenance.sync(folder / MANIFEST)
        provenance.sync(folder)
        old = self._path / f".{name}.old.partial"
        if (self._path / name).exists():  # a damaged checkpoint: the step is saved again
            os.replace(self._path / name, old)
        os.replace(folder, self._path / name)
        shutil.rmtree(old, ignore_errors=True)
        provenance.sync(self._path)

    def remove(self, name: str = "") -> None:
        """Remove a checkpoint or a file; without a name, remove everything."""
        path = self._path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)
        if not name:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()  # the folder of all stores, if this was the last one

    def files(self, prefix: str) -> list[str]:
        """List the names of files that start with ``prefix``."""
        return sorted(path.name for path in self._path.glob(f"{prefix}*"))


class BucketStore(CheckpointStore):
    """A prefix in a bucket. This process downloads and uploads files through a temporary directory."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._scratch = tempfile.TemporaryDirectory(prefix="checkpoints-")

    def _uri(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def prepare(self, size: int) -> None:
        """See :class:`CheckpointStore`."""
        objects.write(self._uri(".writable"), b"")

    def lock(self, seconds: float) -> None:
        """Do nothing: buckets have no locks, so the pipeline engine must not run the same training twice."""

    def local(self) -> Path:
        """See :class:`CheckpointStore`."""
        return Path(tempfile.gettempdir())

    def programs(self) -> Path:
        """See :class:`CheckpointStore`. The directory is in the bucket if the bucket is mounted."""
        bucket, name = objects.split(self.root)
        mounted = objects.mount(objects.scheme(self.root)) / bucket
        return mounted / Path(name).parent / "programs" if mounted.is_dir() else self.local() / "xlnet-programs"

    def clean(self) -> None:
        """See :class:`CheckpointStore`. Files without a manifest are overwritten or pruned later."""

    def _below(self) -> list[str]:
        prefix = objects.split(self._uri(""))[1]
        return [blob.name.removeprefix(prefix) for blob in objects.listing(self._uri(""))]

    def names(self) -> list[str]:
        """See :class:`CheckpointStore`."""
        suffix = f"/{MANIFEST}"
        found = (name.removesuffix(suffix) for name in self._below() if name.endswith(suffix))
        return sorted(name for name in found if NAME.fullmatch(name))

    def read(self, name: str) -> bytes | None:
        """See :class:`CheckpointStore`."""
        return objects.read(self._uri(name)) if name in self._below() else None

    def write(self, name: str, content: bytes) -> None:
        """See :class:`CheckpointStore`."""
        objects.write(self._uri(name), content)

    def fetch(self, name: str) -> Path:
        """See :class:`CheckpointStore`."""
        path = objects.inside(Path(self._scratch.name), name)
        if "/" not in name and f"{name}/{MANIFEST}" in self._below():
            objects.download(self._uri(name), path)
        else:
            path.write_bytes(objects.read(self._uri(name)))
        return path

    def add(self, path: Path, name: str) -> None:
        """See :class:`CheckpointStore`."""
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as single:
            shutil.move(path, Path(single, name))
            objects.upload(Path(single), self.root)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """See :class:`CheckpointStore`."""
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as folder:
            yield Path(folder)

    def put_files(self, name: str, folder: Path, files: list[str]) -> None:
        """See :class:`CheckpointStore`."""
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as chosen:
            for file in files:
                os.link(folder / file, Path(chosen, file))
            objects.upload(Path(chosen), self._uri(name))

    def commit(self, name: str, folder: Path) -> None:
        """See :class:`CheckpointStore`."""
        objects.write(self._uri(f"{name}/{MANIFEST}"), (folder / MANIFEST).read_bytes())

    def remove(self, name: str = "") -> None:
        """See :class:`CheckpointStore`. The manifest is removed first, so no partly removed checkpoint is visible."""
        if name and f"{name}/{MANIFEST}" in self._below():
            objects.delete(self._uri(f"{name}/{MANIFEST}"))
        for below in self._below():
            if below.startswith(name):
                objects.delete(self._uri(below))

    def files(self, prefix: str) -> list[str]:
        """See :class:`CheckpointStore`."""
        return sorted({name.partition("/")[0] for name in self._below() if name.startswith(prefix)})


def open_checkpoint_store(root: str) -> CheckpointStore:
    """Open the checkpoint store at a path or a bucket prefix."""
    return BucketStore(root) if objects.is_remote(root) else CheckpointStore(root)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
