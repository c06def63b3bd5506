"""Looks up images and the current digests of tags in container registries (OCI distribution specification)."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import requests

from xlnet import http
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
LOOK = 2.0  # seconds to wait for the answer whether a pinned image exists; the submission goes on without it
RESOLVE = 5.0  # seconds to wait for the digest of a tag, without which there is no submission
LARGEST = 4 << 20  # bytes; the specification allows no larger manifest
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
        """URL of the repository's manifests."""
        return f"{self._repository}/manifests"

    @property
    def tags(self) -> str:
        """URL of the repository's list of tags."""
        return f"{self._repository}/tags/list"

    @property
    def _repository(self) -> str:
        hub = self.host == HUB
        name = f"library/{self.name}" if hub and "/" not in self.name else self.name
        return f"{registry_login.scheme(self.host)}://{HUB_API if hub else self.host}/v2/{name}"


def parse(image: str) -> Reference | None:
    """Split an image's name into its parts. None if the name is invalid or names no registry."""
    match = _REFERENCE.fullmatch(image)
    if match is None:
        return None
    return Reference(match["host"], match["name"], match["tag"] or "latest", match["digest"] or "")


def exists(image: str) -> bool | None:
    """Whether the registry has the image. None if the registry cannot be asked (no access, no network).

    Args:
        image: ``HOST/NAME@sha256:…``; None is returned for a name without a host.
    """
    reference = parse(image)
    if reference is None or not reference.digest:
        return None
    try:
        _ask(reference, f"{reference.manifests}/{reference.digest}", "HEAD", LOOK)
    except requests.HTTPError as refused:
        return False if refused.response.status_code == 404 else None
    except (OSError, ValueError, UserError):
        return None
    return True


@functools.cache
def pinned(image: str) -> str:
    """Return the image pinned by its digest. The registry is asked once for the digest of a tag.

    Raises:
        UserError: the tag does not exist, access is denied, the registry does not answer, or the name has no registry.
    """
    if "@" in image or not image:
        return image  # there is no tag to look up, and image_digest checks the digest
    reference = parse(image)
    if reference is None:
        raise UserError(f"image '{image}' is not pinned, and names no registry to ask; {_by_hand(image)}")
    try:
        digest = _digest(reference)
    except requests.HTTPError as refused:
        raise UserError(f"image '{image}' is not pinned: {_refusal(reference, refused.response)}") from None
    except (OSError, ValueError) as error:
        why = http.short(error)
        raise UserError(
            f"image '{image}' is not pinned, and its registry does not answer ({why}); {_by_hand(image)}"
        ) from None
    return f"{reference.host}/{reference.name}@{digest}"


def _by_hand(image: str) -> str:
    name = re.sub(r":[\w.-]+$", "", image)
    place = name if parse(name) else f"REGISTRY/{name or 'NAME'}"
    return f"give it as {place}@sha256:…, with the digest that 'xlnet-pipeline build --push' or 'docker push' printed"


def _digest(reference: Reference) -> str:
    """Return the registry's digest of a tag, computed from the manifest if the answer does not state it."""
    url = f"{reference.manifests}/{reference.tag}"
    headers, _ = _ask(reference, url, "HEAD", RESOLVE)
    found = headers.get("Docker-Content-Digest", "")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        _, content = _ask(reference, url, "GET", RESOLVE)
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return found


def _refusal(reference: Reference, refused: requests.Response) -> str:
    what = f"'{reference.host}'"
    if refused.status_code == 404:
        return f"{what} has no '{reference.name}:{reference.tag}'{_near(reference)}; push it, or name another"
    if refused.status_code in (401, 403):
        remedy = registry_login.remedy(reference.host)
        return f"{what} does not allow you to read it ({refused.status_code}); {remedy}"
    by_hand = _by_hand(f"{reference.host}/{reference.name}")
    return f"{what} answers {refused.status_code} {refused.reason}; try again, or {by_hand}"


def _near(reference: Reference) -> str:
    """Suggest a tag that the user may have meant."""
    try:
        tags = json.loads(_ask(reference, reference.tags, "GET", LOOK)[1]).get("tags") or []
        return nearest(reference.tag, [str(tag) for tag in tags])
    except (OSError, ValueError, AttributeError):
        return ""


def _ask(reference: Reference, url: str, method: str, timeout: float) -> tuple[Mapping[str, str], bytes]:
    """Return headers and body of an answer. Asks again with credentials if the registry wants them.

    Raises:
        HTTPError: the registry answered with an error status.
        OSError, ValueError: there was no answer, or it cannot be read.
    """
    headers = {"Accept": ACCEPT}
    try:
        return _once(url, method, headers, timeout)
    except requests.HTTPError as refused:
        if refused.response.status_code != 401:
            raise
        challenge = refused.response.headers.get("WWW-Authenticate", "")
        authorization = registry_login.authorization(reference.host, challenge, timeout)
        if not authorization:
            raise
    return _once(url, method, {**headers, "Authorization": authorization}, timeout)


def _once(url: str, method: str, headers: dict[str, str], timeout: float) -> tuple[Mapping[str, str], bytes]:
    with registry_login.request(method, url, timeout, headers) as answer:
        content = b""
        for piece in answer.iter_content(1 << 16):  # raises if the body is shorter than the headers say
            content += piece
            if len(content) > LARGEST:
                raise ValueError(f"its answer is longer than {LARGEST} bytes")
        return answer.headers, content
