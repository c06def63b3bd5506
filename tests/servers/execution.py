"""Executes a compiled pipeline as a backend does: tasks in order, a cache over their inputs, artifacts in a bucket.

Each task's command runs in a process of its own, as it would in its container. Artifacts lie below a directory that
stands for the mounted buckets, and are uploaded to the storage emulator when their task has ended.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
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


class Backend:
    """What all executions of one server share: the mount, the bucket, the cache."""

    def __init__(self, root: Path) -> None:
        self.mount = root / "gcs"
        self.mount.mkdir(parents=True)
        self.root = root
        self.cache: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.custom_job: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]] | None = None
        self.client = storage.Client(project="emulator", credentials=AnonymousCredentials())

    def keep_log(self, folder: str, attempt: int, log: str) -> None:
        """Leave an attempt's log in the pipeline root, as the launcher does."""
        bucket, _, name = folder.removeprefix("gs://").partition("/")
        self.client.bucket(bucket).blob(f"{name}/executor-logs-{attempt}").upload_from_string(log)

    def upload(self, uri: str) -> None:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        local = self.mount / bucket / name
        files = [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]
        for path in files:
            key = path.relative_to(self.mount / bucket).as_posix()
            self.client.bucket(bucket).blob(key).upload_from_filename(str(path))


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
        environment: Callable[[str], dict[str, str]] = lambda step: {},
        placeholders: dict[str, str] | None = None,
        retries: bool = True,
        unschedulable: dict[str, threading.Event] | None = None,
        broken: str = "",
    ) -> None:
        super().__init__(daemon=True)
        self.backend, self.spec, self.parameters, self.run_id, self.pipeline_root = backend, spec, parameters, run, root
        self.environment = environment
        self.placeholders = placeholders or {}
        self.retries = retries  # whether the backend heeds the specification's retry policy
        self.unschedulable = unschedulable or {}  # step → set once a node takes its pod
        self.broken = broken  # what the root driver says before it fails; empty: it does not
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
            else:
                self._attempts(task, given)
        states = {task.state for task in self.tasks.values()}
        self.ended = now()
        self.state = (
            "CANCELLED" if self.cancelled.is_set() else "FAILED" if states - {"SUCCEEDED", "CACHED"} else "SUCCEEDED"
        )

    def cancel(self) -> None:
        self.cancelled.set()
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)

    def _attempts(self, task: Task, given: specification.Task) -> None:
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
                self._task(task, given)
            except Exception:  # a mistake of this server's, or a specification that no backend could run
                task.state, task.error = "FAILED", traceback.format_exc()
                task.log += task.error
            if task.state != "FAILED" or self.cancelled.is_set():
                break
        if task.state == "FAILED" and self.cancelled.is_set():
            task.state = "CANCELLED"
        task.ended = now()

    def _task(self, task: Task, given: specification.Task) -> None:
        done = {name: Values(one.parameters, one.artifacts) for name, one in self.tasks.items()}
        inputs = specification.inputs(given, self.parameters, done)
        task.inputs = inputs.artifacts
        parts = [given.component, given.container, inputs.parameters, inputs.artifacts]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        cached = self.backend.cache.get(key) if given.caching else None
        if cached:
            task.artifacts, task.parameters = cached
            task.state = "CACHED"
            return
        salt = hashlib.sha256(f"{self.run_id}{task.name}{next(_ids)}".encode()).hexdigest()[:8]
        root = f"{self.pipeline_root.rstrip('/')}/{self.spec['pipelineInfo']['name']}/{self.run_id}/{task.name}/{salt}"
        scratch = self.backend.root / "scratch" / self.run_id / f"{task.name}-{salt}"
        scratch.mkdir(parents=True)
        told = specification.executor_input(given, inputs, root, scratch)
        status, task.log = self._command(given, told)
        task.logs.append(task.log)
        task.statuses.append(status)
        self.backend.keep_log(root, task.attempts - 1, task.log)
        if status:
            task.state, task.error = "FAILED", f"the container ended with exit status {status}"
            return
        self._collect(task, specification.outputs(told))
        self.backend.cache[key] = (task.artifacts, task.parameters)
        task.state = "SUCCEEDED"

    def _command(self, given: specification.Task, told: dict[str, Any]) -> tuple[int, str]:
        more = {f".{name}": value for name, value in self.placeholders.items()}
        words = [specification.filled(word, told, more) for word in given.words]
        if not any("custom_job.launcher" in word for word in words):
            return self._process(given.name, words, given.environment)
        assert self.backend.custom_job, "this server has no custom jobs"
        name, spec = self.backend.custom_job(json.loads(words[words.index("--payload") + 1]))
        resources = json.dumps({"resources": [{"resourceType": "CustomJob", "resourceUri": name}]})
        Path(words[words.index("--gcp_resources") + 1]).write_text(resources)
        inner = spec["worker_pool_specs"][0]["container_spec"]
        variables = {one["name"]: one["value"] for one in inner.get("env", [])}
        return self._process(given.name, [*inner["command"], *inner["args"]], variables)

    def _process(self, step: str, command: list[str], variables: dict[str, str]) -> tuple[int, str]:
        words = [word.replace(supervisor.PROGRAM, EXECUTOR) for word in command]
        words = [word.replace("python3 -m xlnet_steps", f"{sys.executable} -m xlnet_steps") for word in words]
        environment = {
            **os.environ,
            **variables,
            **self.environment(step),
            "XLNET_GCS_MOUNT": str(self.backend.mount),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        if self.cancelled.is_set():
            self.cancel()
        log, _ = self.process.communicate()
        return self.process.returncode, log

    def _collect(self, task: Task, made: Values) -> None:
        task.parameters = made.parameters
        for name, artifact in made.artifacts.items():
            if None in artifact["metadata"].values():
                raise ValueError(f"metadata of {name} holds a null, which no backend takes")
            task.artifacts[name] = {**artifact, "id": str(next(_ids))}
            self.backend.upload(artifact["uri"])
