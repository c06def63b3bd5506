"""One installation of Kubeflow Pipelines, ours or a real one, and the Kubernetes below it, for the cluster suite."""

import contextlib
import functools
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from xlnet.errors import RunError, UserError
from xlnet.http import HttpError
from xlnet_cluster.jobset import GROUP, JOBSETS, VERSION
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets.kfp.states import run_id
from xlnet_pipeline.targets.kfp.target import KfpTarget
from xlnet_pipeline.targets.settings import KfpSettings

GIVEN = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("KFP_", "XLNET_IMAGE", "MLFLOW_", "AWS_", "KUBECONFIG"))
}
REAL = "KFP_ENDPOINT" in GIVEN
PAUSE = 3.0 if REAL else 0.2  # seconds between two looks
SMALL = (
    "data.train=demo:uci_sentences",
    "data.format=tsv",
    "data.header=no",
    "data.text=0",
    "data.label=1",
    "data.max_length=32",
    "training.patience=0",  # a run of many steps goes on until it is stopped
    "model.n_layer=1",
    "model.d_model=32",
    "model.n_head=2",
    "model.d_head=16",
    "model.d_inner=64",
    "evaluation.resamples=100",
    "evaluation.baseline=none",
    "registry.name=cluster-test",
)


def wanted(steps: int, *more: str) -> list[str]:
    """The words that submit a run of so many steps."""
    settings = [word for one in (*SMALL, f"training.steps={steps}") for word in ("--set", one)]
    return ["run", "--no-check", *settings, *more]


RUN_LABEL = "xlnet-pipeline/run"  # of JobSets and their pods: the server's id of the run
LONGEST = 300.0  # seconds for a run to reach a state: a real cluster pulls the image and starts five pods


def until(what: str, look: Callable[[], Any], seconds: float = LONGEST, state: Callable[[], str] = str) -> Any:
    """What ``look`` returns, once that is true; after the time limit the test fails, saying what it waited for."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}\n{state()}")
        time.sleep(PAUSE)
    return found


class Kubernetes:
    """The cluster below the installation, through the file that ``KUBECONFIG`` names."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        from kubernetes import client, config

        api = config.new_client_from_config(kubeconfig)
        self.core, self.custom, self.namespace = client.CoreV1Api(api), client.CustomObjectsApi(api), namespace
        self.refused = client.ApiException

    def lacks(self) -> str:
        """Why no JobSet can be tried; empty if one can."""
        try:
            self.jobsets("none")
        except self.refused as error:
            if error.status == 404:
                return "this cluster knows no JobSets: see docs/targets.md for how to install them"
            return f"KUBECONFIG may not list JobSets in namespace '{self.namespace}': {error.reason}"
        return ""

    def jobsets(self, run: str) -> list[dict[str, Any]]:
        """The JobSets of a run."""
        place = (GROUP, VERSION, self.namespace, JOBSETS)
        found: list[dict[str, Any]] = self.custom.list_namespaced_custom_object(
            *place, label_selector=f"{RUN_LABEL}={run}", _request_timeout=30
        )["items"]
        return found

    def pods(self, run: str) -> list[dict[str, Any]]:
        """The pods of a run's JobSets."""
        answer = self.core.list_namespaced_pod(
            self.namespace, label_selector=f"{RUN_LABEL}={run}", _preload_content=False, _request_timeout=30
        )
        found: list[dict[str, Any]] = json.loads(answer.data)["items"]
        return found

    def running(self, run: str) -> list[str]:
        """Names of those pods that run and that nobody has deleted."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods(run)
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def no_node(self, run: str) -> str:
        """Why the scheduler finds no node for a pod of the run; empty if it does."""
        conditions = [one for pod in self.pods(run) for one in pod["status"].get("conditions", [])]
        return next((one.get("message", "") for one in conditions if one.get("reason") == "Unschedulable"), "")

    def delete_pod(self, name: str) -> None:
        """Delete a pod, as a node that is taken back does: SIGTERM, and a grace."""
        self.core.delete_namespaced_pod(name, self.namespace, _preload_content=False, _request_timeout=30)

    def delete_jobset(self, name: str) -> None:
        """Delete a JobSet with its pods."""
        place = (GROUP, VERSION, self.namespace, JOBSETS, name)
        self.custom.delete_namespaced_custom_object(*place, body={"propagationPolicy": "Foreground"})


class Installation:
    """One installation, and what was run on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.runs: dict[str, str] = {}  # situation → run
        self.said: dict[str, tuple[int, str]] = {}  # situation → exit status and output
        self.skipped: dict[str, str] = {}  # situation → why it cannot be tried here
        self.begun: dict[str, subprocess.Popen[str]] = {}  # situation → the process that submits it

    def answer(self, *words: str) -> tuple[int, str, str]:
        """Exit status, output and messages of a command. A slow server adds messages, but changes no output."""
        output, messages = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(messages),
        ):
            status = main([*words, "--target", "kfp"])
        return status, output.getvalue(), messages.getvalue()

    def say(self, *words: str) -> tuple[int, str]:
        """Exit status of a command, and all that it said."""
        status, output, messages = self.answer(*words)
        return status, output + messages

    def run(self, situation: str, *more: str, steps: int = 4) -> str:
        """The run of a situation, made once; its id."""
        if situation not in self.runs:
            if situation not in self.said:
                self.said[situation] = self._ended(situation) or self.say(*wanted(steps, *more))
            status, text = self.said[situation]
            begun = re.search(r"^run (\S+)$", text, re.MULTILINE)
            assert begun, f"nothing was submitted (exit status {status}): {text}"
            self.runs[situation] = begun[1]
        return self.runs[situation]

    def begin(self, situation: str, *more: str, steps: int = 4) -> None:
        """Start the run of a situation in a process of its own; :meth:`run` waits until that has ended."""
        command = [sys.executable, "-m", "xlnet_pipeline", *wanted(steps, *more), "--target", "kfp"]
        environment = {**os.environ, **self.environment}
        self.begun[situation] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _ended(self, situation: str) -> tuple[int, str] | None:
        process = self.begun.pop(situation, None)
        if process is None:
            return None
        try:
            text = process.communicate(timeout=2 * LONGEST)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"waited {2 * LONGEST:.0f} s for the run '{situation}'; it said: {process.communicate()[0]}")
        return process.returncode, text

    def ready(self) -> None:
        """Fail, saying why, unless the installation answers and its pipeline root can be written and read."""
        from xlnet.data import objects

        status, said = self.say("runs", "list", "--limit", "1")
        if status:
            pytest.fail(f"{self.environment['KFP_ENDPOINT']} cannot be used: {said}")
        place = f"{self.environment['KFP_PIPELINE_ROOT']}/written-by-the-cluster-suite"
        with mock.patch.dict(os.environ, self.environment):
            try:
                objects.write(place, b"whole")
                assert objects.read(place) == b"whole"
            except (UserError, RunError) as error:
                pytest.fail(f"the pipeline root cannot be used from here: {error}")

    @functools.cached_property
    def cluster(self) -> Kubernetes:
        """The Kubernetes below; a test that needs it is skipped where it cannot be reached or knows no JobSets."""
        config = self.environment.get("KUBECONFIG", "")
        if not config:
            pytest.skip("KUBECONFIG is not set: JobSets are looked at, and a pod is deleted, through it")
        found = Kubernetes(config, self.environment.get("KFP_NAMESPACE") or "kubeflow")
        if reason := found.lacks():
            pytest.skip(reason)
        return found

    @functools.cached_property
    def target(self) -> KfpTarget:
        """The target, as commands open it."""
        names = {"pipeline_root": "KFP_PIPELINE_ROOT", "experiment": "KFP_EXPERIMENT", "namespace": "KFP_NAMESPACE"}
        given = {key: self.environment.get(name, "") for key, name in names.items()}
        token = self.environment.get("KFP_TOKEN", "")
        return KfpTarget(KfpSettings(endpoint=self.environment["KFP_ENDPOINT"], token=token, **given))

    def servers_id(self, run: str) -> str:
        """The server's id of a run."""
        return str({run_id(one): one.run_id for one in self.target.listed()}[run])

    def log(self, run: str, step: str) -> str:
        """A step's log as it is now."""
        return self.say("runs", "logs", run, step)[1]

    def record(self, run: str) -> dict[str, object]:
        """What ``runs show --json`` says."""
        status, text, messages = self.answer("runs", "show", run, "--json")
        assert status == 0, messages
        found: dict[str, object] = json.loads(text)
        return found

    def while_running(self, what: str, run: str, look: Callable[[], Any]) -> Any:
        """What ``look`` returns, once that is true; the test fails as soon as the run has ended without it."""

        def looked() -> Any:
            status = self.record(run)["status"]  # before the look: what it wants may be the run's last deed
            found = look()
            if not found and status != "RUNNING":
                pytest.fail(f"waiting for {what}: run {run} ended as {status}\n{self.log(run, 'train')[-2000:]}")
            return found

        return until(what, looked, state=lambda: self.log(run, "train")[-2000:])

    def states(self, run: str) -> list[str]:
        """The states of a run's five steps."""
        return [step["status"] for step in self.record(run)["steps"]]  # type: ignore[attr-defined, index]

    def clean(self) -> None:
        """Remove the runs, the schedules, the experiment and everything below this test's own root."""
        from xlnet.data import objects

        for process in self.begun.values():
            process.kill()
            process.wait()
        api = self.target.api
        with mock.patch.dict(os.environ, self.environment):
            runs = list(self.target.listed())
            for one in runs:
                with self._going_on():
                    self._remove_jobsets(one.run_id)
                if one.state in ("PENDING", "RUNNING"):
                    with self._going_on():  # it may have ended meanwhile
                        api.call(api.runs.run_service_terminate_run, one.run_id)
            self._wait_for_the_last()  # or their pods would write into the root while it is emptied
            for one in runs:
                with self._going_on():
                    api.call(api.runs.run_service_delete_run, one.run_id)
            with self._going_on():
                for name in {one.name for one in self.target.schedules().all()}:
                    self.target.schedules().delete(name)
            with self._going_on():
                root = self.environment["KFP_PIPELINE_ROOT"]
                for stored in objects.listing(f"{root}/"):
                    objects.delete(stored.uri)
            with self._going_on():
                if experiment := api.known_experiment():
                    api.call(api.experiments.experiment_service_delete_experiment, experiment)

    def _wait_for_the_last(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self._going_on():
                if not [one for one in self.target.listed() if one.state in ("PENDING", "RUNNING", "CANCELING")]:
                    return
            time.sleep(PAUSE)

    @staticmethod
    @contextlib.contextmanager
    def _going_on() -> Iterator[None]:
        """Tell what could not be removed, and go on with the rest."""
        try:
            yield
        except (HttpError, UserError, RunError) as error:
            print(f"cleaning up: {error}", file=sys.__stderr__)

    def _remove_jobsets(self, run: str) -> None:
        """Leave no machine to a run that is removed."""
        if "cluster" in self.__dict__:
            for jobset in self.cluster.jobsets(run):
                self.cluster.delete_jobset(jobset["metadata"]["name"])


def our_server(stack: contextlib.ExitStack, patch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    from conftest import PINNED_IMAGE
    from servers.kfp_server import KfpServer
    from servers.kubernetes_server import KubernetesServer
    from servers.storage import bucket_server

    from xlnet_pipeline.targets import following, remote

    stack.enter_context(bucket_server(patch))
    server = stack.enter_context(KfpServer(folder / "server"))
    server.cluster = stack.enter_context(KubernetesServer(folder / "cluster"))
    server.cluster.allowed |= {("list", "jobsets"), ("delete", "pods")}
    server.cluster.environment = {"TEST_GUARD_SECONDS": "1"}
    server.kills = True
    patch.setattr(remote, "FIRST_POLL", 0.1)
    patch.setattr(remote, "LONGEST_POLL", 0.3)
    patch.setattr(following, "POLL", 0.1)
    return {
        "KFP_ENDPOINT": server.url,
        "KFP_PIPELINE_ROOT": "gs://bucket/root",
        "XLNET_IMAGE": PINNED_IMAGE,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'registry.db'}",
        "KUBECONFIG": str(server.cluster.kubeconfig()),
    }
