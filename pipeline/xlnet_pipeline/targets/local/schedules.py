"""Schedules on this machine: APScheduler with its jobs in a sqlite file, fired while ``schedule serve`` runs.

A schedule is ``schedules/NAME.json`` in the state directory, beside ``NAME.runs`` with a line for each run it started.
A time that passes while no process serves is skipped, unless a process starts to serve within GRACE seconds.
"""

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.errors import RunError, UserError
from xlnet_pipeline.targets import schedules
from xlnet_pipeline.targets.schedules import ACTIVE, DAMAGED, PAUSED, Schedule, Timing
from xlnet_pipeline.targets.submission import Submission

GRACE = 60  # seconds by which a run may start late
JOBS = "jobs.db"  # APScheduler's file
RUN_WORDS = 3  # in a line of NAME.runs: time, run and status
LOOK = 1  # seconds between two looks at what other processes have changed
_running: set["subprocess.Popen[bytes]"] = set()


class DamagedSchedule(RunError):
    """The file of a schedule cannot be read. The message names it and says what to do."""


def read(home: Path, name: str) -> dict[str, Any]:
    """Read the file of a schedule: its ``timing``, ``recipe`` and ``history``.

    Raises:
        DamagedSchedule: the file is missing or damaged.
    """
    path = home / "schedules" / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Timing(**content["timing"]).coming()
        _ = [*content["recipe"].items(), *content["history"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        remedy = f"make it again with 'schedule create {name}', or remove it with 'schedule delete {name}'"
        raise DamagedSchedule(f"'{path}' is not a schedule ({why}); {remedy}") from None
    return content


class LocalSchedules:
    """See :class:`xlnet_pipeline.targets.schedules.Schedules` for the methods."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "schedules"

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Create or change the schedule of that name."""
        schedules.check_name(name)
        content: dict[str, Any] = {
            "timing": {"cron": timing.cron, "timezone": timing.timezone, "max_concurrent": timing.max_concurrent},
            "recipe": json.loads(submission.recipe.to_json()),
        }
        path = self.folder / f"{name}.json"
        old = self._schedule(name) if path.is_file() and self._any(name).state != DAMAGED else None
        changed = schedules.differences(old, self._of(name, content)) if old else ["created"]
        if old and not changed:
            return old, []
        history = [*(old.history if old else ()), f"{datetime.now(UTC):%Y-%m-%d %H:%M} {'; '.join(changed)}"]
        self.folder.mkdir(parents=True, exist_ok=True)
        provenance.replace_file(path, json.dumps({**content, "history": history}, indent=1, ensure_ascii=False))
        from xlnet_pipeline.targets.local.trigger import CronTimes

        with self._store() as store:
            was_paused = old is not None and old.state == PAUSED
            store.add_job(
                fire,
                CronTimes(timing.cron, timing.timezone),
                args=[str(self.home), name],
                id=name,
                max_instances=timing.max_concurrent,
                replace_existing=True,
            )
            if was_paused:
                store.pause_job(name)
        return self._schedule(name), changed

    def all(self) -> list[Schedule]:
        """List all schedules by name. A schedule is DAMAGED if its file cannot be read."""
        return [self._any(path.stem) for path in sorted(self.folder.glob("*.json"))]

    def pause(self, name: str) -> Schedule:
        """Keep the schedule from firing until it is resumed."""
        schedules.find(name, self.all())
        with self._store() as store:
            store.pause_job(name)
        return self._schedule(name)

    def resume(self, name: str) -> Schedule:
        """Let the schedule fire again from now on."""
        schedules.find(name, self.all())
        with self._store() as store:
            store.resume_job(name)
        return self._schedule(name)

    def sync(self, name: str | None = None) -> list[str]:
        """Do nothing, because times are computed in the schedule's own zone and follow daylight saving."""
        names = [schedules.find(name, self.all()).name] if name else [one.name for one in self.all()]
        return [f"schedule {one}: unchanged, its times follow its zone" for one in names]

    def delete(self, name: str) -> list[str]:
        """Remove the schedule, but keep its runs."""
        schedules.find(name, self.all())
        with self._store() as store:
            if store.get_job(name):
                store.remove_job(name)
        (self.folder / f"{name}.json").unlink()
        return []

    def serve(self, say: Callable[[str], None]) -> None:
        """Fire schedules until SIGTERM or Ctrl-C, and then stop the runs that are under way.

        Raises:
            UserError: another process serves this state directory already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "serve.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"schedules of '{self.home}' are served by another process already") from None
            scheduler = self._scheduler(blocking=True)
            scheduler.add_job(len, "interval", args=[""], seconds=LOOK, jobstore="memory")  # wakes it up to look
            say(f"serving {len(self.all())} schedules of '{self.home}'; stop with Ctrl-C")
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # out of the loop first: see _Desk
            with contextlib.suppress(KeyboardInterrupt):
                scheduler.start()
            scheduler.shutdown(wait=False)
            for process in list(_running):
                process.terminate()
                process.wait()

    def _any(self, name: str) -> Schedule:
        try:
            return self._schedule(name)
        except DamagedSchedule as error:
            return Schedule(name, "local", name, Timing("-", "-"), DAMAGED, {}, notes=(str(error),))

    def _schedule(self, name: str) -> Schedule:
        content = read(self.home, name)
        found = self._of(name, content)
        with self._store() as store:
            job = store.get_job(name)
            due = job.next_run_time if job else None
        runs = self.folder / f"{name}.runs"
        started = runs.read_text(encoding="utf-8", errors="replace").split("\n") if runs.is_file() else []
        last = next((words[0] for line in reversed(started) if len(words := line.split()) == RUN_WORDS), None)
        state = ACTIVE if due else PAUSED
        coming = found.timing.coming(moment=due - timedelta(seconds=1)) if due else []
        return Schedule(
            found.name, "local", name, found.timing, state, found.recipe,
            next_run=next(iter(coming), None), coming=tuple(coming), last_run=last, history=tuple(content["history"]),
        )  # fmt: skip

    def _of(self, name: str, content: dict[str, Any]) -> Schedule:
        return Schedule(name, "local", name, Timing(**content["timing"]), ACTIVE, content["recipe"])

    def _scheduler(self, blocking: bool) -> Any:
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.jobstores.memory import MemoryJobStore
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
        from apscheduler.schedulers.base import BaseScheduler
        from apscheduler.schedulers.blocking import BlockingScheduler
        from sqlalchemy import URL

        class _Desk(BaseScheduler):
            """Reads and changes jobs without a loop. APScheduler's own loops mark due jobs as done when they stop."""

            def wakeup(self) -> None:
                pass

            def shutdown(self, wait: bool = True) -> None:
                super().shutdown(wait)

        store = SQLAlchemyJobStore(url=URL.create("sqlite", database=str(self.folder / JOBS)))
        return (BlockingScheduler if blocking else _Desk)(
            jobstores={"default": store, "memory": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(8)},
            job_defaults={"coalesce": True, "misfire_grace_time": GRACE},
            timezone=UTC,
        )

    @contextlib.contextmanager
    def _store(self) -> Iterator[Any]:
        """Open the scheduler's jobs without firing any. Correct their paths if the state directory was moved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        from sqlalchemy.exc import DatabaseError

        scheduler = self._scheduler(blocking=False)
        try:
            scheduler.start(paused=True)
        except DatabaseError as error:
            raise RunError(
                f"'{self.folder / JOBS}' cannot be used ({error.orig}); remove it and make the schedules again"
            ) from None
        try:
            for job in scheduler.get_jobs("default"):
                if job.args != (str(self.home), job.id):
                    job.modify(args=(str(self.home), job.id))
            yield scheduler
        finally:
            scheduler.shutdown(wait=False)


def fire(home: str, name: str) -> None:
    """Start one run of a schedule in a process of its own, and wait for it. The scheduler calls this."""
    process = subprocess.Popen([sys.executable, "-m", "xlnet_pipeline.targets.local.scheduled", home, name])
    _running.add(process)
    try:
        process.wait()
    finally:
        _running.discard(process)
