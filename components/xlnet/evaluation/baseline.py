"""Compares a model with a baseline: a cheap model that is trained and tested on the same rows."""

import math
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from xlnet.data.dataset import Dataset, Split
from xlnet.errors import UserError
from xlnet.evaluation import linear, metrics
from xlnet.evaluation.comparison import RowPredictions, compare
from xlnet.evaluation.linear import Effort
from xlnet.recipe import EvaluationRecipe, Recipe

SHARE = 0.1  # the baseline may take this share of the training time,
FREE = 15.0  # and always this many seconds
RATES = {True: 500_000, False: 1_500_000}  # characters of text per second, with and without n-grams of characters
SMALL = 20_000  # below so many training rows, more rows help most
NAMES = {"tfidf": "TF-IDF with {} regression", "majority": "the majority class"}


def answers(recipe: EvaluationRecipe, data: Dataset, seconds: float) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Answer the test rows with the recipe's baseline; None if the recipe wants none.

    It reads only a part of a large dataset, so that it takes about a tenth of the seconds that the model was trained.

    Returns:
        The answers (class indices or values, [test rows]) and a description of the baseline.

    Raises:
        UserError: scikit-learn is not installed.
    """
    train, test, classes = data.split("train"), data.split("test"), len(data.classes)
    name = NAMES.get(recipe.baseline, "").format("logistic" if classes else "ridge")
    if recipe.baseline == "none" or not len(train):
        return None
    about = {"kind": recipe.baseline, "name": name, "train_rows": len(train), "rows": len(train), "uses": ""}
    if recipe.baseline == "majority":
        constant = Counter(train.labels.tolist()).most_common(1)[0][0] if classes else train.labels.mean()
        return np.full(len(test), constant, test.labels.dtype), about
    if "text" not in train.table().column_names:
        print("no baseline: this dataset was made before train texts were kept; run preprocess again")
        return None
    effort = effort_for(characters(train), characters(test), seconds)
    try:
        found = linear.predict(train, test, classes, effort)
    except ModuleNotFoundError:
        raise UserError(
            "evaluation.baseline is 'tfidf', which needs scikit-learn: pip install scikit-learn, "
            'or choose "majority" or "none"'
        ) from None
    return found, {**about, "rows": -(-len(train) // effort.every), "uses": str(effort)}


def characters(split: Split) -> int:
    """Count the characters of a split's texts."""
    table = split.table()
    return sum(pc.sum(pc.utf8_length(table[name])).as_py() or 0 for name in ("text", "text_pair"))


def effort_for(train: int, test: int, seconds: float) -> Effort:
    """Choose training rows and kinds of n-grams so that the baseline ends in time.

    Args:
        train: characters of all training texts.
        test: characters of all test texts.
        seconds: how long the model was trained.
    """
    allowed = max(FREE, SHARE * seconds)
    if train + test <= allowed * RATES[True]:
        return Effort()
    left = allowed * RATES[False] - test
    return Effort(characters=False, every=max(1, math.ceil(train / max(left, allowed * RATES[False] / 4))))


def judge(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, classes: int, primary: str, recipe: EvaluationRecipe
) -> dict[str, Any]:
    """Compute the baseline's metrics, and the paired difference model − baseline in the primary metric.

    ``ours`` (the model's answers), ``theirs`` and ``labels`` are class indices, or values if ``classes`` is 0: [rows].
    """
    drawing = (recipe.confidence, recipe.resamples, recipe.seed)
    if classes:
        matrix = metrics.confusion_matrix(labels, theirs, classes)
        figures = metrics.classification_figures(matrix, *drawing)
    else:
        figures = metrics.regression_figures(labels, theirs, *drawing)
    ours, theirs = ours.astype(labels.dtype), theirs.astype(labels.dtype)
    two = RowPredictions(labels, ours, classes), RowPredictions(labels, theirs, classes)
    found = compare(*two, primary, replace(recipe, margin=0.0))
    difference = {"value": found.difference, "low": found.low, "high": found.high}
    verdict = "better" if found.wins else "worse" if found.high < 0 else "level"
    return {
        "metrics": {name: _known(asdict(figure)) for name, figure in figures.items()},
        "difference": {"metric": primary, **_known(difference)},
        "verdict": verdict,
    }


def remarks(content: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return warnings about the model and advice, one sentence each; empty if there is nothing to say.

    Args:
        content: the content of metrics.json.
        recipe: the recipe of the dataset, the model and this evaluation.
    """
    found = _about_classes(content)
    base = content["baseline"]
    if base and base["verdict"] != "better" and base["kind"] != "majority":
        how = "is worse than" if base["verdict"] == "worse" else "is not shown to be better than"
        found.append(f"the model {how} {base['name']} on the same rows: {spell(base['difference'])}")
        found.append(f"to try: {'; '.join(_to_try(content, recipe))}")
    return found


def spell(difference: dict[str, Any]) -> str:
    """Format a difference as ``"difference in accuracy -0.0200 [-0.0400, +0.0100]"``."""
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    if value is None or low is None:
        return f"{difference['metric']} of one of the two cannot be computed"
    return f"difference in {difference['metric']} {value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _about_classes(content: dict[str, Any]) -> list[str]:
    if not content["confusion"]:
        return []
    matrix, classes = np.array(content["confusion"]), content["classes"]
    given = np.flatnonzero(matrix.sum(0))
    if len(given) == 1 and len(classes) > 1:
        return [f"the model answers '{classes[given[0]]}' to every test row: it has learnt nothing from the texts"]
    missed = [classes[i] for i in np.flatnonzero((np.diag(matrix) == 0) & (matrix.sum(1) > 0))]
    if not missed:
        return []
    names = ", ".join(f"'{name}'" for name in missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
    rows = int(matrix.sum(1)[[classes.index(name) for name in missed]].sum())
    plural = "es" if len(missed) > 1 else ""
    return [f"recall is 0 for class{plural} {names}: none of {rows:,} test rows found"]


def _to_try(content: dict[str, Any], recipe: Recipe) -> list[str]:
    proposals = []
    if not recipe.model.pretrained:
        proposals.append("pretrained weights (model.pretrained=DIR, with model.preset=base), which help most")
    if content["baseline"]["train_rows"] < SMALL:
        proposals.append("more rows to train on")
    if recipe.data.tokenizer != "train":
        proposals.append("a vocabulary of your own text (data.tokenizer=train)")
    return proposals or ["another learning rate (training.learning_rate) or more epochs (training.epochs)"]


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
