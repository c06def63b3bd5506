"""One thread that answers: whatever texts have come in while it computed are its next batch."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from xlnet.serving.requests import MAX_TEXTS, Refusal, Text

WAITING = 8 * MAX_TEXTS  # texts that may wait; further ones are refused, so that nobody waits for long
BATCH = MAX_TEXTS  # texts that are answered together

Answer = dict[str, Any]
Waiting = tuple[list[Text], "Future[list[Answer]]"]


class Batcher:
    """Texts in, answers out, from many threads; use it as a context, whose end waits for what was asked before."""

    def __init__(self, answer: Callable[[list[Text]], list[Answer]]) -> None:
        """Answer with ``answer``, which is called in one thread, with texts that all have a pair or all have none."""
        self._answer = answer
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher")

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def ask(self, texts: list[Text]) -> list[Answer]:
        """Answers of texts in their order; blocks.

        Raises:
            Refusal: 503, too many texts wait already.
        """
        future: Future[list[Answer]] = Future()
        with self._changed:
            if sum(len(waiting) for waiting, _ in self._queue) + len(texts) > WAITING:
                raise Refusal(503, "too many texts are waiting; try again in a second", (("Retry-After", "1"),))
            self._queue.append((texts, future))
            self._changed.notify()
        return future.result()

    def _work(self) -> None:
        while taken := self._take():
            try:
                answers = self._answered([text for texts, _ in taken for text in texts])
            except Exception as error:  # goes to everybody who asked
                for _, future in taken:
                    future.set_exception(error)
                continue
            for texts, future in taken:
                future.set_result(answers[: len(texts)])
                del answers[: len(texts)]

    def _take(self) -> list[Waiting]:
        """Whole requests of about a batch; empty: closed, and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            taken: list[Waiting] = []
            size = 0
            while self._queue and (not taken or size + len(self._queue[0][0]) <= BATCH):
                taken.append(self._queue.popleft())
                size += len(taken[-1][0])
            return taken

    def _answered(self, texts: list[Text]) -> list[Answer]:
        """A text without a pair is laid out differently beside texts with one: each kind by itself."""
        answers: list[Answer] = [{}] * len(texts)
        for has_pair in (False, True):
            places = [place for place, (_, pair) in enumerate(texts) if (pair is not None) is has_pair]
            if places:
                for place, one in zip(places, self._answer([texts[place] for place in places]), strict=True):
                    answers[place] = one
        return answers
