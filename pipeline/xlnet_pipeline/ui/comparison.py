"""Compares runs side by side: different fields, metrics with paired differences, curves, and changed predictions."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet.errors import RunError, UserError
from xlnet_pipeline.targets import Run, record
from xlnet_pipeline.ui import curves, evaluation, pages
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

MOST = 6  # runs that fit side by side


def show(request: Request) -> Response:
    """Compare the runs in the address."""
    return pages.page(request, "compare.html", title="Compare", **found(request))


def found(request: Request) -> dict[str, Any]:
    """Compare the runs in the address. All differences are from the first run.

    Raises:
        UserError: there are too few or too many runs, or one does not exist.
    """
    site = site_of(request)
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if len(names) < 2:
        raise UserError(f"runs chosen: {len(names)}; choose two or more in the list of runs, and compare them there")
    if len(names) > MOST:
        raise UserError(f"runs chosen: {len(names)}; at most {MOST} fit side by side")
    rows = {row.id: row for row in site.rows()}
    runs = [site.run(name, rows[name].target if name in rows else LOCAL) for name in names]
    measured = [_measured(site, run) for run in runs]
    against = [None, *(_against(site, measured[0][1], one[1], measured[0][0]) for one in measured[1:])]
    changed = next((one for one in against if one and one.get("examples")), None)
    return {
        "runs": runs,
        "rows": [rows.get(run.id) for run in runs],
        "fields": record.differing([_facts(run) for run in runs]),
        "metrics": _table([one[0] for one in measured]),
        "against": against,
        "changed": changed,
        "pair": (runs[0], runs[against.index(changed)]) if changed else None,
        "several": json.dumps([{"id": run.id, "address": f"/api/runs/{pages.quoted(run.id)}/curves"} for run in runs]),
        "drawn": [Markup(one) for one in _drawn(site, runs)],
    }


def _facts(run: Run) -> dict[str, Any]:
    """Return the fields of a run's recipe, and what its artifacts say of data and code."""
    found = record.flat(run.recipe)
    for artifact in run.artifacts:
        facts = artifact.metadata
        if artifact.name == "dataset":
            found["data: snapshot"] = pages.short(str(facts.get("snapshot_digest") or ""))
            found["data: training rows"] = facts.get("train_rows")
        if artifact.name == "model":
            found["code"] = str(facts.get("git_sha") or "")[:12]
            found["machine"] = facts.get("accelerator")
    return found


def _measured(site: Site, run: Run) -> tuple[dict[str, Any], Path | None]:
    """Return a run's metrics and the directory of its evaluation; ``({}, None)`` if there is no evaluation here."""
    try:
        place = evaluation.folder(site, run)
        return (evaluation.content(place), place) if place else ({}, None)
    except (UserError, RunError):
        return {}, None


def _table(measured: list[dict[str, Any]]) -> dict[str, list[Mapping[str, float] | None]]:
    """Return metric → {value, low, high} of each run; None for a run without this metric."""
    names = dict.fromkeys(name for one in measured for name in one.get("metrics", {}))
    return {name: [one.get("metrics", {}).get(name) for one in measured] for name in names}


def _against(site: Site, first: Path | None, other: Path | None, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return the paired differences from the first run, metric → figures, and the changed examples."""
    if first is None or other is None:
        return None
    try:
        return site.worker.call("differences.between", str(first), str(other), content["primary"])
    except (UserError, RunError, OSError):
        return None


def _drawn(site: Site, runs: list[Run]) -> list[str]:
    from xlnet.evaluation.charts import Series, chart

    series = []
    for run, kind in zip(runs, ("one", "two", "three", "four", "five", "six"), strict=False):
        try:
            points = curves.read(site, run).points("validation_loss")
        except (UserError, RunError):
            continue
        series.append(Series(run.id, [(x, y) for x, y in points if math.isfinite(y)], kind, True))
    made = chart("Validation loss", "step", "loss", series)
    return [made] if made else []


ROUTES = [Route("/compare", show)]
