"""A storage emulator on 127.0.0.1 with one bucket, in a process of its own, as a bucket is elsewhere."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage


@contextlib.contextmanager
def bucket_server(monkeypatch: pytest.MonkeyPatch, name: str = "bucket") -> Iterator[Any]:
    """Start an emulator, point the clients at it, and yield its bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("emulator.py")), str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, **quiet)  # it ends when this end of the pipe is gone
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield storage.Client(project="emulator", credentials=AnonymousCredentials()).create_bucket(name)
    finally:
        process.terminate()
        process.wait(10)


def texts(suffix: str, name: str = "bucket") -> list[str]:
    """The content of each object in the bucket whose name ends so."""
    client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    return [blob.download_as_text() for blob in client.list_blobs(name) if blob.name.endswith(suffix)]
