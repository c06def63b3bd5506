"""Rebuilds the tree of a run's Argo workflow from the flat list of tasks that the API returns.

The API lists one task for each node of the workflow, in no order, and without the node's id; several tasks may have the
same display name. A node's id is ``WORKFLOW-HASH``, where HASH is the decimal 32-bit FNV-1a hash of the node's path,
such as ``WORKFLOW(0).root(0).train(0).executor(0)``. The numbers in brackets count attempts; they appear only where a
template may be retried. Each task lists the ids of its children. So the nodes are those paths whose hash is some task's
child, and a task belongs to the path under which all its children make sense.

Below a loop's node are the nodes ``iteration-driver`` and ``iteration-iterations``, and for each item a node such as
``iteration-iterations(2:2)``. Below the latter are ``iteration-item-driver`` and ``iteration-item``, which holds the
tasks. No recording shows a loop: this follows the compiler in Kubeflow Pipelines' backend.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ATTEMPT = re.compile(r"\((\d+)\)$")
ITEM = re.compile(r"\(\d+:[^()]*\)$")  # ends the name of a loop's node for one item
DRIVER = "-driver"
EXECUTOR = "executor"
LOOP = "for-loop-1"  # kfp's name of the only loop in our pipeline
ITERATION = ("iteration-iterations({0}:{0})", "iteration-item")  # below the loop


def fnv1a(text: str, before: int = 0x811C9DC5) -> int:
    """Return the 32-bit FNV-1a hash of a text's UTF-8 bytes, which Argo uses in node ids.

    ``before`` is the hash of the text that precedes it.
    """
    found = before
    for byte in text.encode():
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return found


def node_id(workflow: str, path: str) -> str:
    """Return the id of the node at a path. The top node's id is the workflow's name."""
    return workflow if path == workflow else f"{workflow}-{fnv1a(path)}"


@dataclass(frozen=True)
class ArgoNode:
    """One node, with the API's state (empty if the node never ran) and times (None if not reached yet)."""

    path: str
    id: str
    workflow: str
    state: str = ""
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def name(self) -> str:
        """Its name, without the number of its attempt."""
        return ATTEMPT.sub("", self.path.rpartition(".")[2])

    @property
    def attempt(self) -> int:
        """Which attempt this is, counted from 0; also 0 if its template is never retried."""
        match = ATTEMPT.search(self.path)
        return int(match.group(1)) if match else 0

    @property
    def retried(self) -> bool:
        """Whether the node is an attempt of a template that may be retried."""
        return ATTEMPT.search(self.path) is not None

    @property
    def waiting(self) -> bool:
        """Whether its pod exists but has not started yet."""
        return self.state == "PENDING"

    @property
    def live(self) -> bool:
        """Whether it has started and not ended."""
        return self.state in ("PENDING", "RUNNING") and self.ended is None


class Nodes:
    """The nodes of one run. There are none until the workflow controller has seen the workflow."""

    def __init__(self, details: list[Any]) -> None:
        children = {id(one): {child.pod_name for child in one.child_tasks or [] if child.pod_name} for one in details}
        self._ids = set().union(*children.values()) if children else set()
        self.workflow = next((one.rpartition("-")[0] for one in sorted(self._ids)), "")
        self._names = sorted({ATTEMPT.sub("", one.display_name or "") for one in details} - {self.workflow, ""})
        self._items: dict[str, list[str]] = {}  # a loop's node → those of its items
        for name in (one for one in self._names if ITEM.search(one)):
            self._items.setdefault(ITEM.sub("", name), []).append(name)
        self._known: dict[str, list[str]] = {}
        self._nodes: dict[str, ArgoNode] = {}
        if self.workflow:
            left: dict[str, list[Any]] = {}
            for one in details:
                left.setdefault(one.display_name or "", []).append(one)
            for path in self._paths():
                self._nodes[path] = self._described(path, left, children)

    def __iter__(self) -> Iterator[ArgoNode]:
        return iter(self._nodes.values())

    def last(self, *names: str) -> ArgoNode | None:
        """Return the node at a path of names, following the last attempt of each; None if there is no such node.

        Without names, return the last attempt of the workflow itself.
        """
        path = self._last_attempt(self.workflow)
        for name in names:
            path = self._last_attempt(f"{path}.{name}")
        return self._nodes.get(path)

    def attempts(self, *names: str) -> list[ArgoNode]:
        """Return every attempt at the node that :meth:`last` finds, oldest first."""
        last = self.last(*names)
        if last is None or not last.retried:
            return [last] if last else []
        stem = ATTEMPT.sub("", last.path)
        return [self._nodes[path] for number in range(last.attempt + 1) if (path := f"{stem}({number})") in self._nodes]

    def _last_attempt(self, path: str) -> str:
        number = 0
        while f"{path}({number})" in self._nodes:
            number += 1
        return f"{path}({number - 1})" if number else path

    def _paths(self) -> list[str]:
        """Return every path whose id is some task's child, parents before their children."""
        found, waiting = [self.workflow], [self.workflow]
        while waiting:
            path = waiting.pop(0)
            made = self._below(f"{path}.") + ([] if ATTEMPT.search(path) else self._attempts(path))
            found += made
            waiting += made
        return found

    def _below(self, base: str) -> list[str]:
        """Return the paths of a base and one name whose ids are some task's child."""
        if base not in self._known:
            start = fnv1a(base)
            there = [name for name in self._names if not ITEM.search(name) and self._is_child(name, start)]
            there += [item for name in there for item in self._items.get(name, ()) if self._is_child(item, start)]
            self._known[base] = [f"{base}{name}" for name in there]
        return self._known[base]

    def _attempts(self, path: str) -> list[str]:
        start = fnv1a(path)
        numbers = itertools.takewhile(lambda number: self._is_child(f"({number})", start), itertools.count())
        return [f"{path}({number})" for number in numbers]

    def _is_child(self, end: str, start: int) -> bool:
        return f"{self.workflow}-{fnv1a(end, start)}" in self._ids

    def _described(self, path: str, left: dict[str, list[Any]], children: dict[int, set[str]]) -> ArgoNode:
        """Return the node at a path, described by the task that fits best. Remove that task from ``left``."""
        bare = ArgoNode(path, node_id(self.workflow, path), self.workflow)
        parent = self._parent(path)
        name = path[len(self._above(path)) :]
        within = self._nodes.get(parent) if parent else None
        possible = self._possible_children(path)
        fitting = [one for one in left.get(name, ()) if children[id(one)] <= possible and _inside(one, within)]
        if not fitting:
            return bare
        like = within.state if within else ""

        def strangeness(one: Any) -> tuple[int, str, bool, str]:
            return -len(children[id(one)]), str(one.start_time or ""), one.state != like, str(one.end_time)

        best = min(fitting, key=strangeness)
        left[name].remove(best)
        ended = best.end_time if best.end_time and best.end_time.year > 1970 else None  # 1970 means "not ended"
        return dataclasses.replace(bare, state=best.state or "", started=best.start_time, ended=ended)

    def _possible_children(self, path: str) -> set[str]:
        """Return the ids that children may have: attempts, nodes below this one, and nodes that Argo runs after it."""
        before = self._above(ATTEMPT.sub("", path))
        below = self._attempts(path) + self._below(f"{path}.") + self._below(before)
        return {node_id(self.workflow, one) for one in below}

    def _parent(self, path: str) -> str:
        if path == self.workflow:
            return ""
        return ATTEMPT.sub("", path) if ATTEMPT.search(path) else self._above(path)[:-1]

    def _above(self, path: str) -> str:
        """Return the path up to its last dot, with it; empty for the workflow itself, whose name may contain dots."""
        rest = path[len(self.workflow) :]
        return path[: len(self.workflow) + rest.rindex(".") + 1] if "." in rest else ""


def _inside(one: Any, parent: ArgoNode | None) -> bool:
    """Whether a task started while the node that would be its parent was running."""
    if parent is None or parent.started is None or one.start_time is None:
        return True
    return one.start_time >= parent.started and (parent.ended is None or one.start_time <= parent.ended)
