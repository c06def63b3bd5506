"""The server over real connections: predictions, refusals, many clients at once, and its end."""

import contextlib
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

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.evaluation.predict import predict
from xlnet.registry.locate import model_directory, short_name
from xlnet.serving import handler, requests
from xlnet.serving.batcher import Batcher
from xlnet.serving.connections import CONNECTIONS, PredictionServer
from xlnet.serving.model import ServedModel
from xlnet.serving.server import listen, serve

VERTEX = {"AIP_HEALTH_ROUTE": "/v1/endpoints/1/ready", "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict"}


@dataclass
class Running:
    """A server in this process, and its client."""

    server: PredictionServer

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
def model(trained) -> ServedModel:
    return ServedModel(trained.model, "reviews")


@pytest.fixture
def running(model: ServedModel) -> Iterator[Running]:
    started = listen("127.0.0.1", 0, VERTEX)
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
        ("", 400, "the body is not JSON ("),
        ("[" * 100_000, 400, "the body is not JSON ("),
        ('{"instances": ' + "[" * 100_000, 400, "the body is not JSON ("),
        ('{"instances": [' + "1" * 5000 + "]}", 400, "the body is not JSON ("),
        ('{"instances": [NaN]}', 400, "the body is not JSON (NaN is not a JSON number)"),
        ('{"instances": ["a"], "parameters": -Infinity}', 400, "the body is not JSON (-Infinity is not a JSON number)"),
        ('{"instances": ["a"], "instances": ["b"]}', 400, "the body is not JSON (field 'instances' is given twice)"),
        ('{"instances": [{"text": "a", "text": "b"}]}', 400, "the body is not JSON (field 'text' is given twice)"),
        ([], 400, "there is no list of 'instances'; send {"),
        ("null", 400, "there is no list of 'instances'; send {"),
        ({"texts": []}, 400, "there is no list of 'instances'"),
        ({"instances": []}, 400, "there is no list of 'instances'"),
        ({"instances": "text"}, 400, "there is no list of 'instances'"),
        ({"instances": {"0": "a"}}, 400, "there is no list of 'instances'"),
        ({"instances": [1]}, 400, "instances[0]: it is neither a string nor an object"),
        ({"instances": [["a"]]}, 400, "instances[0]: it is neither a string nor an object"),
        ({"instances": ["a", {"txt": "b"}]}, 400, "instances[1]: unknown field 'txt'; allowed: text, text_pair"),
        ('{"instances": [{"\\ud83d": 1}]}', 400, "instances[0]: unknown field '\\ud83d'; allowed"),
        ({"instances": [{}]}, 400, "instances[0]: no field 'text'"),
        ({"instances": [{"text": None}]}, 400, "instances[0]: empty text"),
        ({"instances": [{"text": 1}]}, 400, "instances[0]: text is int, not a string"),
        ({"instances": [{"text": ["a"]}]}, 400, "instances[0]: text is list, not a string"),
        ({"instances": [{"text": "a", "text_pair": 1}]}, 400, "instances[0]: text_pair is int, not a string"),
        ({"instances": ["a", " \n"]}, 400, "instances[1]: empty text"),
        ({"instances": ["a", "\ufeff"]}, 400, "instances[1]: empty text"),
        ({"instances": ["a", "b\0"]}, 400, "instances[1]: NUL byte"),
        ('{"instances": ["a", "\\ud83d"]}', 400, "instances[1]: half of a surrogate pair: U+D83D at column 1"),
        ('{"instances": ["\\udcff"]}', 400, "instances[0]: not UTF-8: byte 0xff at column 1"),
        (b'{"instances": ["a\xff"]}', 400, "the body is not JSON ("),
        ({"instances": [{"text": "a", "text_pair": "b"}]}, 400, "instances[0]: a text_pair, and this model reads s"),
        ({"instances": ["a"] * 1025}, 413, "1025 instances are too many; at most 1024"),
    ],
)
def test_what_is_wrong_is_said(running: Running, body: Any, status: int, message: str) -> None:
    found, said, headers = running.send("POST", "/predict", body)
    assert found == status
    assert said["error"].startswith(message)
    assert headers["Connection"] == "close"


def test_a_refusal_names_every_instance_at_fault(running: Running) -> None:
    status, said = running.predict("good", "", "good", {"text": 1})
    assert status == 400
    assert said == {
        "error": "instances[1]: empty text (and 1 more instances cannot be used)",
        "errors": [
            {"instance": 1, "error": "empty text"},
            {"instance": 3, "error": "text is int, not a string"},
        ],
    }


def test_other_refusals(running: Running) -> None:
    status, said, _ = running.send("POST", "/nowhere", {})
    assert (status, said["error"].partition(";")[0]) == (404, "there is no '/nowhere'")
    status, _, headers = running.send("GET", "/predict")
    assert (status, headers["Allow"]) == (405, "POST")
    status, _, headers = running.send("POST", "/healthz", {})
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert running.send("DELETE", "/predict")[0] == 501
    assert running.send("POST", "/predict", "{}", **{"Transfer-Encoding": "chunked"})[0] == 411
    assert running.send("POST", "/predict", "{}", **{"Content-Encoding": "gzip"})[0] == 415
    for length in ("-1", "1e3", "0x10", "1_000", "²", "two"):
        assert running.send("POST", "/predict", None, **{"Content-Length": length})[0] == 400
    for length in (str(5 << 20), "9" * 5000):
        status, said, _ = running.send("POST", "/predict", None, **{"Content-Length": length})
        assert status == 413
        assert "at most 4194304 are read" in said["error"]


def raw(running: Running, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server says to bytes on a connection of their own, until it closes it."""
    with socket.create_connection(running.server.server_address[:2], timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 22\r\nContent-Length: 21\r\n", 400),
        (b"Content-Length: 22\r\nTransfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: 22\r\nContent-Length: 22\r\n", 200),
        (b"Content-Length: 0022\r\n", 200),
        (b"Content-Length: 5\r\n", 400),
        (b"", 411),
        (b"X: " + b"x" * 70_000 + b"\r\n", 431),
        (b"X: y\r\n" * 200, 431),
    ],
)
def test_lengths_that_proxies_and_servers_read_differently(running: Running, headers: bytes, status: int) -> None:
    answer = raw(running, b"POST /predict HTTP/1.1\r\nHost: x\r\n" + headers + b'\r\n{"instances":["film"]}')
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_proxys_address_and_escapes_in_a_path(running: Running) -> None:
    length = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 22\r\n\r\n" + b'{"instances":["film"]}'
    for path in (b"http://elsewhere:1/predict", b"/v1/models/reviews%3Apredict", b"//predict", b"/predict?a=1#b"):
        assert raw(running, b"POST " + path + length).startswith(b"HTTP/1.1 200 "), path
    for path in (b"/%00", b"/\xff", b"http://[", b"*", b"/v1/models/../predict"):
        assert raw(running, b"POST " + path + length).startswith(b"HTTP/1.1 404 "), path


def test_the_body_of_a_get_is_not_the_next_request(running: Running) -> None:
    inner = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(running, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_body_that_is_too_long_is_refused_before_and_while_it_comes(running: Running) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n"
    assert raw(running, head + b"Expect: 100-continue\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    assert raw(running, head + b"\r\n" + b"x" * 8_000_000).startswith(b"HTTP/1.1 413 ")
    body = b'{"instances": ["film"]}'
    with socket.create_connection(running.server.server_address[:2], timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_slow_client_is_told_and_gives_its_thread_back(running: Running, monkeypatch) -> None:
    monkeypatch.setattr(handler, "REQUEST", 0.3)
    begun = time.monotonic()
    answer = raw(running, b"POST /predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n", *[b"x"] * 5, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    with contextlib.suppress(OSError):  # the server has closed the connection
        assert not raw(running, *[b"G", b"E", b"T", b" ", b"/"], pause=0.1)
    assert time.monotonic() - begun < 5


def test_a_client_that_goes_away_harms_nobody(running: Running, capfd) -> None:
    body = b'{"instances": ["%s"]}' % (b"word " * 2000)
    for count in range(10):
        with socket.create_connection(running.server.server_address[:2], timeout=10) as connection:
            head = b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[: count * 900])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset at once
    assert running.predict("still here")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_of_pairs_wants_pairs(running: Running, monkeypatch) -> None:
    predictor = running.server.model.predictor
    pairs = recipes.DataRecipe(train=("x",), text_pair="b")
    monkeypatch.setitem(vars(predictor), "recipe", pairs)
    assert running.predict({"text": "a", "text_pair": "b"})[0] == 200
    status, said = running.predict({"text": "a", "text_pair": "b"}, "a")
    assert (status, said["error"]) == (400, "instances[1]: no text_pair, and this model reads pairs of texts")
    monkeypatch.setattr(type(predictor), "pairs", None)
    status, said = running.predict("a", {"text": "a", "text_pair": "b"}, "a")
    assert status == 200
    first, pair, last = (one["probabilities"]["0"] for one in said["predictions"])
    assert first == pytest.approx(last, abs=1e-6)
    assert first != pytest.approx(pair, abs=1e-5)


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


def test_many_clients_get_their_own_answers_and_share_batches(
    running: Running, model: ServedModel, monkeypatch
) -> None:
    sizes: list[int] = []

    def slow(texts: list[requests.Text]) -> list[dict[str, Any]]:
        sizes.append(len(texts))
        time.sleep(0.05)
        return [{"text": text, "pair": pair} for text, pair in texts]

    monkeypatch.setattr(running.server.batcher, "_answer", slow)
    monkeypatch.setattr(type(model.predictor), "pairs", None)

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


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, SystemExit])
def test_a_text_the_model_cannot_take_fails_alone(running: Running, monkeypatch, error) -> None:
    """Of sixty clients whose texts share batches, those fail whose own text breaks the model."""
    real, sizes = running.server.model.answers, []

    def breaks(texts: list[requests.Text]) -> list[dict[str, Any]]:
        sizes.append(len(texts))
        time.sleep(0.01)
        if any(text == "bomb" for text, _ in texts):
            raise error
        return real(texts)

    monkeypatch.setattr(running.server.batcher, "_answer", breaks)
    with ThreadPoolExecutor(30) as clients:
        given = [["bomb", "b"] if i % 20 == 7 else [f"film {i}", "b"] for i in range(60)]
        statuses = [status for status, _ in clients.map(lambda texts: running.predict(*texts), given)]
    assert statuses == [500 if i % 20 == 7 else 200 for i in range(60)]
    assert max(sizes) > 2
    assert running.predict("a film")[0] == 200


def test_too_few_answers_are_a_failure_and_no_mix_up(running: Running, monkeypatch) -> None:
    monkeypatch.setattr(running.server.batcher, "_answer", lambda texts: [{}] * (len(texts) - 1))
    assert running.predict("a", "b")[0] == 500


def test_a_batcher_that_is_closed_refuses(model: ServedModel) -> None:
    with Batcher(model.answers) as closed:
        pass
    with pytest.raises(requests.Refusal, match="the server is closing"):
        closed.predict([("a", None)])


def test_a_thread_that_cannot_start_gives_its_slot_back(running: Running, monkeypatch, capfd) -> None:
    free = running.server._slots._value
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start")))
        for _ in range(3):
            with socket.create_connection(running.server.server_address[:2], timeout=10) as connection:
                assert connection.recv(100) == b""
    assert running.server._slots._value == free
    assert running.predict("a film")[0] == 200
    capfd.readouterr()


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


def connected(running: Running, count: int, sent: bytes) -> list[socket.socket]:
    """Connections that a client opens, on which it sends and then says nothing."""
    opened = [socket.create_connection(running.server.server_address[:2], timeout=10) for _ in range(count)]
    for connection in opened:
        connection.sendall(sent)
    return opened


def test_a_client_that_holds_idle_connections_keeps_nobody_out(running: Running) -> None:
    held = connected(running, CONNECTIONS, b"")
    try:
        for _ in range(5):
            assert running.predict("a film")[0] == 200
    finally:
        for connection in held:
            connection.close()


def test_too_many_connections_at_work(running: Running) -> None:
    held = connected(running, CONNECTIONS, b"POST /predict HTTP/1.1\r\nContent-Length: 9\r\n")
    try:
        patience = time.monotonic() + 10
        while running.server._idle or running.server._slots._value:  # all are accepted, and none waits for a request
            assert time.monotonic() < patience
            time.sleep(0.01)
        with socket.create_connection(running.server.server_address[:2], timeout=10) as further:
            assert further.recv(100).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()
    patience = time.monotonic() + 10
    while True:
        try:
            if running.predict("a film")[0] == 200:
                break
        except (ConnectionError, json.JSONDecodeError, http.client.HTTPException):
            pass
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
    with pytest.raises(UserError, match="there is no model directory '.*/absent'; name a directory, gs:// URI"):
        serve(str(tmp_path / "absent"), "127.0.0.1", 0, {})
    with pytest.raises(UserError, match="no model is named|reviews"):
        serve("reviews", "127.0.0.1", 0, {})
    shutil.copytree(trained.model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError):
        serve(str(tmp_path / "model"), "127.0.0.1", 0, {})


@pytest.mark.parametrize("reference", ["models:/reviews@champion", "directory"])
def test_the_command_serves_to_this_machine_alone(trained, capfd, reference: str) -> None:
    from xlnet.registry import open_registry
    from xlnet_pipeline.cli import main

    if reference != "directory":
        registry = open_registry()
        version = registry.add("reviews", "first", {"model_uri": str(trained.model)}, {}, {})
        registry.set_alias("reviews", "champion", version.version)
        for other in ("reviews", "reviews:1", "reviews@champion", "models:/reviews/1"):
            assert model_directory(other) == trained.model
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: list[Any] = []

    def client() -> None:
        patience = time.monotonic() + 20
        while time.monotonic() < patience:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/predict", json.dumps({"instances": ["a lovely film"]}))
            found.append(json.loads(connection.getresponse().read()))
            connection.close()
            with pytest.raises(ConnectionRefusedError):  # as from another machine
                socket.create_connection(("127.0.0.2", port), timeout=5)
            found.append("refused")
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=client)
    thread.start()
    name = str(trained.model) if reference == "directory" else reference
    assert main(["serve", name, "--port", str(port)]) == 0
    thread.join()
    (expected,) = predict(trained.model, [("a lovely film", None)])
    assert found == [{"predictions": [expected]}, "refused"]
    assert f"serving '{name}' on http://127.0.0.1:{port} after" in capfd.readouterr().err


def test_what_the_command_cannot_serve(capsys) -> None:
    from xlnet_pipeline.cli import main

    for words, message in {
        ("nobody",): "model 'nobody' is unknown",
        ("models:/a/b",): "names no version; type models:/a/1 or models:/a@champion",
        ("./absent",): "there is no model directory './absent'",
        (): "no model is named",
    }.items():
        assert main(["serve", *words, "--port", "0"]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert message in said


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("reviews@champion", "reviews"),
        ("reviews:3", "reviews"),
        ("models:/reviews/3", "reviews"),
        ("models:/reviews@champion", "reviews"),
        ("gs://b/run/model/", "model"),
        ("/x/model", "model"),
    ],
)
def test_a_name_for_addresses(reference: str, name: str) -> None:
    assert short_name(reference) == name
