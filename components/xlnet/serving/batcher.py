"""Dynamic batching: one thread runs the model, and its next batch is the texts that arrived in the meantime."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from xlnet.serving.requests import MAX_TEXTS, Refusal

WAITING = 8 * MAX_TEXTS  # maximum texts in the request queue; more are refused, so that no client waits for long
BATCH = MAX_TEXTS  # texts per batch

Text = Any  # a text with its pair, or a request to generate text
Answer = dict[str, Any]
Waiting = tuple[list[Text], "Future[list[Answer]]"]


class Batcher:
    """Answers texts from many threads through a request queue; leaving the context waits for the last answers.

    If the model fails on a batch, it runs again for each request of the batch separately, so that only the requests
    that cause the failure get the error.
    """

    def __init__(self, answer: Callable[[list[Text]], list[Answer]]) -> None:
        """Answer texts with ``answer``, which only the batcher's thread calls."""
        self._answer = answer
        self._queue: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "batcher")

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()

    def predict(self, texts: list[Text]) -> list[Answer]:
        """Return the answers to texts in their order; this blocks.

        Raises:
            Refusal: status 503: the request queue is full, or the server is closing.
            Exception: the model failed with this exception.
        """
        future: Future[list[Answer]] = Future()
        with self._lock:
            if sum(len(waiting) for waiting, _ in self._queue) + len(texts) > WAITING:
                raise Refusal(503, "too many texts are waiting; try again in a second", (("Retry-After", "1"),))
            try:
                self._thread.submit(self._work)
            except RuntimeError:
                raise Refusal(503, "the server is closing; ask another one", (("Retry-After", "1"),)) from None
            self._queue.append((texts, future))
        return future.result()

    def _work(self) -> None:
        """Answer one batch. There is a call for each request, so the last ones may find an empty queue."""
        taken = self._take()
        try:
            answers = self._answers([text for texts, _ in taken for text in texts]) if taken else []
        except BaseException as error:  # clients would wait for ever
            self._each_alone(taken, error)
            return
        for texts, future in taken:
            future.set_result(answers[: len(texts)])
            del answers[: len(texts)]

    def _each_alone(self, taken: list[Waiting], error: BaseException) -> None:
        """Answer the requests of a failed batch one by one. If the batch had only one request, this one has failed."""
        for texts, future in taken:
            try:
                if len(taken) == 1:
                    raise error
                future.set_result(self._answers(texts))
            except BaseException as own:
                future.set_exception(own if isinstance(own, Exception) else RuntimeError(repr(own)))

    def _answers(self, texts: list[Text]) -> list[Answer]:
        answers = self._answer(texts)
        if len(answers) != len(texts):
            raise RuntimeError(f"the model gave {len(answers)} answers to {len(texts)} texts")
        return answers

    def _take(self) -> list[Waiting]:
        """Take requests for about one batch from the queue; empty if the queue is."""
        taken: list[Waiting] = []
        size = 0
        with self._lock:
            while self._queue and (not taken or size + len(self._queue[0][0]) <= BATCH):
                taken.append(self._queue.popleft())
                size += len(taken[-1][0])
        return taken
