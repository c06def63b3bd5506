"""Reads a compiled pipeline as a backend does: its tasks in order, their inputs, their commands, their outputs.

The format is Kubeflow Pipelines' ``PipelineSpec`` as JSON. An artifact is a ``RuntimeArtifact``: name, uri, type and
metadata. Features that our pipeline does not use (nested pipelines, conditions, importers, loops over artifacts) are
refused rather than ignored.
"""

import dataclasses
import graphlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet.errors import RunError

Artifact = dict[str, Any]
OUTPUT_FILE = "executor_output.json"
_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_TASK_FIELDS = {"taskInfo", "inputs", "dependentTasks", "cachingOptions", "componentRef", "retryPolicy"}
_LOOP_FIELDS = {"taskInfo", "inputs", "dependentTasks", "componentRef", "parameterIterator", "iteratorPolicy"}
_VALUE_FIELDS = {"runtimeValue", "componentInputParameter", "taskOutputParameter"}


@dataclass
class Values:
    """The inputs or the outputs of a task: parameters and artifacts by name; a list of those that a loop made."""

    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Artifact | list[Artifact]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One task of a specification.

    Attributes:
        name: its key in the specification.
        title: what people read.
        after: names of the tasks that have to end well before it.
        sources: maps input parameters and artifacts to where their values come from, in the specification's form.
        component: definitions of its inputs and outputs.
        container: image, command, arguments and environment.
        caching: whether a result of equal work may be used instead.
        retries: how often it may be started again.
        loop: the tasks that it runs for each item of a list; such a task has no program of its own.
        iteration: in a loop, the index of the item and the number of items.
    """

    name: str
    title: str
    after: tuple[str, ...]
    sources: Mapping[str, Any]
    component: Mapping[str, Any]
    container: Mapping[str, Any]
    caching: bool
    retries: int
    loop: "Loop | None" = None
    iteration: tuple[int, int] | None = None

    @property
    def words(self) -> list[str]:
        """The command and its arguments; placeholders are not filled in yet."""
        return [*self.container.get("command", []), *self.container.get("args", [])]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the container."""
        return {one["name"]: one["value"] for one in self.container.get("env", [])}


@dataclass(frozen=True)
class Loop:
    """A loop over a list of parameters.

    Attributes:
        tasks: what is run for each item, in order.
        item: input of these tasks that holds the item.
        items: input of the loop that holds the list; empty: the list is in the specification.
        raw: the list as JSON, if it is in the specification.
        collected: maps each output artifact of the loop to a task of it and that task's output.
    """

    tasks: tuple[Task, ...]
    item: str
    items: str
    raw: str
    collected: Mapping[str, tuple[str, str]]

    def values(self, given: Values) -> list[Any]:
        """Return the items."""
        found = given.parameters[self.items] if self.items else json.loads(self.raw)
        return list(json.loads(found) if isinstance(found, str) else found)


def tasks(spec: Mapping[str, Any]) -> list[Task]:
    """Return the tasks of a pipeline in an order in which each follows the tasks that it depends on.

    Raises:
        RunError: the specification uses a feature that this executor does not have.
    """
    return _tasks(spec, spec["root"]["dag"]["tasks"])


def _tasks(spec: Mapping[str, Any], found: Mapping[str, Any]) -> list[Task]:
    graph = {name: sorted(found[name].get("dependentTasks", [])) for name in found}
    return [_task(spec, name, found[name]) for name in graphlib.TopologicalSorter(graph).static_order()]


def _task(spec: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> Task:
    component = spec["components"][given["componentRef"]["name"]]
    loop = _loop(spec, component, given) if "dag" in component and "parameterIterator" in given else None
    unknown = sorted(set(given) - (_LOOP_FIELDS if loop else _TASK_FIELDS))
    container = (
        {} if loop else spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {}).get("container")
    )
    if unknown or container is None:
        what = f"'{unknown[0]}'" if unknown else "no container"
        raise RunError(f"task '{name}' of the pipeline has {what}, which only a backend can execute")
    return Task(
        name=name,
        title=given.get("taskInfo", {}).get("name", name),
        after=tuple(given.get("dependentTasks", [])),
        sources=given.get("inputs", {}),
        component=component,
        container=container,
        caching=bool(given.get("cachingOptions", {}).get("enableCache")),
        retries=int(given.get("retryPolicy", {}).get("maxRetryCount", 0)),
        loop=loop,
    )


def _loop(spec: Mapping[str, Any], component: Mapping[str, Any], given: Mapping[str, Any]) -> Loop:
    iterator, dag = given["parameterIterator"], component["dag"]
    collected = {}
    for name, one in dag.get("outputs", {}).get("artifacts", {}).items():
        (selector,) = one["artifactSelectors"]
        collected[name] = (selector["producerSubtask"], selector["outputArtifactKey"])
    items = iterator["items"]
    listed = items.get("inputParameter", "")
    return Loop(tuple(_tasks(spec, dag["tasks"])), iterator["itemInput"], listed, items.get("raw", "[]"), collected)


def inputs(task: Task, around: Values, done: Mapping[str, Values]) -> Values:
    """Return the inputs of a task.

    Args:
        task: one of :func:`tasks`, or of a loop's.
        around: the inputs of what it lies in: the pipeline or the loop.
        done: outputs of the tasks that have ended, by name.
    """
    found = Values()
    for name, source in task.sources.get("parameters", {}).items():
        found.parameters[name] = _parameter(task, source, around.parameters, done)
    for name, source in task.sources.get("artifacts", {}).items():
        if "componentInputArtifact" in source:
            found.artifacts[name] = around.artifacts[source["componentInputArtifact"]]
            continue
        origin = source["taskOutputArtifact"]
        found.artifacts[name] = done[origin["producerTask"]].artifacts[origin["outputArtifactKey"]]
    return found


def _parameter(task: Task, source: Mapping[str, Any], given: Mapping[str, Any], done: Mapping[str, Values]) -> Any:
    if unknown := sorted(set(source) - _VALUE_FIELDS):
        raise RunError(f"task '{task.name}' of the pipeline uses '{unknown[0]}', which only a backend can execute")
    if "runtimeValue" in source:
        return source["runtimeValue"]["constant"]
    if "componentInputParameter" in source:
        return given[source["componentInputParameter"]]
    origin = source["taskOutputParameter"]
    return done[origin["producerTask"]].parameters[origin["outputParameterKey"]]


def executor_input(task: Task, given: Values, root: str, scratch: Path) -> dict[str, Any]:
    """Return what a task's program reads: its inputs, and the places where it must write its outputs.

    Args:
        task: the task.
        given: its inputs.
        root: directory or ``gs://`` prefix of its artifacts.
        scratch: local directory of its output parameters and of its report.
    """
    defined = task.component.get("outputDefinitions", {})
    artifacts = {
        name: {"name": name, "uri": f"{root}/{name}", "type": one["artifactType"], "metadata": {}}
        for name, one in defined.get("artifacts", {}).items()
    }
    return {
        "inputs": {
            "parameterValues": given.parameters,
            "artifacts": {
                name: {"artifacts": one if isinstance(one, list) else [one]} for name, one in given.artifacts.items()
            },
        },
        "outputs": {
            "parameters": {name: {"outputFile": str(scratch / name)} for name in defined.get("parameters", {})},
            "artifacts": {name: {"artifacts": [one]} for name, one in artifacts.items()},
            "outputFile": str(scratch / OUTPUT_FILE),
        },
    }


def filled(word: str, told: Mapping[str, Any], more: Mapping[str, str] | None = None) -> str:
    """Return one word of a command with its placeholders filled in.

    Args:
        word: of :attr:`Task.words`.
        told: the :func:`executor_input`.
        more: values of placeholders that only the backend knows, such as the run's name.

    Raises:
        RunError: a placeholder is unknown.
    """
    values = {"": json.dumps(told), **dict(_placeholders(told)), **(more or {})}
    values |= {f".json_escape[{level}]": _escaped(values[""], level) for level in (1, 2)}

    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            raise RunError(f"the pipeline's placeholder '{match[0]}' is not known here") from None

    return _PLACEHOLDER.sub(value, word)


def _placeholders(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, one in told["inputs"]["parameterValues"].items():
        yield f".inputs.parameters['{name}']", one if isinstance(one, str) else json.dumps(one)
    for name, one in told["outputs"]["parameters"].items():
        yield f".outputs.parameters['{name}'].output_file", one["outputFile"]
    for side in ("inputs", "outputs"):
        for name, one in told[side]["artifacts"].items():
            for what in ("uri", "path"):
                yield f".{side}.artifacts['{name}'].{what}", one["artifacts"][0]["uri"]


def _escaped(text: str, level: int) -> str:
    return text if not level else _escaped(json.dumps(text)[1:-1], level - 1)


def outputs(told: Mapping[str, Any]) -> Values:
    """Read the outputs that a program reported when it succeeded.

    Args:
        told: the :func:`executor_input` that it was given.

    Raises:
        RunError: the program has not written one of its output parameters.
    """
    places = told["outputs"]
    file = Path(places["outputFile"])
    written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = Values()
    for name, one in places["parameters"].items():
        values, path = written.get("parameterValues", {}), Path(one["outputFile"])
        if name not in values and not path.is_file():
            raise RunError(f"the step's program ended without its output '{name}'")
        found.parameters[name] = values[name] if name in values else path.read_text(encoding="utf-8")
    for name, one in places["artifacts"].items():
        told_of = written.get("artifacts", {}).get(name, {}).get("artifacts", [{}])[0]
        found.artifacts[name] = one["artifacts"][0] | {
            key: told_of[key] for key in ("uri", "metadata") if told_of.get(key)
        }
    return found


def execute(
    spec: Mapping[str, Any], parameters: Mapping[str, Any], run: Callable[[Task, Values], Values | None]
) -> dict[str, Values]:
    """Run a pipeline's tasks one after another.

    Args:
        spec: the compiled pipeline.
        parameters: its arguments.
        run: runs one task with these inputs and returns its outputs; None: it has failed.

    Returns:
        The outputs of the tasks that succeeded, by name. A task that depends on a failed task is not run.
    """
    return _execute(tasks(spec), Values(dict(parameters)), run)


def _execute(
    order: Sequence[Task],
    around: Values,
    run: Callable[[Task, Values], Values | None],
    iteration: tuple[int, int] | None = None,
) -> dict[str, Values]:
    done: dict[str, Values] = {}
    for task in order:
        if not all(name in done for name in task.after):
            continue
        given = inputs(task, around, done)
        made = (
            _looped(task.loop, given, run) if task.loop else run(dataclasses.replace(task, iteration=iteration), given)
        )
        if made is not None:
            done[task.name] = made
    return done


def _looped(loop: Loop, given: Values, run: Callable[[Task, Values], Values | None]) -> Values | None:
    """Run a loop's tasks for one item after another; None if one has failed."""
    made: dict[str, list[Artifact]] = {name: [] for name in loop.collected}
    items = loop.values(given)
    for index, item in enumerate(items):
        around = Values({**given.parameters, loop.item: item}, given.artifacts)
        done = _execute(loop.tasks, around, run, (index, len(items)))
        if len(done) < len(loop.tasks):
            return None
        collect(loop, done, made)
    return Values(artifacts=dict(made))


def collect(loop: Loop, done: Mapping[str, Values], made: dict[str, list[Artifact]]) -> None:
    """Append what the tasks of one iteration have made to the loop's outputs."""
    for name, (task, output) in loop.collected.items():
        one = done[task].artifacts[output]
        made[name] += one if isinstance(one, list) else [one]
