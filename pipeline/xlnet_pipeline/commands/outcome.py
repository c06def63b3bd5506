"""The outcome of a run, read from its artifacts: metrics, model version and the gate's reason."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet.data import objects
from xlnet.errors import CorruptArtifact, Missing
from xlnet_pipeline.commands.tables import paint
from xlnet_pipeline.targets.record import Run

DAMAGED = "damaged"  # what a table shows if a file cannot be read
VERDICTS = {
    "better": "the model is better",
    "level": "the model is not shown to be better",
    "worse": "the model is worse",
}


def evaluation(run: Run) -> dict[str, Any]:
    """Return the run's ``metrics.json``. Empty if it does not exist (yet, or any more).

    Raises:
        CorruptArtifact: the file is damaged.
    """
    return _read(run, "evaluate", "evaluation", "metrics.json", ("rows", "primary", "metrics"))


def registration(run: Run) -> dict[str, Any]:
    """Return the run's ``registration.json``. Empty if it does not exist (yet, or any more).

    Raises:
        CorruptArtifact: the file is damaged.
    """
    return _read(run, "register", "registration", "registration.json", ("name", "version", "promoted", "reason"))


def primary(run: Run) -> str | None:
    """Return the primary metric's value, such as ``accuracy 0.812``. None before the evaluation has ended."""
    try:
        found = evaluation(run)
    except CorruptArtifact:
        return DAMAGED
    return f"{found['primary']} {found['metrics'][found['primary']]['value']:.4f}" if found else None


def version(run: Run) -> str | None:
    """Return the model version that the run registered, such as ``reviews:3``. None before it is registered."""
    try:
        found = registration(run)
    except CorruptArtifact:
        return DAMAGED
    return f"{found['name']}:{found['version']}" if found else None


def reference(run: Run) -> str:
    """Return what to type for the run's model: its version, or its directory if the recipe names its own registry."""
    entry = registration(run)
    elsewhere = run.recipe["registry"]["uri"]
    return str(run.step("train").outputs["model"]["uri"]) if elsewhere else f"{entry['name']}:{entry['version']}"


def report_path(run: Run) -> str:
    """Return the shortest path of the evaluation page that a user can type."""
    place = run.step("evaluate").outputs["evaluation"]["uri"]
    if objects.is_remote(place):
        return f"{place}/report.html"
    path = str(Path(place, "report.html"))
    return min(path, os.path.relpath(path), key=len)


def lines(run: Run, home: str, colour: bool = False) -> list[str]:
    """Return lines with the metrics and their intervals, the model version, the gate's reason, and what to type next.

    Args:
        home: option to add to the commands shown, such as ``--home DIR`` or ``--target kfp``; may be empty.
    """
    metrics, entry = evaluation(run), registration(run)
    shown = [""]
    shown += _metric_lines(metrics) if metrics else []
    if entry:
        place = f"as {paint('champion', 'champion', colour)}" if entry["promoted"] else "but not as champion"
        shown += ["", f"registered {version(run)} {place}; the gate: {entry['reason']}"]
        shown += [f"report {report_path(run)}"]
    shown += [f"note: {remark}" for remark in metrics.get("remarks", [])]
    if entry:
        shown += ["", "next:"]
        shown += [f"  {command}" for command in _next_commands(run, reference(run), home)]
    return shown


def _metric_lines(found: dict[str, Any]) -> list[str]:
    level = f"{found.get('confidence', 0.95):.0%} interval"
    what = "documents" if found.get("task") == "pretrain" else "rows"
    shown = [f"on {found['rows']:,} test {what}:"]
    measured = {name: metric for name, metric in found["metrics"].items() if isinstance(metric, dict)}
    width = max([10, *map(len, measured)])
    for name, metric in measured.items():
        shown.append(f"  {name:<{width}} {metric['value']:.4f}   {level} {metric['low']:.4f} to {metric['high']:.4f}")
    if majority := found.get("majority_class"):
        shown.append(f"  {'majority':<10} {majority['accuracy']:.4f}   always answering '{majority['class']}'")
    if (base := found.get("baseline")) and base["kind"] != "majority":
        shown += _baseline_lines(base, found["primary"], level)
    return shown


def _baseline_lines(base: dict[str, Any], primary: str, level: str) -> list[str]:
    theirs, apart = base["metrics"][primary], base["difference"]
    uses = f"{base['name']} ({base['uses']}), on the same rows"
    lines = [f"{uses}:", f"  {primary:<10} {_number(theirs['value'])}   {level} {_number(theirs['low'])} to "]
    lines[-1] += _number(theirs["high"])
    ends = f"{_number(apart['low'], '+')} to {_number(apart['high'], '+')}"
    return [*lines, f"  {'difference':<10} {_number(apart['value'], '+')}  {level} {ends}: {VERDICTS[base['verdict']]}"]


def _number(value: float | None, sign: str = "") -> str:
    return "unknown" if value is None else f"{value:{sign}.4f}"


def _next_commands(run: Run, model: str, home: str) -> list[str]:
    if run.target != "local":
        return [
            f"xlnet-pipeline lineage {run.id} {home} --html lineage.html",
            f"xlnet-pipeline runs show {run.id} {home}",
        ]
    tool = f"xlnet-pipeline {home}".rstrip()
    first = f"{tool} predict {shlex.quote(model)} 'what a lovely film'"
    if run.recipe["data"]["task"] == "pretrain":  # the usual next step is a fine-tuning
        name, _, number = model.partition(":")
        weights = str(Path(model).absolute()) if run.recipe["registry"]["uri"] else f"models:/{name}/{number}"
        first = f"{tool} run --set data.train=rows.csv --set {shlex.quote(f'model.pretrained={weights}')}"
    return [
        first,
        f"{tool} lineage {shlex.quote(model)} --html lineage.html",
        f"{tool} runs show {run.id}",
    ]


def _read(run: Run, step: str, artifact: str, file: str, needed: Sequence[str]) -> dict[str, Any]:
    output = run.step(step).outputs.get(artifact)
    if not output:
        return {}
    if objects.is_remote(output["uri"]):
        try:
            content = objects.read(f"{output['uri']}/{file}")
        except Missing:
            return {}
    else:
        path = Path(output["uri"], file)
        if not path.is_file():
            return {}
        content = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(content)
        _ = [found[name] for name in needed]
    except (ValueError, KeyError, TypeError):
        place = f"{output['uri']}/{file}"
        raise CorruptArtifact(f"'{place}' is damaged; run the recipe again, which makes it anew") from None
    return found
