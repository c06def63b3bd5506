"""Pages about registered models: versions, gate decisions, promotion, rollback, removal, and predicting a text."""

import threading
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet.errors import Missing, UserError, nearest
from xlnet.registry import CHAMPION, ModelVersion
from xlnet_pipeline.ui import pages
from xlnet_pipeline.ui.pages import quoted
from xlnet_pipeline.ui.row import RunRow
from xlnet_pipeline.ui.safety import Form, Handler, checked
from xlnet_pipeline.ui.site import Site, site_of

FRESH = 5.0  # seconds before the registry is asked again
LONGEST = 20_000  # maximum characters of a text to predict
_lock = threading.Lock()
_kept: dict[int, tuple[object, float, dict[str, list[ModelVersion]]]] = {}


@dataclass(frozen=True)
class Entry:
    """A version, and the run that made it."""

    version: ModelVersion
    row: RunRow | None

    @property
    def reference(self) -> str:
        """The version as ``NAME:VERSION``."""
        return f"{self.version.name}:{self.version.version}"

    @property
    def champion(self) -> bool:
        """Whether it has the alias ``champion``."""
        return CHAMPION in self.version.aliases


def known(site: Site) -> dict[str, list[ModelVersion]]:
    """Return the versions of every model, the newest first."""
    file = site.home / "mlflow.db"
    key = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    with _lock:
        kept = _kept.get(id(site))
        if kept is None or kept[0] != key or time.monotonic() - kept[1] > FRESH:
            found = site.worker.call("registered.versions", site.options())
            _kept.clear()
            kept = _kept[id(site)] = (key, time.monotonic(), found)
    return kept[2]


def entries(site: Site, name: str) -> list[Entry]:
    """Return a model's versions, the newest first; raise Missing if there is no such model."""
    models = known(site)
    if name not in models:
        raise Missing(f"model '{name}' is unknown{nearest(name, models)}; /models lists all")
    rows = {row.id: row for row in site.rows()}
    return [Entry(one, rows.get(one.tags.get("run", ""))) for one in models[name]]


def entry(site: Site, name: str, number: str) -> Entry:
    """Return one version; raise Missing if there is no such version."""
    found = entries(site, name)
    for one in found:
        if str(one.version.version) == number or number in one.version.aliases:
            return one
    listed = ", ".join(str(one.version.version) for one in found)
    raise Missing(f"model '{name}' has no version '{number}'; it has: {listed}")


def listing(request: Request) -> Response:
    """List the models."""
    site = site_of(request)
    shown = [entries(site, name) for name in known(site)]
    return pages.page(request, "models.html", title="Models", models=shown)


def model(request: Request) -> Response:
    """Show a model's versions, and their metric over time."""
    site, name = site_of(request), request.path_params["name"]
    found = entries(site, name)
    rows = [one.row for one in found if one.row and one.row.value is not None]
    bounds = [bound for row in rows for bound in (row.low, row.high, row.value) if bound is not None]
    before = site.worker.call("registered.previous", site.options(), name)
    scale = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
    return pages.page(request, "model.html", title=name, name=name, entries=found, scale=scale, before=before)


def version(request: Request) -> Response:
    """Show one version."""
    return _version_page(request)


def _version_page(request: Request, **values: Any) -> Response:
    site = site_of(request)
    one = entry(site, request.path_params["name"], request.path_params["version"])
    base: dict[str, Any] = {"text": "", "pair": "", "tried": None, "problem": ""}
    pairs = _recipe(site, one).get("text_pair") is not None
    return pages.page(
        request,
        "version.html",
        title=one.reference,
        entry=one,
        pairs=pairs,
        consequences=_consequences(site, one),
        **{**base, **values},
    )


def _recipe(site: Site, one: Entry) -> dict[str, Any]:
    if one.row is None:
        return {}
    try:
        return dict(site.run(one.row.id, one.row.target).recipe.get("data", {}))
    except (UserError, RuntimeError):
        return {}


def _consequences(site: Site, one: Entry) -> list[str]:
    """Say what deleting a version would change, one sentence each."""
    said = []
    if one.version.aliases:
        said.append(f"it is {', '.join(one.version.aliases)}: promote another version first")
    for other in known(site)[one.version.name]:
        if other.tags.get("champion_before") == str(one.version.version):
            said.append(f"version {other.version} could no longer be rolled back to it")
    if len(known(site)[one.version.name]) == 1:
        said.append("it is the only version: the model's name is deleted too")
    said.append("its files stay until 'xlnet-pipeline runs prune' removes them; its run stays in the list")
    return said


def changing(how: str) -> Handler:
    """Make a handler that changes a version or a model by a function of ``registered``, and says what was done."""

    def handler(request: Request, form: Form) -> Response:
        site, named = site_of(request), request.path_params
        name, number = named["name"], named.get("version")
        reference = entry(site, name, number).reference if number else name
        said = site.worker.call(f"registered.{how}", site.options(), reference)
        _kept.clear()
        return pages.redirect(f"/models/{quoted(name)}" if name in known(site) else "/models", said)

    return handler


def attempt(request: Request, form: Form) -> Response:
    """Predict a text with a version."""
    site = site_of(request)
    one = entry(site, request.path_params["name"], request.path_params["version"])
    text, pair = form.get("text", [""])[0][:LONGEST], form.get("pair", [""])[0][:LONGEST]
    place = one.version.model_uri
    values: dict[str, Any] = {"text": text, "pair": pair}
    try:
        directory = place if "://" in place else str(site.inside(place))
        values["tried"] = _shaded(site.worker.call("registered.attempt", directory, text, pair or None))
    except UserError as error:
        values["problem"] = str(error)
    return _version_page(request, **values)


def _shaded(tried: dict[str, Any]) -> dict[str, Any]:
    """Turn each word's effect into a shade from 0 to 5 and a direction."""
    if tried["words"] is None:
        return tried
    largest = max((abs(effect) for side in tried["words"] for _, effect in side), default=0.0) or 1.0
    tried["words"] = [
        [(word, effect, round(5 * abs(effect) / largest), "for" if effect > 0 else "against") for word, effect in side]
        for side in tried["words"]
    ]
    return tried


ROUTES = [
    Route("/models", listing),
    Route("/models/{name}", model),
    Route("/models/{name}/rollback", checked(changing("roll_back")), methods=["POST"]),
    Route("/models/{name}/{version}", version),
    Route("/models/{name}/{version}/promote", checked(changing("promote")), methods=["POST"]),
    Route("/models/{name}/{version}/delete", checked(changing("delete")), methods=["POST"]),
    Route("/models/{name}/{version}/try", checked(attempt), methods=["POST"]),
]
