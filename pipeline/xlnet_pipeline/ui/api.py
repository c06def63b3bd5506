"""Serves everything that the pages show as JSON below ``/api``, with an OpenAPI document."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from xlnet import __version__
from xlnet.errors import Missing
from xlnet.redaction import redacted
from xlnet.registry import ModelVersion
from xlnet_pipeline.targets import Run
from xlnet_pipeline.ui import comparison, curves, data, evaluation, lineage, logs, models, pages, schedules
from xlnet_pipeline.ui.row import RunRow
from xlnet_pipeline.ui.runs import Query
from xlnet_pipeline.ui.site import LOCAL, site_of

Answer = Callable[[Request], Any]


@dataclass(frozen=True)
class Operation:
    """One address, as the OpenAPI document describes it."""

    path: str  # below /api
    summary: str
    answer: Answer
    result: str = "object"  # or "array"
    query: tuple[tuple[str, str], ...] = ()  # (name, what it means)


_PART_NAMES = {
    "run": "a run's id, or 'latest'",
    "name": "a model's name",
    "version": "a number or an alias",
    "node": "an artifact's id",
    "dataset": "a dataset's id",
}
_SEARCH = (
    ("search", "words to find in a run's id, name, data or error"),
    ("status", "such as SUCCEEDED"),
    ("target", "local, kfp or vertex"),
    ("sort", "a column, with a minus for the largest first"),
)
_TARGET = (("target", "local (default), kfp or vertex"),)


def row(one: RunRow) -> dict[str, Any]:
    """Return one run of the list as JSON."""
    found = {name: value for name, value in dataclasses.asdict(one).items() if name != "digests"}
    return found | {"steps": dict(one.steps), "seconds": one.lasted}


def _run(request: Request) -> Run:
    from xlnet_pipeline.ui.runs import newest

    site, name = site_of(request), request.path_params["run"]
    name = newest(site).id if name == "latest" else name
    return site.run(name, request.query_params.get("target", "") or LOCAL)


def list_runs(request: Request) -> Any:
    """List the runs."""
    return [row(one) for one in Query.of(request).of_rows(site_of(request).rows())]


def show_run(request: Request) -> Any:
    """Return a run's record."""
    return redacted(dataclasses.asdict(_run(request)))


def show_curves(request: Request) -> Any:
    """Return a training's curves."""
    return curves.read(site_of(request), _run(request)).plain()


def show_log(request: Request) -> Any:
    """Return the end of a step's log."""
    run, asked = _run(request), request.query_params
    step = logs.chosen(run, asked.get("step", ""))
    if step is None:
        return {"step": None, "lines": [], "note": ""}
    found = logs.read(site_of(request), run, step, asked.get("search", "").strip())
    return {"step": step.name, "lines": found.lines, "note": found.note}


def show_evaluation(request: Request) -> Any:
    """Return the metrics and confusions of a run's evaluation."""
    run = _run(request)
    place = evaluation.folder(site_of(request), run)
    if place is None:
        raise Missing(f"run '{run.id}' has no evaluation yet")
    return evaluation.content(place)


def show_predictions(request: Request) -> Any:
    """Return a page of predictions."""
    return evaluation.shown(site_of(request), _run(request), request.query_params)["found"]


def show_compare(request: Request) -> Any:
    """Compare runs."""
    found = comparison.found(request)
    return {name: found[name] for name in ("fields", "metrics", "against")}


def show_lineage(request: Request) -> Any:
    """Return the graph of all runs."""
    return lineage.plain(lineage.world(site_of(request)))


def show_node(request: Request) -> Any:
    """Return the graph around one artifact."""
    known = lineage.world(site_of(request))
    return lineage.plain(known.around(known.find(request.path_params["node"])))


def list_models(request: Request) -> Any:
    """List the models' versions."""
    return {name: [_version(one) for one in found] for name, found in models.known(site_of(request)).items()}


def show_model(request: Request) -> Any:
    """Return one version."""
    one = models.entry(site_of(request), request.path_params["name"], request.path_params["version"])
    return _version(one.version) | {"run": row(one.row) if one.row else None}


def _version(one: ModelVersion) -> dict[str, Any]:
    return redacted(dataclasses.asdict(one))


def list_data(request: Request) -> Any:
    """List the datasets."""
    return {
        name: {"uri": uri, "run": run, "facts": facts}
        for name, (uri, run, facts) in data.datasets(site_of(request)).items()
    }


def show_data(request: Request) -> Any:
    """Return a dataset's card."""
    return data.read(site_of(request), request.path_params["dataset"])[0]


def list_schedules(request: Request) -> Any:
    """List the schedules of this machine and of the configured targets that answer."""
    return [dataclasses.asdict(one.schedule) for one in schedules.every(site_of(request))[0]]


OPERATIONS = [
    Operation("/runs", "List the runs, the newest first", list_runs, "array", _SEARCH),
    Operation("/runs/{run}", "A run's record: steps, recipe, error", show_run, query=_TARGET),
    Operation("/runs/{run}/curves", "Loss, validation, learning rate and speed over steps", show_curves, query=_TARGET),
    Operation(
        "/runs/{run}/log",
        "The end of a step's log, or the lines that a search finds",
        show_log,
        query=(("step", "such as train"), ("search", "text to find"), *_TARGET),
    ),
    Operation("/runs/{run}/evaluation", "Metrics with intervals, and confusions", show_evaluation, query=_TARGET),
    Operation(
        "/runs/{run}/predictions",
        "A page of the predictions",
        show_predictions,
        query=(
            ("only", "wrong (default), right or all"),
            ("label", "the true class"),
            ("prediction", "the predicted class"),
            ("low", "lowest confidence"),
            ("high", "highest confidence"),
            ("search", "text to find"),
            ("sort", "loss, -loss, confidence or -confidence"),
            ("page", "number of the page, from 1"),
        ),
    ),
    Operation(
        "/compare",
        "Fields that differ, metrics, and paired differences from the first run",
        show_compare,
        query=(("run", "a run's id; given twice or more"),),
    ),
    Operation("/models", "Every version of every model", list_models),
    Operation("/models/{name}/{version}", "One version, and the run that made it", show_model),
    Operation("/data", "The datasets", list_data),
    Operation("/data/{dataset}", "A dataset's card", show_data),
    Operation("/lineage", "The graph of all artifacts", show_lineage),
    Operation("/lineage/{node}", "What an artifact was made from, and what was made from it", show_node),
    Operation("/schedules", "The schedules", list_schedules, "array"),
]


def document(operations: list[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    error = {"type": "object", "required": ["error", "status"], "properties": {"error": {"type": "string"}}}
    paths = {f"/api{one.path}": {"get": _described(one)} for one in operations}
    return {
        "openapi": "3.1.0",
        "info": {"title": "xlnet-pipeline", "version": __version__, "description": "Runs, models, data and lineage."},
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }


def _described(one: Operation) -> dict[str, Any]:
    parts = [word[1:-1] for word in one.path.split("/") if word.startswith("{")]
    text = {"type": "string"}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": text, "description": _PART_NAMES.get(name, name)}
        for name in parts
    ] + [{"name": name, "in": "query", "schema": text, "description": words} for name, words in one.query]
    wrong = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": one.summary,
        "operationId": one.answer.__name__,
        "parameters": parameters,
        "responses": {
            "200": {"description": one.summary, "content": {"application/json": {"schema": {"type": one.result}}}},
            "404": {"description": "It does not exist", "content": wrong},
            "409": {"description": "It is damaged or gone", "content": wrong},
            "422": {"description": "It cannot be done; the error says why", "content": wrong},
            "504": {"description": "The target does not answer", "content": wrong},
        },
    }


def routes(operations: list[Operation]) -> list[Route]:
    """Return the routes of the operations, of the document, and of the page that shows it."""
    described = document(operations)

    def endpoint(answer: Answer) -> Callable[[Request], Response]:
        return lambda request: JSONResponse(_finite(answer(request)))

    def page(request: Request) -> Response:
        return pages.page(request, "api.html", title="API", operations=operations)

    return [
        Route("/api", page),
        Route("/api/openapi.json", lambda request: JSONResponse(described)),
        *(Route(f"/api{one.path}", endpoint(one.answer)) for one in operations),
    ]


def _finite(value: Any) -> Any:
    """Replace nan and infinity by null, since JSON has no such numbers, and invalid characters by question marks."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
