"""A JobSet deletes itself once no pod of its run's workflow is alive, for a cancel kills the launcher's container."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.kubernetes_server import GROUP, KubernetesServer
from servers.web import Request

from xlnet_cluster.guard import any_alive
from xlnet_cluster.jobset import Requirements, TrainingJob, manifest

RUN = "0a1b2c3d-1111-2222-3333-444455556666"
NEEDS = Requirements(2, "image", [], {}, {}, [], "1Gi", False, retries=1, preemptions=3)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubernetesServer]:
    with KubernetesServer(tmp_path / "cluster") as started:
        started.environment = {"TEST_GUARD_SECONDS": "0.5"}
        yield started


def owner(server: KubernetesServer, name: str, kind: str) -> dict[str, Any]:
    """What a step's pod says owns a JobSet: its workflow, or without one the pod itself."""
    record = server.steps[name]
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": record["metadata"]["uid"]}
    return {key: record["metadata"]["ownerReferences"][0][key] for key in ("apiVersion", "kind", "name", "uid")}


def start(server: KubernetesServer, of: dict[str, Any]) -> str:
    """Create a JobSet of two pods that sleep, and let its pods run; its name."""
    work = TrainingJob(RUN, "{}", "gs://b/in", "gs://b/out", owner=of, command=("sh", "-c", "exec sleep 600"))
    caller = {"authorization": f"Bearer {server.token}"}
    status, answer, _ = server.answer(
        Request("POST", f"{GROUP}/namespaces/kubeflow/jobsets", {}, manifest(NEEDS, work), caller)
    )
    assert status == 200, answer
    server.settle(lambda: all(pod.process for pod in server.sets[work.name].pods))
    return work.name


def looks(server: KubernetesServer, more: int) -> None:
    """Wait until the guard has looked that many times more."""
    wanted = server.count("GET", "/pods") + more
    server.settle(lambda: server.count("GET", "/pods") >= wanted)


@pytest.mark.parametrize("kind", ["Workflow", "Pod"])
def test_it_goes_once_its_run_has_ended_and_not_before(server: KubernetesServer, kind: str) -> None:
    alive = {"first": True, "second": True, "other run": True}
    name = server.step_pod(RUN, "train", lambda: alive["first"])["XLNET_POD_NAME"]
    server.step_pod("ffffffff-1111-2222-3333-444455556666", "train", lambda: alive["other run"])
    jobset = start(server, owner(server, name, kind))
    looks(server, 4)
    if kind == "Workflow":  # a step whose pod was lost is started again in another pod
        server.step_pod(RUN, "train", lambda: alive["second"])
        alive["first"] = False
        looks(server, 4)
    pods = server.sets[jobset].pods
    assert jobset in server.jobsets
    alive |= {"first": False, "second": False}
    server.fault("GET", "/pods", 503, times=2)  # no answer is no sign that the run has ended
    server.settle(lambda: not server.jobsets)
    assert [pod.exit_code for pod in pods] == [143, 143], "both were asked to end, and could save a checkpoint"
    said = [[text for _, text in pod.lines] for pod in pods]
    assert said == [[f"the pipeline run has ended without this training: JobSet {jobset} is deleted"], []]


def test_without_the_right_to_look_it_says_so_once_and_the_training_goes_on(server: KubernetesServer) -> None:
    server.allowed.discard(("list", "pods"))
    jobset = start(server, owner(server, server.step_pod(RUN, "train", lambda: False)["XLNET_POD_NAME"], "Workflow"))
    first = server.sets[jobset].pods[0]
    server.settle(lambda: first.lines)
    ((_, said),) = first.lines
    assert "warning: this pod cannot find out whether its pipeline run goes on" in said
    assert f"kubectl get jobset {jobset}" in said
    assert jobset in server.jobsets
    assert not first.ended()


def test_the_guard_ends_with_the_trainer(server: KubernetesServer) -> None:
    jobset = start(server, owner(server, server.step_pod(RUN, "train")["XLNET_POD_NAME"], "Workflow"))
    (first, _) = server.sets[jobset].pods
    looks(server, 1)
    first.terminate()
    deadline = time.monotonic() + 60
    while not first.ended():
        assert time.monotonic() < deadline, "waited 60 s for a pod to end that was asked to"
        time.sleep(0.05)
    assert first.log_ended(), "nobody writes into its log any more"


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([], False),
        (["Succeeded", "Failed"], False),
        (["Failed", "Pending"], True),
        (["Running"], True),
        (["Unknown"], True),  # its node does not answer
        ([None], False),
        (["Failed", None], False),
        ([""], True),  # nobody has seen it yet
    ],
)
def test_a_run_goes_on_while_one_of_its_pods_has_not_ended(phases: list[str | None], expected: bool) -> None:
    pods = [None if phase is None else {"status": {"phase": phase} if phase else {}} for phase in phases]
    assert any_alive(pods) is expected
