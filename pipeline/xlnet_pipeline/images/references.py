"""Images in their registries, over the registries' own API (OCI distribution specification): which there are, and the
digest that a tag stands for at the moment."""

import functools
import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from xlnet.errors import UserError, nearest
from xlnet_pipeline.images import login as registry_login

ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
LOOK = 2.0  # seconds that a submit waits to hear whether a pinned image is there
RESOLVE = 5.0  # seconds for a digest, without which there is nothing to submit
LARGEST = 4 << 20  # bytes of a manifest, by the specification
HUB = "docker.io"
HUB_API = "registry-1.docker.io"
_REFERENCE = re.compile(
    r"(?P<host>[^/@\s]+[.:][^/@\s]*|localhost)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """``HOST/NAME:TAG`` or ``HOST/NAME@sha256:…``."""

    host: str
    name: str
    tag: str = "latest"
    digest: str = ""

    @property
    def manifests(self) -> str:
        """Address of the repository's manifests."""
        return f"{self._repository}/manifests"

    @property
    def tags(self) -> str:
        """Address of the list of the repository's tags."""
        return f"{self._repository}/tags/list"

    @property
    def _repository(self) -> str:
        hub = self.host == HUB
        name = f"library/{self.name}" if hub and "/" not in self.name else self.name
        return f"{registry_login.scheme(self.host)}://{HUB_API if hub else self.host}/v2/{name}"


def parse(image: str) -> Reference | None:
    """The parts of an image's name; None for one that names no registry, or is no name."""
    match = _REFERENCE.fullmatch(image)
    if match is None:
        return None
    return Reference(match["host"], match["name"], match["tag"] or "latest", match["digest"] or "")


def exists(image: str) -> bool | None:
    """True or False as the registry says; None if it cannot be asked from here (no access, no network).

    Args:
        image: ``HOST/NAME@sha256:…``; a name without a host is not looked up.
    """
    reference = parse(image)
    if reference is None or not reference.digest:
        return None
    try:
        _ask(reference, f"{reference.manifests}/{reference.digest}", "HEAD", LOOK)
    except urllib.error.HTTPError as refused:
        return False if refused.code == 404 else None
    except (OSError, ValueError, http.client.HTTPException, UserError):
        return None
    return True


@functools.cache
def pinned(image: str) -> str:
    """The image by its digest: itself if it is named so, else ``HOST/NAME@sha256:…``, asked once.

    Raises:
        UserError: there is no such tag, no access, no answer, or the name says no registry to ask.
    """
    if "@" in image or not image:
        return image  # good or not, there is no tag to look up: image_digest judges it
    reference = parse(image)
    if reference is None:
        raise UserError(f"image '{image}' is not pinned, and names no registry to ask; {_by_hand(image)}")
    try:
        digest = _digest(reference)
    except urllib.error.HTTPError as refused:
        raise UserError(f"image '{image}' is not pinned: {_refusal(reference, refused)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise UserError(
            f"image '{image}' is not pinned, and its registry does not answer ({why}); {_by_hand(image)}"
        ) from None
    return f"{reference.host}/{reference.name}@{digest}"


def _by_hand(image: str) -> str:
    name = re.sub(r":[\w.-]+$", "", image)
    place = name if parse(name) else f"REGISTRY/{name or 'NAME'}"
    return f"give it as {place}@sha256:…, with the digest that 'xlnet-pipeline build --push' or 'docker push' printed"


def _digest(reference: Reference) -> str:
    """The digest that the registry gives a tag, computed from the manifest where it says none."""
    url = f"{reference.manifests}/{reference.tag}"
    headers, _ = _ask(reference, url, "HEAD", RESOLVE)
    found = headers.get("Docker-Content-Digest", "")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        _, content = _ask(reference, url, "GET", RESOLVE)
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return found


def _refusal(reference: Reference, refused: urllib.error.HTTPError) -> str:
    what = f"'{reference.host}'"
    if refused.code == 404:
        return f"{what} has no '{reference.name}:{reference.tag}'{_near(reference)}; push it, or name another"
    if refused.code in (401, 403):
        return f"{what} lets nobody read it without a role ({refused.code}); {registry_login.remedy(reference.host)}"
    by_hand = _by_hand(f"{reference.host}/{reference.name}")
    return f"{what} answers {refused.code} {refused.reason}; try again, or {by_hand}"


def _near(reference: Reference) -> str:
    """A tag that was perhaps meant."""
    try:
        tags = json.loads(_ask(reference, reference.tags, "GET", LOOK)[1]).get("tags") or []
        return nearest(reference.tag, [str(tag) for tag in tags])
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return ""


def _ask(reference: Reference, url: str, method: str, timeout: float) -> tuple[Any, bytes]:
    """Headers and body of an answer, asked again with credentials where the registry wants some.

    Raises:
        HTTPError: everything but "there".
        OSError, ValueError, HTTPException: no answer, or none that can be read.
    """
    headers = {"Accept": ACCEPT}
    try:
        return _once(url, method, headers, timeout)
    except urllib.error.HTTPError as refused:
        if refused.code != 401:
            raise
        authorization = registry_login.authorization(
            reference.host, refused.headers.get("WWW-Authenticate", ""), timeout
        )
        if not authorization:
            raise
    return _once(url, method, {**headers, "Authorization": authorization}, timeout)


def _once(url: str, method: str, headers: dict[str, str], timeout: float) -> tuple[Any, bytes]:
    asked = urllib.request.Request(url, method=method)
    for key, value in headers.items():
        asked.add_unredirected_header(key, value)  # a redirection leads to a store that is not to see them
    with urllib.request.urlopen(asked, timeout=timeout) as answer:
        content = answer.read(LARGEST)
        told = answer.headers.get("Content-Length", "")
        if method != "HEAD" and told.isdigit() and int(told) != len(content):  # which read() does not notice
            raise http.client.IncompleteRead(content, int(told) - len(content))
        return answer.headers, content
