"""Reads a compiled pipeline as a backend does: its tasks in order, their inputs, their commands, their outputs.

The format is Kubeflow Pipelines' ``PipelineSpec`` as JSON. An artifact is a ``RuntimeArtifact``: name, uri, type and
metadata. Features that our pipeline does not use (loops, nested pipelines, conditions, importers) are refused
rather than ignored.
"""

import graphlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet.errors import RunError

Artifact = dict[str, Any]
OUTPUT_FILE = "executor_output.json"
_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_TASK_FIELDS = {"taskInfo", "inputs", "dependentTasks", "cachingOptions", "componentRef", "retryPolicy"}
_VALUE_FIELDS = {"runtimeValue", "componentInputParameter", "taskOutputParameter"}


@dataclass
class Values:
    """The inputs or the outputs of a task: parameters and artifacts by name."""

    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)


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
    """

    name: str
    title: str
    after: tuple[str, ...]
    sources: Mapping[str, Any]
    component: Mapping[str, Any]
    container: Mapping[str, Any]
    caching: bool
    retries: int

    @property
    def words(self) -> list[str]:
        """The command and its arguments; placeholders are not filled in yet."""
        return [*self.container.get("command", []), *self.container.get("args", [])]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the container."""
        return {one["name"]: one["value"] for one in self.container.get("env", [])}


def tasks(spec: Mapping[str, Any]) -> list[Task]:
    """Return the tasks of a pipeline in an order in which each follows the tasks that it depends on.

    Raises:
        RunError: the specification uses a feature that this executor does not have.
    """
    found = spec["root"]["dag"]["tasks"]
    graph = {name: sorted(found[name].get("dependentTasks", [])) for name in found}
    return [_task(spec, name, found[name]) for name in graphlib.TopologicalSorter(graph).static_order()]


def _task(spec: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> Task:
    component = spec["components"][given["componentRef"]["name"]]
    unknown = sorted(set(given) - _TASK_FIELDS)
    container = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {}).get("container")
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
    )


def inputs(task: Task, parameters: Mapping[str, Any], done: Mapping[str, Values]) -> Values:
    """Return the inputs of a task.

    Args:
        task: one of :func:`tasks`.
        parameters: the pipeline's parameters.
        done: outputs of the tasks that have ended, by name.
    """
    found = Values()
    for name, source in task.sources.get("parameters", {}).items():
        found.parameters[name] = _parameter(task, source, parameters, done)
    for name, source in task.sources.get("artifacts", {}).items():
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
            "artifacts": {name: {"artifacts": [one]} for name, one in given.artifacts.items()},
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
    done: dict[str, Values] = {}
    for task in tasks(spec):
        if all(name in done for name in task.after):
            made = run(task, inputs(task, parameters, done))
            if made is not None:
                done[task.name] = made
    return done
