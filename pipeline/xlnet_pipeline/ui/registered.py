"""Reads and changes the model registry, and predicts texts. These functions run in the helper process."""

import argparse
import functools
from pathlib import Path
from typing import Any

from xlnet.data import objects
from xlnet.data.columns import BadValue
from xlnet.errors import UserError
from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.registry import ModelVersion, champions
from xlnet_pipeline.commands import models

MOST_WORDS = 120  # in longer texts, the effect of each word is not measured


def versions(options: argparse.Namespace) -> dict[str, list[ModelVersion]]:
    """Return the versions of every model, the newest first."""
    registry = models.open_registry(options)
    return {name: registry.versions(name) for name in registry.names()}


def promote(options: argparse.Namespace, reference: str) -> str:
    """Make a version the champion; return what was done."""
    return models.promoted(models.open_registry(options), reference)


def roll_back(options: argparse.Namespace, name: str) -> str:
    """Make the previous champion the champion again; return what was done."""
    return models.rolled_back(models.open_registry(options), name)


def delete(options: argparse.Namespace, reference: str) -> str:
    """Delete a version; return what was done."""
    return "; ".join(models.deleted(models.open_registry(options), [reference]))


def previous(options: argparse.Namespace, name: str) -> int | None:
    """Return the version that a rollback would make champion; None if there is none."""
    found = champions.previous_champion(models.open_registry(options), name)
    return found.version if found else None


def attempt(directory: str, text: str, pair: str | None) -> dict[str, Any]:
    """Predict a text, and measure the effect of each word by predicting the text without it.

    Args:
        directory: directory of the model.
        text: the text to predict.
        pair: the second text, for a model that reads pairs.

    Returns:
        ``answer`` as ``predict`` gives it, ``score`` (the predicted class's probability, or the value), and ``words``:
        for each text a list of (word, score − score without the word); None for texts with too many words.

    Raises:
        UserError: the model cannot take this text.
    """
    predictor = _predictor(directory, Path(objects.local_directory(directory), "config.json").stat().st_mtime_ns)
    try:
        checked, second = predictor.check(text, pair)
    except BadValue as error:
        raise UserError(f"the text cannot be used: {error}") from None
    parts = [checked.split(), second.split() if second is not None else []]
    asked: list[tuple[str, str | None]] = [(checked, second)]
    few = 1 < sum(map(len, parts)) <= MOST_WORDS
    if few:
        for side, words in enumerate(parts):
            for at in range(len(words)):
                rest = " ".join(words[:at] + words[at + 1 :]) or "."
                asked.append((rest, second) if side == 0 else (checked, rest))
    answers = list(predict(predictor, asked))
    first = answers[0]
    if "error" in first:
        raise UserError(str(first["error"]))
    scores = [_score(one, first) for one in answers]
    if not few:
        return {"answer": first, "score": scores[0], "words": None}
    told = [scores[0] - one for one in scores[1:]]
    split = [
        list(zip(parts[0], told[: len(parts[0])], strict=True)),
        list(zip(parts[1], told[len(parts[0]) :], strict=True)),
    ]
    return {"answer": first, "score": scores[0], "words": split}


@functools.lru_cache(maxsize=2)
def _predictor(directory: str, changed: int) -> Predictor:
    return Predictor(Path(objects.local_directory(directory)))


def _score(answer: dict[str, Any], first: dict[str, Any]) -> float:
    if "value" in first:
        return float(answer.get("value", first["value"]))
    label = first.get("label") or max(first["probabilities"], key=first["probabilities"].__getitem__)
    return float(answer.get("probabilities", first["probabilities"])[label])
