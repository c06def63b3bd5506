"""What a client may send, and what a refusal says: bodies of ``{"instances": [...]}`` into texts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xlnet.data.values import BadValue, shown

MAX_BODY = 4 << 20  # bytes; Vertex AI itself lets 1.5 MB through
MAX_TEXTS = 1024  # of one request
EXAMPLE = '{"instances": ["a text", {"text": "another", "text_pair": "its second text"}]}'

Text = tuple[str, str | None]
Check = Callable[[Any, Any], Text]


@dataclass(frozen=True)
class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: what was given, what is allowed, what to send next.
        headers: more of them, such as ``Allow``.
        details: more fields of the answer beside ``error``.
    """

    status: int
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def body_length(lengths: list[str], transfer: str | None, coding: str | None) -> int:
    """Return the number of bytes of the body that a request's headers promise.

    Args:
        lengths: every Content-Length header.
        transfer: the Transfer-Encoding header.
        coding: the Content-Encoding header.

    Raises:
        Refusal: there is no length, or several, or it is no number, or too large; or the body is compressed.
    """
    if transfer is not None or not lengths:
        raise Refusal(411, "the body's length is unknown; send a Content-Length header instead of chunks")
    if coding is not None and coding.lower() != "identity":
        raise Refusal(415, f"Content-Encoding is {shown(coding)}; send the JSON as it is, without compression")
    length = lengths[0].strip()
    if len(set(lengths)) > 1 or not (length.isascii() and length.isdecimal()):
        raise Refusal(400, f"Content-Length {shown(', '.join(lengths))} is no number of bytes")
    if len(length.lstrip("0")) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
        raise Refusal(
            413, f"a body of {length[:20]} bytes is too long; at most {MAX_BODY} are read: send fewer texts at once"
        )
    return int(length)


def texts_of(body: bytes, check: Check) -> list[Text]:
    """Return the texts of a request, each with its pair or None.

    A request is answered whole or refused whole, as KServe's and Vertex AI's protocols have it; a refusal names
    every instance that is at fault, so that a client can send the others again.

    Args:
        body: JSON.
        check: takes a text and a pair as they were given and returns them; raises BadValue.

    Raises:
        Refusal: the body holds something else than instances, or one of them cannot be used.
    """
    instances = _json(body).get("instances")
    if not isinstance(instances, list) or not instances:
        raise Refusal(400, f"there is no list of 'instances'; send {EXAMPLE}")
    if len(instances) > MAX_TEXTS:
        raise Refusal(413, f"{len(instances)} instances are too many; at most {MAX_TEXTS} are answered at once")
    texts: list[Text] = []
    errors: list[dict[str, Any]] = []
    for number, instance in enumerate(instances):
        try:
            texts.append(check(*_fields(instance)))
        except BadValue as error:
            errors.append({"instance": number, "error": error.reason})
    if errors:
        first = errors[0]
        more = f" (and {len(errors) - 1} more instances cannot be used)" if len(errors) > 1 else ""
        raise Refusal(400, f"instances[{first['instance']}]: {first['error']}{more}", details={"errors": errors})
    return texts


def _json(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error}); send {EXAMPLE}") from None
    if not isinstance(given, dict):
        raise Refusal(400, f"there is no list of 'instances'; send {EXAMPLE}")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON that names a field twice means different things to different readers."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"field {shown(twice)} is given twice")
    return fields


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _fields(instance: Any) -> tuple[Any, Any]:
    """The text and the pair of an instance, as they were given."""
    if isinstance(instance, str):
        return instance, None
    if not isinstance(instance, dict):
        raise BadValue(f"it is neither a string nor an object; send {EXAMPLE}")
    if unknown := sorted(instance.keys() - {"text", "text_pair"}):
        raise BadValue(f"unknown field {shown(unknown[0])}; allowed: text, text_pair")
    if "text" not in instance:
        raise BadValue("no field 'text'")
    return instance["text"], instance.get("text_pair")
