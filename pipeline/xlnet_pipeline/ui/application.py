"""The web application: its routes, its access control, and its error pages."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from xlnet import http
from xlnet.errors import Missing, RunError, UserError
from xlnet.http import Unreachable
from xlnet_pipeline.ui import api, comparison, data, lineage, live, models, pages, run, runs, schedules
from xlnet_pipeline.ui.catalogue import LONGEST
from xlnet_pipeline.ui.safety import Guard, Refused
from xlnet_pipeline.ui.site import Site

STATIC = Path(__file__).parent / "static"


def application(site: Site, token: str = "") -> Guard:
    """Make the application.

    Args:
        site: the state directory and targets to show.
        token: the access token that browsers on other machines need; empty: only this machine is answered.
    """
    routes: list[BaseRoute] = [
        Route("/", lambda request: pages.redirect("/runs")),
        Mount("/static", _Files(directory=STATIC)),
        *runs.ROUTES,
        *run.ROUTES,
        *live.ROUTES,
        *lineage.ROUTES,
        *comparison.ROUTES,
        *models.ROUTES,
        *data.ROUTES,
        *schedules.ROUTES,
        *api.routes(api.OPERATIONS),
    ]
    made = Starlette(
        routes=routes,
        middleware=[Middleware(_Impatient)],
        exception_handlers={
            UserError: _mistake,
            Unreachable: lambda request, error: pages.problem(request, 504, "The target does not answer", str(error)),
            RunError: lambda request, error: pages.problem(request, 409, "Not possible", str(error)),
            ModuleNotFoundError: _not_installed,
            HTTPException: _http,
            Exception: _bug,
        },
    )
    made.state.site = site
    return Guard(made, token, pages.problem)


class _Impatient:
    """Makes pages wait for a target for a shorter time than commands do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with http.patience(LONGEST):
            await self.app(scope, receive, send)


class _Files(StaticFiles):
    """Serves the style sheet and scripts. Browsers cache them, but ask each time whether they have changed."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        answer = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        answer.headers["cache-control"] = "no-cache"
        return answer


def _mistake(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return pages.problem(request, error.status, "Not done", str(error))
    unknown = isinstance(error, Missing) or " unknown" in str(error)
    return pages.problem(request, 404 if unknown else 422, "Not found" if unknown else "Not possible", str(error))


def _not_installed(request: Request, error: Exception) -> Response:
    name = getattr(error, "name", "") or str(error)
    text = f"{name} is not installed; type: pip install 'xlnet-pipeline[pipeline]'"
    return pages.problem(request, 501, "A library is missing", text)


def _http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    if status == 405:
        return pages.problem(request, 405, "Not allowed", f"this address does not take {request.method}")
    text = f"there is no page '{request.url.path}'; the pages are listed above"
    return pages.problem(request, status, "Not found" if status == 404 else "Not possible", text)


def _bug(request: Request, error: Exception) -> Response:
    text = f"the server has a bug ({type(error).__name__}); please report it, with the traceback in its terminal"
    return pages.problem(request, 500, "A bug in this program", text)
