"""Whether a registry has an image, asked over the registry's own API (OCI distribution specification)."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request

ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
TIMEOUT = 2.0  # seconds: a submit waits for it
_NAME = re.compile(r"(?P<host>[^/@]+[.:][^/@]*|localhost)/(?P<name>[^@]+)@(?P<digest>sha256:[0-9a-f]{64})")


def exists(image: str) -> bool | None:
    """True or False as the registry says; None if it cannot be asked from here (no access, no network).

    Args:
        image: ``HOST/NAME@sha256:…``; Docker Hub's names, which have no host, are not looked up.
    """
    match = _NAME.fullmatch(image)
    if match is None:
        return None
    scheme = "http" if re.match(r"(localhost|127\.)", match["host"]) else "https"
    url = f"{scheme}://{match['host']}/v2/{match['name'].partition(':')[0]}/manifests/{match['digest']}"
    try:
        return _ask(url, "")
    except urllib.error.HTTPError as refused:
        token = _anonymous_token(refused.headers.get("WWW-Authenticate", "")) if refused.code == 401 else ""
        try:
            return _ask(url, token) if token else None
        except (OSError, ValueError):
            return None
    except (OSError, ValueError):
        return None


def _ask(url: str, token: str) -> bool:
    """Raises HTTPError for everything but "there" and "not there"."""
    headers = {"Accept": ACCEPT} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD", headers=headers), timeout=TIMEOUT):
            return True
    except urllib.error.HTTPError as answer:
        if answer.code == 404:
            return False
        raise


def _anonymous_token(challenge: str) -> str:
    """The token that a registry gives to everybody, for public images; empty if it gives none."""
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = asked.pop("realm", "")
    if not realm.startswith("https://"):
        return ""
    try:
        with urllib.request.urlopen(f"{realm}?{urllib.parse.urlencode(asked)}", timeout=TIMEOUT) as answer:
            return str(json.load(answer).get("token", ""))
    except (OSError, ValueError):
        return ""
