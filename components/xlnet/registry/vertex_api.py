"""A client for Vertex AI's REST API: JSON over google-auth's session, with time-outs, retries and one-line errors.

Google's own client takes seconds to import and would make every image larger, and we need only a small part of it.
The tests check each request body against that client's message classes, and read the results with that client.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xlnet import http
from xlnet.errors import RunError, UserError
from xlnet.http import Endpoint, HttpError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN = "GOOGLE_OAUTH_ACCESS_TOKEN"  # variable with an access token
OPERATION_WAIT = 600.0  # maximum seconds for a long-running operation
FIRST_POLL = 0.5
PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,99}")  # an id or a number; old ids start with their domain
LOCATION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class VertexApi:
    """The API for one location of one project."""

    def __init__(self, project: str, location: str, endpoint: str = "") -> None:
        """Take a project and location. No request is sent yet.

        Raises:
            UserError: the project or location is not valid, or there are no credentials.
        """
        for what, given, allowed in (("project", project, PROJECT), ("location", location, LOCATION)):
            if not allowed.fullmatch(given):
                raise UserError(f"'{given}' is not a Vertex AI {what}; allowed: small letters, digits and '-'")
        self.parent = f"projects/{project}/locations/{location}"
        self.base = (endpoint or f"https://{location}-aiplatform.googleapis.com").rstrip("/")
        self.server = Endpoint(
            "Vertex AI",
            self.base,
            "type: gcloud auth application-default login",
            f"ask for the role roles/aiplatform.user in project '{project}'",
        )

    @functools.cached_property
    def session(self) -> Any:
        """The HTTP session with the user's credentials, which are looked up for the first request."""
        return _session()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str | int] | None = None,
        recover: Callable[[], dict[str, Any] | None] | None = None,
    ) -> dict[str, Any]:
        """Send one request; see :func:`xlnet.http.repeated` for ``recover`` and for the exceptions."""
        url = path if "://" in path else f"{self.base}/v1/{path}"
        return http.repeated(lambda: self._once(method, url, body, query), self.server, recover)

    def get(self, path: str) -> dict[str, Any] | None:
        """Get a resource; None if it does not exist."""
        try:
            return self.call("GET", path)
        except HttpError as error:
            if error.status != 404:
                raise
            return None

    def pages(self, path: str, items: str, query: Mapping[str, str | int]) -> Iterator[dict[str, Any]]:
        """Yield all items of a list, page by page; none if the parent does not exist."""
        token = ""
        while True:
            try:
                page = self.call("GET", path, query={**query, **({"pageToken": token} if token else {})})
            except HttpError as error:
                raise UserError(f"{self.server.name} at {self.base} knows no '{path}': {error.message}") from None
            yield from page.get(items, [])
            token = page.get("nextPageToken", "")
            if not token:
                return

    def finished(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Wait for a long-running operation and return its response.

        Raises:
            RunError: the operation failed, or takes too long.
        """
        deadline, pause = time.monotonic() + OPERATION_WAIT, FIRST_POLL
        while not operation.get("done"):
            if time.monotonic() > deadline:
                raise RunError(f"{self.server.name}: '{operation['name']}' is not done after {OPERATION_WAIT:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
            operation = self.call("GET", operation["name"])
        if error := operation.get("error"):
            raise RunError(f"{self.server.name}: {error.get('message', error)}")
        return operation.get("response", {})

    def _once(self, method: str, url: str, body: Any, query: Mapping[str, str | int] | None) -> dict[str, Any]:
        from google.auth.exceptions import GoogleAuthError
        from requests.exceptions import RequestException

        try:
            answer = self.session.request(method, url, json=body, params=query, timeout=http.limits())
            content = answer.json() if answer.content else {}
        except GoogleAuthError as error:
            raise HttpError(401, " ".join(str(error).split())[:200]) from None
        except RequestException as error:
            raise HttpError(None, http.short(error)) from None
        except ValueError:
            content = {}
        if answer.status_code >= 400:
            wait = http.seconds(answer.headers.get("Retry-After"))
            raise HttpError(answer.status_code, http.reason(answer.text, str(answer.reason)), wait)
        return content


def _session() -> Any:
    """Make a session with the token in GOOGLE_OAUTH_ACCESS_TOKEN, or else with the application default credentials."""
    from google.auth.transport.requests import AuthorizedSession

    token = os.environ.get(TOKEN)
    if token:
        from google.oauth2.credentials import Credentials

        return AuthorizedSession(Credentials(token=token))
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except GoogleAuthError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"Vertex AI needs credentials: {why}; type: gcloud auth application-default login") from None
    return AuthorizedSession(credentials)
