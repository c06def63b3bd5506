"""Parses and checks request bodies ``{"instances": [...]}``, and describes refusals."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xlnet.data.values import BadValue, shown

MAX_BODY = 4 << 20  # bytes; Vertex AI itself accepts 1.5 MB
MAX_TEXTS = 1024  # per request
EXAMPLE = '{"instances": ["a text", {"text": "another", "text_pair": "its second text"}]}'

Text = tuple[str, str | None]
T = TypeVar("T")  # a checked instance: a text with its pair, or a request to generate text


@dataclass(frozen=True)
class Refusal(Exception):
    """An error response to a request."""

    status: int  # HTTP status
    message: str  # what was given, what is allowed, what to send next
    headers: tuple[tuple[str, str], ...] = ()  # additional headers, such as ``Allow``
    details: dict[str, Any] = field(default_factory=dict)  # additional fields of the answer, besides ``error``


def body_length(lengths: list[str], transfer: str | None, coding: str | None) -> int:
    """Return the body's length in bytes, given the request's headers of length, transfer and content encoding.

    Raises:
        Refusal: the length is missing, given twice, not a number or too large; or the body is compressed.
    """
    if transfer is not None or not lengths:
        raise Refusal(411, "the body's length is unknown; send a Content-Length header instead of chunks")
    if coding is not None and coding.lower() != "identity":
        raise Refusal(415, f"Content-Encoding is {shown(coding)}; send the JSON as it is, without compression")
    length = lengths[0].strip()
    if len(set(lengths)) > 1 or not (length.isascii() and length.isdecimal()):
        raise Refusal(400, f"Content-Length {shown(', '.join(lengths))} is not a number of bytes")
    if len(length.lstrip("0")) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
        raise Refusal(
            413, f"a body of {length[:20]} bytes is too long; at most {MAX_BODY} are read: send fewer texts at once"
        )
    return int(length)


def texts_of(body: bytes, check: Callable[[Any], T], most: int = MAX_TEXTS) -> list[T]:
    """Return the instances of a request, as ``check`` returns them; it raises BadValue for one that cannot be used.

    As in KServe's and Vertex AI's protocols, a request is answered as a whole or refused as a whole. A refusal names
    every bad instance, so that a client can send the others again.

    Raises:
        Refusal: the body is not a list of at most ``most`` instances, or an instance cannot be used.
    """
    instances = json_of(body, EXAMPLE).get("instances")
    if not isinstance(instances, list) or not instances:
        raise Refusal(400, f"there is no list of 'instances'; send {EXAMPLE}")
    if len(instances) > most:
        raise Refusal(413, f"{len(instances)} instances are too many; at most {most} are answered at once")
    texts: list[T] = []
    errors: list[dict[str, Any]] = []
    for number, instance in enumerate(instances):
        try:
            texts.append(check(instance))
        except BadValue as error:
            errors.append({"instance": number, "error": error.reason})
    if errors:
        first = errors[0]
        more = f" (and {len(errors) - 1} more instances cannot be used)" if len(errors) > 1 else ""
        raise Refusal(400, f"instances[{first['instance']}]: {first['error']}{more}", details={"errors": errors})
    return texts


def json_of(body: bytes, example: str) -> dict[str, Any]:
    """Parse a request's body, which must be a JSON object.

    Raises:
        Refusal: status 400: the body is not a JSON object; the message shows the example.
    """
    try:
        given = json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error}); send {example}") from None
    if not isinstance(given, dict):
        wanted = "there is no list of 'instances'" if example == EXAMPLE else "the body is not an object"
        raise Refusal(400, f"{wanted}; send {example}")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; refuse a repeated field, because JSON parsers disagree on its meaning."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"field {shown(twice)} is given twice")
    return fields


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def fields_of(instance: Any) -> tuple[Any, Any]:
    """Return an instance's text and pair, as given; raise BadValue if it has none."""
    if isinstance(instance, str):
        return instance, None
    if not isinstance(instance, dict):
        raise BadValue(f"it is neither a string nor an object; send {EXAMPLE}")
    if unknown := sorted(instance.keys() - {"text", "text_pair"}):
        raise BadValue(f"unknown field {shown(unknown[0])}; allowed: text, text_pair")
    if "text" not in instance:
        raise BadValue("no field 'text'")
    return instance["text"], instance.get("text_pair")
