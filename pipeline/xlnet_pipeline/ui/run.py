"""Pages about one run: its steps while they run, logs, curves, evaluation, recipe, and how to repeat or stop it."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from xlnet import provenance
from xlnet.errors import Missing, UserError
from xlnet.redaction import redacted
from xlnet.steps import STEPS, before
from xlnet_pipeline.commands.tables import duration
from xlnet_pipeline.lineage import drawing
from xlnet_pipeline.reference.recipe import toml
from xlnet_pipeline.targets import Run, progress, record
from xlnet_pipeline.ui import curves, evaluation, logs, pages
from xlnet_pipeline.ui.row import row_of
from xlnet_pipeline.ui.safety import Form, checked
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

TABS = {"": "Steps", "log": "Log", "metrics": "Metrics", "evaluation": "Evaluation", "lineage": "Lineage"}


def found(request: Request) -> Run:
    """Return the run that the address names."""
    return site_of(request).run(request.path_params["run"], request.query_params.get("target", LOCAL))


def tab_page(request: Request, run: Run, tab: str, **values: Any) -> Response:
    """Make the page of one tab of a run."""
    title = f"{TABS[tab]} · {run.id}"
    row = row_of(run)
    return pages.page(
        request, f"run_{tab or 'steps'}.html", title=title, run=run, row=row, tab=tab, tabs=TABS, **values
    )


def steps(request: Request) -> Response:
    """Show the steps as they run, the recipe, and how to repeat the run."""
    site, run = site_of(request), found(request)
    if run.id != request.path_params["run"]:
        return pages.redirect(pages.run_path(run))
    return tab_page(
        request,
        run,
        "",
        panel=Markup(panel(site, run)),
        recipe=recipe_toml(run.recipe),
        changed=_changed(run.recipe),
        command=repeat(run),
        facts=_facts(run),
    )


def panel(site: Site, run: Run) -> str:
    """Render the part of the page that changes while the run is running."""
    here = run.target in (LOCAL, "docker")
    far = ""
    training = [one.name for one in run.steps if one.status == record.RUNNING and STEPS[one.name].trains]
    if here and training:
        folder = site.home / "runs" / run.id / "logs"
        path = folder / f"{training[0]}.log"
        far = progress.of(logs.tail(path).lines if path.is_file() else [], folder)
    return pages.fragment("run_panel.html", run=run, dag=dag(run), far=far, here=here)


def dag(run: Run) -> Markup:
    """Draw the steps, each with its status and duration."""
    boxes, edges = [], []
    names = [step.name for step in run.steps]
    for number, step in enumerate(run.steps):
        time = duration(step.seconds) or ""
        link = pages.run_path(run, "log") + ("&" if "?" in pages.run_path(run) else "?") + f"step={step.name}"
        lines = (step.status.lower(), STEPS[step.name].title if step.name in STEPS else step.name, time or "–")
        boxes.append(drawing.Box(step.name, lines, f"status-{step.status.lower()}", link, step.reason or ""))
        needed = [one for one in before(step.name) if one in names] if step.name in STEPS else []
        edges += [(needed[-1] if needed else names[number - 1], step.name)] if number else []
    return drawing.draw(boxes, edges, "The run's steps")


def log(request: Request) -> Response:
    """Show the end of a step's log, or its lines that a search finds."""
    site, run = site_of(request), found(request)
    search = request.query_params.get("search", "").strip()[:200]
    step = logs.chosen(run, request.query_params.get("step", ""))
    shown = logs.read(site, run, step, search) if step else logs.Lines([])
    here = run.target in (LOCAL, "docker")
    live = here and step is not None and step.status == record.RUNNING and not search
    return tab_page(request, run, "log", step=step, shown=shown, search=search, live=live, here=here)


def log_file(request: Request) -> Response:
    """Send a step's whole log."""
    site, run = site_of(request), found(request)
    name = request.path_params["step"]
    step = next((one for one in run.steps if one.name == name), None)
    if step is None:
        raise UserError(f"step '{name}' is unknown; allowed: {', '.join(one.name for one in run.steps)}")
    name = f"{run.id}-{step.name}.log"
    if path := logs.place(site, run, step):
        return FileResponse(path, media_type="text/plain; charset=utf-8", filename=name)
    if run.target in (LOCAL, "docker"):
        raise Missing(f"step '{step.name}' of run '{run.id}' has no log")
    lines = site.target(run.target).logs(run.id, step.name)
    return pages.download("".join(f"{line}\n" for line in lines), name, "text/plain")


def metrics(request: Request) -> Response:
    """Show the training's curves."""
    site, run = site_of(request), found(request)
    shown = curves.read(site, run)
    return tab_page(request, run, "metrics", curves=shown, drawn=[Markup(one) for one in curves.drawn(shown)])


def metrics_csv(request: Request) -> Response:
    """Send the curves as a table."""
    run = found(request)
    return pages.download(curves.read(site_of(request), run).csv(), f"{run.id}-metrics.csv", "text/csv")


def judged(request: Request) -> Response:
    """Show the evaluation: metrics, confusions, and the predictions as a table."""
    site, run = site_of(request), found(request)
    return tab_page(request, run, "evaluation", **evaluation.shown(site, run, request.query_params))


def recipe_file(request: Request) -> Response:
    """Send the recipe as a file that ``xlnet-pipeline run`` takes."""
    run = found(request)
    return pages.download(recipe_toml(run.recipe), f"{run.id}.toml", "application/toml")


def cancel(request: Request, form: Form) -> Response:
    """Stop the run, and wait until it has stopped."""
    run = found(request)
    ended = site_of(request).target(run.target).cancel(run.id)
    return pages.redirect(f"/runs/{pages.quoted(ended.id)}", f"run {ended.id}: {ended.status}", target=run.target)


def recipe_toml(recipe: Mapping[str, Mapping[str, Any]]) -> str:
    """Format a recipe as TOML. Fields that are None are left out, because TOML has no null."""
    lines = []
    for section, fields in redacted(dict(recipe)).items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {toml(value)}" for name, value in fields.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _changed(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the fields that differ from the demo's recipe; None if the recipe trains on other data."""
    from xlnet import recipe as recipes
    from xlnet_pipeline.commands.run import DEMO_RECIPE

    base = record.flat(json.loads(recipes.load(DEMO_RECIPE).to_json()))
    fields = record.flat(recipe)
    if fields.get("data.train") != base["data.train"]:
        return None
    return {name: value for name, value in fields.items() if value is not None and base.get(name) != value}


def repeat(run: Run) -> str:
    """Return the command that repeats the run."""
    target = "" if run.target == LOCAL else f" --target {run.target}"
    changed = _changed(run.recipe)
    if changed is None or len(changed) > 6:
        return f"xlnet-pipeline run {shlex.quote(run.id)}.toml{target}"
    settings = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changed.items())
    return "xlnet-pipeline run" + "".join(f" --set {shlex.quote(one)}" for one in settings) + target


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return other facts of the record: target, who started the run, the recipe's digest, the code's commit."""
    code = ""
    for artifact in run.artifacts:
        code = str(artifact.metadata.get("git_sha") or code)
    facts = [
        ("target", run.target),
        ("started by", f"schedule {run.schedule}" if run.schedule else "hand"),
        ("recipe", run.recipe_digest),
        ("code", code or provenance.git_sha()),
    ]
    return [(name, value) for name, value in facts if value]


ROUTES = [
    Route("/runs/{run}", steps),
    Route("/runs/{run}/cancel", checked(cancel), methods=["POST"]),
    Route("/runs/{run}/recipe.toml", recipe_file),
    Route("/runs/{run}/log", log),
    Route("/runs/{run}/log/{step}.txt", log_file),
    Route("/runs/{run}/metrics", metrics),
    Route("/runs/{run}/metrics.csv", metrics_csv),
    Route("/runs/{run}/evaluation", judged),
    Route("/runs/{run}/report", evaluation.report),
    Route("/runs/{run}/predictions.parquet", evaluation.predictions_file),
]
