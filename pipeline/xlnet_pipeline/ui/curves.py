"""Reads a training's curves: from the model once the training has ended, before that from its unfinished files."""

import csv
import functools
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet.errors import UserError
from xlnet.evaluation import charts
from xlnet_pipeline.targets import Run
from xlnet_pipeline.ui.site import LOCAL, Site

HISTORY, SPEED = "history.jsonl", "logs/speed.jsonl"
ORDER = ("loss", "validation_loss", "validation_accuracy", "learning_rate", "gradient_norm", "tokens_per_second")
HIDDEN = ("tokens", "waited")
CHARTS = (
    ("Loss", ("loss", "validation_loss")),
    ("Bits per byte, validation, in drawn orders", ("validation_bits_per_byte",)),
    ("Validation", ("validation_accuracy", "validation_pearson", "validation_macro_f1")),
    ("Learning rate", ("learning_rate",)),
    ("Gradient norm", ("gradient_norm",)),
    ("Tokens per second", ("tokens_per_second",)),
)


@dataclass(frozen=True)
class Curves:
    """The values that a training recorded, over its steps."""

    steps: list[int]
    series: dict[str, list[float | None]]  # None: no value at this step, or one that is not finite
    kept: int | None = None  # the step whose weights were kept
    live: bool = False
    lost: int = 0  # values that were nan or infinite
    files: tuple[Path, ...] = field(default=(), repr=False)

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return the (step, value) pairs of one curve."""
        return [(step, y) for step, y in zip(self.steps, self.series.get(name, []), strict=False) if y is not None]

    def plain(self) -> dict[str, Any]:
        """Return a value for JSON."""
        return {"steps": self.steps, "series": self.series, "kept": self.kept, "live": self.live, "lost": self.lost}

    def csv(self) -> str:
        """Return one row for each step."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *self.series])
        columns = list(self.series.values())
        for at, step in enumerate(self.steps):
            writer.writerow([step, *("" if column[at] is None else column[at] for column in columns)])
        return out.getvalue()


def read(site: Site, run: Run) -> Curves:
    """Return the curves of a run; they are empty before the training begins.

    Raises:
        UserError: the run's model is gone.
    """
    facts: dict[str, Any] = {}
    folder, live = None, False
    for step in run.steps:
        if step.name == "train" and isinstance(step.outputs.get("model"), dict):
            facts = step.outputs["model"].get("metadata") or {}
            folder = site.files(step.outputs["model"]["uri"], (HISTORY, SPEED))
    if folder is None and run.target in (LOCAL, "docker"):
        folder, live = partial(site, run), True
    if folder is None:
        return Curves([], {})
    files = tuple(path for name in (HISTORY, SPEED) if (path := folder / name).is_file())
    if not files and not live:
        raise UserError(f"'{folder / HISTORY}' is gone; the model's other files may be damaged too")
    kept = facts.get("best_step")
    return _merged(files, tuple(map(stamp, files)), kept if isinstance(kept, int) else None, live)


def stamp(path: Path) -> tuple[int, int]:
    """Return the time of a file's last change, in ns, and its size; zeros if there is no such file."""
    try:
        facts = path.stat()
    except OSError:  # the training has just ended and renamed its directory
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


@functools.lru_cache(maxsize=4)
def _merged(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...], kept: int | None, live: bool) -> Curves:
    """Merge the files' records by step. The cache serves all tabs until a file's stamp changes."""
    rows: dict[int, dict[str, float | None]] = {}
    lost = 0
    for path in files:
        for record in _records(path):
            step = record.pop("step")
            for name, value in record.items():
                if name in HIDDEN or isinstance(value, bool) or not isinstance(value, int | float | None):
                    continue
                good = value is not None and math.isfinite(value)
                lost += not good
                rows.setdefault(step, {})[name] = float(value) if good and value is not None else None
    steps = sorted(rows)
    names = {name for row in rows.values() for name in row}
    ordered = [name for name in ORDER if name in names] + sorted(names - set(ORDER))
    return Curves(steps, {name: [rows[step].get(name) for step in steps] for name in ordered}, kept, live, lost, files)


def partial(site: Site, run: Run) -> Path | None:
    """Return the directory into which a running training writes its model; None if there is none."""
    found = (site.home / "runs" / run.id / "artifacts" / "train").glob(".model.*.partial")
    return next(iter(sorted(found)), None)


def drawn(curves: Curves) -> list[str]:
    """Draw the curves as SVG, for browsers without scripts and for print."""
    mark = charts.Mark(curves.kept, f"kept: step {curves.kept:,}") if curves.kept else None
    made = []
    for title, names in CHARTS:
        series = [
            charts.Series(
                name.replace("_", " "), charts.thinned(curves.points(name), 400), "two" if at else "one", at > 0
            )
            for at, name in enumerate(names)
        ]
        made.append(charts.chart(title, "step", title.lower(), series, mark=mark))
    return [one for one in made if one]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, except a last line that is half-written."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # the training has just ended and renamed its directory
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            yield found
