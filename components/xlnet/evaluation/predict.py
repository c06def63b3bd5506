"""Predictions for texts: the same tokens, model and probabilities as in training and evaluation."""

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

THRESHOLD = 0.5  # of a label's own probability, from which on a text has it
CHUNK_ROWS = 512  # texts tokenised and sorted by length together

Text = tuple[str, str | None] | Question | Reject


def predict(model: str | Path | Predictor, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
    """One record per text, in order, read and answered in chunks.

    Args:
        model: a model directory, or one that is open already.
        texts: (text, its pair or None), checked; or a question with the line and the id that its answer is to carry;
            or a row that cannot be used.

    Yields:
        ``{"label", "probabilities": {class: p}}``, or ``{"value"}`` for regression, or ``{"labels": [...],
        "probabilities"}`` for a model that says yes or no to each label; ``"truncated": true``
        where the text was longer than the model reads; ``{"error", "line"}`` for a row that cannot be used.
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
    """Print one line of JSON for each answer, and at the end how many are errors."""
    failed = count = 0
    for count, answer in enumerate(answers, 1):  # noqa: B007
        failed += "error" in answer
        print(_json(answer))
    if failed:
        print(f"{failed} of {count} answers are errors; their 'error' says why", file=sys.stderr)


def _json(answer: dict[str, Any]) -> str:
    """The answer in characters that standard output takes."""
    text = json.dumps(answer, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(answer)
    return text
