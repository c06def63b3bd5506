"""Renders pages from templates: everything is escaped, and numbers, times and links have one format."""

import math
import re
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from xlnet import __version__
from xlnet.lineage.facts import size
from xlnet.redaction import visible
from xlnet_pipeline.commands.tables import duration, local_time
from xlnet_pipeline.ui import safety
from xlnet_pipeline.ui.site import LOCAL, site_of

# Characters that change the direction of the text after them. They are escaped, so that nobody misreads a name.
_TURNING = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
NAVIGATION = {
    "/runs": "Runs",
    "/models": "Models",
    "/data": "Data",
    "/lineage": "Lineage",
    "/schedules": "Schedules",
    "/api": "API",
}


def page(request: Request, template: str, *, title: str, status: int = 200, **values: Any) -> Response:
    """Render a page.

    Args:
        request: the request to answer.
        template: file name in ``templates``.
        title: the page's title in the browser.
        status: HTTP status.
        values: the template's variables.
    """
    site = site_of(request)
    text = environment().get_template(template).render(
        title=title,
        request=request,
        path=request.url.path,
        token=Markup('<input type="hidden" name="{}" value="{}">').format(safety.FIELD, safety.form_token(request)),
        home=str(site.home),
        targets=site.targets,
        said=request.query_params.get("said", "")[:500],
        **values,
    )  # fmt: skip
    return HTMLResponse(text.encode("utf-8", "replace"), status)


def fragment(template: str, **values: Any) -> str:
    """Render a part of a page."""
    return environment().get_template(template).render(**values)


def problem(request: Request, status: int, title: str, text: str) -> Response:
    """Answer with an error page, or below ``/api`` with JSON."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": text, "status": status}, status)
    values = {"title": title, "text": text, "path": request.url.path, "token": "", "home": "", "said": ""}
    made = environment().get_template("problem.html").render(**values, targets=[LOCAL])
    return HTMLResponse(made.encode("utf-8", "replace"), status)


def download(text: str, name: str, media_type: str) -> Response:
    """Send a text as a file with this name."""
    kept = {"content-disposition": f'attachment; filename="{name}"'}
    return PlainTextResponse(text, media_type=media_type, headers=kept)


def redirect(path: str, said: str = "", **query: str) -> Response:
    """Redirect the browser to another page, which shows ``said`` at its top."""
    words = {**query, **({"said": said} if said else {})}
    return RedirectResponse(path + (f"?{urlencode(words)}" if words else ""), 303)


@cache
def environment() -> Environment:
    """Return the templates with their filters."""
    made = Environment(
        loader=PackageLoader("xlnet_pipeline.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
        auto_reload=False,
    )
    made.globals.update(
        navigation=NAVIGATION, version=__version__, run_path=run_path, model_path=model_path, local=LOCAL
    )
    made.filters.update(
        moment=moment, duration=_duration, figure=figure, size=size, name=_plain, short=short, part=quoted,
        query=with_query, words=words,
    )  # fmt: skip
    return made


def _plain(value: Any) -> Any:
    """Escape control characters, and characters that change the direction of text."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return _TURNING.sub(lambda found: f"\\u{ord(found.group()):04x}", visible(value))


def moment(text: str | None) -> Markup:
    """Show an ISO 8601 time in the server's time zone, with the exact time as a tooltip."""
    if not text:
        return Markup("–")
    try:
        shown = local_time(text) or ""
    except ValueError:
        return escape(_plain(str(text)))
    return Markup('<time datetime="{}" title="{}">{}</time>').format(text, text, shown[:-3])


def _duration(seconds: float | None) -> str:
    return duration(seconds) or "–"


def figure(value: Any, digits: int = 4) -> str:
    """Format a number for a table; a dash for None, nan and infinity."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"
    return str(value)


def short(digest: str) -> str:
    """Return the first digits of a digest."""
    return str(digest).partition(":")[2][:12] or str(digest)[:12]


def quoted(text: str) -> str:
    """Quote a text for one part of a path."""
    return quote(str(text), safe="", errors="replace")


def run_path(run: Any, tab: str = "") -> str:
    """Return the address of a run's page, for a record or a row."""
    path = f"/runs/{quoted(run.id)}" + (f"/{tab}" if tab else "")
    remote = "" if run.target in (LOCAL, "docker") else f"?target={quoted(run.target)}"
    return path + remote


def model_path(reference: str) -> str:
    """Return the address of the page of ``NAME:VERSION``."""
    name, _, version = reference.rpartition(":")
    return f"/models/{quoted(name)}/{quoted(version)}"


def with_query(request: Request, **changes: Any) -> str:
    """Return the request's address with changed query parameters; None removes a parameter."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changes]
    kept = [pair for pair in kept if pair[0] != "said"]
    kept += [(name, str(value)) for name, value in changes.items() if value is not None]
    return request.url.path + (f"?{urlencode(kept)}" if kept else "")


def words(text: str) -> str:
    """Turn a field's name into words."""
    return str(text).replace("_", " ")
