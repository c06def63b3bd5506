"""The list of runs of every target, as one row each: read once, and again only when a record has changed."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from xlnet.errors import RunError, UserError
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import Run

FRESH = 15.0  # seconds for which a remote target's list is shown without asking again
PATIENCE = 2.0  # seconds that a page waits for a remote target's first list
NEWEST = 200  # runs to list of a remote target

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """One run in the list, or the reason why its record cannot be read."""

    id: str
    target: str
    status: str
    created: str
    name: str = ""  # of the model that it registers
    data: str = ""
    ended: str | None = None
    seconds: float | None = None
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    model: str = ""  # NAME:VERSION
    decision: str = ""
    machine: str = ""
    started_by: str = "hand"
    steps: tuple[tuple[str, str], ...] = ()
    error: str = ""
    digests: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (digest, directory), the last step first

    @property
    def text(self) -> str:
        """What a search looks at."""
        parts = (self.id, self.status, self.target, self.name, self.data, self.model, self.started_by, self.error)
        return " ".join(parts).casefold()

    @property
    def running(self) -> bool:
        """Whether it may still change."""
        return self.status == record.RUNNING

    @property
    def lasted(self) -> float | None:
        """Seconds from its start to its end, or to now."""
        if not self.running or not self.created:
            return self.seconds
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()


class LocalRuns:
    """The rows of the state directory's runs."""

    def __init__(self, target: LocalTarget) -> None:
        self.target = target
        self.folder = target.home / "runs"
        self._known: dict[str, tuple[tuple[int, int], Row]] = {}
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """Every run, the newest first."""
        with self._lock:
            found: dict[str, tuple[tuple[int, int], Row]] = {}
            for name in _names(self.folder):
                try:
                    facts = os.stat(self.folder / name / "run.json")
                except OSError:  # a directory of another kind, or just removed
                    continue
                key = (facts.st_mtime_ns, facts.st_size)
                old = self._known.get(name)
                keep = old is not None and old[0] == key and not old[1].running
                found[name] = old if keep and old else (key, self._row(name))
            self._known = found
            rows = [row for _, row in found.values()]
        return sorted(rows, key=lambda row: (row.created, row.id), reverse=True)

    def _row(self, name: str) -> Row:
        path = self.folder / name / "run.json"
        try:
            run = record.read(path)
            return row_of(self.target.status(name) if run.status == record.RUNNING else run)  # its process may be gone
        except (RunError, UserError, OSError, ValueError) as error:
            return row_of(record.damaged(path, self.target.name, unreadable(path, error)))


class Remote(Generic[Item]):
    """What a remote target lists, asked for in the background: a page never waits long for a target."""

    def __init__(self, ask: Callable[[], list[Item]]) -> None:
        """Ask nothing yet.

        Args:
            ask: asks the target.
        """
        self._ask_target = ask
        self._found: list[Item] = []
        self.problem = ""  # why the list is old or empty
        self._asked = 0.0
        self._busy = threading.Lock()

    def found(self) -> list[Item]:
        """The list as it was when the target was last asked."""
        if time.monotonic() - self._asked > FRESH and self._busy.acquire(blocking=False):
            asking = threading.Thread(target=self._ask, daemon=True)
            asking.start()
            if not self._asked:
                asking.join(PATIENCE)
        if not self._asked and not self.problem:
            self.problem = "it has not answered yet; load the page again in a moment"
        return list(self._found)

    def _ask(self) -> None:
        try:
            self._found = self._ask_target()
            self.problem = ""
        except (UserError, RunError, OSError) as error:
            self.problem = str(error)
        except ModuleNotFoundError as error:
            self.problem = f"{error.name} is not installed; type: pip install 'xlnet-pipeline[pipeline]'"
        finally:
            self._asked = time.monotonic()
            self._busy.release()


def row_of(run: Run) -> Row:
    """Take from a record what the list shows; no artifact is opened."""
    facts = _outputs(run, "evaluate", "evaluation")
    metric = str(facts.get("primary_metric") or "")
    entry = _outputs(run, "register", "registration")
    model = f"{entry['name']}:{entry['version']}" if {"name", "version"} <= entry.keys() else ""
    train = _outputs(run, "train", "model")
    return Row(
        run.id,
        run.target,
        run.status,
        run.created,
        name=str(run.recipe.get("registry", {}).get("name") or ""),
        data=_data(run.recipe),
        ended=run.ended,
        seconds=run.seconds if run.ended else None,
        metric=metric,
        value=_number(facts.get(metric)),
        low=_number(facts.get(f"{metric}_low")),
        high=_number(facts.get(f"{metric}_high")),
        baseline=_baseline(facts, metric),
        model=model,
        decision=str(entry.get("gate_decision") or ""),
        machine=_machine(train),
        started_by=f"schedule {run.schedule}" if run.schedule else "hand",
        steps=tuple((step.name, step.status) for step in run.steps),
        error=run.error.message if run.error else "",
        digests=tuple((one.digest, one.uri) for one in reversed(run.artifacts) if one.digest),
    )


def unreadable(path: Path, error: Exception) -> str:
    """Say why a record cannot be read, and what to do."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))["schema"]
        if isinstance(schema, int) and schema > record.SCHEMA:
            return f"a newer version of xlnet-pipeline wrote this record (form {schema}); install that version"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return str(error)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _outputs(run: Run, step: str, name: str) -> dict[str, Any]:
    for one in run.steps:
        value = one.outputs.get(name) if one.name == step else None
        if isinstance(value, dict):
            return dict(value.get("metadata") or {})
    return {}


def _data(recipe: dict[str, Any]) -> str:
    train = recipe.get("data", {}).get("train") or []
    names = [str(one).rstrip("/").rpartition("/")[2] for one in ([train] if isinstance(train, str) else train)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _baseline(facts: dict[str, Any], metric: str) -> float | None:
    for name in (f"baseline_{metric}", f"{metric}_baseline", *([] if metric != "accuracy" else _MAJORITY)):
        if (value := _number(facts.get(name))) is not None:
            return value
    return None


_MAJORITY = ["majority_class_accuracy"]


def _machine(facts: dict[str, Any]) -> str:
    accelerator = str(facts.get("accelerator") or "")
    ranks = _number(facts.get("ranks")) or 1
    return f"{accelerator} ×{ranks:.0f}" if accelerator and ranks > 1 else accelerator


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
