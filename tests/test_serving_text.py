"""A language model over HTTP: whole answers, streams, refusals, several clients, and clients that go away."""

import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from language_models import write_random

from xlnet.generation import output
from xlnet.generation.request import request_of
from xlnet.generation.writer import Writer
from xlnet.serving import language
from xlnet.serving.batcher import Batcher
from xlnet.serving.language import LanguageModel
from xlnet.serving.model import ServedModel, open_model
from xlnet.serving.server import listen

DEADLINE = 30.0  # seconds
PROMPT = {"prompt": "the film was", "tokens": 12, "past_end": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_random(folder)
    found = open_model(folder, "writer")
    assert isinstance(found, LanguageModel)
    found.warm_up()
    return found


@pytest.fixture
def server(model):
    started = listen("127.0.0.1", 0, {"AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict"})
    started.model = model
    with Batcher(model.answers) as started.batcher:
        thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield started
        started.stop()
        thread.join()
        started.server_close()


@contextlib.contextmanager
def answer(server, path, body, method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=DEADLINE)
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def said(server, path, body, method="POST"):
    with answer(server, path, body, method) as found:
        return found.status, json.loads(found.read())


def events(server, **values):
    with answer(server, "/generate", {**PROMPT, "stream": True, **values}) as found:
        assert (found.status, found.getheader("Content-Type")) == (200, "text/event-stream; charset=utf-8")
        return [json.loads(part.removeprefix(b"data: ")) for part in found.read().split(b"\n\n") if part]


def expected(model, **values):
    return list(output.records(model.writer, request_of({**PROMPT, **values})))


def wait_for(what, holds):
    until = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < until, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.01)


def test_an_answer_is_what_the_command_line_writes(server, model):
    assert said(server, "/generate", PROMPT) == (200, expected(model)[-1])
    gap = {"prompt": "the ___ was", "infill": True, "tokens": 2, "order": [1, 0], "past_end": None}
    assert said(server, "/generate", gap) == (200, list(output.records(model.writer, request_of(gap)))[-1])


def test_a_stream_is_the_same_token_by_token(server, model):
    assert events(server) == expected(model)
    drawn = {"temperature": 1.5, "seed": 4, "top_k": 20}
    assert events(server, **drawn) == expected(model, **drawn)


def test_a_client_of_http_1_0_gets_its_stream_without_chunks(server, model):
    body = json.dumps({**PROMPT, "stream": True}).encode()
    with socket.create_connection(server.server_address, timeout=DEADLINE) as connection:
        connection.sendall(b"POST /generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        content = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, rest = content.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert [json.loads(part.removeprefix(b"data: ")) for part in rest.split(b"\n\n") if part] == expected(model)


def test_predictions_are_of_prompts(server, model):
    for path in ("/predict", "/v1/models/writer:predict", "/v1/endpoints/1:predict"):
        status, found = said(server, path, {"instances": [PROMPT, {**PROMPT, "tokens": 2}]})
        assert (status, found["predictions"]) == (200, [expected(model)[-1], expected(model, tokens=2)[-1]])
    status, found = said(server, "/predict", {"instances": ["the film", {"prompt": "x", "top_p": 0}]})
    assert (status, found["error"]) == (400, "instances[1]: top_p is 0; allowed: above 0, at most 1")


def test_the_description_and_the_routes(server):
    status, found = said(server, "/", None, "GET")
    assert (status, found["task"], found["limits"]["tokens"]) == (200, "pretrain", 2000)
    assert said(server, "/healthz", None, "GET") == (200, {"status": "ok"})
    assert said(server, "/generate", None, "GET")[0] == 405
    assert "/generate" in said(server, "/nowhere", {})[1]["error"]


def test_a_classifier_has_no_such_route(trained):
    assert isinstance(open_model(trained.model, "x"), ServedModel)


BAD = [
    (b"{", "the body is not JSON"),
    (b"[1]", "the body is not an object; send"),
    ({}, "there is no prompt"),
    ({"prompt": 7}, "the prompt cannot be used: it is int, not a string"),
    ({"prompt": ""}, "the prompt cannot be used: it is empty"),
    ({"prompt": "\ud800"}, "half of a surrogate pair"),
    ({"prompt": "x", "top_p": 0}, "top_p is 0; allowed: above 0, at most 1"),
    ({"prompt": "x", "top_k": "5"}, "top_k is '5'; allowed"),
    ({"prompt": "x", "top_k": True}, "top_k is True; allowed"),
    ({"prompt": "x", "temperature": -1}, "temperature is -1; allowed"),
    ({"prompt": "x", "tokens": 10**30}, "tokens is 1000"),
    ({"prompt": "x", "tokens": 2001}, "tokens is 2,001; this server allows 2,000"),
    ({"prompt": "x", "memory": 5000}, "memory is 5,000; this server allows 4,096"),
    ({"prompt": "the film was lovely", "memory": 2}, "and memory holds 2"),
    ({"prompt": "x", "stream": "yes"}, "stream is 'yes'; allowed: true or false"),
    ({"prompt": "x", "streem": True}, "unknown field 'streem'"),
    ({"prompt": "a ___ b", "infill": True, "order": [0, 0]}, "is not a permutation of 0 to 1"),
    ({"prompt": "a ___ b", "infill": True, "order": [[0]]}, "order is"),
    ({"prompt": "a b", "infill": True}, "is not in the prompt"),
    ({"prompt": "a b", "infill": 1}, "infill is 1; allowed: true or false"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=str)
def test_bad_requests_are_refused(server, body, message):
    status, found = said(server, "/generate", body)
    assert (status, message in found["error"]) == (400, True), found


def test_many_clients_at_once_get_their_own_texts(server, model):
    """Also beside one whose request is refused."""
    seeds = list(range(8))
    with ThreadPoolExecutor(8) as pool:
        bad = pool.submit(said, server, "/generate", {"prompt": "x", "top_p": 2})
        found = list(pool.map(lambda seed: events(server, seed=seed, temperature=2.0), seeds[:6]))
    assert bad.result()[0] == 400
    assert found == [expected(model, seed=seed, temperature=2.0) for seed in seeds[:6]]


class Slow:
    """Lets a test hold a model's tokens back, and counts them."""

    def __init__(self, monkeypatch):
        self.tokens, self.go = 0, threading.Event()
        write = Writer.write

        def held(writer, request):
            for token in write(writer, request):
                self.tokens += 1
                assert self.go.wait(DEADLINE), "the test never let the model go on"
                yield token

        monkeypatch.setattr(Writer, "write", held)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_stops_its_text(server, model, monkeypatch, is_streamed):
    slow = Slow(monkeypatch)
    body = json.dumps({**PROMPT, "tokens": 2000, "stream": is_streamed}).encode()
    with socket.create_connection(server.server_address, timeout=DEADLINE) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_for("the first token", lambda: slow.tokens == 1)
    slow.go.set()
    wait_for("the slot of the text that nobody reads", lambda: model._slots._value == language.AT_ONCE)
    assert slow.tokens < 2000
    assert said(server, "/generate", PROMPT)[0] == 200


def test_too_many_texts_at_once_are_refused(server, monkeypatch):
    slow = Slow(monkeypatch)
    with ThreadPoolExecutor(language.AT_ONCE) as pool:
        waiting = [pool.submit(said, server, "/generate", PROMPT) for _ in range(language.AT_ONCE)]
        wait_for("all places to be taken", lambda: not server.model._slots._value)
        with answer(server, "/generate", PROMPT) as found:
            assert (found.status, found.getheader("Retry-After")) == (503, "1")
        slow.go.set()
        assert [one.result()[0] for one in waiting] == [200] * language.AT_ONCE


def test_a_model_that_fails_says_so_before_and_amid_a_stream(server, monkeypatch, capsys):
    write = Writer.write

    def failing(writer, request):
        for number, token in enumerate(write(writer, request)):
            if number == request.sampling.seed:
                raise RuntimeError("no luck")
            yield token

    monkeypatch.setattr(Writer, "write", failing)
    assert said(server, "/generate", {**PROMPT, "stream": True, "seed": 0})[0] == 500
    *_, last = events(server, seed=3)
    assert last == {"error": "the model could not answer; the server's log says why"}
    assert "RuntimeError: no luck" in capsys.readouterr().err


def test_a_closing_server_ends_its_texts(server, monkeypatch):
    slow = Slow(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(events, server, tokens=2000)
        wait_for("the first token", lambda: slow.tokens == 1)
        server.stop()
        slow.go.set()
        *_, last = waiting.result()
    assert last["ended"] == "the server is closing"
    assert last["tokens"] < 2000


def test_a_language_model_is_served_in_a_precision(model):
    found = open_model(model.writer.directory, "x", "int8")
    assert found.answers([found.check_instance(PROMPT)])[0]["tokens"] == 12
    assert found.writer.precision == "int8"
