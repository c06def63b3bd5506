"""Random input through every door of predict and of the server: no traceback, no 500, and a good client unharmed.

Runs for XLNET_FUZZ_SECONDS (default 10), half of it at each door. XLNET_FUZZ_SEED repeats a failure.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlnet.__main__ import main
from xlnet.evaluation.predictor import Predictor
from xlnet.serving import handler
from xlnet.serving.batcher import Batcher
from xlnet.serving.model import ServedModel
from xlnet.serving.server import listen

SECONDS = float(os.environ.get("XLNET_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("XLNET_FUZZ_SEED", time.time_ns() % 10**9))
FRAGMENTS = [
    *("a film", "text", "id", "label", "text_pair", "instances", "word " * 50, "x" * 300, "<cls>", "null", "true"),
    *("{", "}", "[", "]", ":", ",", ";", '"', "'", "\\", "/", "-", "--", "~", "..", "*", "%", "\\ud83d", "\\u0000"),
    *("\n", "\r", "\r\n", "\t", "\0", " ", "\ufeff", "\u200b", "\ud83d", "\udcff", "😀", "한국어", "é", "e\u0301"),
    *("NaN", "Infinity", "-1", "1e999", "9" * 400, ".csv", ".jsonl", ".parquet", ".gz", "gs:/", "http://"),
]


def text(draw: random.Random, longest: int = 6) -> str:
    """Fragments at random."""
    return "".join(draw.choices(FRAGMENTS, k=draw.randint(0, longest)))


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes changed, dropped, doubled or cut off at random; every other time none."""
    changed = bytearray(content)
    for _ in range(draw.choice((0, 0, 1, 2, 8))):
        place = draw.randint(0, max(0, len(changed) - 1))
        what = draw.randrange(4)
        if what == 0 and changed:
            changed[place] = draw.randrange(256)
        elif what == 1:
            del changed[place : place + draw.randint(1, 9)]
        elif what == 2:
            changed[place:place] = text(draw, 2).encode(errors="surrogatepass")
        else:
            del changed[place:]
    return bytes(changed)


def value(draw: random.Random, depth: int = 2) -> Any:
    """A JSON value at random."""
    kinds: list[Callable[[], Any]] = [lambda: text(draw), lambda: draw.choice((0, -9, None, True, 0.5, float("nan")))]
    if depth:
        kinds += [lambda: [value(draw, depth - 1) for _ in range(draw.randint(0, 3))]]
        kinds += [lambda: {text(draw, 1): value(draw, depth - 1) for _ in range(draw.randint(0, 3))}]
    return draw.choice(kinds)()


# --- predict ----------------------------------------------------------------------------------------------------------


def contents(draw: random.Random, folder: Path) -> bytes:
    """A file of any format, damaged."""
    rows = [(text(draw), text(draw, 2)) for _ in range(draw.randint(0, 6))]
    kind = draw.randrange(5)
    if kind == 0:
        whole = "".join(f"{one}\n" for one, _ in rows).encode(errors="surrogatepass")
    elif kind in (1, 2):
        between = ",\t"[kind - 1]
        lines = [f"text{between}id\n", *(f"{a}{between}{b}\n" for a, b in rows)]
        whole = "".join(lines).encode(errors="surrogatepass")
    elif kind == 3:
        objects = [{"text": value(draw) if draw.random() < 0.3 else a, "id": value(draw)} for a, _ in rows]
        whole = "".join(json.dumps(one) + "\n" for one in objects).encode()
    else:
        table = pa.table({"text": [a.encode(errors="replace").decode() for a, _ in rows], "id": list(range(len(rows)))})
        pq.write_table(table, folder / "whole.parquet")
        whole = (folder / "whole.parquet").read_bytes()
    return damaged(draw, gzip.compress(whole) if draw.random() < 0.2 else whole)


def test_predict(trained, tmp_path, monkeypatch, capsysbinary) -> None:
    draw = random.Random(SEED)
    monkeypatch.chdir(tmp_path)
    opened = Predictor(trained.model)
    assert opened.model
    monkeypatch.setattr("xlnet.evaluation.predictor.Predictor", lambda *_: opened)
    until, count = time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < until:
        count += 1
        file = draw.choice(["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt", "a.csv.gz", "a", "a.dat"])
        Path(file).write_bytes(contents(draw, tmp_path))
        words = [draw.choice(["-", file, file, text(draw).replace("\0", ""), text(draw)])]
        if draw.random() < 0.5:
            words += ["--format", draw.choice(["csv", "tsv", "jsonl", "parquet", "text", "text", "xml"])]
        if draw.random() < 0.1:
            words += [f"--pair={text(draw, 2)}"]
        if draw.random() < 0.2:
            words += ["--text"]
        given = contents(draw, tmp_path)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        told = f"XLNET_FUZZ_SEED={SEED}, the {count}th: {words!a}, file {Path(file).read_bytes()!r}, stdin {given!r}"
        try:
            status = main(["predict", str(trained.model), *words[1:], "--", words[0]])
        except SystemExit as usage:  # a word that argparse takes for an option of its own
            status = usage.code
        except BaseException as error:
            raise AssertionError(told) from error
        out, err = capsysbinary.readouterr()
        answers = [json.loads(line) for line in out.splitlines()]
        assert all(("error" in one) != ("label" in one) for one in answers), told
        assert status in (0, 1, 2), told
        assert (status == 0) == (b"error: " not in err), told
        assert err.count(b"\n") == err.endswith(b"\n"), told
    print(f"{count} calls")


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def port(trained) -> Iterator[int]:
    server = listen("127.0.0.1", 0, {})
    server.model = ServedModel(trained.model, "reviews")
    with Batcher(server.model.answers) as server.batcher:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.stop()
        thread.join()
        server.server_close()


def request(draw: random.Random) -> bytes:
    """Bytes of a request, most of them nearly right."""
    instances = [value(draw) if draw.random() < 0.3 else text(draw) for _ in range(draw.randint(0, 4))]
    instances = [{"text": one} if draw.random() < 0.3 else one for one in instances]
    whole = json.dumps({"instances": instances, text(draw, 1): value(draw)} if draw.random() < 0.9 else value(draw))
    body = damaged(draw, whole.encode())
    method = draw.choice(["POST"] * 8 + ["GET", "HEAD", "PUT", "OPTIONS", "post", text(draw, 1)])
    path = draw.choice(["/predict"] * 8 + ["/", "/healthz", "/v1/models/reviews:predict", "/" + text(draw, 3)])
    length = draw.choice([str(len(body))] * 8 + ["-1", "5", "99999999", "9" * 5000, text(draw, 1)])
    headers = f"Content-Length: {length}\r\n" if draw.random() < 0.95 else ""
    headers += "".join(f"{text(draw, 1)}: {text(draw, 2)}\r\n" for _ in range(draw.choice((0, 0, 0, 1, 3))))
    special = ("Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", "Content-Encoding: gzip\r\n")
    headers += draw.choice([""] * 8 + [*special])
    head = f"{method} {path} HTTP/1.1\r\n{headers}\r\n".encode(errors="surrogatepass")
    return (damaged(draw, head) if draw.random() < 0.2 else head) + body


def attack(port: int, seed: int, until: float, found: list[str]) -> None:
    draw = random.Random(seed)
    while time.monotonic() < until:
        sent = request(draw)
        answer = b""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(sent)
            if draw.random() < 0.1:
                continue  # goes away without reading
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        for status in re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE):
            if status in (b"500", b"502", b"503"):
                found.append(f"{status.decode()} to {sent!r}")
        found.append("")


def test_server(port: int, monkeypatch, capfd) -> None:
    monkeypatch.setattr(handler, "LINGER", 0.2)
    until, found = time.monotonic() + SECONDS / 2, []
    attackers = [threading.Thread(target=attack, args=(port, SEED + i, until, found)) for i in range(3)]
    for thread in attackers:
        thread.start()
    expected: list[Any] = []
    while time.monotonic() < until or not expected:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/predict", json.dumps({"instances": ["a lovely film", "bad food"]}))
        answer = connection.getresponse()
        assert answer.status == 200
        shares = [one["probabilities"]["0"] for one in json.loads(answer.read())["predictions"]]
        connection.close()
        expected = expected or shares
        assert shares == pytest.approx(expected, abs=1e-5), f"XLNET_FUZZ_SEED={SEED}"
    for thread in attackers:
        thread.join()
    said = capfd.readouterr().err
    assert "Traceback" not in said, f"XLNET_FUZZ_SEED={SEED}: {said}"
    assert not [one for one in found if one], f"XLNET_FUZZ_SEED={SEED}: {[one for one in found if one][:3]}"
    print(f"{len(found)} requests")
