"""The Kubernetes API as a pod sees it: its own service account, its own namespace, plain requests.

Nothing but the standard library, so that every image that trains can do it.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from xlnet import calls
from xlnet.calls import Server, Trouble
from xlnet.errors import UserError

CORE = "api/v1"
IDENTITY = "/var/run/secrets/kubernetes.io/serviceaccount"  # where a pod finds its token, namespace and authority
RIGHTS = "apply infra/kustomize, whose role allows it, and let the steps act as it: KFP_SERVICE_ACCOUNT=xlnet-steps"


class Api:
    """The API server of the cluster that this pod runs in.

    Attributes:
        namespace: this pod's.
    """

    def __init__(self) -> None:
        """Read who and where this pod is.

        Raises:
            UserError: this is no pod, or one without a token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        self._identity = Path(os.environ.get("XLNET_KUBERNETES_IDENTITY", IDENTITY))
        try:
            self.namespace = (self._identity / "namespace").read_text(encoding="utf-8").strip()
            self._tls = ssl.create_default_context(cafile=str(self._identity / "ca.crt"))
        except OSError as error:
            raise UserError(
                f"'{self._identity}' holds no service account ({error.strerror}); several nodes and --spot need a pod "
                "with one: set automountServiceAccountToken, or leave --nodes and --spot out"
            ) from None
        self._url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._server = Server("Kubernetes", self._url, "look at the pod's service account", RIGHTS)

    def get(self, group: str, path: str, **query: str) -> dict[str, Any] | None:
        """An object or a list; None: there is no such thing.

        Args:
            group: of the API, such as CORE.
            path: kind and name, below the pod's namespace.
            query: parameters.

        Raises:
            UserError: it may not be read.
            RunError: the server does not answer.
        """
        try:
            found: dict[str, Any] = json.loads(self._repeated("GET", group, path, query=query))
        except Trouble as trouble:
            _pass(404, trouble)
            return None
        return found

    def create(self, group: str, kind: str, body: dict[str, Any], recover: Callable[[], Any]) -> None:
        """Create an object, once: ``recover`` looks for it after an answer that was lost.

        Raises:
            Trouble: 404 if the kind is unknown, 409 if it exists.
        """
        self._repeated("POST", group, kind, body, recover=recover)

    def patch(self, group: str, path: str, body: dict[str, Any]) -> None:
        """Change some fields of an object, if it is still there."""
        try:
            self._repeated("PATCH", group, path, body)
        except Trouble as trouble:
            _pass(404, trouble)

    def delete(self, group: str, path: str) -> None:
        """Delete an object after all that belongs to it, if it is still there."""
        try:
            self._repeated("DELETE", group, path, {"propagationPolicy": "Foreground"})
        except Trouble as trouble:
            _pass(404, trouble)

    def log(self, pod: str, container: str, since: str = "") -> list[str]:
        """Lines of a container's log, each after its time in UTC; none where it has not started.

        Args:
            pod: its name.
            container: its name.
            since: a line's time; the lines of that second come again.
        """
        query = {"container": container, "timestamps": "true"} | ({"sinceTime": since} if since else {})
        try:
            content = self._repeated("GET", CORE, f"pods/{pod}/log", query=query)
        except (Trouble, UserError):  # 400: it has not started; 404: it is gone
            return []
        return str(content.decode(errors="replace")).splitlines()

    def _repeated(
        self,
        method: str,
        group: str,
        path: str,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        recover: Callable[[], Any] | None = None,
    ) -> Any:
        url = f"{self._url}/{group}/namespaces/{self.namespace}/{path}"
        url += f"?{urlencode(query)}" if query else ""
        return calls.repeated(lambda: self._once(method, url, body), self._server, recover)

    def _once(self, method: str, url: str, body: dict[str, Any] | None) -> bytes:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        token = (self._identity / "token").read_text(encoding="utf-8").strip()  # it is renewed while a pod runs
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json, */*"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=calls.TIMEOUT[1], context=self._tls) as answer:
                read: bytes = answer.read()
        except urllib.error.HTTPError as error:
            message = calls.reason(error.read(), error.reason)
            raise Trouble(error.code, message, calls.seconds(error.headers.get("Retry-After"))) from None
        except (OSError, HTTPException) as error:
            raise Trouble(None, calls.short(error)) from None
        return read


def _pass(status: int, trouble: Trouble) -> None:
    if trouble.status != status:
        raise trouble
