"""A workflow's nodes as the API server of Kubeflow Pipelines lists them, after the recordings of the real one.

Every template is retried by the default installation, so that each node has a numbered attempt below it. A node's
children are named by ids that hash their paths; the tasks themselves carry none.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from servers.execution import Execution, Task, every_task
from xlnet_pipeline.placement import all_tasks

LOOKS_EVERY = 10  # seconds
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


def within(index: int | None) -> str:
    """The part of a node's path that leads into a loop's iteration."""
    return "" if index is None else f"for-loop-1(0).iteration-iterations({index}:{index})(0).iteration-item(0)."


@dataclass
class Node:
    path: str
    state: str  # "" for one that was left out
    started: datetime
    ended: datetime | None
    children: list[str] = field(default_factory=list)
    pod: bool = False
    log: str | None = None  # what its pod wrote
    instant: bool = False  # whether it began and ended between two looks of Argo's

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def described(self, run: str, created: str) -> dict[str, Any]:
        end = [(self.ended, self.state)] if self.ended else []
        long = self.state == "RUNNING" or (self.ended and (self.ended - self.started).total_seconds() > LOOKS_EVERY)
        if self.pod:
            seen = [(self.started, "PENDING"), *([(self.started, "RUNNING")] if long else []), *end]
        else:  # what begins and ends between two looks of Argo's is never seen running
            seen = [*([] if self.instant else [(self.started, "RUNNING")]), *end]
        history = [{"update_time": stamp(at), **({"state": state} if state else {})} for at, state in seen]
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
        tasks = enumerate(every_task(self.execution.tasks))
        found += [self._cache_entry(run, task, number) for number, task in tasks if self._may_be_found_again(task)]
        return sorted(found, key=lambda task: str(task["task_id"]))

    def _may_be_found_again(self, task: Task) -> bool:
        spec = all_tasks(self.execution.spec).get(task.name, {})  # a loop has no program
        return task.state == "SUCCEEDED" and bool(spec.get("cachingOptions", {}).get("enableCache"))

    def _cache_entry(self, run: str, task: Task, number: int) -> dict[str, Any]:
        """What the launcher tells the cache: a task without a name, listed among the others."""
        began = stamp(task.started)
        return {
            "run_id": run,
            "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run}{task.name}{task.index}")),
            "create_time": began,
            "start_time": began,
            "end_time": stamp(task.ended),
            "execution_id": str(number + 7),
        }

    def nodes(self) -> list[Node]:
        execution = self.execution
        if execution.state == "PENDING":
            return []
        began, ended = execution.began or self.created, execution.ended
        state = STATES.get(execution.state, execution.state)
        top, root = f"{self.name}(0)", f"{self.name}(0).root"
        found = [Node(self.name, state, began, ended, [top]), Node(top, state, began, ended, [f"{top}.root-driver"])]
        if execution.broken:
            return [node for number in range(3) for node in self._broken(number, began, ended)] + [
                Node(self.name, state, began, ended, [f"{self.name}({number})" for number in range(3)])
            ]
        found += self._driver(f"{top}.root-driver", "SUCCEEDED", began, began, root)
        below = list(self._below(f"{root}(0)"))
        there = {node.path for node in below}
        first = [self._first(f"{root}(0).{name}") for name in self._after(None)]
        found.append(Node(root, state, began, ended, [f"{root}(0)"]))
        found.append(Node(f"{root}(0)", state, began, ended, [path for path in first if path in there]))
        for node in below:
            node.children = [path for path in node.children if path in there]
        return found + below

    def _broken(self, number: int, began: datetime, ended: datetime | None) -> list[Node]:
        """One of three attempts at the whole workflow, each with three at its driver."""
        top, last = f"{self.name}({number})", began + timedelta(seconds=LOOKS_EVERY)
        root, driver = f"{top}.root", f"{top}.root-driver"
        failed = self._driver(driver, "FAILED", began, last, root, self.execution.broken, 3)
        return [Node(top, "FAILED", began, last, [driver]), *failed, Node(root, "", last, last, instant=True)]

    def _below(self, base: str) -> Iterator[Node]:
        for name, task in self.execution.tasks.items():
            path, driver = f"{base}.{name}", f"{base}.{name}-driver"
            following = [self._first(f"{base}.{other}") for other in self._after(name)]
            if self._is_loop(name):
                yield from self._loop(path, task, following)
                continue
            if task.state == "NOT_TRIGGERED":
                when = self.execution.ended
                if when:
                    yield Node(driver, "", when, when, [path], instant=True)
                    yield Node(path, "", when, when, following, instant=True)
                continue
            if task.started is None:
                continue
            yield from self._driver(driver, "SUCCEEDED", task.started, task.started, path)
            yield from self._task(path, task, following)

    def _is_loop(self, name: str) -> bool:
        return "parameterIterator" in self.execution.spec["root"]["dag"]["tasks"].get(name, {})

    def _first(self, path: str) -> str:
        """The node that a task begins with: its driver; a loop has that within."""
        return path if self._is_loop(path.rpartition(".")[2]) else f"{path}-driver"

    def _loop(self, path: str, task: Task, following: list[str]) -> Iterator[Node]:
        """A loop as the backend's compiler writes it for Argo; it is in no recording."""
        if task.state == "NOT_TRIGGERED" and (when := self.execution.ended):
            yield Node(path, "", when, when, following, instant=True)
        if task.started is None:
            return
        state, began, ended = STATES.get(task.state, task.state), task.started, task.ended
        driver, group = f"{path}(0).iteration-driver", f"{path}(0).iteration-iterations"
        yield Node(path, state, began, ended, [f"{path}(0)"])
        yield Node(f"{path}(0)", state, began, ended, [driver, *following])
        yield from self._driver(driver, "SUCCEEDED", began, began, group)
        there = [one for one in task.iterations if one.started]
        items = [f"{group}({one.index}:{one.index})" for one in there]
        yield Node(group, state, began, ended, items)
        for one, item in zip(there, items, strict=True):
            assert one.started
            own, inner = STATES.get(one.state, one.state), f"{item}(0).iteration-item"
            yield Node(item, own, one.started, one.ended, [f"{item}(0)"])
            yield Node(f"{item}(0)", own, one.started, one.ended, [f"{inner}-driver"])
            yield from self._driver(f"{inner}-driver", "SUCCEEDED", one.started, one.started, inner)
            last = f"{inner}(0).{one.name}"
            yield Node(inner, own, one.started, one.ended, [f"{inner}(0)"])
            yield Node(f"{inner}(0)", own, one.started, one.ended, [f"{last}-driver"])
            yield from self._driver(f"{last}-driver", "SUCCEEDED", one.started, one.started, last)
            yield from self._task(last, one, [])

    def _task(self, path: str, task: Task, following: list[str]) -> Iterator[Node]:
        assert task.started
        state, executor = STATES.get(task.state, task.state), f"{path}(0).executor"
        ended = task.ended if task.state != "WAITING" else None
        cached = task.state == "CACHED"
        yield Node(path, state, task.started, ended, [f"{path}(0)"], instant=cached)
        yield Node(f"{path}(0)", state, task.started, ended, [executor, *following], instant=cached)
        if task.state == "CACHED":
            yield Node(executor, "SKIPPED", task.started, task.started, instant=True)
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
