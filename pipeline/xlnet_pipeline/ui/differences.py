"""Compares the predictions of two evaluations. This runs in the helper process."""

from pathlib import Path
from typing import Any

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.evaluation.comparison import compare
from xlnet.registry.gate import paired, read_predictions
from xlnet_pipeline.ui.predictions import changed


def between(first: str, other: str, primary: str) -> dict[str, Any]:
    """Return the paired difference other − first on the same test rows, and the examples whose prediction changed.

    Args:
        first: directory of an evaluation.
        other: directory of another evaluation.
        primary: the primary metric.

    Returns:
        ``same`` (whether both evaluations have the same rows), ``difference``, ``low``, ``high`` (of the primary
        metric), and ``examples``, see :func:`xlnet_pipeline.ui.predictions.changed`.

    Raises:
        UserError: an evaluation has no recipe or no predictions.
    """
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
    was, now = (str(Path(one, "predictions.parquet")) for one in (first, other))
    return figures | {"examples": changed(was, now)}
