"""The Kubeflow Pipelines v2beta1 API through its own client, with time limits, retries and one-line errors."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
ANSWER = (10.0, 18.0)  # seconds to connect, and between two bytes; whoever waits longer is told
LOOK = (3.0, 5.0)  # seconds to connect, and between two bytes, for a page that can be done without


@dataclass(frozen=True)
class Page:
    """An answer, whatever its status; 0 where there was none, and ``text`` says why."""

    status: int
    kind: str  # its Content-Type
    text: str


class _Client(api.ApiClient):
    """The API's client, which takes a web page for what it is: no answer of the API."""

    def request(self, *arguments: Any, **options: Any) -> Any:
        answer = super().request(*arguments, **options)
        if options.get("_preload_content", True) and "html" in (answer.getheader("Content-Type") or "").lower():
            raise NotTheApi
        return answer


class NotTheApi(Exception):
    """A web page where JSON was asked for."""


class KfpApi:
    """One installation. Methods return the API's messages as the client's model objects."""

    def __init__(self, settings: KfpSettings) -> None:
        if not settings.endpoint.startswith(("http://", "https://")):
            raise UserError(f"KFP endpoint '{settings.endpoint}' is not a URL; type http://HOST:PORT or https://HOST")
        configuration = api.Configuration(host=settings.address)
        configuration.retries = False  # ours know what may be repeated
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
        """Call a function of the client; see :func:`xlnet.http.repeated`."""

        def once() -> Any:
            with_limits = {**options, "_request_timeout": tuple(map(min, http.limits(), ANSWER))}
            try:
                return function(*arguments, **with_limits)
            except NotTheApi:
                raise self._no_api() from None
            except api.ApiException as error:
                if "html" in (error.headers or {}).get("Content-Type", "").lower() and error.status in (404, 405):
                    raise self._no_api() from None
                found = _trouble(error)
                if found.status == 400 and "namespace" in found.message.lower():
                    raise UserError(f"Kubeflow Pipelines refused: {found.message}; {self._namespaces()}") from None
                raise found from None
            except (urllib3.exceptions.HTTPError, ConnectionError) as error:
                raise HttpError(None, http.short(error)) from None

        return http.repeated(once, self.server, recover)

    def page(self, path: str, query: dict[str, str], most: int | None = None) -> "Page":
        """A page that is not part of the v2beta1 API, such as a pod's log: asked for once, with little patience.

        Args:
            path: of the page, from the endpoint on.
            query: what to ask.
            most: how many bytes of it to read; None: all.
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
        """Id of the experiment that the settings name; made if there is none."""
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
        return str(found.experiment_id)

    def _find_experiment(self) -> Any:
        options = {"filter": equals(self.settings.experiment), **self._namespace()}
        try:
            found = self.call(self.experiments.experiment_service_list_experiments, **options)
        except HttpError as error:
            raise self.unexpected(error) from None
        return (found.experiments or [None])[0]

    def _namespaces(self) -> str:
        """What to type where the server refuses the namespace that is set, or wants one."""
        given = self.settings.namespace
        if given:
            return f"KFP_NAMESPACE is '{given}': set it to a namespace of yours, or ask for {PERMISSION} in that one"
        return f"KFP_NAMESPACE is not set: set it where an installation has several users, or ask for {PERMISSION}"

    def _no_api(self) -> UserError:
        return UserError(
            f"'{self.settings.endpoint}' answers with a web page (of a login, or of something else), not as Kubeflow "
            "Pipelines' API; set KFP_ENDPOINT to the address before '/#/' in its pages or before '/apis/', and "
            "KFP_TOKEN where callers must log in"
        )

    def unexpected(self, error: HttpError) -> UserError:
        """A 404 or 409 where neither can be the answer of a Kubeflow Pipelines server."""
        address = self.settings.endpoint
        return UserError(
            f"'{address}' answers {error.status}, as no Kubeflow Pipelines v2 API does ({error.message}); "
            "check KFP_ENDPOINT"
        )

    @functools.cache  # noqa: B019  # one installation lives as long as one command
    def schedule_names(self) -> dict[str, str]:
        """Id of each recurring run of the experiment → its name."""
        listed = self.recurring.recurring_run_service_list_recurring_runs
        found = self.pages(listed, "recurring_runs", experiment_id=self.experiment())
        return {one.recurring_run_id: one.display_name for one in found}

    def pages(
        self, function: Callable[..., Any], items: str, limit: int | None = None, **options: Any
    ) -> Iterator[Any]:
        """The items of a list call, the newest first: all, or at most ``limit``; no page more than it takes."""
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


def equals(name: str) -> str:
    """A filter for that display name."""
    return _filter("EQUALS", name)


def contains(part: str) -> str:
    """A filter for display names with that part."""
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
