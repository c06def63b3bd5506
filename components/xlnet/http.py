"""Repeats calls to a server that may be slow, busy or gone, says that it waits, and explains the final failure.

Before a call that creates something is repeated, ``recover`` checks whether the first attempt created it.
"""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from xlnet.errors import RunError, UserError, warn

PATIENCE = 90.0  # seconds for which a call is repeated
FIRST_PAUSE = 0.5  # seconds, doubled each time; the actual pause is a random one of half to all of it
LONGEST_PAUSE = 20.0
QUIET = 3.0  # seconds of failures after which each further pause is announced
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes of an answer

_patience: ContextVar[float | None] = ContextVar("patience", default=None)

AGAIN = (408, 429, 500, 502, 503, 504)
OBJECT = re.compile(r"^(?:<[^>]*>|\w+\([^)]*\)): ")  # that a message begins with, such as a connection
Result = TypeVar("Result")


class HttpError(RunError):
    """A call failed: with an HTTP status, or with None because the connection failed or broke."""

    def __init__(self, status: int | None, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"the server answered {status}: {message}" if status else message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the failure may be temporary."""
        return self.status is None or self.status in AGAIN


class Unreachable(RunError):
    """A server gave no useful answer for as long as the call was repeated."""


@dataclass(frozen=True)
class Endpoint:
    """Describes a server for error messages: its name, its address, and the remedy if it refuses the caller."""

    name: str
    address: str
    credentials: str  # what to type if credentials are missing or have expired
    permission: str  # which permission to ask for if access is denied


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Repeat calls for ``seconds`` at most, where somebody waits for the answer; holds for this thread or task."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def limits() -> tuple[float, float]:
    """Return the seconds to connect, and between two bytes of an answer."""
    connect, answer = TIMEOUT
    return min(connect, _patience.get() or connect), answer


def repeated(
    call: Callable[[], Result], server: Endpoint, recover: Callable[[], Result | None] | None = None
) -> Result:
    """Return the call's result. Repeat the call while its failure may be temporary, and say so if that takes long.

    Args:
        call: raises HttpError.
        server: describes the server in messages.
        recover: looks for the object that the call should create before it is repeated; None: safe to repeat.

    Raises:
        UserError: wrong address, credentials, permission or request.
        Unreachable: the server kept failing.
        HttpError: status 404 or 409, which only the caller can interpret.
    """
    patience = PATIENCE if (chosen := _patience.get()) is None else chosen
    pause, deadline = FIRST_PAUSE, time.monotonic() + patience
    while True:
        try:
            return call()
        except HttpError as error:
            wait = max(pause * random.uniform(0.5, 1.0), error.retry_after or 0.0)
            left = deadline - time.monotonic()
            if not error.passing or wait > left:
                _give_up(error, server)
            if patience - left > QUIET or wait > QUIET:
                warn(f"{_failing(error, server)}; trying again in {wait:.0f} s, and for {left:.0f} s in all")
            time.sleep(wait)
        if recover and (found := repeated(recover, server)) is not None:
            return found
        pause = min(2 * pause, LONGEST_PAUSE)


def _give_up(error: HttpError, server: Endpoint) -> None:
    where = f"{server.name} at {server.address}"
    if error.status in (404, 409):
        raise error
    if error.status == 401:
        raise UserError(f"{where} does not accept the credentials (expired?); {server.credentials}") from None
    if error.status == 403:
        raise UserError(f"{where} denies access: {error.message}; {server.permission}") from None
    if error.passing:
        remedy = "check the address and that it is up" if error.status is None else "try again later"
        raise Unreachable(f"{_failing(error, server)}; {remedy}") from None
    raise UserError(f"{where} refused the request ({error.status}): {error.message}") from None


def _failing(error: HttpError, server: Endpoint) -> str:
    what = "does not answer (" if error.status is None else f"goes on failing ({error.status}: "
    return f"{server.name} at {server.address} {what}{error.message})"


def reason(body: str | bytes | None, fallback: str) -> str:
    """Return the message in an answer's JSON body, on one line."""
    try:
        content = json.loads(body or "")
        error = content.get("error")
        message = error.get("message") if isinstance(error, dict) else content.get("message") or error
    except (ValueError, AttributeError):
        message = None
    return " ".join(str(message or fallback).split())[:300]


def seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None if there is no header, or it holds a date."""
    return float(retry_after) if retry_after and retry_after.isdigit() else None


def short(error: BaseException) -> str:
    """Describe a connection error by its innermost cause, without Python's object addresses."""
    cause = getattr(error, "reason", None) or error
    for inner in getattr(cause, "args", ()):
        if isinstance(inner, BaseException):
            return short(inner)
    text = OBJECT.sub("", " ".join(str(cause).split()))
    return text[:200] or type(cause).__name__
