"""Serves a language model: it generates several texts at once, one token of each in turn."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xlnet.data.values import BadValue
from xlnet.errors import UserError
from xlnet.generation import output
from xlnet.generation.request import Request, request_of
from xlnet.generation.writer import Token, Writer
from xlnet.model.config import PRETRAIN
from xlnet.serving.requests import Refusal, json_of

EXAMPLE = '{"prompt": "the film was", "tokens": 50, "temperature": 0.8, "top_p": 0.95, "seed": 1, "stream": true}'
MOST_TOKENS = 2000  # maximum new tokens per request
MOST_MEMORY = 4096  # maximum number of tokens that a new token sees
MOST_INSTANCES = 16  # maximum texts per prediction request, which are generated one after another
AT_ONCE = 8  # maximum texts that are generated at the same time
CLOSING = "the server is closing"

Record = dict[str, Any]


class LanguageModel:
    """An open language model, with the name under which it is served."""

    def __init__(self, directory: Path, name: str, precision: str = "auto") -> None:
        self.name = name
        self.writer = Writer(directory, precision)
        self.facts: dict[str, Any] = {"name": name, "task": PRETRAIN, "vocabulary": self.writer.model.config.vocab_size}
        self.limits = {"tokens": MOST_TOKENS, "memory": MOST_MEMORY, "at_once": AT_ONCE, "instances": MOST_INSTANCES}
        self._thread = ThreadPoolExecutor(1, "generation")  # computes one token after another, as they are asked for
        self._slots = threading.BoundedSemaphore(AT_ONCE)

    def warm_up(self) -> None:
        """Generate a token, so that the first client does not wait for one-time work."""
        self.answers([request_of({"prompt": "ready?", "tokens": 1})])

    def check_instance(self, instance: object) -> Request:
        """Check an instance, which is a prompt or an object with a prompt; raise BadValue if it cannot be used."""
        try:
            return self._request({"prompt": instance} if isinstance(instance, str) else instance)
        except UserError as error:
            raise BadValue(str(error)) from None

    def asked(self, body: bytes) -> tuple[Request, bool]:
        """Return the request in a body, and whether its answer is streamed.

        Raises:
            Refusal: status 400: the body cannot be used.
        """
        values = json_of(body, EXAMPLE)
        streamed = values.pop("stream", False)
        try:
            if not isinstance(streamed, bool):
                raise UserError(f"stream is {streamed!r}; allowed: true or false")
            return self._request(values), streamed
        except UserError as error:
            raise Refusal(400, str(error)) from None

    def _request(self, values: Any) -> Request:
        if not isinstance(values, dict):
            raise UserError(f"it is neither a string nor an object; send {EXAMPLE}")
        request = request_of(values)
        for name, most in (("tokens", MOST_TOKENS), ("memory", MOST_MEMORY)):
            if getattr(request, name) > most:
                raise UserError(f"{name} is {getattr(request, name):,}; this server allows {most:,}")
        self.writer.check(request)
        return request

    def answers(self, requests: list[Any]) -> list[Record]:
        """Generate the text of each request, one after another; return the last record of each."""
        return [list(self._records(request, lambda: False))[-1] for request in requests]

    @contextlib.contextmanager
    def started(self, request: Request, is_over: Callable[[], bool]) -> Iterator[Iterator[Record]]:
        """Generate a text: yield an iterator over one record per token, and a last one for the whole text.

        The text ends early once ``is_over`` returns True, as it does when the server is closing.

        Raises:
            Refusal: status 503: too many texts are being generated.
        """
        if not self._slots.acquire(blocking=False):
            raise Refusal(503, f"{AT_ONCE} texts are being written; try again in a second", (("Retry-After", "1"),))
        try:
            with contextlib.closing(self._records(request, is_over)) as records:
                yield records
        finally:
            self._slots.release()

    def _records(self, request: Request, is_over: Callable[[], bool]) -> Generator[Record, None, None]:
        tokens: list[Token] = []
        stream = self.writer.write(request)
        while not is_over():
            token = self._thread.submit(next, stream, None).result()
            if token is None:
                yield output.summary(self.writer, request, tokens)
                return
            tokens.append(token)
            yield output.record(token)
        yield output.summary(self.writer, request, tokens) | {"ended": CLOSING}
