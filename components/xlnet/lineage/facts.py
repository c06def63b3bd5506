"""Describes an artifact's facts in words, the most important first."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from xlnet.lineage.nodes import SHORT, LineageNode

# The facts shown first, in this order. The JSON and the page show the others too.
KEY_FACTS = {
    "registration": ("gate_decision", "reason", "champion_version", "registry"),
    "dataset": ("train_rows", "validation_rows", "test_rows", "tokens", "classes", "truncated", "rejects"),
    "snapshot": ("files", "size"),
}
_LEFT_OUT = ("digest", "_uri", "git_sha", "name", "version", "task", "promoted", "primary_metric", "_low", "_high")


def facts_of(node: LineageNode) -> list[str]:
    """Return the most important facts, one line each."""
    if node.type == "file":
        more = [f"generation {node.metadata['generation']}"] if node.metadata.get("generation") else []
        return [node.uri, node.digest, " · ".join([size(node.metadata["size"]), *more])]
    if node.type == "files":
        return [f"list {node.digest}", size(node.metadata["size"])]
    facts = node.metadata
    if node.type == "snapshot":
        return [f"{facts['files']} file{'' if facts['files'] == 1 else 's'}, {size(facts['size'])}"]
    if node.type == "registration":
        decision = facts.get("gate_decision") or ("promoted" if facts.get("promoted") == "true" else "")
        return [f"{decision}: {facts['reason']}" if facts.get("reason") else decision] if decision else []
    names = KEY_FACTS.get(node.type) or [name for name in facts if not name.endswith(_LEFT_OUT)]
    names = sorted(names, key=lambda name: name != facts.get("primary_metric"))
    told = [
        f"{name.replace('_', ' ')} {_value(facts[name])}{_interval(name, facts)}" for name in names if name in facts
    ]
    return [" · ".join(told)] if told else []


def _interval(name: str, facts: Mapping[str, Any]) -> str:
    low, high = facts.get(f"{name}_low"), facts.get(f"{name}_high")
    return "" if low is None or high is None else f" [{_value(low)}, {_value(high)}]"


def execution_of(node: LineageNode) -> list[str]:
    """Describe who made the artifact, when, how long it took, and on which machine."""
    made = node.execution
    if not made:
        return []
    code, machine = made.get("code") or {}, made.get("machine") or {}
    sha = str(code.get("git_sha") or "")
    words = [f"{made.get('step')} {code.get('version', '')}".strip()]
    words += [f"git {sha[:SHORT]}{'-dirty' if sha.endswith('-dirty') else ''}"] if sha else []
    words += [_moment(made.get("started")), _duration(made.get("started"), made.get("ended"))]
    words += [f"{machine['cores']} cores"] if machine.get("cores") else []
    words += [str(machine["accelerator"])] if machine.get("accelerator", "none") != "none" else []
    words += [f"run {made['run']}"] if made.get("run") else []
    lines = [" · ".join(word for word in words if word)]
    if node.cached is not None:
        lines.append(("cached" if node.cached else "not cached") + (f": {node.reason}" if node.reason else ""))
    return lines


def size(count: Any) -> str:
    """Format a number of bytes for people."""
    amount = float(count or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _moment(text: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return ""


def _duration(started: Any, ended: Any) -> str:
    try:
        seconds = (datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(started))).total_seconds()
    except (ValueError, TypeError):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
