"""The one place that reaches into kfp.local, which has no public way to watch, cache or stop a task.

kfp.local keeps no record of a run, hides a failing task's message, keys its cache on paths instead of content, and
leaves a task running when it is interrupted. Some of its functions are replaced while a run lasts:

- ``task_executor.execute_single_task``, which runs one task of the DAG: ours asks the run first;
- ``SubprocessTaskHandler.run`` and ``DockerTaskHandler.run``, which start the task's command: ours start it through the
  run (kfp's own takes a container that was gone too soon for one that succeeded);
- three of ``logging_utils``, which print banners: ours print nothing.

kfp is pinned to 2.17; a test checks that they are still there and are still used.
"""

import contextlib
import json
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kfp import dsl, local
from kfp.dsl.component_factory import EXECUTOR_MODULE
from kfp.dsl.executor import create_artifact_instance
from kfp.local import logging_utils, status, subprocess_task_handler
from kfp.local.config import LocalExecutionConfig
from kfp.local.orchestrator import task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

from xlnet import provenance

_SUCCESS = status.Status.SUCCESS

Outputs = dict[str, Any]  # parameter → value, artifact → {"uri", "type", "digest", "metadata"}


@dataclass(frozen=True)
class Task:
    """One task as it is about to run."""

    name: str
    arguments: dict[str, Any]  # parameter → value, artifact → {"uri", "type", "digest", "metadata"}
    definition: str  # digest of the component's own source
    caching: bool


class Observer(Protocol):
    """Decides what happens for each task of a run."""

    def step(self, task: Task, execute: Callable[[], Outputs | None]) -> Outputs | None:
        """Return the task's outputs, from ``execute`` or from elsewhere; None if it failed."""

    def command(self, command: list[str], environment: dict[str, str]) -> int:
        """Run a task's command with these environment variables added; return its exit status."""


def run(
    pipeline: dsl.base_component.BaseComponent,
    arguments: dict[str, Any],
    root: Path,
    observer: Observer,
    containers: bool = False,
) -> None:
    """Run a compiled pipeline through ``kfp.local``, artifacts below ``root/<task>/``; ``observer`` hears of it all.

    ``containers``: the commands are for containers of the tasks' image, which ``observer`` starts, instead of for here.
    """
    workspace = tempfile.mkdtemp(prefix="xlnet-workspace-")  # kfp removes it
    earlier = LocalExecutionConfig.instance
    runner = local.DockerRunner() if containers else local.SubprocessRunner(use_venv=False)
    local.init(runner, str(root), workspace, raise_on_error=False)
    try:
        with _seams(observer), _containers(observer, containers), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # display names and images have no effect here: so they should
            pipeline(**arguments)
    finally:
        LocalExecutionConfig.instance = earlier


@contextlib.contextmanager
def _seams(observer: Observer) -> Iterator[None]:
    original = task_executor.execute_single_task

    def execute_single_task(task_name: str, task_spec: Any, **rest: Any) -> tuple[Outputs, status.Status]:
        label = rest["components"][task_spec.component_ref.name].executor_label
        container = rest["executors"][label].container
        task = Task(
            name=task_name,
            arguments=_plain(OrchestratorUtils.make_task_arguments(task_spec.inputs, rest["io_store"])),
            definition=provenance.digest_json([*container.command, *container.args]),
            caching=task_spec.caching_options.enable_cache,
        )
        rest["pipeline_resource_name"] = ""  # artifacts/<task>/… without a folder named after the time

        def execute() -> Outputs | None:
            outputs, ended = original(task_name, task_spec, **rest)
            return _exact(_plain(outputs), Path(rest["pipeline_root"], task_name)) if ended is _SUCCESS else None

        found = observer.step(task, execute)
        return (_artifacts(found), _SUCCESS) if found is not None else ({}, status.Status.FAILURE)

    def start(handler: Any) -> status.Status:
        # kfp's own version replaces "python3" in every argument, in the user's paths too.
        ours = f"{shlex.quote(sys.executable)} -m {EXECUTOR_MODULE}"
        command = [part.replace(f"python3 -m {EXECUTOR_MODULE}", ours) for part in handler.full_command]
        failed = observer.command(command, handler.env_vars)
        return status.Status.FAILURE if failed else _SUCCESS

    with (
        _replaced(task_executor, "execute_single_task", execute_single_task),
        _replaced(subprocess_task_handler.SubprocessTaskHandler, "run", start),
        _replaced(logging_utils, "local_logger_context", _silence),
        _replaced(logging_utils, "indented_print", contextlib.nullcontext),
        _replaced(logging_utils, "print_horizontal_line", lambda: None),
    ):
        yield


@contextlib.contextmanager
def _containers(observer: Observer, wanted: bool) -> Iterator[None]:
    if not wanted:  # the module needs Docker's client package, which running without containers does not
        yield
        return
    from kfp.local import docker_task_handler

    def start(handler: Any) -> status.Status:
        failed = observer.command(handler.full_command, handler.env_vars)
        return status.Status.FAILURE if failed else _SUCCESS

    with _replaced(docker_task_handler.DockerTaskHandler, "run", start):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    earlier = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, earlier)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    earlier = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(earlier)


def _plain(values: dict[str, Any]) -> Outputs:
    return {name: _fields(value) if isinstance(value, dsl.Artifact) else value for name, value in values.items()}


def _fields(artifact: dsl.Artifact) -> dict[str, Any]:
    return {
        "uri": artifact.uri,
        "type": artifact.schema_title,
        "digest": digest(Path(artifact.uri)),
        "metadata": dict(artifact.metadata),
    }


def _exact(outputs: Outputs, directory: Path) -> Outputs:
    """Take metadata from the executor's own file: on the way through protobuf every integer has become a float."""
    written = json.loads((directory / "executor_output.json").read_text(encoding="utf-8")).get("artifacts", {})
    return {
        name: {**value, "metadata": written[name]["artifacts"][0]["metadata"]} if name in written else value
        for name, value in outputs.items()
    }


def digest(path: Path) -> str | None:
    """Identity of an artifact's content: from its lineage, else of the file; None where it is metadata alone."""
    if path.is_dir():
        return str(provenance.read(path)["artifact"]["digest"])
    return provenance.digest_file(path) if path.is_file() else None


def _artifacts(outputs: Outputs) -> Outputs:
    def revive(name: str, value: Any) -> Any:
        if not isinstance(value, dict) or "uri" not in value:
            return value
        fields = {"name": name, "uri": value["uri"], "metadata": value["metadata"]}
        return create_artifact_instance({**fields, "type": {"schemaTitle": value["type"]}})

    return {name: revive(name, value) for name, value in outputs.items()}
