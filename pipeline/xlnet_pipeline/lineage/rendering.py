"""Renders a lineage graph as a tree for the terminal, as JSON, and as one self-contained page."""

import html
import json
import textwrap
from dataclasses import asdict
from importlib import resources
from typing import Any

from xlnet.data.values import printable
from xlnet.lineage.facts import execution_of, facts_of
from xlnet.lineage.nodes import Lineage, LineageNode, short
from xlnet_pipeline.lineage import drawing
from xlnet_pipeline.lineage.world import known

SCHEMA = 1
MIN_WIDTH = 40

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
    parts = {"style": style, "script": script, "data": data, "text": html.escape(to_text(lineage), quote=False)}
    boxes = [drawing.Box(node.id, _lines(node), f"kind-{node.type}") for node in lineage.nodes.values()]
    for name, down in (("wide", False), ("narrow", True)):
        parts[name] = str(drawing.draw(boxes, lineage.edges, "Lineage graph", down))
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _lines(node: LineageNode) -> tuple[str, ...]:
    more = [str(node.metadata["split"])] if node.metadata.get("split") else []
    kind, *rest = known(node).lines
    return (" · ".join([kind, *more, *(["cached"] if node.cached else [])]), *rest)


def to_text(lineage: Lineage, colour: bool = False, width: int = 100) -> str:
    """Return a tree with the newest artifact at the top. A repeated artifact is only named."""
    lines: list[str] = []
    shown: set[str] = set()
    if lineage.run:
        error = lineage.run.get("error")
        why = f" in {error['step']}: {error['message']}" if error else ""
        told = printable(f"run {lineage.run['id']} {lineage.run['status']}{why}")
        lines += textwrap.wrap(told, max(width, MIN_WIDTH))

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
            text = printable(fact)
            lines.extend(below + _paint(piece, _colour_of(node, fact), colour) for piece in _wrap(text, room))
        for child in node.inputs:
            last = child == node.inputs[-1]
            walk(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    walk(lineage.root, "", "")
    return "\n".join(lines)


def _wrap(text: str, room: int) -> list[str]:
    """Wrap text to lines of about ``room`` characters, within a fact only if it is longer than a line."""
    facts = text.split(" · ")
    if len(facts) > 1:  # textwrap does not break at non-breaking spaces
        text = "\xa0· ".join(fact.replace(" ", "\xa0") if len(fact) < room else fact for fact in facts)
    # A long digest or address stays on one line, so that people can copy it.
    lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\xa0", " ") for line in lines]


def _head(node: LineageNode, colour: bool) -> str:
    title = f" {printable(node.title)}" if node.title else ""
    if node.type in ("file", "files"):
        title = f" {printable(str(node.metadata['split']))}:{title}"
    digest = "" if node.type == "file" else f" {short(node.digest)}"
    return _paint(node.type, _BOLD, colour) + title + _paint(digest, _GREY, colour)


def _colour_of(node: LineageNode, fact: str) -> str:
    if node.type == "registration" and node.metadata.get("reason") and str(node.metadata["reason"]) in fact:
        return _GREEN if node.metadata.get("promoted") == "true" else _YELLOW
    return _GREY if node.execution and fact in execution_of(node) else ""


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text else text
