"""Keeps other sites and other machines out: Host, Origin, access token, form tokens and the content security policy."""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlnet.errors import UserError

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# The evaluation's report has its style inside. It is shown in a frame that may run and load nothing.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SESSION, ACCESS = "xlnet_session", "xlnet_access"
FIELD = "form_token"
MOST_BYTES = 1_000_000  # maximum size of a form
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Refusal = Callable[[Request, int, str, str], Response]
Form = dict[str, list[str]]


class Refused(UserError):
    """Raised to refuse a request with this HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """Wraps the application, and answers only requests from this user's own browsers and programs."""

    def __init__(self, app: ASGIApp, token: str, refusal: Refusal) -> None:
        """Wrap ``app``.

        Args:
            app: the application.
            token: the access token that every client needs; empty: only clients on this machine are answered.
            refusal: makes an error page from (request, status, title, text).
        """
        self.app, self.token, self.refusal = app, token, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        session = _cookie(request, SESSION)
        scope.setdefault("state", {})["session"] = session or secrets.token_urlsafe(24)
        cookies = [] if session else [_set(SESSION, scope["state"]["session"])]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in added if pair[0] not in present),
                    *((b"set-cookie", cookie.encode()) for cookie in cookies),
                ]
            await send(message)

        answer = self._refused(request)
        await (answer or self.app)(scope, receive, guarded)

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self.token and _hostname(host) not in LOOPBACK:
            text = f"this server answers to 127.0.0.1 and localhost, not to '{host}'; open the address that it printed"
            return self.refusal(request, 421, "Another host's name", text)
        if request.method not in ("GET", "HEAD") and (reason := _foreign(request, host)):
            return self.refusal(request, 403, "A request from another site", reason)
        return self._without_token(request) if self.token else None

    def _without_token(self, request: Request) -> Response | None:
        given = request.query_params.get("token", "")
        if given and _same(given, self.token):
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            path = quote(request.url.path) + (f"?{urlencode(rest)}" if rest else "")
            answer = RedirectResponse(path if not path.startswith("//") else "/", 303)
            answer.headers.append("set-cookie", _set(ACCESS, _digest(self.token)))
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        known = _same(_cookie(request, ACCESS), _digest(self.token)) or _same(bearer, self.token)
        if known or request.url.path.startswith("/static/"):
            return None
        text = "open the whole address that 'xlnet-pipeline ui' printed: it ends in ?token=…"
        return self.refusal(request, 401, "This page needs a token", text)


def form_token(request: Request) -> str:
    """Return the token that every form must contain; each browser session has its own."""
    secret: bytes = request.app.state.site.secret
    return hmac.new(secret, request.scope["state"]["session"].encode(), hashlib.sha256).hexdigest()


async def read_form(request: Request) -> Form:
    """Read a form, and check its token.

    Raises:
        Refused: the form is too large, is not text, or has a wrong token.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise Refused(413, f"the form holds more than {MOST_BYTES:,} bytes; send a shorter text")
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=1000)
    except (UnicodeDecodeError, ValueError) as error:
        raise Refused(400, f"the form cannot be read ({error}); send it from a page of this server") from None
    if not _same(fields.get(FIELD, [""])[0], form_token(request)):
        raise Refused(403, "the form was not made by this server, or it is from before a restart; reload the page")
    return fields


def _foreign(request: Request, host: str) -> str:
    """Return the reason to refuse a request that changes something: it came from another site. Empty if it did not."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None and (origin == "null" or urlsplit(origin).netloc != host):
        return f"it came from '{origin}'; nothing was changed"
    return "it came from another site; nothing was changed" if site not in (None, "same-origin", "none") else ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(request: Request, name: str) -> str:
    try:
        found: SimpleCookie = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return found[name].value if name in found else ""


def _set(name: str, value: str) -> str:
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(), known.encode())


Handler = Callable[[Request, Form], Any]


def checked(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of a function: the endpoint checks the form's token and calls the function in a thread."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(handler, request, await read_form(request))

    return endpoint
