"""The local target: runs the pipeline's steps as processes on this machine, and keeps a record of each run.

State lives in one directory: ``runs/<id>/`` (``run.json``, ``logs/``, ``artifacts/``), ``cache/`` and ``mlflow.db``.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlnet import provenance, state
from xlnet.errors import RunError, UserError, nearest
from xlnet.recipe import Recipe
from xlnet.registry import Registry, open_registry
from xlnet.steps import KEPT
from xlnet_pipeline.targets import output, processes, progress, record
from xlnet_pipeline.targets.local import compiled, leftovers, registration
from xlnet_pipeline.targets.local.execution import Execution
from xlnet_pipeline.targets.local.fork_server import ForkServer
from xlnet_pipeline.targets.local.schedules import LocalSchedules
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure, StepRun
from xlnet_pipeline.targets.settings import Settings
from xlnet_pipeline.targets.submission import Say, Submission, refuse

CANCEL_WAIT = 15.0  # seconds that a cancelled run has to end, beyond those that its step has
DIED = "its process died (kill -9, out of memory or power off); run again: finished steps are kept"


class LocalTarget:
    """Runs on this machine. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "local"
    # ``exec`` replaces the step's shell by its program, because a shell would end at the first signal.
    interpreter = f"exec {shlex.quote(sys.executable)}"
    settings = Settings()
    cannot: Mapping[str, str] = {
        **dict.fromkeys(
            ("machine", "nodes", "spot", "flex_start", "image"),
            "is for the targets kfp and vertex; the local target is this machine",
        ),
        "memory": "is for --target docker; target 'local' runs no containers",
        "preview": "--dry-run is for the targets kfp and vertex; a run on this machine sends no request",
    }

    def __init__(self, home: str | Path | None = None) -> None:
        """Use the state directory ``home``, or that of ``XLNET_PIPELINE_HOME``, or ``.xlnet-pipeline``.

        Raises:
            UserError: it is a URI, or a file.
        """
        given = str(home or os.environ.get(state.HOME) or state.DEFAULT)
        if "://" in given:
            raise UserError(f"home '{given}' is a URI; the local target keeps its state in a local directory")
        self.home = state.home(home)
        if self.home.exists() and not self.home.is_dir():
            raise UserError(f"home '{given}' is a file; name a directory")

    def submit(self, submission: Submission, *, echo: Say | None = None, live: Say | None = None) -> Run:
        """Run the recipe in the foreground and return its record."""
        refuse(submission, self.cannot)
        if submission.device:
            from xlnet.training.detect import choose

            submission = dataclasses.replace(submission, device=choose(submission.device))
        recipe = submission.recipe
        registration.ready(recipe, self.home, ask=self.name == "local")
        run = self._new_run(recipe)
        leftovers.clean(self.home, self._is_running)
        stop = processes.Cancellation(submission.timeout)
        say = _until_nobody_listens(echo, stop)
        live = progress.kept(self._folder / run.id / "logs", live) if live else None
        execution = Execution(self, run, say, live, stop, submission)
        say(f"run {run.id}")
        try:
            with stop.on_signals():
                execution.run()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RunError(f"no space left on device below '{self.home}'; free some and run again") from None
        for line in summary(run):
            say(line)
        return run

    def runs(self, limit: int | None = None) -> list[Run]:
        """List all runs, or the newest ``limit``, the newest first. A run is DAMAGED if its record cannot be read."""
        found = [self._load_any(path) for path in self._records()]
        return sorted(found, key=lambda run: (run.created, run.id), reverse=True)[:limit]

    def status(self, run: str) -> Run:
        """Return the current record of a run."""
        return self._load(self.directory(run) / "run.json")

    def progress(self, run: str) -> Run:
        """Return the current record of a run."""
        return self.status(run)

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Yield the log lines of all steps of a run, or of one step."""
        found = self.status(run)
        names = [one.name for one in found.steps]
        if step is not None and step not in names:
            raise UserError(f"step '{step}' is unknown; allowed: {', '.join(names)}{nearest(step, names)}")
        return self._log_lines(found, [one for one in found.steps if step in (None, one.name)])

    def cancel(self, run: str) -> Run:
        """Ask the run's process to stop, and wait until it has stopped."""
        found = self.status(run)
        if found.status != record.RUNNING or found.pid is None:
            raise UserError(f"run '{found.id}' is {found.status}; only a running one can be cancelled")
        os.kill(found.pid, signal.SIGTERM)
        seconds = processes.patience() + CANCEL_WAIT
        patience = time.monotonic() + seconds
        while found.status == record.RUNNING and time.monotonic() < patience:
            time.sleep(processes.POLL)
            found = self.status(found.id)
        if found.status == record.RUNNING:
            raise RunError(f"run '{found.id}' has not ended after {seconds:.0f} s; end its process {found.pid}")
        return found

    def place(self, submission: Submission) -> None:
        """Return None, because the steps run on this machine."""

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """Always raise UserError, because a run on this machine sends no request."""
        raise UserError(self.cannot["preview"])

    def artifacts(self, run: str) -> list[Artifact]:
        """List the artifacts of a run."""
        return self.status(run).artifacts

    def schedules(self) -> LocalSchedules:
        """Return the schedules in the state directory."""
        return LocalSchedules(self.home)

    def models(self) -> Registry:
        """Open the registry that MLFLOW_TRACKING_URI names, or else the one in the state directory."""
        return open_registry(home=self.home)

    def directory(self, run: str) -> Path:
        """Return the directory of a run, which is named by its id, or by a unique beginning or end of it.

        Raises:
            UserError: no run has such an id, or several have.
        """
        with contextlib.suppress(OSError, ValueError):  # a whole id needs no list of what may be thousands of runs
            if run.strip(".") and Path(run).name == run and (self._folder / run / "run.json").is_file():
                return self._folder / run
        known = [path.parent.name for path in reversed(self._records())]
        return self._folder / record.choose(run, known, f"in '{self.home}'")

    def pipeline(self, recipe: Recipe) -> compiled.Specification:
        """Return the compiled pipeline. Its cache keys name the code that the steps will run."""
        code = {step: provenance.code_fingerprint(step) for step in KEPT}
        return compiled.specification(code, self.home, recipe.pretrains, recipe.shards)

    def code_parts(self, step: str) -> dict[str, str]:
        """Return the parts of a step's code, so that a message can name the part that changed."""
        return provenance.code_parts(step)

    @contextlib.contextmanager
    def starting(self) -> Iterator[processes.Start]:
        """Yield a function that starts the steps of one run as processes of this machine."""
        with ForkServer() as server:

            def start(command: list[str], environment: dict[str, str], watch: processes.Watch) -> int:
                spawn = functools.partial(server.spawn, check=watch.stop.check)
                return processes.run(command, environment, watch, start=spawn)

            yield start

    @property
    def _folder(self) -> Path:
        return self.home / "runs"

    def _new_run(self, recipe: Recipe) -> Run:
        run = Run(
            id=record.new_id(),
            target=self.name,
            recipe=json.loads(recipe.to_json()),
            recipe_digest=recipe.digest(),
            created=provenance.now(),
            pid=os.getpid(),
            pid_started=processes.started(os.getpid()),
            steps=[StepRun(name) for name in recipe.steps],
        )
        try:
            (self._folder / run.id / "logs").mkdir(parents=True)
            record.write(run, self._folder / run.id / "run.json")
        except OSError as error:
            raise UserError(f"cannot write below home '{self.home}': {error.strerror}; choose another") from None
        return run

    def _records(self) -> list[Path]:
        """List the record files of all runs, the oldest first, including those that this user may not read."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        found = []
        for path in (self._folder / name / "run.json" for name in names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                with contextlib.suppress(PermissionError):
                    path.lstat()
                found.append(path)
        return found

    def _load(self, path: Path) -> Run:
        run = record.read(path)
        alive = run.pid is not None and processes.started(run.pid) == run.pid_started
        if run.status == record.RUNNING and not alive:
            run = record.read(path)  # the run may have ended between the two reads
        if run.status == record.RUNNING and not alive:
            ended = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
            run.close(record.FAILED, RunFailure(None, DIED, "run"), ended)
        return run

    def _load_any(self, path: Path) -> Run:
        try:
            return self._load(path)
        except RunError as error:
            return record.damaged(path, self.name, str(error))

    def _is_running(self, run: str) -> bool:
        """Whether the run is running. A run whose record is gone or damaged counts as ended."""
        try:
            return self._load(self._folder / run / "run.json").status == record.RUNNING
        except (FileNotFoundError, RunError):
            return False

    def _log_lines(self, run: Run, steps: list[StepRun]) -> Iterator[str]:
        for step in steps:
            path = self._folder / run.id / (step.log or "")
            if step.log and path.is_file():
                yield f"==> {step.name} ({step.status}) <=="
                with path.open(encoding="utf-8", errors="replace") as file:
                    yield from output.shown(line.rstrip("\n") for line in file)


def _until_nobody_listens(echo: Say | None, stop: processes.Cancellation) -> Say:
    """Return a function that passes lines to ``echo`` until its terminal is closed; the run then goes on silently."""
    listeners = [echo] if echo else []

    def say(text: str) -> None:
        try:
            for listener in listeners:
                listener(text)
        except OSError as error:
            if error.errno != errno.EIO and stop.asked is None:
                raise
            listeners.clear()

    return say


def summary(run: Run) -> list[str]:
    """Return the summary of a run: one line for each step, and the error if there is one."""
    rows = [(step.name, step.status, record.shown(step.seconds), step.reason or "") for step in run.steps]
    lines = [f"{name:<11}{status:<10}{seconds:>9}  {reason}".rstrip() for name, status, seconds, reason in rows]
    lines.append(f"run {run.id}: {run.status} after {record.shown(run.seconds)}")
    if run.error:
        lines.append(f"error: {run.error.message}")
    return lines + run.notes
