"""Predictions for texts: the same tokens, model and probabilities as in training and evaluation."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xlnet.data.readers import Reject, read_rows
from xlnet.data.storage import list_sources
from xlnet.errors import UserError
from xlnet.evaluation.predictor import Predictor, probabilities, sigmoid
from xlnet.model.config import MULTI_LABEL

THRESHOLD = 0.5  # of a label's own probability, from which on a text has it
CHUNK_ROWS = 512  # texts tokenised and sorted by length together

Text = tuple[str, str | None] | Reject


def predict(model: str | Path | Predictor, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
    """One record per text, in order, read and answered in chunks.

    Args:
        model: a model directory, or one that is open already.
        texts: (text, its pair or None), or a row that could not be read.

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
            answers = zip(*predictor.logits([text for text, _ in usable], [pair for _, pair in usable]), strict=True)
        for row in chunk:
            if isinstance(row, Reject):
                yield {"error": row.reason, "line": row.line}
            else:
                yield _record(predictor.model.config, *next(answers))


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


def texts_from(source: str, model: str | Path, pair: str | None = None) -> Iterator[Text]:
    """The texts that a command line names.

    Args:
        source: ``-`` for the lines of standard input; an existing file, read as the model's training data was
            (plain text: one text a line); otherwise the text itself.
        model: the model directory, whose recipe names the columns.
        pair: second text, beside a text given itself.
    """
    if source == "-":
        for number, line in enumerate(sys.stdin, 1):
            yield (line.rstrip("\n"), None) if line.strip() else Reject(number, "empty text")
        return
    is_file = False
    with contextlib.suppress(OSError, ValueError):  # a long text is no file name
        is_file = Path(source).is_file()
    if not is_file:
        yield (source, pair) if source.strip() else Reject(1, "empty text")
        return
    if pair is not None:
        raise UserError(f"--pair goes with a text, not with the file '{source}'; give its column as data.text_pair")
    recipe = dataclasses.replace(Predictor(Path(model)).recipe, format="auto", id=None)
    (file,) = list_sources("predict", (source,))
    for row in read_rows(file, recipe, labelled=False):
        yield row if isinstance(row, Reject) else (row.text, row.text_pair)
