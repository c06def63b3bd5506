"""A container registry with its token server: manifests by tag and digest, private repositories, refresh tokens."""

import base64
import hashlib
import json
import re
from typing import Any

from servers.web import Request, WebServer

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry(WebServer):
    """State: manifests by repository and tag; who may read the private ones, and how they are asked who they are."""

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.private: set[str] = set()
        self.users = {"reader": "pass:word"}
        self.refresh_token = "refresh-me"
        self.challenge = "Bearer"  # or Basic
        self.tells_digest = True
        self.host = self.url.removeprefix("http://")

    def push(self, name: str, tag: str, kind: str = MANIFEST) -> str:
        """Put an image there; returns its digest."""
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, "annotations": {"of": f"{name}:{tag}"}}).encode()
        self.manifests.setdefault(name, {})[tag] = (kind, content)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        if request.path == "/token":
            return self.give_token(request)
        match = re.fullmatch(r"/v2/(?P<name>.+)/(manifests/(?P<reference>[^/]+)|tags/list)", request.path)
        if match is None:
            return 404, {"errors": [{"code": "NOT_FOUND"}]}, {}
        if match["name"] in self.private and not self.knows(request):
            scope = f'service="registry",scope="repository:{match["name"]}:pull"'
            asked = f'Bearer realm="{self.url}/token",{scope}' if self.challenge == "Bearer" else 'Basic realm="here"'
            return 401, {"errors": [{"code": "UNAUTHORIZED"}]}, {"WWW-Authenticate": asked}
        tags = self.manifests.get(match["name"], {})
        if match["reference"] is None:
            return 200, {"name": match["name"], "tags": list(tags)}, {}
        for tag, (kind, content) in tags.items():
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if match["reference"] in (tag, digest):
                if kind not in request.headers.get("accept", ""):
                    return 404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": f"no Accept for {kind}"}]}, {}
                told = {"Docker-Content-Digest": digest} if self.tells_digest else {}
                return 200, content, {"Content-Type": kind, **told}
        return 404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}, {}

    def knows(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return given in ("Bearer good", *(self.basic(user) for user in self.users)) and (
            given.startswith(self.challenge)
        )

    def basic(self, user: str) -> str:
        return f"Basic {base64.b64encode(f'{user}:{self.users[user]}'.encode()).decode()}"

    def give_token(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        """A token that opens private repositories, to who is known; one that does not, to everybody else."""
        if request.method == "POST":
            good = f"refresh_token={self.refresh_token}" in (request.body or b"").decode()
            return (200, {"access_token": "good"}, {}) if good else (401, {}, {})
        assert request.query["scope"].startswith("repository:")
        known = request.headers.get("authorization") in [self.basic(user) for user in self.users]
        return 200, {"token": "good" if known else "anonymous"}, {}
