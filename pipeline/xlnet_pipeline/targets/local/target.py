"""The local target: the pipeline's steps as processes on this machine, one after another, with a record of its own.

State lives in one directory: ``runs/<id>/`` (``run.json``, ``logs/``, ``artifacts/``), ``cache/`` and ``mlflow.db``.
"""

import dataclasses
import errno
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from xlnet import provenance, state
from xlnet.data import remarks
from xlnet.errors import RunError, UserError, nearest
from xlnet.recipe import Recipe
from xlnet.registry import Registry, open_registry, resolve
from xlnet.steps import KEPT, STEPS
from xlnet_pipeline.targets import processes, progress, record, specification
from xlnet_pipeline.targets.local import compiled, interruption, leftovers, registration
from xlnet_pipeline.targets.local.cache import Cache, Damaged, check, key_of, parts_of
from xlnet_pipeline.targets.local.schedules import LocalSchedules
from xlnet_pipeline.targets.output import Output
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure, StepRun
from xlnet_pipeline.targets.settings import LocalSettings
from xlnet_pipeline.targets.specification import Task, Values
from xlnet_pipeline.targets.submission import Submission, refuse
from xlnet_steps import supervisor

CANCEL_WAIT = 15.0  # seconds that a cancelled run has to end, beyond those that its step has
SCHEMA_VERSION = "0.0.1"  # of the artifact types that come with kfp
DIED = "its process died (kill -9, out of memory or power off); run again: finished steps are kept"


class LocalTarget:
    """Runs on this machine. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "local"
    # What starts a step's program in the place of its shell, which would die of the first signal.
    interpreter = f"exec {shlex.quote(sys.executable)}"
    settings = LocalSettings()
    cannot: Mapping[str, str] = {
        **dict.fromkeys(
            ("machine", "nodes", "spot", "flex_start", "image"),
            "is for the targets kfp and vertex; the local target is this machine",
        ),
        "memory": "is for --target docker; target 'local' runs no containers",
        "preview": "--dry-run is for the targets kfp and vertex; a run on this machine sends no request",
    }

    def __init__(self, home: str | Path | None = None) -> None:
        """Use the state directory ``home``; None: ``XLNET_PIPELINE_HOME``, else ``.xlnet-pipeline``.

        Raises:
            UserError: it is a URI, or a file.
        """
        given = str(home or os.environ.get(state.HOME) or state.DEFAULT)
        if "://" in given:
            raise UserError(f"home '{given}' is a URI; the local target keeps its state in a local directory")
        self.home = state.home(home)
        if self.home.exists() and not self.home.is_dir():
            raise UserError(f"home '{given}' is a file; name a directory")

    def submit(
        self,
        submission: Submission,
        *,
        echo: Callable[[str], None] | None = None,
        live: Callable[[str], None] | None = None,
    ) -> Run:
        """Run the recipe in the foreground and return its record."""
        refuse(submission, self.cannot)
        if submission.device:
            from xlnet.training.detect import choose

            submission = dataclasses.replace(submission, device=choose(submission.device))
        recipe = submission.recipe
        registration.ready(recipe, self.home, ask=self.name == "local")
        run = self._new_run(recipe)
        leftovers.clean(self.home, self._is_running)
        stop = processes.Stop(submission.timeout)
        say = _until_nobody_listens(echo, stop)
        live = progress.kept(self._folder / run.id / "logs", live) if live else None
        execution = _Execution(self, run, say, live, stop, submission)
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
        """Every run, or the newest of them, the newest first."""
        found = [self._load(path) for path in self._folder.glob("*/run.json")]
        return sorted(found, key=lambda run: (run.created, run.id), reverse=True)[:limit]

    def status(self, run: str) -> Run:
        """The record of a run as it is now."""
        return self._load(self.directory(run) / "run.json")

    def progress(self, run: str) -> Run:
        """The record of a run as it is now."""
        return self.status(run)

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Lines of the logs of a run, or of one of its steps."""
        if step is not None and step not in STEPS:
            raise UserError(f"step '{step}' is unknown; allowed: {', '.join(STEPS)}{nearest(step, STEPS)}")
        found = self.status(run)
        return self._log_lines(found, [one for one in found.steps if step in (None, one.name)])

    def cancel(self, run: str) -> Run:
        """Ask the process of a run to end it, and wait until it has."""
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
        """None: the steps run on this machine."""

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """A run on this machine sends no request: always a UserError."""
        raise UserError(self.cannot["preview"])

    def artifacts(self, run: str) -> list[Artifact]:
        """List the artifacts of a run."""
        return self.status(run).artifacts

    def schedules(self) -> LocalSchedules:
        """The schedules in the state directory."""
        return LocalSchedules(self.home)

    def models(self) -> Registry:
        """The registry that MLFLOW_TRACKING_URI names, else the one in the state directory."""
        return open_registry(home=self.home)

    def directory(self, run: str) -> Path:
        """The directory of the run with this id, unique beginning of it, or ending.

        Raises:
            UserError: there is none, or several.
        """
        known = sorted(path.parent.name for path in self._folder.glob("*/run.json"))
        matches = [run] if run in known else [one for one in known if one.startswith(run) or one.endswith(run)]
        if run and len(matches) == 1:
            return self._folder / matches[0]
        if run and matches:
            raise UserError(f"run '{run}' could be {', '.join(matches[-5:])}; type more of it")
        if run == record.LATEST and known:
            return self._folder / known[-1]
        hint = nearest(run, known) or (f"; the latest is '{known[-1]}'" if known else "; there are no runs yet")
        raise UserError(f"run '{run}' is unknown in '{self.home}'{hint}")

    def pipeline(self) -> compiled.Specification:
        """The compiled DAG, its cache keys naming the code that the steps will run."""
        return compiled.specification({step: provenance.code_fingerprint(step) for step in KEPT}, self.home)

    def code_parts(self, step: str) -> dict[str, str]:
        """What a step's code consists of, to say which part of it changed."""
        return provenance.code_parts(step)

    def start(
        self,
        command: list[str],
        environment: dict[str, str],
        log: BinaryIO,
        line: Callable[[str], None],
        stop: processes.Stop,
        live: Callable[[str], None] | None,
        stopping: Callable[[], None],
    ) -> int:
        """Run a step's command and return its exit status; see :func:`processes.run`."""
        return processes.run(command, environment, log, line, stop, live, stopping=stopping)

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
            steps=[StepRun(name) for name in STEPS],
        )
        try:
            (self._folder / run.id / "logs").mkdir(parents=True)
            record.write(run, self._folder / run.id / "run.json")
        except OSError as error:
            raise UserError(f"cannot write below home '{self.home}': {error.strerror}; choose another") from None
        return run

    def _load(self, path: Path) -> Run:
        run = record.read(path)
        alive = run.pid is not None and processes.started(run.pid) == run.pid_started
        if run.status == record.RUNNING and not alive:
            run = record.read(path)  # the run may have ended between the two reads
        if run.status == record.RUNNING and not alive:
            ended = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
            _close(run, record.FAILED, RunFailure(None, DIED, "run"), ended)
        return run

    def _is_running(self, run: str) -> bool:
        """Whether that run is running; one whose record is gone or damaged is not."""
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
                    yield from (line.rstrip("\n") for line in file)


class _Execution:
    """One run as it happens: finds each task's outputs in the cache, or has them made."""

    def __init__(
        self,
        target: LocalTarget,
        run: Run,
        say: Callable[[str], None],
        live: Callable[[str], None] | None,
        stop: processes.Stop,
        submission: Submission,
    ) -> None:
        self.run_record = run
        self.target = target
        self.home = target.home
        self.directory = target.home / "runs" / run.id
        self.say = say
        self.live = live
        self.stop = stop
        self.submission = submission
        self.cache = Cache(target.home / "cache", target.code_parts)
        self.current = run.steps[0]
        self.scratch = ""

    def run(self) -> None:
        """Run every step and leave a closed record, whatever happens."""
        status = record.FAILED
        failure: RunFailure | None = RunFailure(None, "stopped by an error of the pipeline itself", "run")
        self.scratch = tempfile.mkdtemp(prefix=f"xlnet-run-{os.getpid()}-")
        try:
            specification.execute(self.target.pipeline(), {"recipe": self.submission.recipe.to_json()}, self.task)
            status, failure = (record.FAILED if self.run_record.error else record.SUCCEEDED), self.run_record.error
        except processes.Stopped as stopped:
            status, failure = self._stopped(stopped)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if status != record.SUCCEEDED:
                self._remove_partial()
            _close(self.run_record, status, failure, provenance.now())
            self._write()

    def task(self, task: Task, given: Values) -> Values | None:
        """Find the task's outputs in the cache or make them; None if it fails."""
        self.stop.check()
        self.current = step = self.run_record.step(task.name)
        step.status, step.started = record.RUNNING, provenance.now()
        arguments = given.parameters | {name: described(one) for name, one in given.artifacts.items()}
        step.inputs = {name: _reference(value) for name, value in arguments.items()}
        begun = time.perf_counter()
        try:
            if task.caching or task.name == "register":  # which is looked up in its registry
                outputs = self._kept_or_made(task, step, arguments, given)
            else:
                outputs = self._made(task, step, "always runs: it checks the input for changes", given)
        finally:
            step.seconds = round(time.perf_counter() - begun, 3)
        step.ended = provenance.now()
        step.outputs = outputs or {}
        self._write()
        if outputs is None:
            return None
        if step.status == record.SUCCEEDED:
            self.say(f"{step.name}: done in {_seconds(step.seconds)}")
        return _values(outputs)

    def _kept_or_made(
        self, task: Task, step: StepRun, arguments: dict[str, Any], given: Values
    ) -> dict[str, Any] | None:
        parts = self._parts(task, arguments)
        step.cache_key = key = key_of(parts)
        with self.cache.lock(key, self.run_record.id, self._waiting, self.stop.check):
            if task.name == "register":  # while it waited, another run may have changed the champion
                step.cache_key = key = key_of(parts := self._parts(task, arguments))
            reason = "caching is off"
            if self.submission.cache:
                try:
                    with self.cache.using():
                        if entry := self._kept(key, step):
                            step.status, step.reason = record.CACHED, f"same as in run {entry['run']}"
                            step.outputs = entry["outputs"]
                            self._write()
                            self.say(f"{step.name}: cached, {step.reason}")
                            for remark in remarks.of_dataset(str(entry["outputs"].get("dataset", {}).get("uri", ""))):
                                self.say(f"  warning: {remark}")
                            return step.outputs
                    reason = self.cache.why(parts, self.run_record.recipe["registry"]["name"])
                except Damaged as damaged:
                    reason = str(damaged)
            made = self._made(task, step, reason, given)
            if made is not None:
                if task.name == "register":  # it may have changed the champion, under whom it is looked for next time
                    step.cache_key = key = key_of(parts := self._parts(task, arguments))
                self.cache.put(key, parts, step.inputs, made, self.run_record.id)
            return made

    def _waiting(self, holder: str) -> None:
        """Report that another run is doing the same work."""
        self.say(f"{self.current.name}: waiting for {holder}, which does the same work, to take its result")

    def _parts(self, task: Task, arguments: dict[str, Any]) -> dict[str, Any]:
        more = {"definition": provenance.digest_json(task.words)}
        if task.name == "register":
            more["registry"] = registration.standing(arguments["recipe"], self.home)
        return parts_of(task.name, arguments, **more)

    def _kept(self, key: str, step: StepRun) -> dict[str, Any] | None:
        entry = self.cache.get(key)
        if entry and step.name == "register":  # what a registration points to lies outside of it
            registration.check(entry["outputs"], step.inputs["recipe"], self.home)
            if entry["inputs"] != step.inputs:  # equal inputs in another place: those it names may be gone
                check(entry["inputs"])
        return entry

    def _made(self, task: Task, step: StepRun, reason: str, given: Values) -> dict[str, Any] | None:
        """Run the task's command; its outputs as the record describes them, None if it fails."""
        step.reason, step.log = reason, f"logs/{step.name}.log"
        self._write()
        self.say(f"{step.name}: {reason}")
        folder = self.directory / "artifacts" / task.name
        folder.mkdir(parents=True, exist_ok=True)
        told = specification.executor_input(task, given, str(folder), folder)
        words = [specification.filled(word, told) for word in task.words]
        start = f"{self.target.interpreter} -m"
        words[2:3] = [word.replace(supervisor.PROGRAM, f"{start} {supervisor.MODULE}") for word in words[2:3]]
        if self._command(words, task.environment):
            step.status = record.FAILED
            return None
        step.status = record.SUCCEEDED
        made = specification.outputs(told)
        return made.parameters | {name: described(one) for name, one in made.artifacts.items()}

    def _command(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the current step's process, its output going to its log and to the user."""
        step = self.current
        output = Output(lambda text: self.say(f"  {text}"))
        variables = {**self._environment(), **environment}

        def stopping() -> None:
            self.say(interruption.asked(step))

        with (self.directory / str(step.log)).open("wb") as log:
            try:
                status = self.target.start(command, variables, log, output.line, self.stop, self.live, stopping)
            except processes.Stopped as stopped:
                output.close()
                text = interruption.told(step, stopped.ended, self.run_record.recipe, self.home)
                log.write(f"{text}\n".encode())
                self.run_record.notes.append(text)
                raise
        if status:
            self.run_record.error = output.failure(step.name, status, str(self.home))
        return status

    def _environment(self) -> dict[str, str]:
        asked = {"XLNET_NPROC": str(self.submission.nproc or ""), "XLNET_DEVICE": self.submission.device}
        return {
            **{name: value for name, value in asked.items() if value},
            "XLNET_RUN_ID": self.run_record.id,
            state.HOME: str(self.home),
            "XLNET_GIT_SHA": provenance.git_sha(),
            "MLFLOW_TRACKING_URI": resolve("", self.home),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": self.scratch,  # kfp leaves a directory here for each task
        }

    def _stopped(self, stopped: processes.Stopped) -> tuple[str, RunFailure | None]:
        if stopped.reason == "cancelled":
            return record.CANCELLED, None
        limit = f"the run took longer than its time limit and was stopped in step '{self.current.name}'"
        return record.FAILED, RunFailure(self.current.name, f"{limit}; finished steps are kept", "timeout")

    def _remove_partial(self) -> None:
        for path in (self.directory / "artifacts").glob("*/.*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self) -> None:
        record.write(self.run_record, self.directory / "run.json")


def _until_nobody_listens(echo: Callable[[str], None] | None, stop: processes.Stop) -> Callable[[str], None]:
    """``echo``, which falls silent once its terminal is closed: the run then still has work to save."""
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


def described(artifact: specification.Artifact) -> dict[str, Any]:
    """Convert an artifact to its form in a record."""
    uri = artifact["uri"]
    return {
        "uri": uri,
        "type": artifact["type"]["schemaTitle"],
        "digest": digest(Path(uri)),
        "metadata": artifact["metadata"],
    }


def digest(path: Path) -> str | None:
    """Identity of an artifact's content: from its lineage, else of the file; None where it is metadata alone."""
    if path.is_dir():
        return str(provenance.read(path)["artifact"]["digest"])
    return provenance.digest_file(path) if path.is_file() else None


def _values(outputs: dict[str, Any]) -> Values:
    """Undo :func:`described`: the outputs of a record, as the tasks after it are given them."""
    made = Values()
    for name, value in outputs.items():
        if isinstance(value, dict) and "uri" in value:
            kind = {"schemaTitle": value["type"], "schemaVersion": SCHEMA_VERSION}
            fields = {"name": name, "uri": value["uri"], "type": kind, "metadata": value["metadata"]}
            made.artifacts[name] = fields
        else:
            made.parameters[name] = value
    return made


def _close(run: Run, status: str, failure: RunFailure | None, ended: str) -> None:
    """Close a record, so that none of its steps is running or pending."""
    run.status, run.error, run.ended = status, failure, ended
    for step in run.steps:
        if step.status == record.RUNNING:
            step.status, step.ended = status, ended
        elif step.status == record.PENDING:
            step.status = record.SKIPPED


def _reference(value: Any) -> Any:
    return {"uri": value["uri"], "digest": value["digest"]} if isinstance(value, dict) and "uri" in value else value


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def summary(run: Run) -> list[str]:
    """What happened in a run, a line for each step, and the error if there is one."""
    rows = [(step.name, step.status, _seconds(step.seconds), step.reason or "") for step in run.steps]
    lines = [f"{name:<11}{status:<10}{seconds:>9}  {reason}".rstrip() for name, status, seconds, reason in rows]
    lines.append(f"run {run.id}: {run.status} after {_seconds(run.seconds)}")
    if run.error:
        lines.append(f"error: {run.error.message}")
    return lines + run.notes
