"""Prints generated text token by token, and describes it in JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from xlnet.errors import UserError
from xlnet.generation.request import Request, request_of
from xlnet.generation.writer import Token, Writer

STDIN = "-"
MOST_BYTES = 4 << 20  # maximum size of a prompt
WHOLE = ("tokens", "top_k", "seed", "memory")  # options that are whole numbers
NUMBERS = ("temperature", "top_p")


def run(writer: Writer, options: argparse.Namespace) -> None:
    """Generate the text that the command line asks for, and print it.

    Raises:
        UserError: an option or the prompt cannot be used.
    """
    request = request_of(_values(options))
    if options.json:
        for record in records(writer, request):
            _print(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        _show(writer, request)


def records(writer: Writer, request: Request) -> Iterator[dict[str, Any]]:
    """Yield a record for each token, as soon as it is chosen, and a last one for the whole text."""
    tokens = []
    for token in writer.write(request):
        tokens.append(token)
        yield record(token)
    yield summary(writer, request, tokens)


def record(token: Token) -> dict[str, Any]:
    """Describe a token in JSON."""
    return {"token": token.text, "id": token.id, "place": token.place, "probability": token.probability}


def summary(writer: Writer, request: Request, tokens: list[Token]) -> dict[str, Any]:
    """Describe the whole text in JSON: the text, its new tokens, why it ended, and the seed if there is one."""
    ended = "end of text" if len(tokens) < request.tokens else "tokens"
    seed = {} if request.sampling.greedy else {"seed": request.sampling.seed}
    return {"text": writer.text(request, tokens), "tokens": len(tokens), "ended": ended, **seed}


def _show(writer: Writer, request: Request) -> None:
    """Print each token when it is generated. A text that is filled in another order is printed at the end."""
    before, after = request.around
    tokens = []
    stream = writer.write(replace(request, probabilities=False))  # checks the request before anything is printed
    if request.in_order:
        _print(before)
    for token in stream:
        tokens.append(token)
        _print(token.text)
    _print((after if request.in_order else writer.text(request, tokens)) + "\n")
    if not request.sampling.greedy:
        print(f"seed {request.sampling.seed}", file=sys.stderr)


def _print(text: str) -> None:
    """Print at once, without a line end, in characters that standard output can encode."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options as a request's values."""
    values: dict[str, Any] = {name: getattr(options, name) for name in ("marker", "order")}
    values |= {name: _number(name, getattr(options, name), int) for name in WHOLE}
    values |= {name: _number(name, getattr(options, name), float) for name in NUMBERS}
    values |= {name: getattr(options, name) or None for name in ("infill", "past_end")}
    return values | {"prompt": _stdin() if options.prompt == STDIN else options.prompt}


def _number(name: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--{name.replace('_', '-')} is '{text}', which is not {what}") from None


def _stdin() -> str:
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"the prompt on standard input is longer than {MOST_BYTES:,} bytes; give a shorter one")
    return content.decode("utf-8", "surrogateescape")
