"""Pages about the schedules of every target: past and next runs on a timeline, drift, pause, resume, and run now."""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet_pipeline.commands.schedule import drift_of
from xlnet_pipeline.targets import Submission, schedules
from xlnet_pipeline.targets.schedules import Schedule
from xlnet_pipeline.ui import pages
from xlnet_pipeline.ui.row import RunRow
from xlnet_pipeline.ui.safety import Form, checked
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

BEFORE, AFTER = 3, 7  # days that the timeline shows


@dataclass(frozen=True)
class Shown:
    """A schedule with its runs, its differences from the current recipe, and its times as places on the timeline."""

    schedule: Schedule
    runs: list[RunRow]
    drift: list[str] | None
    past: list[tuple[float, str]]  # (place from 0 to 1000, time)
    coming: list[tuple[float, str]]


def listing(request: Request) -> Response:
    """Show the schedules of all targets."""
    shown, problems = every(site_of(request))
    days = [(f"{_at(day * 86400):.0f}", day) for day in range(-BEFORE, AFTER + 1)]
    return pages.page(request, "schedules.html", title="Schedules", schedules=shown, problems=problems, days=days)


def every(site: Site) -> tuple[list[Shown], list[str]]:
    """Return the schedules of all targets, and a line for each target that does not answer."""
    shown = [_shown(site, one) for one in site.local.schedules().all()] if _any(site) else []
    problems = []
    for name, remote in site.remote_schedules.items():
        shown += [_shown(site, one) for one in remote.found()]
        problems += [f"target {name} does not answer: {remote.problem}"] if remote.problem else []
    return shown, problems


def _any(site: Site) -> bool:
    return any((site.home / "schedules").glob("*.json"))


def _shown(site: Site, one: Schedule) -> Shown:
    runs = [row for row in site.rows() if row.started_by == f"schedule {one.name}" and row.target == one.target]
    try:
        drift = drift_of(site.options(image=None), site.target(one.target), one)
    except (UserError, RunError):
        drift = None
    past = [_placed(row.created) for row in runs]
    coming = [_placed(time) for time in one.timing.coming(60)] if one.state == schedules.ACTIVE else []
    return Shown(one, runs[:5], drift, [x for x in past if x], [x for x in coming if x])


def _placed(moment: str) -> Any:
    seconds = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    inside = -timedelta(days=BEFORE).total_seconds() < seconds < timedelta(days=AFTER).total_seconds()
    return (_at(seconds), moment) if inside else None


def _at(seconds: float) -> float:
    return 1000 * (seconds / 86400 + BEFORE) / (BEFORE + AFTER)


def _find(request: Request) -> tuple[Site, Schedule, str]:
    site, target = site_of(request), request.query_params.get("target", LOCAL)
    return site, schedules.find(request.path_params["name"], site.target(target).schedules().all()), target


def pause(request: Request, form: Form) -> Response:
    """Pause a schedule."""
    site, one, target = _find(request)
    site.target(target).schedules().pause(one.name)
    return pages.redirect("/schedules", f"schedule {one.name}: PAUSED")


def resume(request: Request, form: Form) -> Response:
    """Resume a paused schedule."""
    site, one, target = _find(request)
    again = site.target(target).schedules().resume(one.name)
    return pages.redirect("/schedules", f"schedule {one.name}: ACTIVE, next run {again.next_run}")


def run_now(request: Request, form: Form) -> Response:
    """Start a run of a schedule now. A local run gets a process of its own, which goes on when the server ends."""
    site, one, target = _find(request)
    if target == LOCAL:
        command = [sys.executable, "-m", "xlnet_pipeline.targets.local.scheduled", str(site.home), one.name]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
        return pages.redirect("/runs", f"schedule {one.name}: a run has been started; it is listed in a moment")
    recipe = recipes.from_json(json.dumps(dict(one.recipe)))
    asked = Submission(recipe, image=one.image or "", machine=one.machine or "")
    started = site.target(target).submit(asked)
    return pages.redirect("/runs", f"schedule {one.name}: run {started.id} has been started")


ROUTES = [
    Route("/schedules", listing),
    Route("/schedules/{name}/pause", checked(pause), methods=["POST"]),
    Route("/schedules/{name}/resume", checked(resume), methods=["POST"]),
    Route("/schedules/{name}/run", checked(run_now), methods=["POST"]),
]
