"""Vertex AI's REST API: JSON over google-auth's session, with time limits, retries and one-line errors.

Google's own client takes seconds to import and is a heavy package to have in every image; what is used here is small.
The tests check each body against that client's message classes, and let that client read what was written.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xlnet import calls
from xlnet.calls import Server, Trouble
from xlnet.errors import RunError, UserError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN = "GOOGLE_OAUTH_ACCESS_TOKEN"  # an access token to use as it is
OPERATION_WAIT = 600.0  # seconds that a long-running operation may take
FIRST_POLL = 0.5
PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,99}")  # an id or a number; old ones name their domain first
LOCATION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class VertexApi:
    """One location of one project."""

    def __init__(self, project: str, location: str, endpoint: str = "") -> None:
        """Name a location; nothing is sent yet.

        Raises:
            UserError: it is none, and would become another part of an address; there are no credentials.
        """
        for what, given, allowed in (("project", project, PROJECT), ("location", location, LOCATION)):
            if not allowed.fullmatch(given):
                raise UserError(f"'{given}' is no Vertex AI {what}; allowed: small letters, digits and '-'")
        self.parent = f"projects/{project}/locations/{location}"
        self.base = (endpoint or f"https://{location}-aiplatform.googleapis.com").rstrip("/")
        self.server = Server(
            "Vertex AI",
            self.base,
            "type: gcloud auth application-default login",
            f"ask for the role roles/aiplatform.user in project '{project}'",
        )

    @functools.cached_property
    def session(self) -> Any:
        """What sends requests, with the user's credentials: looked for when the first is sent."""
        return _session(plain=self.base.startswith("http://"))

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str | int] | None = None,
        recover: Callable[[], dict[str, Any] | None] | None = None,
    ) -> dict[str, Any]:
        """One request; see :func:`xlnet.calls.repeated` for ``recover`` and for what is raised."""
        url = path if "://" in path else f"{self.base}/v1/{path}"
        found: dict[str, Any] = calls.repeated(lambda: self._once(method, url, body, query), self.server, recover)
        return found

    def get(self, path: str) -> dict[str, Any] | None:
        """A resource; None if there is none."""
        try:
            return self.call("GET", path)
        except Trouble as trouble:
            if trouble.status != 404:
                raise
            return None

    def pages(self, path: str, items: str, query: Mapping[str, str | int]) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page; none where the parent does not exist."""
        token = ""
        while True:
            try:
                page = self.call("GET", path, query={**query, **({"pageToken": token} if token else {})})
            except Trouble as trouble:
                raise UserError(f"{self.server.name} at {self.base} knows no '{path}': {trouble.message}") from None
            yield from page.get(items, [])
            token = page.get("nextPageToken", "")
            if not token:
                return

    def finished(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The response of a long-running operation, waited for.

        Raises:
            RunError: it failed, or takes too long.
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
        response: dict[str, Any] = operation.get("response", {})
        return response

    def _once(self, method: str, url: str, body: Any, query: Mapping[str, str | int] | None) -> dict[str, Any]:
        from google.auth.exceptions import GoogleAuthError
        from requests.exceptions import ConnectionError, RequestException

        try:
            answer = self.session.request(method, url, json=body, params=query, timeout=calls.TIMEOUT)
            content = answer.json() if answer.content else {}
        except GoogleAuthError as error:
            raise Trouble(401, " ".join(str(error).split())[:200]) from None
        except ConnectionError as error:
            raise Trouble(None, calls.short(error)) from None
        except RequestException as error:
            raise Trouble(None, calls.short(error)) from None
        except ValueError:
            content = {}
        if answer.status_code >= 400:
            wait = calls.seconds(answer.headers.get("Retry-After"))
            raise Trouble(answer.status_code, calls.reason(answer.text, str(answer.reason)), wait)
        found: dict[str, Any] = content
        return found


def _session(plain: bool) -> Any:
    """A session with the user's credentials; without any where the server is a plain one and no token is given."""
    from google.auth.transport.requests import AuthorizedSession

    token = os.environ.get(TOKEN)
    if token:
        from google.oauth2.credentials import Credentials

        return AuthorizedSession(Credentials(token=token))
    if plain:
        from google.auth.credentials import AnonymousCredentials

        return AuthorizedSession(AnonymousCredentials())
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except GoogleAuthError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"Vertex AI needs credentials: {why}; type: gcloud auth application-default login") from None
    return AuthorizedSession(credentials)
