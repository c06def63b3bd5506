"""Calls the Kubeflow Pipelines v2beta1 API through its own client, with time limits, retries and one-line errors."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api as api
import urllib3

from xlnet import http
from xlnet.errors import UserError
from xlnet.http import Endpoint, HttpError
from xlnet_pipeline.targets.settings import KfpSettings

PAGE = 200
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"  # kfp's own variable: a mounted service account token
PERMISSION = "the role kubeflow-pipelines-edit"
CREDENTIALS = "set KFP_TOKEN to a fresh token"
ANSWER = (10.0, 18.0)  # seconds to connect, and between two bytes of an answer
HEALTH = "/apis/v2beta1/healthz"
SOMETHING_ELSE = "JSON of something else"
PAGE_OF_ANOTHER = "a web page (of a login, or of something else)"
LOOK = (3.0, 5.0)  # the same limits for an optional page, such as a log


@dataclass(frozen=True)
class Page:
    """An HTTP answer of any status. The status is 0 if there was no answer; ``text`` then says why."""

    status: int
    kind: str  # its Content-Type
    text: str


class _Client(api.ApiClient):
    """The API's client. It raises NotTheApi if the server answers with something other than JSON."""

    def request(self, *arguments: Any, **options: Any) -> Any:
        try:
            answer = super().request(*arguments, **options)
        except api.ApiException as error:
            error.body = error.body or b""  # the client decodes it, even if there was no answer at all
            raise
        kind = (answer.getheader("Content-Type") or "").lower()
        if options.get("_preload_content", True) and "json" not in kind:
            raise NotTheApi(PAGE_OF_ANOTHER if "html" in kind else f"content of type '{kind}'")
        return answer


class NotTheApi(Exception):
    """The server answered with something other than JSON. The message says with what."""


class KfpApi:
    """One installation of Kubeflow Pipelines. Methods return the client's model objects."""

    def __init__(self, settings: KfpSettings) -> None:
        if not _is_url(settings.endpoint):
            raise UserError(f"KFP endpoint '{settings.endpoint}' is not a URL; type http://HOST:PORT or https://HOST")
        configuration = api.Configuration(host=settings.address)
        configuration.retries = False  # http.repeated knows which calls may be repeated
        if token := _token(settings):
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
        self.settings = settings
        self.client = _Client(configuration)
        self.runs = api.RunServiceApi(self.client)
        self.recurring = api.RecurringRunServiceApi(self.client)
        self.experiments = api.ExperimentServiceApi(self.client)
        self.server = Endpoint("Kubeflow Pipelines", settings.address, CREDENTIALS, self._namespaces())

    def call(self, function: Callable[..., Any], *arguments: Any, recover: Any = None, **options: Any) -> Any:
        """Call a function of the client, and repeat it as :func:`xlnet.http.repeated` does."""

        def once() -> Any:
            with_limits = {**options, "_request_timeout": tuple(map(min, http.limits(), ANSWER))}
            try:
                return function(*arguments, **with_limits)
            except NotTheApi as other:
                raise self._no_api(str(other)) from None
            except api.ApiException as error:
                if error.status and 300 <= error.status < 400:
                    raise self._no_api("a redirect (to a login, or to another address)") from None
                if "html" in (error.headers or {}).get("Content-Type", "").lower() and error.status in (404, 405):
                    raise self._no_api(PAGE_OF_ANOTHER) from None
                found = _trouble(error)
                if found.status == 400 and "namespace" in found.message.lower():
                    raise UserError(f"Kubeflow Pipelines refused: {found.message}; {self._namespaces()}") from None
                raise found from None
            except (urllib3.exceptions.HTTPError, ConnectionError) as error:
                raise HttpError(None, http.short(error)) from None

        return http.repeated(once, self.server, recover)

    def page(self, path: str, query: dict[str, str], most: int | None = None) -> "Page":
        """Get a page outside the v2beta1 API, such as a pod's log. Try once, with a short time limit.

        Args:
            path: the page's path below the endpoint.
            query: the query's parameters.
            most: read only so many bytes of the answer; None reads all.
        """
        try:
            answer = self.client.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                auth_settings=["Bearer"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=LOOK,
            )
            content = answer.read(most) if most else answer.data
            answer.release_conn() if most is None else answer.close()
            return Page(answer.status, answer.headers.get("Content-Type", ""), content.decode("utf-8", "replace"))
        except api.ApiException as error:
            kind = (error.headers or {}).get("Content-Type", "")
            body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
            return Page(error.status or 0, kind, body)
        except (urllib3.exceptions.HTTPError, ConnectionError) as error:
            return Page(0, "", http.short(error))

    def experiment(self) -> str:
        """Return the id of the experiment that the settings name; create the experiment if it does not exist."""
        found = self._find_experiment()
        if found is None:
            body = api.V2beta1Experiment(
                display_name=self.settings.experiment, namespace=self.settings.namespace or None
            )
            create = self.experiments.experiment_service_create_experiment
            try:
                found = self.call(create, body, recover=self._find_experiment)
            except HttpError as error:
                found = self._find_experiment()
                if error.status != 409 or found is None:
                    raise self.unexpected(error) from None
        if not found.experiment_id:
            raise self._no_api(SOMETHING_ELSE)
        return str(found.experiment_id)

    def known_experiment(self) -> str | None:
        """Return the id of the experiment that the settings name; None if it does not exist."""
        found = self._find_experiment()
        if found is not None and found.experiment_id:
            return str(found.experiment_id)
        if found is not None or '"multi_user"' not in self.page(HEALTH, {}).text:  # an empty list proves nothing
            raise self._no_api(SOMETHING_ELSE)
        return None

    def _find_experiment(self) -> Any:
        options = {"filter": equals(self.settings.experiment), **self._namespace()}
        try:
            found = self.call(self.experiments.experiment_service_list_experiments, **options)
        except HttpError as error:
            raise self.unexpected(error) from None
        return (found.experiments or [None])[0]

    def _namespaces(self) -> str:
        """Return what the user can type if the server refuses the namespace, or requires one."""
        given = self.settings.namespace
        if given:
            return f"KFP_NAMESPACE is '{given}': set it to a namespace of yours, or ask for {PERMISSION} in that one"
        return f"KFP_NAMESPACE is not set: set it where an installation has several users, or ask for {PERMISSION}"

    def _no_api(self, what: str) -> UserError:
        return UserError(
            f"'{self.settings.endpoint}' answers with {what}, not as Kubeflow Pipelines' API; set KFP_ENDPOINT to the "
            "address before '/#/' in its pages or before '/apis/', and KFP_TOKEN where callers must log in"
        )

    def unexpected(self, error: HttpError) -> UserError:
        """Return the error for a 404 or 409 that a Kubeflow Pipelines server would not send here."""
        address = self.settings.endpoint
        return UserError(
            f"'{address}' answers {error.status} ({error.message}), which the v2 API of Kubeflow Pipelines never does "
            "here; check KFP_ENDPOINT"
        )

    @functools.cache  # noqa: B019  # one installation lives as long as one command
    def schedule_names(self) -> dict[str, str]:
        """Map the id of each recurring run of the experiment to its name."""
        listed = self.recurring.recurring_run_service_list_recurring_runs
        found = self.pages(listed, "recurring_runs", experiment_id=self.known_experiment())
        return {one.recurring_run_id: one.display_name for one in found}

    def schedule_name(self, identity: str) -> str | None:
        """Return the name of a recurring run; its id if this user may not look; None if it was deleted."""
        try:
            return str(self.call(self.recurring.recurring_run_service_get_recurring_run, identity).display_name)
        except HttpError as error:
            if names_nothing(error, identity):
                return None
            raise self.unexpected(error) from None
        except UserError:
            return identity

    def pages(
        self, function: Callable[..., Any], items: str, limit: int | None = None, **options: Any
    ) -> Iterator[Any]:
        """Yield the items of a list call, newest first. Request no more pages than ``limit`` items need; None: all."""
        token, left = "", limit
        while True:
            size = PAGE if left is None else min(PAGE, left)
            more = {"page_size": size, "page_token": token, "sort_by": "created_at desc", **self._namespace()}
            try:
                page = self.call(function, **more, **options)
            except HttpError as error:
                raise self.unexpected(error) from None
            found = (getattr(page, items) or [])[:left]
            yield from found
            token, left = page.next_page_token, None if left is None else left - len(found)
            if not token or left == 0:
                return

    def _namespace(self) -> dict[str, str]:
        return {"namespace": self.settings.namespace} if self.settings.namespace else {}


def _is_url(text: str) -> bool:
    """Whether a text is http:// or https:// with a host and, if there is one, a number as its port."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        return False


def names_nothing(error: HttpError, identity: str) -> bool:
    """Whether an error says that nothing has this id. A 404 that does not name it comes from elsewhere."""
    return error.status == 404 and identity in error.message


def equals(name: str) -> str:
    """Return a filter for this display name."""
    return _filter("EQUALS", name)


def contains(part: str) -> str:
    """Return a filter for display names that contain this text."""
    return _filter("IS_SUBSTRING", part)


def _filter(operation: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": "display_name", "stringValue": value}]})


def _token(settings: KfpSettings) -> str:
    if settings.token:
        return settings.token
    path = os.environ.get(TOKEN_FILE)
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise UserError(f"{TOKEN_FILE}: '{path}' cannot be read: {error.strerror}") from None


def _trouble(error: api.ApiException) -> HttpError:
    headers = error.headers or {}
    return HttpError(
        error.status or None, http.reason(error.body, str(error.reason)), http.seconds(headers.get("Retry-After"))
    )
