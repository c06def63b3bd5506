"""moto's S3 on 127.0.0.1, in this process: one bucket, and the standard variables that lead there."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, name: str = "mlpipeline") -> Iterator[Any]:
    """Start a server, point the clients at it, and yield boto3's client, with which the bucket was made."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps its buckets for the whole process: without this, the objects of an earlier test file are still there.
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10).raise_for_status()
    variables = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=name)
        yield client
    finally:
        server.stop()
