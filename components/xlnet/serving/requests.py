"""What a client may send, and what a refusal says: bodies of ``{"instances": [...]}`` into texts."""

import json
from dataclasses import dataclass
from typing import Any

MAX_BODY = 4 << 20  # bytes; Vertex AI itself lets 1.5 MB through
MAX_TEXTS = 1024  # of one request
EXAMPLE = '{"instances": ["a text", {"text": "another", "text_pair": "its second text"}]}'

Text = tuple[str, str | None]


@dataclass(frozen=True)
class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: what was given, what is allowed, what to send next.
        headers: more of them, such as ``Allow``.
    """

    status: int
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def body_length(length: str | None, encoding: str | None) -> int:
    """Bytes of the body that a request's headers promise.

    Raises:
        Refusal: none, no number, or too many.
    """
    if encoding is not None or length is None:
        raise Refusal(411, "the body's length is unknown; send a Content-Length header instead of chunks")
    if not (length.isascii() and length.isdecimal()):
        raise Refusal(400, f"Content-Length '{length}' is no number of bytes")
    if int(length) > MAX_BODY:
        raise Refusal(
            413, f"a body of {length} bytes is too long; at most {MAX_BODY} are read: send fewer texts at once"
        )
    return int(length)


def texts_of(body: bytes, pairs: bool | None) -> list[Text]:
    """The texts of a request, each with its pair or None.

    Args:
        body: JSON.
        pairs: whether the model reads pairs of texts; None: it does not say, and both are taken.

    Raises:
        Refusal: something else than instances in it.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error}); send {EXAMPLE}") from None
    instances = given.get("instances") if isinstance(given, dict) else None
    if not isinstance(instances, list) or not instances:
        raise Refusal(400, f"there is no list of 'instances'; send {EXAMPLE}")
    if len(instances) > MAX_TEXTS:
        raise Refusal(413, f"{len(instances)} instances are too many; at most {MAX_TEXTS} are answered at once")
    return [_text(number, one, pairs) for number, one in enumerate(instances)]


def _text(number: int, instance: Any, pairs: bool | None) -> Text:
    where = f"instances[{number}]"
    fields = {"text": instance} if isinstance(instance, str) else instance
    if not isinstance(fields, dict):
        raise Refusal(400, f"{where} is neither a string nor an object; send {EXAMPLE}")
    unknown = sorted(fields.keys() - {"text", "text_pair"})
    if unknown:
        raise Refusal(400, f"{where} has an unknown field '{unknown[0]}'; allowed: text, text_pair")
    text, pair = fields.get("text"), fields.get("text_pair")
    if not isinstance(text, str):
        raise Refusal(400, f"{where}.text is {_kind(text)}; it has to be a string")
    if not isinstance(pair, str | None):
        raise Refusal(400, f"{where}.text_pair is {_kind(pair)}; it has to be a string")
    if not text.strip():
        raise Refusal(400, f"{where} is an empty text")
    if pairs is True and pair is None:
        raise Refusal(400, f"{where} has no 'text_pair', and this model reads pairs of texts")
    if pairs is False and pair is not None:
        raise Refusal(400, f"{where} has a 'text_pair', and this model reads single texts")
    return text, pair


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
