"""Who answers in serving_speed.py: each is a process that holds the same weights and answers the same texts.

``ours`` is this project's prediction in float32; ``bfloat16`` and ``int8`` are the same with ``--precision``.
``pipeline`` is transformers' text-classification pipeline as its best user would set it up: sorted by length, in
batches of 32. ``onnx`` is ONNX Runtime on an export of our weights, with our tokenizer, sorted and in batches of 32.
All stand behind this project's own server with its dynamic batches, so that
only what computes the answers differs.

    python tests/benchmarks/serving_contenders.py KIND DIRECTORY THREADS    # reads commands from standard input
"""

import functools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor, probabilities
from xlnet.serving.batcher import Batcher
from xlnet.serving.connections import PredictionServer
from xlnet.serving.handler import Handler
from xlnet.serving.requests import MAX_TEXTS, fields_of

BATCH = 32
PAD = 5
Texts = list[tuple[str, str | None]]


class Ours:
    """This project's prediction, as the server and ``predict`` use it."""

    def __init__(self, directory: Path, threads: int, precision: str = "float32") -> None:
        self.predictor = Predictor(directory, precision)

    def answers(self, texts: Texts) -> list[dict[str, Any]]:
        """One record for each text."""
        return list(predict(self.predictor, texts))


class Pipeline:
    """transformers' pipeline; the directory's configuration has ``use_mems_eval`` off, or it could not batch."""

    def __init__(self, directory: Path, threads: int) -> None:
        from transformers import pipeline
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.call = pipeline("text-classification", model=str(directory), device="cpu")

    def answers(self, texts: Texts) -> list[dict[str, Any]]:
        """One record for each text, computed in order of length."""
        order = np.argsort([len(text) for text, _ in texts], kind="stable")
        found = self.call([texts[i][0] for i in order], batch_size=BATCH, truncation=True, top_k=None)
        records: list[dict[str, Any]] = [{}] * len(texts)
        for place, scores in zip(order, found, strict=True):
            records[place] = {"probabilities": {one["label"]: one["score"] for one in scores}}
        return records


class Onnx:
    """ONNX Runtime; the file ``model.onnx`` is beside the weights."""

    def __init__(self, directory: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as our OpenMP threads
        self.session = onnxruntime.InferenceSession(directory / "model.onnx", options)
        self.tokenizer, self.classes = Predictor(directory).tokenizer, ("0", "1")

    def answers(self, texts: Texts) -> list[dict[str, Any]]:
        """One record for each text, computed in order of length."""
        ids = self.tokenizer.encode([text for text, _ in texts], None, 512).input_ids
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        records: list[dict[str, Any]] = [{}] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            (logits,) = self.session.run(None, _padded([ids[i] for i in rows]))
            for place, row in zip(rows, logits, strict=True):
                shares = zip(self.classes, probabilities(row).tolist(), strict=True)
                records[place] = {"probabilities": dict(shares)}
        return records


def _padded(ids: list[list[int]]) -> dict[str, np.ndarray]:
    shape = len(ids), max(map(len, ids))
    tokens, segments, real = np.full(shape, PAD), np.full(shape, 3), np.zeros(shape, bool)
    for row, one in enumerate(ids):
        tokens[row, -len(one) :], segments[row, -len(one) :], real[row, -len(one) :] = one, 0, True
    segments[:, -1] = 2
    return {"ids": tokens, "segments": segments, "real": real}


KINDS: dict[str, Any] = {
    "ours": Ours,
    "bfloat16": functools.partial(Ours, precision="bfloat16"),
    "int8": functools.partial(Ours, precision="int8"),
    "pipeline": Pipeline,
    "onnx": Onnx,
}


class Served:
    """A contender as this project's server serves it."""

    def __init__(self, contender: Any) -> None:
        self.name, self.facts, self.limits = "contender", {}, {"instances": MAX_TEXTS}
        self.answers, self.check_instance = contender.answers, fields_of


def main(kind: str, directory: str, threads: str) -> None:
    """Serve on a free port, and answer each line of standard input, texts in JSON, without HTTP."""
    torch.set_num_threads(int(threads))
    contender = KINDS[kind](Path(directory), int(threads))
    server: Any = PredictionServer("127.0.0.1", 0, {}, Handler)
    server.model = Served(contender)
    with Batcher(contender.answers) as server.batcher:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(json.dumps({"port": server.server_address[1], "pid": os.getpid()}), flush=True)
        for line in sys.stdin:
            texts = [(text, None) for text in json.loads(line)]
            begun, worked = time.perf_counter(), time.process_time()
            records = contender.answers(texts)
            seconds = time.perf_counter() - begun, time.process_time() - worked
            print(json.dumps({"seconds": seconds, "first": records[0]["probabilities"]}), flush=True)
        server.stop()
        server.server_close()


if __name__ == "__main__":
    main(*sys.argv[1:])
