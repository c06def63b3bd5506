"""The train step as a JobSet, against an API server that runs its pods: what they do, how they end, what is told."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import PINNED_IMAGE
from servers.kubernetes_server import KubernetesServer
from servers.storage import bucket_server
from token_rows import RECIPE, write_dataset

from xlnet import http, provenance
from xlnet.data import objects
from xlnet.errors import Preempted, RunError, UserError
from xlnet_cluster import api, launcher, pods
from xlnet_cluster.jobset import Requirements
from xlnet_pipeline.placement import PREEMPTION_RETRIES, PROGRAM_RETRIES, placement
from xlnet_pipeline.placement.gke import requirements
from xlnet_pipeline.placement.machines import MACHINES

RUN = "0a1b2c3d-1111-2222-3333-444455556666"
CHECKPOINTS = "gs://bucket/root/checkpoints"
LONG = RECIPE.replace(training={"steps": 120, "checkpoint_every": 10, "evaluate_every": 120}).part("model", "training")
SHORT = RECIPE.replace(training={"steps": 20, "evaluate_every": 10}).part("model", "training")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """A cluster, this process being a step's pod in it, and a bucket with a dataset, mounted here alone."""
    with bucket_server(monkeypatch), KubernetesServer(tmp_path / "cluster") as started:
        monkeypatch.setenv("XLNET_GCS_MOUNT", str(tmp_path / "gcs"))
        for name, value in started.step_pod(RUN, "train").items():
            monkeypatch.setenv(name, value)
        objects.upload(write_dataset(tmp_path / "gcs" / "bucket" / "dataset"), "gs://bucket/dataset")
        monkeypatch.setattr(api, "IDENTITY", started.identity)
        monkeypatch.setattr(launcher, "POLL", 0.1)
        monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
        yield started


def asked(server: KubernetesServer, nodes: int = 1, **changes: Any) -> Requirements:
    """What the placement says of the pods."""
    where = placement("kfp", PINNED_IMAGE, MACHINES["cpu"], nodes=nodes, spot=True)
    found = requirements(dataclasses.replace(where, output_root="gs://bucket/root", registry_secret="registry"))
    server.secrets["registry"] = {"MLFLOW_TRACKING_URI": "http://mlflow"}
    return dataclasses.replace(found, **changes)


@pytest.fixture
def step(server: KubernetesServer, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The train step: facts about its model."""

    def run(recipe: str = SHORT, nodes: int = 1, **changes: Any) -> dict[str, Any]:
        folder = tmp_path / "gcs" / "bucket"
        given = asked(server, nodes, **changes)
        return launcher.train(given, recipe, str(folder / "dataset"), str(folder / "model"))

    return run


def only(server: KubernetesServer) -> dict[str, Any]:
    (jobset,) = server.jobsets.values()
    return jobset


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def saved() -> int:
    """The step of the newest checkpoint."""
    names = [blob.name for blob in objects.listing(CHECKPOINTS)]
    return max((int(match[1]) for name in names if (match := re.search(r"step-(\d+).*/manifest", name))), default=0)


def test_pods_that_lose_one_start_again_and_go_on_and_the_programs_budget_stays_whole(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running_step = pool.submit(step, LONG, nodes=2)
        until(lambda: saved() >= 20)
        made = next(iter(server.sets.values()))
        made.pods[1].disrupt(gently=False)
        until(made.stopped)
        assert made.pods[0].exit_code in (75, 76), "asked to end, or left alone: whichever it noticed first"
        assert made.pods[1].exit_code == 137
        facts = running_step.result(120)
    status = only(server)["status"]
    assert (status["restarts"], status.get("restartsCountTowardsMax", 0)) == (1, 0)
    assert facts["ranks"] == 2
    assert facts["interruptions"] == 1
    assert 20 <= facts["resumed_from"] < 120
    assert provenance.verify(tmp_path / "gcs/bucket/model") == facts["model_digest"]
    said = capfd.readouterr().out
    assert f"starts again after a preemption, 1 of {PREEMPTION_RETRIES}" in said
    assert said.count("step 120/120  validation") == 1, "rank 0's log, each line once"
    assert {pod.variables["MLFLOW_TRACKING_URI"] for pod in next(iter(server.sets.values())).pods} == {"http://mlflow"}


def test_a_program_that_fails_ends_with_its_last_words_and_is_not_tried_again_by_a_new_launcher(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    objects.write("gs://bucket/dataset/card.json", b"other bytes")
    for _ in range(2):
        with pytest.raises(RunError) as failed:
            step()
        told = str(failed.value)
        what = r"'\S+' was changed after it was written: .* \(started again 1 time\)"
        assert re.fullmatch(rf"pod xlnet-train-\S+-node-0-0-\S+ ended with exit status 1: {what}", told), told
    assert len(server.attempts) == 1 + PROGRAM_RETRIES
    assert "starts again after a failure, 1 of 1" in capfd.readouterr().out


def test_of_several_pods_the_one_that_failed_is_named_and_its_last_words_are_shown(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    """The other one only lost it, and ended a little later."""
    other = "test $JOB_COMPLETION_INDEX = 0 && sleep 0.3 && echo 'error: rank 0 lost rank 1' && exit 76"
    server.program = ["sh", "-c", f"{other}; echo Traceback; echo ' line 1'; echo 'ValueError: nothing left'; exit 1"]
    with pytest.raises(RunError, match=r"\(node 1 of 2\) ended with exit status 1: ValueError: nothing left$"):
        step(nodes=2, retries=0)
    assert re.search(r"last lines of pod \S+-0-1-\S+:\n  Traceback\n   line 1\n", capfd.readouterr().out)
    assert server.attempts == [only(server)["metadata"]["name"]]


@pytest.mark.parametrize("status", [75, 76])
def test_too_many_preemptions_end_it_for_a_new_launcher_too(
    server: KubernetesServer,
    step: Callable[..., dict[str, Any]],
    tmp_path: Path,
    status: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun = tmp_path / "begun"  # the fourth time, it is still at work when it is told to end
    server.program = ["sh", "-c", f"echo >>{begun}; test $(wc -l <{begun}) -gt 3 && exec sleep 600; exit {status}"]
    for _ in range(2):
        with pytest.raises(RunError, match="was preempted 3 times, more than 2; its checkpoints are kept: run again"):
            step(preemptions=2)
    assert len(server.attempts) == 4
    assert only(server)["spec"]["suspend"]
    assert only(server)["status"].get("restartsCountTowardsMax", 0) == 0
    assert re.findall(r"starts again after a preemption, (\d of \d)", capfd.readouterr().out) == ["1 of 2", "2 of 2"]


def test_a_users_mistake_is_one(server: KubernetesServer, step: Callable[..., dict[str, Any]]) -> None:
    server.environment = {"XLNET_NPROC": "two"}
    with pytest.raises(UserError, match="exit status 2: the variables that describe this node are incomplete"):
        step(retries=0)


def test_a_launcher_that_is_killed_and_started_again_goes_on_with_the_same_jobset(
    server: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a pod that is preempted meanwhile leaves a checkpoint within its notice."""
    folder = tmp_path / "gcs" / "bucket"
    given = LONG, str(folder / "dataset")
    requirements = asked(server)
    monkeypatch.setenv("XLNET_JOBSET", requirements.to_json())
    code = "import sys\nfrom xlnet_steps.training import train\ntrain(*sys.argv[1:])"
    first = subprocess.Popen([sys.executable, "-c", code, *given, str(folder / "first")])
    until(lambda: saved() >= 10)
    first.kill()
    first.wait()
    (pod,) = next(iter(server.sets.values())).pods
    pod.disrupt()
    until(pod.ended)
    assert pod.exit_code == Preempted.exit_status
    for name, value in server.step_pod(RUN, "train").items():  # the next pod has another name, and the same run
        monkeypatch.setenv(name, value)
    facts = launcher.train(requirements, *given, str(folder / "second"))
    assert "exists already: continuing with it" in capfd.readouterr().out
    assert len(server.attempts) == 2
    assert server.count("POST", "/jobsets") == 1
    status = only(server)["status"]
    assert (status["restarts"], status.get("restartsCountTowardsMax", 0)) == (1, 0)
    assert 10 <= facts["resumed_from"] < 120
    assert provenance.verify(folder / "second") == facts["model_digest"], "written to the first, brought to the second"
    assert only(server)["metadata"]["ownerReferences"][0]["kind"] == "Workflow"


def test_a_step_that_is_asked_to_stop_takes_its_jobset_along(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    server.program = ["sleep", "60"]

    def cancel() -> None:
        until(lambda: server.sets and next(iter(server.sets.values())).pods[0].process)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(Preempted):
        step()
    (pod,) = next(iter(server.sets.values())).pods
    server.settle(lambda: not server.jobsets)
    assert pod.ended()
    assert "stopping on SIGTERM: JobSet xlnet-train-" in capfd.readouterr().out


def test_a_deleted_run_takes_its_jobset_along_and_the_step_says_so(
    server: KubernetesServer, step: Callable[..., dict[str, Any]]
) -> None:
    server.program = ["sleep", "60"]

    def delete() -> None:
        until(lambda: server.sets)
        server.delete_owner(f"uid-of-{RUN}")

    threading.Thread(target=delete, daemon=True).start()
    with pytest.raises(RunError, match="was deleted by somebody else; checkpoints are kept"):
        step()


def test_an_answer_that_is_lost_makes_no_second_jobset_and_an_absent_server_is_waited_for(
    server: KubernetesServer, step: Callable[..., dict[str, Any]]
) -> None:
    server.fault("POST", "/jobsets", "drop")
    server.fault("GET", "/jobsets/", 503, times=3)
    server.fault("GET", "/pods", "cut")
    assert step()["global_step"] == 20
    assert server.count("POST", "/jobsets") == 1


@pytest.mark.parametrize(
    ("verb", "resource"), [("get", "pods"), ("create", "jobsets"), ("get", "jobsets"), ("list", "pods")]
)
def test_a_missing_right_is_named(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], verb: str, resource: str
) -> None:
    server.allowed.discard((verb, resource))
    server.program = ["sleep", "60"]
    with pytest.raises(UserError) as refused:
        step()
    told = str(refused.value)
    assert f'cannot {verb} resource "{resource}"; apply infra/kustomize' in told
    assert "\n" not in told


def test_a_cluster_without_jobsets_says_how_to_install_them(
    server: KubernetesServer, step: Callable[..., dict[str, Any]]
) -> None:
    server.installed = False
    with pytest.raises(UserError, match="has no JobSets.*type: kubectl apply --server-side -f https://"):
        step()


def test_an_image_that_cannot_be_pulled_ends_it(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "PATIENCE", 0.5)
    server.images = False
    with pytest.raises(
        UserError, match=r'cannot pull its image: failed to pull.*"registry.example.*: not found; push it'
    ):
        step()
    server.settle(lambda: not server.jobsets)


def test_machines_that_are_waited_for_are_told_in_the_schedulers_words(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    server.capacity = 1
    server.program = ["sleep", "1"]

    def more() -> None:
        until(lambda: server.count("GET", "/pods$") > 5)
        server.capacity = None

    threading.Thread(target=more, daemon=True).start()
    with pytest.raises(UserError, match="gs://bucket/model"):  # sleeping writes no model
        step(nodes=2)
    assert capfd.readouterr().out.count("waiting for machines: 0/3 nodes are available: 3 Insufficient") == 1


def test_outside_a_cluster_and_outside_a_bucket_it_says_so(
    server: KubernetesServer, step: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is not in a bucket.*KFP_PIPELINE_ROOT to a bucket.*gs://"):
        launcher.train(asked(server), SHORT, str(tmp_path / "dataset"), "gs://bucket/model")
    monkeypatch.setattr(api, "IDENTITY", tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no service account .*leave --nodes and --spot out"):
        step()
