"""The run record: one small JSON file that tells what happened in a run, step by step."""

import dataclasses
import itertools
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlnet import provenance, state
from xlnet.errors import RunError, UserError, nearest
from xlnet.steps import of_run

SCHEMA = 1
ID_TIME = "%Y%m%d-%H%M%S"  # begins a run's id
FEW = 10  # iterations that are all shown
LATEST = "latest"  # names the newest run in all commands
PENDING, RUNNING, SUCCEEDED, CACHED = "PENDING", "RUNNING", "SUCCEEDED", "CACHED"
FAILED, CANCELLED, SKIPPED = "FAILED", "CANCELLED", "SKIPPED"
LOST = "LOST"  # the server says that the run is running, but its workflow is gone
DAMAGED = "DAMAGED"  # its record cannot be read

# Exit status of a failed run by the kind of its error.
EXIT_STATUS = {"user": 2, "run": 1, "timeout": 124}


@dataclass
class StepRun:
    """One step of a run. Times are UTC in ISO 8601; ``seconds`` is the wall time it took."""

    name: str
    status: str = PENDING  # PENDING, RUNNING, SUCCEEDED, CACHED, FAILED, CANCELLED or SKIPPED
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    cache_key: str | None = None
    reason: str | None = None  # why it ran, or which run its cached result is from
    inputs: dict[str, Any] = field(default_factory=dict)  # parameter → value, artifact → {uri, digest}
    outputs: dict[str, Any] = field(default_factory=dict)  # parameter → value, artifact → {uri, type, digest, metadata}
    log: str | None = None  # path below the run's directory
    iterations: list["StepRun"] = field(default_factory=list)  # if a step runs once for each shard

    def told(self) -> list["StepRun"]:
        """Return the iterations to show: all of them, or only those that are not done if there are many."""
        is_done = (SUCCEEDED, CACHED)
        return [one for one in self.iterations if len(self.iterations) <= FEW or one.status not in is_done]

    def gather(self) -> None:
        """Set the reason, duration and status of the whole step from its iterations."""
        done = [one for one in self.iterations if one.status in (SUCCEEDED, CACHED)]
        cached = [one for one in done if one.status == CACHED]
        self.reason = f"{len(done)} of {len(self.iterations)} shards are done"
        self.reason += f", {len(cached)} of them cached" if cached else ""
        self.seconds = round(sum(one.seconds or 0.0 for one in self.iterations), 3)
        if len(done) == len(self.iterations):
            self.status = CACHED if len(cached) == len(done) else SUCCEEDED
        elif any(one.status == FAILED for one in self.iterations):
            self.status = FAILED


@dataclass(frozen=True)
class Artifact:
    """An output of a step of a run."""

    step: str
    name: str
    uri: str  # directory, file or gs:// address
    type: str  # such as system.Model
    digest: str | None  # None: it has only metadata
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunFailure:
    """Why a run failed, in the failing step's own words."""

    step: str | None
    message: str  # one line
    kind: str  # "user" (the user's mistake), "run" or "timeout"
    last_lines: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One run of the pipeline on one target."""

    id: str
    target: str
    recipe: dict[str, Any]
    recipe_digest: str
    created: str
    status: str = RUNNING  # RUNNING, SUCCEEDED, FAILED, CANCELLED, LOST or DAMAGED
    ended: str | None = None
    pid: int | None = None
    pid_started: str | None = None  # distinguishes the process from a later one with the same id
    error: RunFailure | None = None
    steps: list[StepRun] = field(default_factory=list)
    schedule: str = ""  # the name of the schedule that started it
    due: str | None = None  # the scheduled time
    notes: list[str] = field(default_factory=list)  # further remarks for the reader
    schema: int = SCHEMA

    @property
    def exit_status(self) -> int:
        """0 succeeded (or running), 1 failed, lost or damaged, 2 the user's mistake, 124 timed out, 130 cancelled."""
        if self.status == CANCELLED:
            return 130
        if self.status in (FAILED, LOST, DAMAGED):
            return EXIT_STATUS[self.error.kind] if self.error else 1
        return 0

    @property
    def seconds(self) -> float:
        """Wall time from start to end, or until now."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.created)).total_seconds()

    def close(self, status: str, failure: RunFailure | None, ended: str) -> None:
        """Close the record, and end its steps that are running or pending."""
        self.status, self.error, self.ended = status, failure, ended
        for step in itertools.chain(self.steps, *(one.iterations for one in self.steps)):
            if step.status == RUNNING:
                step.status, step.ended = status, ended
            elif step.status == PENDING:
                step.status = SKIPPED

    def step(self, name: str) -> StepRun:
        """Return the step of that name; KeyError if there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    @property
    def artifacts(self) -> list[Artifact]:
        """List the outputs that the steps have made so far, in the steps' order."""
        return [
            Artifact(step.name, name, **value)
            for step in self.steps
            for name, value in step.outputs.items()
            if isinstance(value, dict) and "uri" in value
        ]


def choose(run: str, known: Sequence[str], where: str) -> str:
    """Return the known id that equals ``run``, begins with it or ends with it.

    Args:
        run: what the user typed; ``latest`` is the newest run.
        known: the ids of the runs, the newest first.
        where: where they are, for messages.

    Raises:
        UserError: no id matches, or several do.
    """
    if run == LATEST and known:
        return known[0]
    matches = [run] if run in known else [one for one in known if one.startswith(run) or one.endswith(run)]
    if run and len(matches) == 1:
        return matches[0]
    if run and matches:
        raise UserError(f"run '{run}' could be {', '.join(sorted(matches[:5]))}; type more of it")
    hint = nearest(run, known) or (f"; the latest is '{known[0]}'" if known else "; there are no runs yet")
    raise UserError(f"run '{run}' is unknown {where}{hint}")


def flat(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a recipe by their names, ``section.field``."""
    return {f"{section}.{name}": value for section, fields in recipe.items() for name, value in fields.items()}


def differing(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the names whose values differ, with the value in each mapping; None where a mapping lacks the name."""
    values = {name: [one.get(name) for one in found] for one in found for name in one}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def shown(seconds: float | None) -> str:
    """Format a duration for the command line; empty if it is unknown."""
    return "" if seconds is None else f"{seconds:.1f} s"


def new_id() -> str:
    """Return a run id that sorts by time and ends in four characters that are quick to type."""
    return f"{datetime.now(UTC):{ID_TIME}}-{secrets.token_hex(2)}"


def write(run: Run, path: Path) -> None:
    """Replace the record atomically: a reader sees the old or the new record, never a partial one.

    Args:
        run: the record.
        path: ``runs/ID/run.json`` in the state directory; paths in that directory are stored relative to it.
    """
    fields = dataclasses.asdict(run)
    fields["steps"] = state.stored(fields["steps"], _home(path))
    provenance.replace_file(path, json.dumps(fields, indent=1, ensure_ascii=False), durable=True)


def read(path: Path) -> Run:
    """Read a record.

    Raises:
        FileNotFoundError: the record does not exist.
        RunError: the file is not a run record of this version.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        steps = [_step(one) for one in state.restored(fields.pop("steps"), _home(path))]
        failure = fields.pop("error")
        run = Run(**fields, steps=steps, error=RunFailure(**failure) if failure else None)
        _check(run)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        remedy = "remove its directory to forget the run, unless a registered model has its files there"
        raise RunError(f"'{path}' is not a run record ({why}); {remedy}") from None
    return run


def _step(fields: dict[str, Any]) -> StepRun:
    return StepRun(**{**fields, "iterations": [StepRun(**one) for one in fields.get("iterations", ())]})


def _check(run: Run) -> None:
    """Raise an error if a field holds a value that we never write there."""
    moments = [datetime.fromisoformat(one) for one in (run.created, run.ended) if one]
    if not all(moment.tzinfo for moment in moments):
        raise ValueError("a time has no zone")
    names = [step.name for step in run.steps]
    kinds = itertools.product((False, True), repeat=2)
    if all(sorted(names) != sorted(of_run(*kind)) for kind in kinds):
        raise ValueError(f"its steps are {names}")
    words = [run.id, run.status, *(step.status for step in run.steps)]
    if not all(isinstance(word, str) for word in words) or not isinstance(run.recipe, dict):
        raise TypeError("a field is of another type")
    _ = run.exit_status, run.artifacts


def damaged(path: Path, target: str, why: str) -> Run:
    """Return a record with status DAMAGED for a run whose own record cannot be read.

    Args:
        path: the path of the record.
        target: the run's target.
        why: the error of :func:`read`.
    """
    place = path if os.access(path, os.F_OK) else path.parent
    written = datetime.fromtimestamp(place.stat().st_mtime, UTC)
    try:
        begun = datetime.strptime(path.parent.name[:15], ID_TIME).replace(tzinfo=UTC)
    except ValueError:
        begun = written
    created, ended = (moment.isoformat(timespec="milliseconds") for moment in (begun, max(begun, written)))
    steps = [StepRun(name, SKIPPED) for name in of_run(pretrains=False)]
    failure = RunFailure(None, why, "run")
    return Run(path.parent.name, target, {}, "", created, DAMAGED, ended, error=failure, steps=steps)


def _home(path: Path) -> Path:
    return path.absolute().parent.parent.parent
