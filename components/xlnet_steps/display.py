"""Shows an evaluation on the backends' own pages: metrics, confusion matrix, ROC curve and report."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

ROC_POINTS = 200  # a backend stores the curve as metadata, which should stay small


def show(evaluation: str, metrics: dsl.Metrics, classification: dsl.ClassificationMetrics, report: dsl.HTML) -> None:
    """Fill the artifacts that Kubeflow Pipelines and Vertex AI display from an evaluation directory."""
    found = json.loads(Path(evaluation, "metrics.json").read_text(encoding="utf-8"))
    for name, figure in found["metrics"].items():
        metrics.log_metric(name, figure["value"])
    if found["task"] == "classification":
        classification.log_confusion_matrix(found["classes"], found["confusion"])
    if found.get("roc"):
        classification.log_roc_curve(*_thinned(found["roc"]))
    shutil.copyfile(Path(evaluation, "report.html"), report.path)


def stated(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the facts that a backend can store. A null, nan or infinity would make the step fail."""
    return {key: found for key, value in facts.items() if (found := _storable(value)) is not None}


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return stated(value)
    if isinstance(value, list | tuple):
        return [found for one in value if (found := _storable(one)) is not None]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _thinned(roc: dict[str, list[float]]) -> tuple[list[float], list[float], list[float]]:
    """Keep at most ROC_POINTS of the curve, including both ends. JSON has no infinity, so the first threshold is 1."""
    last = len(roc["fpr"]) - 1
    points = min(last + 1, ROC_POINTS)
    chosen = [round(index * last / max(1, points - 1)) for index in range(points)]
    thresholds = [1.0 if math.isinf(roc["thresholds"][index]) else roc["thresholds"][index] for index in chosen]
    return [roc["fpr"][index] for index in chosen], [roc["tpr"][index] for index in chosen], thresholds
