"""Pages about a run's evaluation: metrics, confusion matrix, report, and a table of predictions with filters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from xlnet.errors import Missing, RunError
from xlnet_pipeline.targets import Run
from xlnet_pipeline.ui.safety import REPORT_POLICY
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

FILES = ("metrics.json", "report.html", "predictions.parquet")
MATRIX_CLASSES = 20  # a larger confusion matrix is left to the report


def folder(site: Site, run: Run) -> Path | None:
    """Return the directory of a run's evaluation; None before it has ended.

    Raises:
        UserError: the directory is gone, or outside the state directory.
    """
    for step in run.steps:
        if step.name == "evaluate" and isinstance(step.outputs.get("evaluation"), dict):
            return site.files(step.outputs["evaluation"]["uri"], FILES)
    return None


def content(place: Path) -> dict[str, Any]:
    """Read ``metrics.json``.

    Raises:
        RunError: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{place / 'metrics.json'}' cannot be read ({error}); run the recipe again") from None
    return found


def shown(site: Site, run: Run, question: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of an evaluation shows."""
    place = folder(site, run)
    if place is None:
        return {"content": None, "found": None, "question": question, "matrix": []}
    measured = content(place)
    file = place / "predictions.parquet"
    asked = {name: question.get(name, "") for name in ("label", "prediction", "search", "low", "high")}
    asked |= {"only": question.get("only", "wrong"), "sort": question.get("sort", "-loss")}
    asked["page"] = question.get("page", "1")
    rows = site.worker.call("predictions.select", str(file), asked) if file.is_file() else None
    return {"content": measured, "found": rows, "question": asked, "matrix": _matrix(measured)}


def _matrix(measured: dict[str, Any]) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """Return (true class, [(predicted class, rows, tenths of the true class's rows)]) for each class."""
    classes, counts = measured.get("classes") or [], measured.get("confusion") or []
    if not classes or len(classes) > MATRIX_CLASSES:
        return []
    return [
        (name, [(other, n, round(10 * n / max(1, sum(row)))) for other, n in zip(classes, row, strict=True)])
        for name, row in zip(classes, counts, strict=True)
    ]


def report(request: Request) -> Response:
    """Send the report, with a security policy under which it can neither run scripts nor load anything."""
    place = _place(request)
    file = place / "report.html"
    if not file.is_file():
        raise Missing(f"'{file}' is gone; run the recipe again to make it anew")
    return HTMLResponse(file.read_bytes(), headers={"content-security-policy": REPORT_POLICY})


def predictions_file(request: Request) -> Response:
    """Send the predictions."""
    file = _place(request) / "predictions.parquet"
    if not file.is_file():
        raise Missing(f"'{file}' is gone; run the recipe again to make it anew")
    name = f"{request.path_params['run']}-predictions.parquet"
    return FileResponse(file, media_type="application/vnd.apache.parquet", filename=name)


def _place(request: Request) -> Path:
    site = site_of(request)
    run = site.run(request.path_params["run"], request.query_params.get("target", LOCAL))
    place = folder(site, run)
    if place is None:
        raise Missing(f"run '{run.id}' has no evaluation yet")
    return place
