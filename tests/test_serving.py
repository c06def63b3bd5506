"""The server over real connections: predictions, refusals, many clients at once, and its end."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from xlnet.errors import UserError
from xlnet.evaluation.predict import predict
from xlnet.serving import requests, server
from xlnet.serving.batcher import Batcher
from xlnet.serving.server import CONNECTIONS, Model, Server, serve

VERTEX = {"AIP_HEALTH_ROUTE": "/v1/endpoints/1/ready", "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict"}


@dataclass
class Running:
    """A server in this process, and its client."""

    server: Server

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """One request on a connection of its own: status, body, headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=20)
        raw = body if isinstance(body, bytes | str | None) else json.dumps(body)
        connection.request(method, path, raw, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else None, dict(answer.getheaders())

    def predict(self, *instances: Any) -> tuple[int, Any]:
        return self.send("POST", "/predict", {"instances": list(instances)})[:2]


@pytest.fixture(scope="module")
def model(trained) -> Model:
    return Model(trained.model, "reviews")


@pytest.fixture
def running(model: Model) -> Iterator[Running]:
    started = Server("127.0.0.1", 0, VERTEX)
    started.model = model
    with Batcher(model.answers) as started.batcher:
        thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Running(started)
        started.stop()
        thread.join()
        started.server_close()


def test_the_answers_are_those_of_predict(running: Running, trained) -> None:
    texts = ["what a lovely film", "awful food", "it broke " * 50]
    status, said = running.predict(texts[0], {"text": texts[1]}, {"text": texts[2], "text_pair": None})
    assert status == 200
    expected = list(predict(trained.model, [(text, None) for text in texts]))
    assert said == {"predictions": expected}
    assert said["predictions"][2]["truncated"] is True


@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models/reviews:predict", VERTEX["AIP_PREDICT_ROUTE"], "/predict?x=1"]
)
def test_every_platform_finds_its_route(running: Running, path: str) -> None:
    status, said, headers = running.send("POST", path, {"instances": ["a film"], "parameters": {}})
    assert (status, len(said["predictions"])) == (200, 1)
    assert headers["Content-Type"] == "application/json"


def test_health_and_description(running: Running) -> None:
    for path in ("/healthz", VERTEX["AIP_HEALTH_ROUTE"]):
        assert running.send("GET", path)[:2] == (200, {"status": "ok"})
    assert running.send("GET", "/v1/models/reviews")[:2] == (200, {"name": "reviews", "ready": True})
    status, said, _ = running.send("GET", "/")
    assert (status, said["classes"], said["task"]) == (200, ["0", "1"], "classification")
    assert running.send("HEAD", "/healthz")[:2] == (200, None)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "the body is not JSON (Expecting property name"),
        (b"\xff", 400, "the body is not JSON ("),
        ("[" * 100_000, 400, "the body is not JSON ("),
        ([], 400, "there is no list of 'instances'; send {"),
        ({"texts": []}, 400, "there is no list of 'instances'"),
        ({"instances": []}, 400, "there is no list of 'instances'"),
        ({"instances": "text"}, 400, "there is no list of 'instances'"),
        ({"instances": [1]}, 400, "instances[0] is neither a string nor an object"),
        ({"instances": ["a", {"txt": "b"}]}, 400, "instances[1] has an unknown field 'txt'; allowed: text, text_pair"),
        ({"instances": [{"text": None}]}, 400, "instances[0].text is missing; it has to be a string"),
        ({"instances": [{"text": 1}]}, 400, "instances[0].text is of type int; it has to be a string"),
        ({"instances": [{"text": "a", "text_pair": 1}]}, 400, "instances[0].text_pair is of type int"),
        ({"instances": ["a", " \n"]}, 400, "instances[1] is an empty text"),
        (
            {"instances": [{"text": "a", "text_pair": "b"}]},
            400,
            "instances[0] has a 'text_pair', and this model reads s",
        ),
        ({"instances": ["a"] * 1025}, 413, "1025 instances are too many; at most 1024"),
    ],
)
def test_what_is_wrong_is_said(running: Running, body: Any, status: int, message: str) -> None:
    found, said, headers = running.send("POST", "/predict", body)
    assert found == status
    assert said["error"].startswith(message)
    assert headers["Connection"] == "close"


def test_other_refusals(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said, _ = running.send("POST", "/nowhere", {})
    assert (status, said["error"].partition(";")[0]) == (404, "there is no '/nowhere'")
    status, _, headers = running.send("GET", "/predict")
    assert (status, headers["Allow"]) == (405, "POST")
    status, _, headers = running.send("POST", "/healthz", {})
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert running.send("DELETE", "/predict")[0] == 501
    assert running.send("POST", "/predict", "{}", **{"Transfer-Encoding": "chunked"})[0] == 411
    assert running.send("POST", "/predict", None, **{"Content-Length": "-1"})[0] == 400
    status, said, _ = running.send("POST", "/predict", None, **{"Content-Length": str(5 << 20)})
    assert status == 413
    assert "at most 4194304 are read" in said["error"]


def test_a_model_of_pairs_wants_pairs() -> None:
    def read(*instances: Any, pairs: bool | None) -> list[requests.Text]:
        return requests.texts_of(json.dumps({"instances": instances}).encode(), pairs)

    assert read({"text": "a", "text_pair": "b"}, pairs=True) == [("a", "b")]
    assert read("a", {"text": "a", "text_pair": "b"}, pairs=None) == [("a", None), ("a", "b")]
    with pytest.raises(requests.Refusal, match="has no 'text_pair', and this model reads pairs"):
        read("a", pairs=True)


def test_bytes_that_are_not_http(running: Running) -> None:
    with socket.create_connection(running.server.server_address[:2], timeout=10) as raw:
        raw.sendall(b"hello?\r\n\r\n")
        answer = raw.makefile("rb").read()
    assert b" 400 " in answer.splitlines()[0]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("Bad request syntax")
    with socket.create_connection(running.server.server_address[:2], timeout=10) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert running.predict("still here")[0] == 200


def test_a_connection_carries_many_requests(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.server.server_address[1], timeout=10)
    for number in range(5):
        connection.request("POST", "/predict", json.dumps({"instances": [f"film {number}"]}))
        assert connection.getresponse().read()
    assert connection.sock is not None
    connection.close()


def test_many_clients_get_their_own_answers_and_share_batches(running: Running, model: Model, monkeypatch) -> None:
    sizes: list[int] = []

    def slow(texts: list[requests.Text]) -> list[dict[str, Any]]:
        sizes.append(len(texts))
        time.sleep(0.05)
        return [{"text": text, "pair": pair} for text, pair in texts]

    monkeypatch.setattr(running.server.batcher, "_answer", slow)
    monkeypatch.setattr(model, "pairs", None)

    def ask(client: int) -> bool:
        texts = [f"{client}-{number}" for number in range(client % 5 + 1)]
        given = [{"text": text, "text_pair": None if client % 3 else "pair"} for text in texts]
        status, said = running.predict(*given)
        expected = [{"text": one["text"], "pair": one["text_pair"]} for one in given]
        return status == 200 and said["predictions"] == expected

    with ThreadPoolExecutor(24) as clients:
        assert all(clients.map(ask, range(72)))
    assert len(sizes) < 72 / 2, "texts of several requests were answered together"


def test_a_model_that_fails_fails_the_request_only(running: Running, monkeypatch, capfd) -> None:
    def fail(texts: list[requests.Text]) -> list[dict[str, Any]]:
        raise ZeroDivisionError("of the model")

    with monkeypatch.context() as patched:
        patched.setattr(running.server.batcher, "_answer", fail)
        status, said = running.predict("a film")
        assert (status, said["error"]) == (500, "the model could not answer; the server's log says why")
    assert "error: ZeroDivisionError: of the model" in capfd.readouterr().err
    assert running.predict("a film")[0] == 200


def test_who_comes_when_too_many_wait_is_told_to_come_back(running: Running, monkeypatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait(texts: list[requests.Text]) -> list[dict[str, Any]]:
        begun.set()
        assert go.wait(20)
        return [{} for _ in texts]

    monkeypatch.setattr(running.server.batcher, "_answer", wait)
    monkeypatch.setattr("xlnet.serving.batcher.WAITING", 3)
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(running.predict, "a")
        assert begun.wait(20)
        second = clients.submit(running.predict, "b", "c")
        while not running.server.batcher._queue:
            time.sleep(0.01)
        status, said, headers = running.send("POST", "/predict", {"instances": ["d", "e"]})
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "too many texts are waiting" in said["error"]
        go.set()
        assert first.result()[0] == second.result()[0] == 200


def test_too_many_connections(running: Running) -> None:
    place = running.server.server_address[:2]
    held = [socket.create_connection(place, timeout=10) for _ in range(CONNECTIONS)]
    try:
        with socket.create_connection(place, timeout=10) as further:
            assert further.recv(100).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()
    patience = time.monotonic() + 10
    while running.predict("a film")[0] != 200:
        assert time.monotonic() < patience


def test_no_text_is_logged(running: Running, capfd) -> None:
    running.predict("a secret")
    running.send("GET", "/healthz")
    logged = capfd.readouterr().err.splitlines()
    assert len(logged) == 1
    assert "'POST /predict HTTP/1.1' 200 " in logged[0]


# --- the process ------------------------------------------------------------------------------------------------------


def started(*words: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "xlnet", "serve", *words, "--host", "127.0.0.1"]
    told = {**os.environ, "AIP_HTTP_PORT": "0", **environment}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=told)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving '"), line + process.communicate()[1]
    return process, int(line.partition("127.0.0.1:")[2].split()[0])


def test_sigterm_answers_what_was_asked_and_ends_with_0(trained) -> None:
    process, port = started(str(trained.model))
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    idle.request("GET", "/healthz")
    assert idle.getresponse().read()
    busy = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({"instances": [f"{'word ' * 30}{number}" for number in range(1000)]}).encode()
    busy.putrequest("POST", "/predict")
    busy.putheader("Content-Length", str(len(body)))
    busy.endheaders(body[:100])
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    busy.send(body[100:])
    answer = busy.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["predictions"]) == 1000
    assert process.wait(20) == 0
    assert time.monotonic() - begun < 15
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_model_from_a_bucket_as_vertex_names_it(trained, tmp_path: Path, monkeypatch) -> None:
    from servers.storage import bucket_server

    with bucket_server(monkeypatch) as bucket:
        for file in trained.model.iterdir():
            if file.is_file():
                bucket.blob(f"models/1/{file.name}").upload_from_filename(str(file))
        process, port = started(AIP_STORAGE_URI="gs://bucket/models/1", TMPDIR=str(tmp_path), **VERTEX)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", VERTEX["AIP_PREDICT_ROUTE"], json.dumps({"instances": ["a lovely film"]}))
            (found,) = json.loads(connection.getresponse().read())["predictions"]
        finally:
            process.terminate()
            process.communicate(timeout=20)
    (expected,) = predict(trained.model, [("a lovely film", None)])
    assert found == expected


def test_a_port_that_is_taken_and_a_model_that_is_not_there(trained, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another"
        ):
            serve(str(trained.model), "127.0.0.1", port, {})
    with pytest.raises(UserError, match="there is no model directory '.*/absent'; name one, a gs:// URI, or a regist"):
        serve(str(tmp_path / "absent"), "127.0.0.1", 0, {})
    with pytest.raises(UserError, match="no model is named|reviews"):
        serve("reviews", "127.0.0.1", 0, {})
    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError):
        serve(str(tmp_path / "model"), "127.0.0.1", 0, {})


def test_a_name_for_addresses() -> None:
    assert [server._name(one) for one in ("reviews@champion", "reviews:3", "gs://b/run/model/", "/x/model")] == [
        "reviews",
        "reviews",
        "model",
        "model",
    ]
