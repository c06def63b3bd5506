"""The objects that the Python API returns: runs, metrics, artifacts, predictions. A notebook shows each as a table."""

import html
import os
from collections import UserList
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from xlnet_pipeline.commands import outcome
from xlnet_pipeline.commands.tables import duration, table
from xlnet_pipeline.targets import Artifact, Run, Target
from xlnet_pipeline.targets.record import differing, flat

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A metric on the test rows, with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Metrics(Mapping[str, Figure]):
    """Maps metrics to their :class:`Figure`; empty before the evaluation. The gate compares the ``primary`` one."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.primary: str | None = found.get("primary")
        self.rows: int = found.get("rows", 0)
        self._figures = {
            name: Figure(figure["value"], figure["low"], figure["high"])
            for name, figure in found.get("metrics", {}).items()
            if isinstance(figure, dict)
        }

    def __getitem__(self, name: str) -> Figure:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return "\n".join(f"{name:<12} {figure}" for name, figure in self.items()) or "no metrics yet"

    def _repr_html_(self) -> str:
        return _table(("metric", "value", "interval"), [_row(name, figure) for name, figure in self.items()])


class Result:
    """One run: its recipe, its outcome and its artifacts."""

    def __init__(self, record: Run, target: Target) -> None:
        self.record = record
        self._target = target

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def status(self) -> str:
        """RUNNING, SUCCEEDED, FAILED or CANCELLED."""
        return self.record.status

    @property
    def metrics(self) -> Metrics:
        """The metrics on the test rows."""
        return Metrics(outcome.evaluation(self.record))

    @property
    def version(self) -> str | None:
        """The model version that the run registered, such as ``reviews:3``. None before it is registered."""
        return outcome.version(self.record)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Name → artifact: ``dataset``, ``model``, ``evaluation``, ``registration`` and others."""
        return {artifact.name: artifact for artifact in self.record.artifacts}

    @property
    def report(self) -> "Report":
        """The evaluation page. Raises KeyError before the evaluation has ended."""
        return Report(self.artifacts["evaluation"].uri)

    @property
    def model(self) -> "Model":
        """The trained model. Raises KeyError before the training has ended."""
        from xlnet.data import objects

        return Model(str(objects.local_directory(self.artifacts["model"].uri)))

    def refresh(self) -> "Result":
        """Return the run's current state."""
        return Result(self._target.status(self.id), self._target)

    def cancel(self) -> "Result":
        """Stop the run, and wait until it has stopped."""
        return Result(self._target.cancel(self.id), self._target)

    def logs(self, step: str | None = None) -> Iterator[str]:
        """Yield the log lines of the run, or of one step."""
        return self._target.logs(self.id, step)

    def __repr__(self) -> str:
        main = outcome.primary(self.record) if self.metrics else None
        return " · ".join(filter(None, (f"run {self.id}", self.status, main, self.version)))

    def _repr_html_(self) -> str:
        steps = [
            (step.name, step.status, duration(step.seconds) or "", step.reason or "") for step in self.record.steps
        ]
        return f"<p>{html.escape(repr(self))}</p>" + _table(("step", "status", "time", "why"), steps)


class Report:
    """The evaluation page. A notebook shows it in its own frame."""

    def __init__(self, evaluation: str) -> None:
        self.uri = f"{evaluation.rstrip('/')}/report.html"

    @property
    def page(self) -> str:
        """The page's HTML."""
        from xlnet.data import objects

        if "://" in self.uri:
            return objects.read(self.uri).decode()
        return Path(self.uri).read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"report {os.path.relpath(self.uri)}" if "://" not in self.uri else f"report {self.uri}"

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox srcdoc="{html.escape(self.page)}" title="report" '
            'style="width:100%;height:640px;border:1px solid #8884"></iframe>'
        )


class Results(UserList[Result]):
    """Runs, the newest first."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no runs"

    def _repr_html_(self) -> str:
        rows = [(one.id, one.status, outcome.primary(one.record) or "", one.version or "") for one in self]
        return _table(("run", "status", "metric", "model"), rows)


class Comparison:
    """Runs side by side.

    Attributes:
        runs: the compared runs.
        recipe: ``section.field`` → its value in each run, for the fields that differ.
        metrics: metric → its figure in each run; None where a run has none.
    """

    def __init__(self, compared: Sequence[Result]) -> None:
        self.runs = list(compared)
        self.recipe = dict(sorted(differing([flat(one.record.recipe) for one in self.runs]).items()))
        metrics = [one.metrics for one in self.runs]
        known = dict.fromkeys(name for found in metrics for name in found)
        self.metrics: dict[str, list[Figure | None]] = {name: [found.get(name) for found in metrics] for name in known}

    def _rows(self) -> list[tuple[str, ...]]:
        shown = [*self.recipe.items(), *self.metrics.items()]
        return [(name, *("–" if value is None else str(value) for value in values)) for name, values in shown]

    def __repr__(self) -> str:
        return "\n".join(table(("", *(one.id for one in self.runs)), self._rows()))

    def _repr_html_(self) -> str:
        return _table(("", *(one.id for one in self.runs)), self._rows())


class Predictions(Sequence[dict[str, Any]]):
    """One answer for each text: ``label`` and ``probabilities``, ``value`` for a regression, or ``error``."""

    def __init__(self, texts: Sequence[Any], answers: Sequence[dict[str, Any]]) -> None:
        self.texts = list(texts)
        self._answers = list(answers)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "Predictions": ...

    def __getitem__(self, index: int | slice) -> "dict[str, Any] | Predictions":
        if isinstance(index, slice):
            return Predictions(self.texts[index], self._answers[index])
        return self._answers[index]

    def __len__(self) -> int:
        return len(self._answers)

    def to_arrow(self) -> Any:
        """Return a ``pyarrow.Table`` with the text and one column for each part of an answer."""
        import pyarrow

        return pyarrow.Table.from_pylist(
            [{"text": str(text), **answer} for text, answer in zip(self.texts, self._answers, strict=True)]
        )

    def __repr__(self) -> str:
        return "\n".join(f"{_answer(answer)}\t{text}" for text, answer in zip(self.texts, self, strict=True))

    def _repr_html_(self) -> str:
        return _table(("text", "answer"), [(text, _answer(one)) for text, one in zip(self.texts, self, strict=True)])


class Model:
    """A loaded model that predicts.

    Attributes:
        directory: the model's directory, in Hugging Face's layout.
    """

    def __init__(self, directory: str, precision: str = "auto") -> None:
        from xlnet.evaluation.predictor import Predictor

        self.directory = directory
        self._predictor = Predictor(Path(directory), precision)

    def predict(self, texts: "str | Iterable[str | tuple[str, str]]") -> Predictions:
        """Predict texts, or pairs of texts if the model was trained on pairs.

        An invalid text gets an answer with ``error``; all other texts get predictions.
        """
        from xlnet.evaluation.predict import predict

        given = [texts] if isinstance(texts, str) else list(texts)
        pairs = [(one, None) if isinstance(one, str) else (one[0], one[1]) for one in given]
        return Predictions(given, list(predict(self._predictor, pairs)))

    def __repr__(self) -> str:
        return f"model {self.directory}"


def _answer(answer: Mapping[str, Any]) -> str:
    if "error" in answer:
        return f"error: {answer['error']}"
    if "value" in answer:
        return f"{answer['value']:.4f}"
    return f"{answer['label']} ({answer['probabilities'][answer['label']]:.3f})"


def _row(name: str, figure: Figure) -> tuple[str, str, str]:
    return name, f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}"


def _table(head: Sequence[str], rows: Rows) -> str:
    """Return an HTML table with every cell escaped."""
    cells = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
