"""Predicts texts, with the same tokens and probabilities as in training and evaluation."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xlnet.data.columns import Reject
from xlnet.evaluation.predictor import Predictor, probabilities, sigmoid
from xlnet.evaluation.questions import Question
from xlnet.model.config import MULTI_LABEL

THRESHOLD = 0.5  # multi-label: a text has every label of at least this probability
CHUNK_ROWS = 512  # number of texts that are tokenised and sorted by length together

Text = tuple[str, str | None] | Question | Reject


def predict(model: str | Path | Predictor, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
    """Predict texts; yield one record per text, in order. Texts are read and answered in chunks.

    Args:
        model: a model directory, or an open model.
        texts: each is a checked (text, pair or None); or a question, whose line and id the record repeats; or a row
            that cannot be used, which becomes an error.

    Yields:
        ``{"label", "probabilities": {class: p}}`` for classification, ``{"value"}`` for regression, or
        ``{"labels": [...], "probabilities"}`` for a multi-label model; with ``"truncated": true`` if the text is longer
        than the model's maximum; ``{"error", "line"}`` for a row that cannot be used.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(Path(model))
    stream = iter(texts)
    while chunk := list(islice(stream, CHUNK_ROWS)):
        usable = [row for row in chunk if not isinstance(row, Reject)]
        answers: Iterator[tuple[np.ndarray, bool]] = iter(())
        if usable:
            answers = zip(*predictor.logits([row[0] for row in usable], [row[1] for row in usable]), strict=True)
        for row in chunk:
            if isinstance(row, Reject):
                yield {"error": row.reason, "line": row.line}
            else:
                place = row.place if isinstance(row, Question) else {}
                yield _record(predictor.model.config, *next(answers)) | place


def _record(config: Any, logits: np.ndarray, truncated: bool) -> dict[str, Any]:
    if not np.isfinite(logits).all():
        return {"error": "the model's output for this text is not finite"}
    if config.task == "regression":
        record: dict[str, Any] = {"value": float(logits[0])}
    else:
        several = config.task == MULTI_LABEL
        shares = sigmoid(logits) if several else probabilities(logits)
        named = {name: float(share) for name, share in zip(config.classes, shares, strict=True)}
        if several:
            record = {"labels": [name for name, share in named.items() if share >= THRESHOLD]}
        else:
            record = {"label": config.classes[int(shares.argmax())]}
        record["probabilities"] = named
    return record | ({"truncated": True} if truncated else {})


def print_answers(answers: Iterable[dict[str, Any]]) -> None:
    """Print one line of JSON for each answer, and finally the number of errors."""
    failed = count = 0
    for count, answer in enumerate(answers, 1):  # noqa: B007
        failed += "error" in answer
        print(_json(answer))
    if failed:
        print(f"{failed} of {count} answers are errors; their 'error' says why", file=sys.stderr)


def _json(answer: dict[str, Any]) -> str:
    """Format an answer with characters that standard output can encode."""
    text = json.dumps(answer, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(answer)
    return text
