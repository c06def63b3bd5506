"""Executes one local run: takes each task's outputs from the cache, or runs the task's command to make them."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from xlnet import provenance, state
from xlnet.recipe import Recipe
from xlnet.registry import resolve
from xlnet.steps import STEPS
from xlnet_pipeline.targets import processes, record, specification
from xlnet_pipeline.targets.local import compiled, interruption, registration
from xlnet_pipeline.targets.local.cache import Cache, Damaged, check, key_of, parts_of
from xlnet_pipeline.targets.output import Output
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun
from xlnet_pipeline.targets.specification import Task, Values
from xlnet_pipeline.targets.submission import Submission
from xlnet_steps import supervisor

SCHEMA_VERSION = "0.0.1"  # of the artifact types that come with kfp
WARNING = "warning: "  # begins a step's line about something that does not stop it


class Starter(Protocol):
    """The part of a target that an execution uses: the code that it runs, and how it starts a command."""

    home: Path
    interpreter: str

    def pipeline(self, recipe: Recipe) -> compiled.Specification:
        """Return the compiled pipeline for recipes with the steps and shards of this one."""

    def code_parts(self, step: str) -> dict[str, str]:
        """Return the parts of a step's code, with their digests."""

    def starting(self) -> AbstractContextManager[processes.Start]:
        """Return what starts the steps of one run."""


class Execution:
    """Executes the tasks of one run and keeps its record up to date."""

    def __init__(
        self,
        target: Starter,
        run: Run,
        say: Callable[[str], None],
        live: Callable[[str], None] | None,
        stop: processes.Cancellation,
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
        self.warnings: list[str] = []  # lines of the current step

    def run(self) -> None:
        """Run every step, and close the record whatever happens."""
        status = record.FAILED
        failure: RunFailure | None = RunFailure(None, "stopped by an error of the pipeline itself", "run")
        self.scratch = tempfile.mkdtemp(prefix=f"xlnet-run-{os.getpid()}-")
        try:
            recipe = self.submission.recipe
            with self.target.starting() as self.start:
                specification.execute(self.target.pipeline(recipe), {"recipe": recipe.to_json()}, self.task)
            status, failure = (record.FAILED if self.run_record.error else record.SUCCEEDED), self.run_record.error
        except processes.Stopped as stopped:
            status, failure = self._stopped(stopped)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if status != record.SUCCEEDED:
                self._remove_partial()
            self.run_record.close(status, failure, provenance.now())
            self._write()

    def task(self, task: Task, given: Values) -> Values | None:
        """Find the task's outputs in the cache or make them; None if it fails."""
        self.stop.check()
        self.current = step = self._begun(task)
        arguments = given.parameters | {name: described(one) for name, one in flat(given.artifacts).items()}
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
        if task.iteration:
            self._gather(task.name, step)
        self._write()
        if outputs is None:
            return None
        if step.status == record.SUCCEEDED:
            self.say(f"{step.name}: done in {record.shown(step.seconds)}")
        return _values(outputs)

    def _begun(self, task: Task) -> StepRun:
        """Return the record of a task that begins; in a loop, that of its iteration."""
        step = whole = self.run_record.step(task.name)
        if task.iteration:
            index, count = task.iteration
            whole.iterations = whole.iterations or [StepRun(f"{task.name}-{number}") for number in range(count)]
            step = whole.iterations[index]
        for one in (whole, step):
            one.status, one.started = record.RUNNING, one.started or provenance.now()
        return step

    def _gather(self, name: str, step: StepRun) -> None:
        """Enter an iteration that has ended into the record of its step, which names all artifacts."""
        whole = self.run_record.step(name)
        whole.gather()
        whole.ended, whole.cache_key = step.ended, step.cache_key
        whole.inputs = whole.inputs or step.inputs
        index = step.name.removeprefix(f"{name}-")
        whole.outputs |= {f"{output}-{index}": value for output, value in step.outputs.items()}
        step.outputs = {}

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
                            for warning in entry["warnings"]:
                                self.say(f"  {warning}")
                            return step.outputs
                    reason = self.cache.why(parts, self.run_record.recipe["registry"]["name"])
                except Damaged as damaged:
                    reason = str(damaged)
            made = self._made(task, step, reason, given)
            if made is not None:
                if task.name == "register":  # it may have changed the champion, which the key holds
                    step.cache_key = key = key_of(parts := self._parts(task, arguments))
                self.cache.put(key, parts, step.inputs, made, self.run_record.id, self.warnings)
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
        if entry and step.name == "register":  # its model is in the registry, not in the artifact
            registration.check(entry["outputs"], step.inputs["recipe"], self.home)
            if entry["inputs"] != step.inputs:  # equal inputs in another place: those it names may be gone
                check(entry["inputs"])
        return entry

    def _made(self, task: Task, step: StepRun, reason: str, given: Values) -> dict[str, Any] | None:
        """Run the task's command. Return its outputs in the form of the record; None if it failed."""
        step.reason, step.log = reason, f"logs/{task.name}.log"
        self.run_record.step(task.name).log = step.log
        self._write()
        self.say(f"{step.name}: {reason}")
        folder = self.directory / "artifacts" / task.name
        folder = folder / str(task.iteration[0]) if task.iteration else folder
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
        return made.parameters | {name: described(one) for name, one in flat(made.artifacts).items()}

    def _command(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the current step's command, and write its output to the step's log and to the user."""
        step = self.current
        output = Output(lambda text: self.say(f"  {text}"))
        variables = {**self._environment(), **environment}
        self.warnings = []

        def line(text: str) -> None:
            if text.startswith(WARNING) and text not in self.warnings:
                self.warnings.append(text)
            output.line(text)

        def stopping() -> None:
            self.say(interruption.asked(step))

        with (self.directory / str(step.log)).open("ab") as log:
            try:
                log.write(f"({step.name})\n".encode() if step.name not in STEPS else b"")
                log.flush()
                watch = processes.Watch(log, line, self.stop, self.live, stopping)
                status = self.start(command, variables, watch)
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
        for path in (self.directory / "artifacts").glob("**/.*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self) -> None:
        record.write(self.run_record, self.directory / "run.json")


def flat(artifacts: dict[str, specification.Artifact | list[specification.Artifact]]) -> dict[str, Any]:
    """Return artifacts by name; those that a loop made have their numbers behind the name."""
    lists = {name: one for name, one in artifacts.items() if isinstance(one, list)}
    found = {name: one for name, one in artifacts.items() if name not in lists}
    return found | {f"{name}-{number}": one for name, every in lists.items() for number, one in enumerate(every)}


def described(artifact: specification.Artifact) -> dict[str, Any]:
    """Convert an artifact to its form in a record."""
    uri, kind = artifact["uri"], artifact["type"]["schemaTitle"]
    # Curves and matrices lie in the evaluation, too. In the record they would be most of what a list of runs reads.
    facts = {} if kind == "system.ClassificationMetrics" else artifact["metadata"]
    return {"uri": uri, "type": kind, "digest": digest(Path(uri)), "metadata": facts}


def digest(path: Path) -> str | None:
    """Return the digest of an artifact: from its lineage, or of its file; None if it has only metadata."""
    if path.is_dir():
        return str(provenance.read(path)["artifact"]["digest"])
    return provenance.digest_file(path) if path.is_file() else None


def _values(outputs: dict[str, Any]) -> Values:
    """Convert a record's outputs to inputs of later tasks: the inverse of :func:`described`."""
    made = Values()
    for name, value in outputs.items():
        if isinstance(value, dict) and "uri" in value:
            kind = {"schemaTitle": value["type"], "schemaVersion": SCHEMA_VERSION}
            fields = {"name": name, "uri": value["uri"], "type": kind, "metadata": value["metadata"]}
            made.artifacts[name] = fields
        else:
            made.parameters[name] = value
    return made


def _reference(value: Any) -> Any:
    return {"uri": value["uri"], "digest": value["digest"]} if isinstance(value, dict) and "uri" in value else value
