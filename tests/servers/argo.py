"""A workflow's nodes as the API server of Kubeflow Pipelines lists them, after the recordings of the real one.

Every template is retried by the default installation, so that each node has a numbered attempt below it. A node's
children are named by ids that hash their paths; the tasks themselves carry none.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from servers.execution import Execution, Task

NEVER = "0001-01-01T00:00:00Z"
STATES = {"CACHED": "SUCCEEDED", "CANCELLED": "FAILED", "WAITING": "RUNNING"}


def stamp(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else NEVER


def node_id(path: str) -> str:
    """Argo's id of a node, whose path begins with its workflow's name."""
    total = 2166136261
    for byte in path.encode():
        total = ((total ^ byte) * 16777619) % 2**32
    return f"{path.partition('(')[0]}-{total}"


@dataclass
class Node:
    path: str
    state: str  # "" for one that was left out
    started: datetime
    ended: datetime | None
    children: list[str] = field(default_factory=list)
    pod: bool = False
    log: str | None = None  # what its pod wrote

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def described(self, run: str, created: str) -> dict[str, Any]:
        first = "PENDING" if self.pod else "RUNNING"
        history = [{"update_time": stamp(self.started), "state": first}]
        if not self.state or self.state == "SKIPPED":
            history = [{"update_time": stamp(self.started)} | ({"state": self.state} if self.state else {})]
        elif self.ended:
            history.append({"update_time": stamp(self.ended), "state": self.state})
        return {
            "run_id": run,
            "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, run + self.path)),
            "display_name": self.name,
            "create_time": created,
            "start_time": stamp(self.started),
            "end_time": stamp(self.ended),
            **({"state": self.state} if self.state else {}),
            "state_history": history,
            **({"child_tasks": [{"pod_name": node_id(one)} for one in self.children]} if self.children else {}),
        }


class Workflow:
    """The nodes of one execution, drawn anew whenever somebody looks."""

    def __init__(self, name: str, execution: Execution, created: datetime) -> None:
        self.name, self.execution, self.created = name, execution, created

    def details(self, run: str) -> list[dict[str, Any]]:
        found = [node.described(run, stamp(self.created)) for node in self.nodes()]
        return sorted(found, key=lambda task: str(task["task_id"]))

    def nodes(self) -> list[Node]:
        execution = self.execution
        if execution.state == "PENDING":
            return []
        began, ended = execution.began or self.created, execution.ended
        state = STATES.get(execution.state, execution.state)
        top, root = f"{self.name}(0)", f"{self.name}(0).root"
        found = [Node(self.name, state, began, ended, [top]), Node(top, state, began, ended, [f"{top}.root-driver"])]
        if execution.broken:
            failed = self._driver(f"{top}.root-driver", "FAILED", began, ended, root, execution.broken, 3)
            return [*found, *failed, Node(root, "", ended or began, ended or began)]
        found += self._driver(f"{top}.root-driver", "SUCCEEDED", began, began, root)
        below = list(self._below(f"{root}(0)"))
        there = {node.path for node in below}
        first = [f"{root}(0).{name}-driver" for name in self._after(None)]
        found.append(Node(root, state, began, ended, [f"{root}(0)"]))
        found.append(Node(f"{root}(0)", state, began, ended, [path for path in first if path in there]))
        for node in below:
            node.children = [path for path in node.children if path in there]
        return found + below

    def _below(self, base: str) -> Iterator[Node]:
        for name, task in self.execution.tasks.items():
            path, driver = f"{base}.{name}", f"{base}.{name}-driver"
            following = [f"{base}.{other}-driver" for other in self._after(name)]
            if task.state == "NOT_TRIGGERED":
                when = self.execution.ended
                if when:
                    yield Node(driver, "", when, when, [path])
                    yield Node(path, "", when, when, following)
                continue
            if task.started is None:
                continue
            yield from self._driver(driver, "SUCCEEDED", task.started, task.started, path)
            yield from self._task(path, task, following)

    def _task(self, path: str, task: Task, following: list[str]) -> Iterator[Node]:
        assert task.started
        state, executor = STATES.get(task.state, task.state), f"{path}(0).executor"
        ended = task.ended if task.state != "WAITING" else None
        yield Node(path, state, task.started, ended, [f"{path}(0)"])
        yield Node(f"{path}(0)", state, task.started, ended, [executor, *following])
        if task.state == "CACHED":
            yield Node(executor, "SKIPPED", task.started, task.started)
            return
        logs = task.logs or [task.log]
        yield Node(executor, state, task.started, ended, [f"{executor}({number})" for number in range(len(logs))])
        for number, log in enumerate(logs):
            last = number == len(logs) - 1
            own = "PENDING" if task.state == "WAITING" else state if last else "FAILED"
            yield Node(f"{executor}({number})", own, task.started, ended, pod=True, log=log)

    def _driver(
        self, path: str, state: str, began: datetime, ended: datetime | None, then: str, log: str = "", tries: int = 1
    ) -> list[Node]:
        attempts = [f"{path}({number})" for number in range(tries)]
        pods = [Node(one, state, began, ended, pod=True, log=log) for one in attempts]
        pods[-1].children = [then]
        return [Node(path, state, began, ended, attempts), *pods]

    def _after(self, name: str | None) -> list[str]:
        """The tasks that depend on one, or on none, in the order in which they run."""
        tasks = self.execution.spec["root"]["dag"]["tasks"]
        needs = {task: tasks[task].get("dependentTasks", []) for task in self.execution.tasks}
        return [task for task, needed in needs.items() if (name in needed if name else not needed)]
