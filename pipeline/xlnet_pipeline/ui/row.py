"""One run as the list shows it. All values come from the run's record, so that no artifact has to be opened."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.record import Run


@dataclass(frozen=True)
class RunRow:
    """One run in the list, or the reason why its record cannot be read."""

    id: str
    target: str
    status: str
    created: str
    name: str = ""  # name under which it registers its model
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
        """The text that a search looks through."""
        parts = (self.id, self.status, self.target, self.name, self.data, self.model, self.started_by, self.error)
        return " ".join(parts).casefold()

    @property
    def running(self) -> bool:
        """Whether the run may still change."""
        return self.status == record.RUNNING

    @property
    def lasted(self) -> float | None:
        """Seconds from the run's start to its end, or until now."""
        if not self.running or not self.created:
            return self.seconds
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()


def row_of(run: Run) -> RunRow:
    """Make a row from a run's record."""
    facts = _outputs(run, "evaluate", "evaluation")
    metric = str(facts.get("primary_metric") or "")
    entry = _outputs(run, "register", "registration")
    model = f"{entry['name']}:{entry['version']}" if {"name", "version"} <= entry.keys() else ""
    train = _outputs(run, "train", "model")
    return RunRow(
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
    """Return the score of the TF-IDF baseline, or else the accuracy of always predicting the majority class."""
    found = _number(facts.get("baseline_score"))
    return _number(facts.get("majority_class_accuracy")) if found is None and metric == "accuracy" else found


def _machine(facts: dict[str, Any]) -> str:
    accelerator = str(facts.get("accelerator") or "")
    ranks = _number(facts.get("ranks")) or 1
    return f"{accelerator} ×{ranks:.0f}" if accelerator and ranks > 1 else accelerator


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
