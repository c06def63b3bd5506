"""Finds credentials for a container registry: from ``docker login``, from Google, or none (anonymous).

A registry answers 401 with a challenge. A ``Bearer`` challenge names a token server; a ``Basic`` challenge asks for
user name and password.

Two libraries were tried instead. python-dxf 12.1 takes a user name and a password, but reads no Docker settings and
calls no credential helper. oras 0.2 does both, but sends a refresh token as if it were a password, has no Google
credentials, and goes on without a login if a credential helper is missing.
"""

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import requests

from xlnet.errors import UserError

HUB_KEY = "https://index.docker.io/v1/"  # key of Docker Hub's login in Docker's configuration
HELPER = 10.0  # time-out of a credential helper, seconds
TOKEN_USER = "<token>"  # a credential helper returns this user name if the secret is a refresh token
GOOGLE = re.compile(r"([\w-]+\.)?(gcr\.io|pkg\.dev)")
GOOGLE_USER = "oauth2accesstoken"
GOOGLE_TOKEN = "GOOGLE_OAUTH_ACCESS_TOKEN"


def scheme(host: str) -> str:
    """Return ``http`` for a registry on this machine and ``https`` for all others, as Docker does."""
    return "http" if re.match(r"(localhost|127\.[\d.]+)(:|$)", host) else "https"


def remedy(host: str) -> str:
    """Return the command to type to log in to a registry."""
    if GOOGLE.fullmatch(host):
        return f"type: gcloud auth login && gcloud auth configure-docker {host}"
    return f"type: docker login {host}"


def authorization(host: str, challenge: str, timeout: float) -> str:
    """Return the Authorization header that answers a challenge. Empty if there are no credentials.

    Raises:
        UserError: a credential helper that Docker's settings name failed.
    """
    kind, _, rest = challenge.partition(" ")
    login = credentials(host)
    if kind.lower() == "basic":
        return f"Basic {_basic(*login)}" if login else ""
    asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = asked.pop("realm", "")
    if kind.lower() != "bearer" or not realm.startswith(("https://", f"{scheme(host)}://")):
        return ""
    try:
        token = _token(realm, asked, login, timeout)
    except (OSError, ValueError, AttributeError):
        return ""
    return f"Bearer {token}" if token else ""


def credentials(host: str) -> tuple[str, str] | None:
    """Return user name and password for a registry. None if nobody has logged in.

    Raises:
        UserError: a credential helper that Docker's settings name failed.
    """
    settings = _docker_settings()
    key = HUB_KEY if host == "docker.io" else host
    helper = _text(_table(settings, "credHelpers").get(key)) or _text(settings.get("credsStore"))
    if helper and (found := _from_helper(helper, key)):
        return found
    for known, entry in _table(settings, "auths").items():
        if known in (key, f"https://{key}", f"http://{key}") and isinstance(entry, dict):
            if token := _text(entry.get("identitytoken")):
                return TOKEN_USER, token
            if found := _decoded(_text(entry.get("auth"))):
                return found
    return _google() if GOOGLE.fullmatch(host) else None


def _docker_settings() -> dict[str, Any]:
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    try:
        found = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is missing, or Docker cannot read it either
        return {}
    return found if isinstance(found, dict) else {}


def _table(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _from_helper(name: str, key: str) -> tuple[str, str] | None:
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, "get"], input=key, capture_output=True, text=True, timeout=HELPER, check=False)
    except FileNotFoundError:
        raise UserError(
            f"'{program}', which Docker's config.json names, is not on PATH; install it, or remove it from config.json"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"'{program}' failed ({type(error).__name__}); type: echo {key} | {program} get") from None
    try:
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        return (found["Username"], found["Secret"]) if found.get("Secret") else None
    except (ValueError, KeyError, AttributeError):  # the helper has no credentials for this registry
        return None


def _decoded(auth: str) -> tuple[str, str] | None:
    try:
        user, colon, password = base64.b64decode(auth).decode().partition(":")
    except ValueError:
        return None
    return (user, password.rstrip("\0")) if colon else None


def _google() -> tuple[str, str] | None:
    """Return Google's application default credentials as user name and password, if there are any."""
    if token := os.environ.get(GOOGLE_TOKEN):
        return GOOGLE_USER, token
    import google.auth
    import google.auth.transport.requests
    from google.auth.exceptions import GoogleAuthError

    try:
        found, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        found.refresh(google.auth.transport.requests.Request())
    except GoogleAuthError:
        return None
    return GOOGLE_USER, str(found.token)


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _token(realm: str, asked: dict[str, str], login: tuple[str, str] | None, timeout: float) -> str:
    """Fetch a token from the registry's token server: with our login, or anonymously for public images."""
    if login and login[0] == TOKEN_USER:
        form = {**asked, "grant_type": "refresh_token", "refresh_token": login[1], "client_id": "xlnet-pipeline"}
        answer = request("POST", realm, timeout, data=form)
    else:
        headers = {"Authorization": f"Basic {_basic(*login)}"} if login else {}
        answer = request("GET", realm, timeout, headers, params=asked)
    with answer:
        found = answer.json()
    return str(found.get("token") or found.get("access_token") or "")


def request(
    method: str, url: str, timeout: float, headers: dict[str, str] | None = None, **content: dict[str, str]
) -> requests.Response:
    """Send one request and return the answer, whose body is not read yet.

    A redirect to another server, such as a registry's store, is followed without the credentials. Credentials in the
    user's ``.netrc`` are not sent.

    Raises:
        requests.HTTPError: the answer has an error status.
        OSError: there is no answer.
    """
    answer = requests.request(
        method,
        url,
        headers=headers,
        timeout=timeout,
        stream=True,
        auth=_no_netrc,
        **content,
    )
    answer.raise_for_status()
    return answer


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
