"""Runs one function in several processes of this machine, in order and with a bounded number of results in memory.

The processes are separate programs that communicate through pipes. So no threads or connections are forked, no shared
memory is needed, the main module is not imported again, and a process ends as soon as its parent is gone.
"""

import contextlib
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from xlnet.errors import RunError, UserError

NUMBER = "XLNET_PROCESSES"  # environment variable: number of processes; default: as many as cores and memory allow
MEMORY = 512 << 20  # bytes for each process
CGROUP = Path("/sys/fs/cgroup")
# Otherwise the libraries would start a thread per core in each process.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes(Generic[Item, Result]):
    """Calls a function with many items in several processes.

    Args:
        function: a picklable function that returns the same in every process.
        count: number of processes; below 2, a thread of this process calls the function.
    """

    def __init__(self, function: Callable[[Item], Result], count: int) -> None:
        self._function, self._count = function, max(1, count)
        self._waiting: deque[tuple[Future[Result], Callable[[Result], None]]] = deque()

    def __enter__(self) -> "Processes[Item, Result]":
        self._threads = ThreadPoolExecutor(self._count)
        self._processes = [_Process(self._function) for _ in range(self._count)] if self._count > 1 else []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.end()
        self._threads.shutdown(cancel_futures=True)

    def do(self, item: Item, then: Callable[[Result], None]) -> None:
        """Call the function with an item, and later ``then`` with its result, here and in the order of the calls.

        Raises:
            RunError: a process ended by itself.
            Exception: what the function raised for this item or an earlier one.
        """
        while len(self._waiting) >= self._count + 2:
            self._take()
        self._waiting.append((self._threads.submit(self._call, item), then))

    def finish(self) -> None:
        """Wait for all results; raises what :meth:`do` raises."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        future, then = self._waiting.popleft()
        then(future.result())

    def _call(self, item: Item) -> Result:
        if not self._processes:
            return self._function(item)
        process = self._idle.get()
        try:
            return process.call(item)
        finally:
            self._idle.put(process)


class _Process:
    """One process, used by one thread at a time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        path = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-P", "-m", __name__]
        surroundings = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
        self._process = subprocess.Popen(command, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        self._items, self._results = self._process.stdin, self._process.stdout
        self._is_told = False
        self._function = function

    def call(self, item: Any) -> Any:
        """Call the function with an item; raise what it raises."""
        try:
            if not self._is_told:
                self._send(self._function)
                self._is_told = True
            self._send(item)
            result, error, where = pickle.load(self._results)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise RunError(_how_ended(self._process.wait())) from None
        if error is not None:
            raise error from (None if isinstance(error, UserError | RunError) else RuntimeError(f"\n{where}"))
        return result

    def _send(self, what: Any) -> None:
        pickle.dump(what, self._items, pickle.HIGHEST_PROTOCOL)
        self._items.flush()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._items, self._results):
            with contextlib.suppress(OSError):  # of what was not sent yet
                pipe.close()


def _how_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        fewer = f"give the step more memory, or fewer processes with {NUMBER}=1"
        return f"one of this step's processes was killed (signal 9), as happens when memory runs out; {fewer}"
    return f"one of this step's processes ended with exit status {status}; its last words are above"


def number(cost: float) -> int:
    """Return how many processes are worth starting for work that takes one process ``cost`` seconds.

    Raises:
        UserError: the variable XLNET_PROCESSES is no number.
    """
    if given := os.environ.get(NUMBER):
        if not given.isdecimal() or not int(given):
            raise UserError(f"{NUMBER} is '{given}'; allowed: a whole number from 1 on")
        return int(given)
    return max(1, min(cores(), _memory() // MEMORY, int(cost)))


def cores() -> int:
    """Return the cores that this process may use: its affinity, and its container's quota."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (*_numbers("cpu.max"), *_numbers("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"), 0, 0)[:2]
    return min(there, max(1, quota // period)) if quota > 0 and period > 0 else there


def _memory() -> int:
    """Return the bytes of memory that this process and its children may use."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([there, *_numbers("memory.max"), *_numbers("memory/memory.limit_in_bytes")])


def _numbers(*files: str) -> Iterator[int]:
    """Yield the container's limits from these files of its cgroup; files that are absent or say ``max`` have none."""
    for file in files:
        with contextlib.suppress(OSError):
            words = (CGROUP / file).read_text().split()
            if "max" not in words:
                yield from map(int, words)


def _work() -> None:
    """Read a function and then items from standard input, and write what it returns for each to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        function = pickle.load(sys.stdin.buffer)
        while True:
            item = pickle.load(sys.stdin.buffer)
            try:
                answer: tuple[Any, Exception | None, str] = (function(item), None, "")
            except Exception as error:
                answer = (None, error, traceback.format_exc())
            pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
            results.flush()


def _end_with_parent() -> None:
    hung_up = select.poll()
    hung_up.register(0, 0)
    hung_up.poll()
    os._exit(0)


if __name__ == "__main__":
    _work()
