"""Executes a compiled pipeline as a backend does: tasks in order, a cache over their inputs, artifacts in a bucket.

Each task's command runs in a process of its own, as it would in its container. Artifacts lie below directories that
stand for the mounted buckets, and are uploaded to the bucket when their task has ended: to the storage emulator
(``gs://``), or to the S3 server that boto3's variables name (``s3://`` and ``minio://``).
"""

import functools
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from xlnet_pipeline.targets import specification
from xlnet_pipeline.targets.specification import Values
from xlnet_steps import supervisor

EXECUTOR = f"{sys.executable} {Path(__file__).with_name('executor.py')}"
_ids = itertools.count(1)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Task:
    """One task as it ran."""

    name: str
    title: str
    # PENDING, WAITING (no node takes its pod), RUNNING, SUCCEEDED, CACHED, FAILED, CANCELLED, NOT_TRIGGERED
    state: str = "PENDING"
    started: datetime | None = None
    ended: datetime | None = None
    log: str = ""
    error: str = ""
    attempts: int = 0
    logs: list[str] = field(default_factory=list)  # of each attempt
    statuses: list[int] = field(default_factory=list)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # output name → runtime artifact, with "id"
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    iterations: list["Task"] = field(default_factory=list)  # of a loop
    index: int | None = None  # of an iteration


def every_task(tasks: dict[str, Task]) -> list[Task]:
    """The tasks that have a program, those of loops included."""
    return [one for task in tasks.values() for one in (task.iterations or [task])]


class Backend:
    """What all executions of one server share: the mounts, the buckets, the cache.

    Attributes:
        mounts: scheme → the directory below which its buckets are mounted in containers.
        secrets: name of a secret → its keys and values.
        hosts: address that only the cluster's own DNS knows → where it leads on this machine.
    """

    def __init__(self, root: Path) -> None:
        self.mounts = {scheme: root / scheme for scheme in ("gs", "s3", "minio")}
        for mount in self.mounts.values():
            mount.mkdir(parents=True)
        self.root = root
        self.secrets: dict[str, dict[str, str]] = {}
        self.hosts: dict[str, str] = {}
        self.cache: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.custom_job: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]] | None = None
        self.client = storage.Client(project="emulator", credentials=AnonymousCredentials())

    def keep_log(self, folder: str, attempt: int, log: str) -> None:
        """Leave an attempt's log in the pipeline root, as the launcher does."""
        self._store(f"{folder}/executor-logs-{attempt}", log.encode())

    def upload(self, uri: str) -> None:
        """Copy an artifact from its mount to its bucket."""
        scheme, _, place = uri.partition("://")
        local = self.mounts[scheme] / place
        files = [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]
        for path in files:
            self._store(f"{scheme}://{path.relative_to(self.mounts[scheme]).as_posix()}", path.read_bytes())

    def _store(self, uri: str, content: bytes) -> None:
        scheme, _, place = uri.partition("://")
        bucket, _, name = place.partition("/")
        if scheme == "gs":
            self.client.bucket(bucket).blob(name).upload_from_string(content)
        else:
            self.s3.put_object(Bucket=bucket, Key=name, Body=content)

    @functools.cached_property
    def s3(self) -> Any:
        """boto3's client, with the keys and the address that its own variables name."""
        import boto3

        return boto3.client("s3", region_name="us-east-1")

    def variables(self) -> dict[str, str]:
        """What a container has from its node and its mounts: no keys of the caller's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        mounts = {"gs": "XLNET_GCS_MOUNT", "s3": "XLNET_S3_MOUNT", "minio": "XLNET_MINIO_MOUNT"}
        return {**kept, "AWS_EC2_METADATA_DISABLED": "true"} | {mounts[one]: str(self.mounts[one]) for one in mounts}


class Execution(threading.Thread):
    """One run of a pipeline specification."""

    def __init__(
        self,
        backend: Backend,
        spec: dict[str, Any],
        parameters: dict[str, Any],
        *,
        run: str,
        root: str,
        environment: Callable[[Task], dict[str, str]] = lambda task: {},
        placeholders: dict[str, str] | None = None,
        retries: bool = True,
        unschedulable: dict[str, threading.Event] | None = None,
        broken: str = "",
        kills: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.backend, self.spec, self.parameters, self.run_id, self.pipeline_root = backend, spec, parameters, run, root
        self.environment = environment
        self.placeholders = placeholders or {}
        self.retries = retries  # whether the backend heeds the specification's retry policy
        self.unschedulable = unschedulable or {}  # step → set once a node takes its pod
        self.broken = broken  # what the root driver says before it fails; empty: it does not
        self.kills = kills  # whether a cancel kills the program at once
        self.state = "PENDING"
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self.cancelled = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.order = specification.tasks(spec)
        self.tasks = {one.name: Task(one.name, one.title) for one in self.order}

    def run(self) -> None:
        self.began, self.state = now(), "RUNNING"
        if self.broken:
            self.ended, self.state = now(), "FAILED"
            return
        for given in self.order:
            task = self.tasks[given.name]
            needed = [self.tasks[other].state for other in given.after]
            if self.cancelled.is_set() or any(state not in ("SUCCEEDED", "CACHED") for state in needed):
                task.state = "NOT_TRIGGERED"
            elif given.loop:
                self._loop(task, given)
            else:
                self._attempts(task, given, Values(self.parameters), self._done())
        states = {task.state for task in self.tasks.values()}
        self.ended = now()
        self.state = (
            "CANCELLED" if self.cancelled.is_set() else "FAILED" if states - {"SUCCEEDED", "CACHED"} else "SUCCEEDED"
        )

    def cancel(self) -> None:
        self.cancelled.set()
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL if self.kills else signal.SIGTERM)

    def stop(self) -> None:
        """End it for good, with all that its step has started: nothing may outlive a test."""
        self.kills = True
        self.cancel()
        if self.is_alive():
            self.join(10)

    def _done(self) -> dict[str, Values]:
        return {name: Values(one.parameters, dict(one.artifacts)) for name, one in self.tasks.items()}

    def _loop(self, task: Task, given: specification.Task) -> None:
        """Run a loop's task for each item, whatever becomes of the others."""
        assert given.loop
        (inner,) = given.loop.tasks
        around = specification.inputs(given, Values(self.parameters), self._done())
        items = given.loop.values(around)
        task.started, task.state = now(), "RUNNING"
        task.iterations = [Task(inner.name, inner.title, index=number) for number in range(len(items))]
        made: dict[str, list[Any]] = {name: [] for name in given.loop.collected}
        for one, item in zip(task.iterations, items, strict=True):
            if self.cancelled.is_set():
                one.state = "NOT_TRIGGERED"
                continue
            self._attempts(one, inner, Values({**around.parameters, given.loop.item: item}, around.artifacts), {})
            if one.state in ("SUCCEEDED", "CACHED"):
                specification.collect(given.loop, {inner.name: Values(one.parameters, dict(one.artifacts))}, made)
        states = {one.state for one in task.iterations}
        task.artifacts, task.ended = dict(made), now()
        task.state = "SUCCEEDED" if not states - {"SUCCEEDED", "CACHED"} else "FAILED"
        if self.cancelled.is_set():
            task.state = "CANCELLED"

    def _attempts(self, task: Task, given: specification.Task, around: Values, done: dict[str, Values]) -> None:
        task.started = now()
        if task.name in self.unschedulable:
            task.state = "WAITING"
            while not (self.unschedulable[task.name].wait(0.02) or self.cancelled.is_set()):
                pass
            task.started = now()
        task.state = "RUNNING"
        for _ in range(1 + self.retries * given.retries):
            task.attempts += 1
            try:
                self._task(task, given, specification.inputs(given, around, done))
            except Exception:  # a mistake of this server's, or a specification that no backend could run
                task.state, task.error = "FAILED", traceback.format_exc()
                task.log += task.error
            if task.state != "FAILED" or self.cancelled.is_set():
                break
        if task.state == "FAILED" and self.cancelled.is_set():
            task.state = "CANCELLED"
        task.ended = now()

    def _task(self, task: Task, given: specification.Task, inputs: Values) -> None:
        task.inputs = inputs.artifacts
        parts = [given.component, given.container, inputs.parameters, inputs.artifacts]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        cached = self.backend.cache.get(key) if given.caching else None
        if cached:
            task.artifacts, task.parameters = cached
            task.state = "CACHED"
            return
        salt = uuid.uuid4()
        root = f"{self.pipeline_root.rstrip('/')}/{self.spec['pipelineInfo']['name']}/{self.run_id}/{task.name}/{salt}"
        scratch = self.backend.root / "scratch" / self.run_id / f"{task.name}-{salt}"
        scratch.mkdir(parents=True)
        told = specification.executor_input(given, inputs, root, scratch)
        task.logs.append("")
        status = self._command(task, given, told)
        task.log = task.logs[-1]
        task.statuses.append(status)
        self.backend.keep_log(root, task.attempts - 1, task.log)
        if status:
            task.state, task.error = "FAILED", f"the container ended with exit status {status}"
            return
        self._collect(task, specification.outputs(told))
        self.backend.cache[key] = (task.artifacts, task.parameters)
        task.state = "SUCCEEDED"

    def _command(self, task: Task, given: specification.Task, told: dict[str, Any]) -> int:
        more = {f".{name}": value for name, value in self.placeholders.items()}
        words = [specification.filled(word, told, more) for word in given.words]
        if not any("custom_job.launcher" in word for word in words):
            return self._process(task, words, given.environment)
        assert self.backend.custom_job, "this server has no custom jobs"
        name, spec = self.backend.custom_job(json.loads(words[words.index("--payload") + 1]))
        resources = json.dumps({"resources": [{"resourceType": "CustomJob", "resourceUri": name}]})
        Path(words[words.index("--gcp_resources") + 1]).write_text(resources)
        inner = spec["worker_pool_specs"][0]["container_spec"]
        variables = {one["name"]: one["value"] for one in inner.get("env", [])}
        return self._process(task, [*inner["command"], *inner["args"]], variables)

    def _process(self, task: Task, command: list[str], variables: dict[str, str]) -> int:
        """Run a container's program; its log grows while it runs."""
        words = [word.replace(supervisor.PROGRAM, EXECUTOR) for word in command]
        words = [word.replace("python3 -m xlnet_steps", f"{sys.executable} -m xlnet_steps") for word in words]
        given = {**variables, **self.environment(task)}
        environment = {
            **self.backend.variables(),
            **{name: self.backend.hosts.get(value, value) for name, value in given.items()},
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        if self.cancelled.is_set():
            self.cancel()
        assert self.process.stdout
        for line in self.process.stdout:
            task.logs[-1] += line
        return self.process.wait()

    def _collect(self, task: Task, made: Values) -> None:
        task.parameters = made.parameters
        for name, artifact in made.artifacts.items():
            if None in artifact["metadata"].values():
                raise ValueError(f"metadata of {name} holds a null, which no backend takes")
            task.artifacts[name] = {**artifact, "id": str(next(_ids))}
            self.backend.upload(artifact["uri"])
