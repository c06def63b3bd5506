"""The nodes of a run's Argo workflow, put together again from the API's flat list of tasks.

The API lists a task for every node, in no order, several under the same display name, none with its own id. A node's id
is ``WORKFLOW-HASH``, HASH the decimal 32-bit FNV-1a of its path, such as ``WORKFLOW(0).root(0).train(0).executor(0)``;
``(0)``, ``(1)``, … number attempts and stand only where a template may be retried. A task names its children's ids:
paths that hash to them are the nodes that there are, and a task belongs to the path that explains all its children.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ATTEMPT = re.compile(r"\((\d+)\)$")
DRIVER = "-driver"
EXECUTOR = "executor"


def fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of a text's UTF-8 bytes, by which Argo tells nodes apart."""
    found = 0x811C9DC5
    for byte in text.encode():
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return found


def node_id(workflow: str, path: str) -> str:
    """The id of the node at a path: the workflow's name is that of the node at its top."""
    return workflow if path == workflow else f"{workflow}-{fnv1a(path)}"


@dataclass(frozen=True)
class ArgoNode:
    """One node. ``state`` is the API's, empty for a node that never ran; times are the API's, None before they are."""

    path: str
    id: str
    workflow: str
    state: str = ""
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 0 on; 0 also where its template is never retried."""
        match = ATTEMPT.search(self.path)
        return int(match.group(1)) if match else 0

    @property
    def retried(self) -> bool:
        """Whether the node is an attempt of a template that may be retried."""
        return ATTEMPT.search(self.path) is not None

    @property
    def waiting(self) -> bool:
        """Whether its pod has not started yet."""
        return self.state == "PENDING"

    @property
    def live(self) -> bool:
        """Whether it has begun and not ended."""
        return self.state in ("PENDING", "RUNNING") and self.ended is None


class Nodes:
    """The nodes of one run; empty before the workflow has been looked at."""

    def __init__(self, details: list[Any]) -> None:
        children = {id(one): {child.pod_name for child in one.child_tasks or [] if child.pod_name} for one in details}
        self._ids = set().union(*children.values()) if children else set()
        self.workflow = next((one.rpartition("-")[0] for one in sorted(self._ids)), "")
        self._names = sorted({ATTEMPT.sub("", one.display_name or "") for one in details} - {self.workflow, ""})
        self._nodes: dict[str, ArgoNode] = {}
        if self.workflow:
            left = list(details)
            for path in self._paths():
                self._nodes[path] = self._described(path, left, children)

    def __iter__(self) -> Iterator[ArgoNode]:
        return iter(self._nodes.values())

    def last(self, *names: str) -> ArgoNode | None:
        """The node reached from the workflow's top by these names, by each one's last attempt; None if there is none.

        With no names it is the workflow's own last attempt.
        """
        path = self._last_attempt(self.workflow)
        for name in names:
            path = self._last_attempt(f"{path}.{name}")
        return self._nodes.get(path)

    def attempts(self, *names: str) -> list[ArgoNode]:
        """Every attempt at the node that :meth:`last` names, the first one first."""
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
        """Every path whose id some task names as a child, parents before their children."""
        found, waiting = [self.workflow], [self.workflow]
        while waiting:
            path = waiting.pop(0)
            below = [f"{path}.{name}" for name in self._names]
            if not ATTEMPT.search(path):
                below += [f"{path}({number})" for number in range(len(self._ids))]
            made = [one for one in below if node_id(self.workflow, one) in self._ids]
            found += made
            waiting += made
        return found

    def _described(self, path: str, left: list[Any], children: dict[int, set[str]]) -> ArgoNode:
        """The node at a path, with what the task says that fits it best; that task is taken out of ``left``."""
        bare = ArgoNode(path, node_id(self.workflow, path), self.workflow)
        parent = self._parent(path)
        name = path[len(self._above(path)) :]
        within = self._nodes.get(parent) if parent else None
        fitting = [
            one
            for one in left
            if one.display_name == name and children[id(one)] <= self._possible_children(path) and _inside(one, within)
        ]
        if not fitting:
            return bare
        like = within.state if within else ""

        def strangeness(one: Any) -> tuple[int, str, bool, str]:
            return -len(children[id(one)]), str(one.start_time or ""), one.state != like, str(one.end_time)

        best = min(fitting, key=strangeness)
        left.remove(best)
        ended = best.end_time if best.end_time and best.end_time.year > 1970 else None  # 1970 stands for "not ended"
        return dataclasses.replace(bare, state=best.state or "", started=best.start_time, ended=ended)

    def _possible_children(self, path: str) -> set[str]:
        """Ids of its attempts, of the nodes below it, and, as Argo chains them, of the nodes that follow it."""
        before = self._above(ATTEMPT.sub("", path))
        below = [f"{path}({number})" for number in range(len(self._ids))]
        below += [f"{base}{name}" for base in (f"{path}.", before) for name in self._names]
        return {node_id(self.workflow, one) for one in below}

    def _parent(self, path: str) -> str:
        if path == self.workflow:
            return ""
        return ATTEMPT.sub("", path) if ATTEMPT.search(path) else self._above(path)[:-1]

    def _above(self, path: str) -> str:
        """The path up to and with its last dot; empty for the workflow itself, whose name may have dots."""
        rest = path[len(self.workflow) :]
        return path[: len(self.workflow) + rest.rindex(".") + 1] if "." in rest else ""


def _inside(one: Any, parent: ArgoNode | None) -> bool:
    """Whether a task's time lies within that of the node which would be its parent."""
    if parent is None or parent.started is None or one.start_time is None:
        return True
    return one.start_time >= parent.started and (parent.ended is None or one.start_time <= parent.ended)
