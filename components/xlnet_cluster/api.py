"""A client for the Kubernetes API inside a pod, with the pod's service account and namespace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.config import incluster_config
from kubernetes.config.config_exception import ConfigException

from xlnet import http
from xlnet.errors import UserError
from xlnet.http import Endpoint, HttpError
from xlnet_cluster.jobset import GROUP, JOBSETS, VERSION

IDENTITY = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # a pod's credentials
RIGHTS = "apply infra/kustomize, whose role allows it, and let the steps act as it: KFP_SERVICE_ACCOUNT=xlnet-steps"
_TIMEOUT = {"_request_timeout": http.TIMEOUT}


class Api:
    """The API server of the cluster that this pod runs in.

    Attributes:
        namespace: this pod's namespace.
    """

    def __init__(self) -> None:
        """Read this pod's identity and the API server's address.

        Raises:
            UserError: this process does not run in a pod, or the pod has no service account token.
        """
        configuration = client.Configuration()
        configuration.retries = False  # http.repeated does the retries, as for all services
        try:
            self.namespace = (IDENTITY / "namespace").read_text(encoding="utf-8").strip()
            loader = incluster_config.InClusterConfigLoader(str(IDENTITY / "token"), str(IDENTITY / "ca.crt"))
            loader.load_and_set(configuration)
        except (OSError, ConfigException) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"'{IDENTITY}' holds no service account ({why}); several nodes and --spot need a pod with one: set "
                "automountServiceAccountToken, or leave --nodes and --spot out"
            ) from None
        api = client.ApiClient(configuration)
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._server = Endpoint("Kubernetes", configuration.host, "look at the pod's service account", RIGHTS)

    def pod(self, name: str) -> dict[str, Any] | None:
        """Return a pod as the API's JSON; None if it does not exist.

        Raises:
            UserError: the service account may not read pods.
            RunError: the server does not answer.
        """
        return self._found(lambda: _json(self._core.read_namespaced_pod, name, self.namespace))

    def pods(self, jobset: str) -> list[dict[str, Any]]:
        """Return the pods of a JobSet, as :meth:`pod` does."""
        return self._listed(f"jobset.sigs.k8s.io/jobset-name={jobset}")

    def workflow_pods(self, workflow: str) -> list[dict[str, Any]]:
        """Return the pods of an Argo workflow, as :meth:`pod` does; ended ones are among them."""
        return self._listed(f"workflows.argoproj.io/workflow={workflow}")

    def jobset(self, name: str) -> dict[str, Any] | None:
        """Return a JobSet as the API's JSON; None if it does not exist. Raises the same errors as :meth:`pod`."""
        return self._found(lambda: self._custom.get_namespaced_custom_object(*self._place(name), **_TIMEOUT))

    def create(self, jobset: dict[str, Any]) -> None:
        """Create a JobSet exactly once: if the answer was lost, look for the JobSet before trying again.

        Raises:
            HttpError: status 404 if the cluster has no JobSet API, 409 if the JobSet already exists.
        """
        name = jobset["metadata"]["name"]
        self._repeated(
            lambda: self._custom.create_namespaced_custom_object(*self._place(), jobset, **_TIMEOUT),
            recover=lambda: self.jobset(name),
        )

    def suspend(self, name: str) -> None:
        """Stop a JobSet's pods without deleting the JobSet, if it still exists."""
        change = {"spec": {"suspend": True}}
        self._found(lambda: self._custom.patch_namespaced_custom_object(*self._place(name), change, **_TIMEOUT))

    def delete(self, name: str) -> None:
        """Delete a JobSet's pods and then the JobSet, if it still exists."""
        body = {"propagationPolicy": "Foreground"}
        self._found(lambda: self._custom.delete_namespaced_custom_object(*self._place(name), body=body, **_TIMEOUT))

    def log(self, pod: str, container: str, since: str = "") -> list[str]:
        """Return the lines of a container's log, each with its time in UTC; none if it has not started.

        Args:
            pod: the pod's name.
            container: the container's name.
            since: the time of a line; the lines of that second are returned again.
        """
        query: list[tuple[str, str]] = [("sinceTime", since)] if since else []
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        query += [("container", container), ("timestamps", "true")]
        try:
            # The generated method supports only sinceSeconds, which would skip or repeat lines.
            answer = self._repeated(lambda: self._get(path, query))
        except (HttpError, UserError):  # 400: the container has not started; 404: the pod is gone
            return []
        return bytes(answer).decode(errors="replace").splitlines()

    def _get(self, path: str, query: list[tuple[str, str]]) -> bytes:
        raw = {"_preload_content": False, "_return_http_data_only": True, **_TIMEOUT}
        found = self._core.api_client.call_api(path, "GET", query_params=query, auth_settings=["BearerToken"], **raw)
        return bytes(found.data)

    def _listed(self, selector: str) -> list[dict[str, Any]]:
        listed = self._found(lambda: _json(self._core.list_namespaced_pod, self.namespace, label_selector=selector))
        return list((listed or {}).get("items", []))

    def _place(self, *name: str) -> tuple[str, ...]:
        return (GROUP, VERSION, self.namespace, JOBSETS, *name)

    def _found(self, call: Callable[[], Any]) -> Any:
        try:
            return self._repeated(call)
        except HttpError as error:
            if error.status != 404:
                raise
            return None

    def _repeated(self, call: Callable[[], Any], recover: Callable[[], Any] | None = None) -> Any:
        return http.repeated(lambda: _translated(call), self._server, recover)


def _json(call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the answer as plain JSON, because the client's model classes drop fields of newer servers."""
    return json.loads(call(*arguments, **options, _preload_content=False, **_TIMEOUT).data)


def _translated(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except client.ApiException as error:
        if not error.status:  # the client reports a certificate error without a status
            raise HttpError(None, http.reason(None, str(error.reason))) from None
        wait = http.seconds((error.headers or {}).get("Retry-After"))
        raise HttpError(error.status, http.reason(error.body, str(error.reason)), wait) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise HttpError(None, http.short(error)) from None
