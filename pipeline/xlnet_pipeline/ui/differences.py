"""Compares the predictions of two evaluations. This runs in the helper process."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.evaluation.comparison import compare
from xlnet.recipe import EvaluationRecipe
from xlnet.registry.gate import paired, read_predictions
from xlnet_pipeline.ui.predictions import changed

PREDICTIONS = "predictions.parquet"


def between(first: str, other: str, primary: str) -> dict[str, Any]:
    """Return the paired difference other − first on the same test rows, and the examples whose prediction changed.

    Args:
        first: directory of an evaluation.
        other: directory of another evaluation.
        primary: the primary metric.

    Returns:
        ``same`` (whether both evaluations have the same rows), ``difference``, ``low``, ``high`` (of the primary
        metric), and ``examples``, see :func:`xlnet_pipeline.ui.predictions.changed`; language models have none.

    Raises:
        UserError: an evaluation has no recipe or no predictions.
    """
    was, now = (Path(one, PREDICTIONS) for one in (first, other))
    if (_is_of_documents(was), _is_of_documents(now)) != (False, False):
        return _of_documents(was, now, recipes.of_artifact(other).evaluation)
    ours, theirs = read_predictions(Path(other)), read_predictions(Path(first))
    if ours.truth != theirs.truth:
        return {"same": False}
    classes = sorted({str(one) for one in ours.truth}) if ours.truth and isinstance(ours.truth[0], str) else []
    recipe = recipes.of_artifact(other).evaluation
    try:
        found = compare(*paired(ours, theirs, classes), primary, recipe)
    except ValueError as error:
        raise UserError(str(error)) from None
    figures = {"same": True, "metric": primary, "difference": found.difference, "low": found.low, "high": found.high}
    return figures | {"examples": changed(str(was), str(now))}


def _is_of_documents(file: Path) -> bool:
    """Whether the predictions are those of a language model."""
    return file.is_file() and "bytes" in pq.read_schema(file).names


def _of_documents(first: Path, other: Path, recipe: EvaluationRecipe) -> dict[str, Any]:
    """Return the difference in bits per byte of two language models; their tokenizers may differ."""
    from xlnet.evaluation.language import ratio  # late: it loads torch

    if not (_is_of_documents(first) and _is_of_documents(other)):
        return {"same": False}
    was, now = (pq.read_table(file, columns=["text", "loss", "bytes"]) for file in (first, other))
    if was["text"] != now["text"]:
        return {"same": False}
    more = (now["loss"].to_numpy() - was["loss"].to_numpy()) / math.log(2)
    found = ratio(more, now["bytes"].to_numpy(), recipe)
    return {"same": True, "metric": "bits_per_byte", "difference": found.value, "low": found.low, "high": found.high}
