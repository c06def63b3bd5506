"""Ends a training whose ranks wait for a dead or hanging rank, and says which rank it is.

A collective operation waits for all ranks; NCCL waits for half an hour. So each rank has a thread that sends a
heartbeat every second, which says where its main thread is, and reads the other ranks' heartbeats. The rank with the
least progress is the one that the others are waiting for.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from xlnet.errors import LostPeer, RunError, UserError
from xlnet.training.distributed import SingleRank

INTERVAL = 1.0  # seconds between two heartbeats
SILENCE = 15.0  # seconds without a heartbeat after which a process or its machine counts as dead
HANG = 40.0  # seconds without progress that count as a hang; at least SLOWER times the longest pause so far
SLOWER = 4.0
FIRST = 600.0  # the same limit before the first update, which compiles programs and fills caches
# The order of places within a step: ranks at a later place wait for ranks at an earlier one.
PLACES = ("start", "wait for data", "forward", "backward", "synchronise", "optimise", "validate", "checkpoint")
PR_SET_PDEATHSIG = 1  # prctl(2)


class Watchdog:
    """One rank's heartbeat thread. It does nothing if there are no other ranks."""

    def __init__(self, ranks: SingleRank) -> None:
        self._ranks = ranks
        self._hang = float(os.environ.get("XLNET_HANG_SECONDS", HANG))
        self._main = threading.get_ident()
        self._position = (0, 0)
        self._moved = time.monotonic()
        self._longest = 0.0
        self._updates = 0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if ranks.size > 1:
            self._store: Any = ranks.another_store()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def at(self, step: int, place: str) -> None:
        """Record where the main thread is now."""
        now = time.monotonic()
        if self._updates:  # pauses before the first update say nothing about later ones
            self._longest = max(self._longest, now - self._moved)
        self._updates += place == "optimise"
        self._position, self._moved = (step, PLACES.index(place)), now

    def failed(self, error: BaseException) -> None:
        """Tell the other ranks that this rank ends with an error."""
        text = str(error) if isinstance(error, (UserError, RunError)) else traceback.format_exc().rstrip()
        report(f"{name(self._who())}: {text}" if self._ranks.size > 1 and not isinstance(error, UserError) else text)
        if self._thread is None:
            return
        told = {**self._who(), "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        with contextlib.suppress(RuntimeError):  # the rank that hosts the store is gone, which the others will notice
            self._store.compare_set("failed", "", json.dumps(told))

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def limit(self) -> float:
        """Return how many seconds without progress count as a hang."""
        return max(self._hang, SLOWER * self._longest) if self._updates > 1 else max(FIRST, self._hang)

    def _who(self) -> dict[str, Any]:
        return {"rank": self._ranks.rank, "host": socket.gethostname(), "pid": os.getpid()}

    def _run(self) -> None:
        try:
            lives = Heartbeats(self._store, self._ranks.rank, self._ranks.size)
            while not self._end.wait(INTERVAL):
                quiet = time.monotonic() - self._moved
                lives.tell({**self._who(), "position": self._position, "quiet": quiet})
                if reason := self._trouble(lives, quiet):
                    stop(reason)
                if silent := lives.silent():
                    gone = f"has shown no sign of life for {SILENCE:g} s: its process or machine is gone"
                    stop(f"{name(silent)} {gone}", LostPeer.exit_status)
        except RuntimeError as error:
            if not self._end.wait(2 * INTERVAL):
                reason = f"the rank that keeps the connections of all others is gone ({str(error).splitlines()[0]})"
                stop(reason, LostPeer.exit_status)

    def _trouble(self, lives: "Heartbeats", quiet: float) -> str:
        """Return the reason to end now; empty if training may continue."""
        if failed := lives.failed():
            return f"{name(failed)} failed: {failed['error']}\n{failed['trace'].rstrip()}"
        if quiet < self.limit():
            return ""
        lives.show(trace_of(self._main))
        time.sleep(2 * INTERVAL)  # the other ranks reach the same conclusion at about the same time
        return lives.verdict(quiet)


class Heartbeats:
    """The heartbeats that ranks exchange through the store."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._count = 0
        self._seen: dict[int, tuple[int, float]] = {}
        store.compare_set("failed", "", "")

    def tell(self, about: dict[str, Any]) -> None:
        """Send this rank's heartbeat."""
        self._count += 1
        self._store.set(f"life-{self._rank}", json.dumps({**about, "count": self._count}))

    def others(self) -> dict[int, dict[str, Any]]:
        """Return the last heartbeat of every rank that has sent one."""
        there = [rank for rank in range(self._size) if self._store.check([f"life-{rank}"])]
        return {rank: json.loads(self._store.get(f"life-{rank}")) for rank in there}

    def failed(self) -> dict[str, Any] | None:
        """Return the heartbeat of the first rank that ended with an error; None if there is none."""
        told = self._store.get("failed")
        return json.loads(told) if told else None

    def silent(self) -> dict[str, Any] | None:
        """Return the heartbeat of a rank that has been silent for too long; None if there is none."""
        now = time.monotonic()
        for rank, about in self.others().items():
            count, since = self._seen.get(rank, (-1, now))
            self._seen[rank] = (about["count"], now if about["count"] != count else since)
            if now - self._seen[rank][1] > SILENCE:
                return about
        return None

    def show(self, trace: str) -> None:
        """Publish this rank's stack trace, which the rank that reports the hang will read."""
        self._store.set(f"trace-{self._rank}", trace)

    def verdict(self, quiet: float) -> str:
        """Describe the rank that the others are waiting for: the one with the least progress."""
        others = self.others()
        first = min(tuple(about["position"]) for about in others.values())
        behind = [rank for rank, about in others.items() if tuple(about["position"]) == first]
        step, place = first[0], PLACES[first[1]]
        if len(behind) == self._size:
            return (
                f"all {self._size} ranks have been at '{place}' of step {step} for {quiet:.0f} s; "
                f"the connection between them hangs\n{self._trace(behind[0])}"
            )
        culprits = ", ".join(name(others[rank]) for rank in behind)
        return f"{culprits} hangs at '{place}' of step {step}: no progress for {quiet:.0f} s\n{self._trace(behind[0])}"

    def _trace(self, rank: int) -> str:
        return self._store.get(f"trace-{rank}").decode() if self._store.check([f"trace-{rank}"]) else "(no traceback)"


def name(about: dict[str, Any]) -> str:
    """Format a rank as ``rank 1 (process 123 on node-0)``."""
    return f"rank {about['rank']} (process {about['pid']} on {about['host']})"


def trace_of(thread: int) -> str:
    """Return a thread's current stack, innermost call last."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)).rstrip() if frame else "(no traceback)"


def stop(reason: str, status: int = RunError.exit_status) -> None:
    """End this process at once. Its main thread may wait for ever, and cannot be interrupted."""
    if not report(reason):
        print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(status)


def report(reason: str) -> bool:
    """Write the reason for the launcher that started this rank, if there is one; only the first reason is kept."""
    path = os.environ.get("XLNET_RANK_REPORT")
    if path:
        with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as file:
            file.write(reason)
    return bool(path)


def end_with_parent() -> None:
    """On Linux, let the kernel end this rank if its launcher is killed, so that no two trainings write one store."""
    if "XLNET_RANK_REPORT" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
