"""Renders a lineage graph as a tree for the terminal, as JSON, and as one self-contained page."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from typing import Any

from xlnet_pipeline.lineage.graph import SCHEMA, SHORT, Lineage, Node, short
from xlnet_pipeline.lineage.sizes import size

MIN_WIDTH = 40

# The facts shown first, in this order. The JSON and the page show the others too.
KEY_FACTS = {
    "registration": ("gate_decision", "reason", "champion_version", "registry"),
    "dataset": ("train_rows", "validation_rows", "test_rows", "tokens", "classes", "truncated", "rejects"),
    "snapshot": ("files", "size"),
}
_BORING = ("digest", "_uri", "git_sha", "name", "version", "task", "promoted", "primary_metric", "_low", "_high")

_BOLD, _GREY, _GREEN, _YELLOW = "1", "90", "32", "33"


def to_json(lineage: Lineage) -> str:
    """Return the graph as JSON: ``subject``, ``root``, ``run``, ``nodes`` and ``edges`` (input, artifact)."""
    return json.dumps(_plain(lineage), indent=1)


def _plain(lineage: Lineage) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "subject": lineage.subject,
        "root": lineage.root,
        "run": lineage.run or None,
        "nodes": [{**asdict(node), "facts": facts_of(node)} for node in lineage.nodes.values()],
        "edges": lineage.edges,
    }


def to_html(lineage: Lineage) -> str:
    """Return one self-contained page: the graph as inline SVG; a click or Enter on a node shows its facts.

    ``#node=ID`` in the page's URL selects a node.
    """
    folder = resources.files("xlnet_pipeline.lineage")
    page, style, script = (
        folder.joinpath(f"lineage.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    # In JSON "<" occurs only in strings, where "\u003c" means the same. So no text can close the script element.
    data = json.dumps(_plain(lineage)).replace("<", "\\u003c").replace("&", "\\u0026")
    parts = {"style": style, "script": script, "data": data, "text": _escape(to_text(lineage, width=100))}
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_text(lineage: Lineage, colour: bool = False, width: int = 100) -> str:
    """Return a tree with the newest artifact at the top. A repeated artifact is only named."""
    lines: list[str] = []
    shown: set[str] = set()
    if lineage.run:
        error = lineage.run.get("error")
        why = f" in {error['step']}: {error['message']}" if error else ""
        lines += textwrap.wrap(_clean(f"run {lineage.run['id']} {lineage.run['status']}{why}"), max(width, MIN_WIDTH))

    def walk(name: str, first: str, rest: str) -> None:
        node = lineage.nodes[name]
        head = _head(node, colour)
        if name in shown:
            lines.append(f"{first}{head} {_paint('(shown above)', _GREY, colour)}")
            return
        shown.add(name)
        lines.append(f"{first}{head}")
        below = rest + ("│  " if node.inputs else "   ")
        room = max(width - len(below), MIN_WIDTH)
        for fact in (*facts_of(node), *execution_of(node)):
            text = _clean(fact)
            lines.extend(below + _paint(piece, _colour_of(node, fact), colour) for piece in _wrap(text, room))
        for child in node.inputs:
            last = child == node.inputs[-1]
            walk(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    walk(lineage.root, "", "")
    return "\n".join(lines)


def _wrap(text: str, room: int) -> list[str]:
    """Wrap text to lines of about ``room`` characters, preferably between facts."""
    facts = text.split(" · ")
    if len(facts) > 1:
        text = "\xa0· ".join(
            fact.replace(" ", "\xa0") for fact in facts
        )  # textwrap does not break at non-breaking spaces
    # A long digest or address stays on one line, so that people can copy it.
    lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\xa0", " ") for line in lines]


def _head(node: Node, colour: bool) -> str:
    title = f" {_clean(node.title)}" if node.title else ""
    if node.type in ("file", "files"):
        title = f" {_clean(str(node.metadata['split']))}:{title}"
    digest = "" if node.type == "file" else f" {short(node.digest)}"
    return _paint(node.type, _BOLD, colour) + title + _paint(digest, _GREY, colour)


def facts_of(node: Node) -> list[str]:
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
    names = KEY_FACTS.get(node.type) or [name for name in facts if not name.endswith(_BORING)]
    names = sorted(names, key=lambda name: name != facts.get("primary_metric"))
    told = [
        f"{name.replace('_', ' ')} {_value(facts[name])}{_interval(name, facts)}" for name in names if name in facts
    ]
    return [" · ".join(told)] if told else []


def _interval(name: str, facts: Mapping[str, Any]) -> str:
    low, high = facts.get(f"{name}_low"), facts.get(f"{name}_high")
    return "" if low is None or high is None else f" [{_value(low)}, {_value(high)}]"


def execution_of(node: Node) -> list[str]:
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


def _colour_of(node: Node, fact: str) -> str:
    if node.type == "registration" and node.metadata.get("reason") and str(node.metadata["reason"]) in fact:
        return _GREEN if node.metadata.get("promoted") == "true" else _YELLOW
    return _GREY if node.execution and fact in execution_of(node) else ""


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


def _clean(text: str) -> str:
    """Remove control characters, because a file's name must not control the terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text else text
