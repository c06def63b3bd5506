"""A JobSet as the real controllers treated it: replayed through the launcher, and compared with our own server."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers.kubernetes_replay import KubernetesReplay, history
from servers.kubernetes_server import GROUP, KubernetesServer
from servers.web import Request

from xlnet.errors import Preempted, RunError
from xlnet_cluster import api, launcher
from xlnet_cluster.jobset import Requirements, TrainingJob, manifest

CANCELLED, COMPLETED = "xlnet-train-27bbc77a5bfb818a", "xlnet-train-09870982c13c9881"
ADDED_BY_US = 5  # variables at the end that a pod has beside those that were required


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> Path:
    folder = shared_data / "kfp-recordings"
    if not folder.is_dir():
        pytest.skip("the recordings of the real Kubeflow Pipelines are not beside this checkout")
    return folder


class Recorded:
    """What was asked for when a JobSet was recorded, and what the cluster made of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.moments = history(folder, name)
        self.made = next(one["object"] for one in self.moments if one["object"]["kind"] == "JobSet")
        job = self.made["spec"]["replicatedJobs"][0]["template"]["spec"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        words = container["args"]
        after = {word: words[words.index(word) + 1] for word in ("--recipe-json", "--dataset", "--out")}
        self.recipe, *self.places = after.values()
        self.run = self.made["metadata"]["labels"]["xlnet-pipeline/run"]
        self.owner = self.made["metadata"]["ownerReferences"][0]
        self.account = pod["serviceAccountName"]
        self.needs = Requirements(
            hosts=job["completions"],
            image=container["image"],
            env=container["env"][:-ADDED_BY_US],
            resources=container["resources"],
            node_selector=pod["nodeSelector"],
            tolerations=pod["tolerations"],
            shared_memory=pod["volumes"][0]["emptyDir"]["sizeLimit"],
            slice=False,
            retries=self.made["spec"]["failurePolicy"]["maxRestarts"],
            preemptions=20,
        )

    def manifest(self) -> dict[str, Any]:
        """What we send today for the same training."""
        work = TrainingJob(self.run, self.recipe, *self.places, owner=self.owner, account=self.account)
        return manifest(self.needs, work)


class Table:
    """The step's pod in front of the replayed cluster; each look is one recorded moment later.

    Attributes:
        read: what was read after each moment, as ``(moment, text)``.
    """

    def __init__(self, recorded: Recorded, server: KubernetesReplay, patch: pytest.MonkeyPatch) -> None:
        self.recorded, self.server, self.patch = recorded, server, patch
        self.read: list[tuple[str, str]] = []
        patch.setattr(api, "IDENTITY", server.identity)
        for name, value in server.step_pod(recorded.run, "train").items():
            patch.setenv(name, value)

    def train(self, capsys: pytest.CaptureFixture[str], cancel: bool = False) -> None:
        """Watch the JobSet; with ``cancel`` the step's pod is asked to end where the recorded one was."""
        moment = "ADDED JobSet"

        def sleep(seconds: float) -> None:
            nonlocal moment
            self.read.append((moment, capsys.readouterr().out))
            ahead = self.server.moments[0]["object"]
            if cancel and ahead["kind"] == "JobSet" and "deletionTimestamp" in ahead["metadata"]:
                signal.raise_signal(signal.SIGTERM)
            moment = self.server.advance()

        self.patch.setattr(launcher, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        given = self.recorded
        try:
            launcher.train(given.needs, given.recipe, *(place.replace("gs://", "/gcs/") for place in given.places))
        finally:
            self.read.append((moment, capsys.readouterr().out))

    def lines(self) -> list[str]:
        """All that was read."""
        return [line for _, text in self.read for line in text.splitlines()]


@pytest.fixture
def table(
    request: pytest.FixtureRequest, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Table]:
    recorded = Recorded(recordings, getattr(request, "param", CANCELLED))
    with KubernetesReplay(tmp_path / "cluster", recorded.moments) as server:
        yield Table(recorded, server, monkeypatch)


FIRST, SECOND = f"{CANCELLED}-node-0-0-rbpms", f"{CANCELLED}-node-0-0-6r5vm"
UNTIL_THE_CANCEL = [
    ("ADDED JobSet", f"JobSet {CANCELLED} of 1 pod was created"),
    ("MODIFIED Pod", f"a line of {FIRST}"),
    (
        "MODIFIED JobSet",
        f"JobSet {CANCELLED} starts again after a preemption, 1 of 20: pod {FIRST} ended with exit status 75",
    ),
    ("MODIFIED Pod", f"a line of {SECOND}"),
]


def test_a_preemption_is_told_once_and_a_cancel_removes_the_jobset(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Preempted):
        table.train(capsys, cancel=True)
    assert table.server.deleted == [CANCELLED]
    *told, (_, last) = [(moment, text.rstrip()) for moment, text in table.read if text]
    assert told == UNTIL_THE_CANCEL
    assert last == f"stopping on SIGTERM: JobSet {CANCELLED} is deleted"


def test_a_jobset_that_somebody_else_deletes_ends_the_step(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=f"JobSet {CANCELLED} was deleted by somebody else; checkpoints are kept"):
        table.train(capsys)
    assert [(moment, text.rstrip()) for moment, text in table.read if text] == UNTIL_THE_CANCEL
    assert table.server.deleted == []


@pytest.mark.parametrize("table", [COMPLETED], indirect=True)
def test_one_that_has_ended_well_is_fetched(
    table: Table, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.JobSetWatcher, "fetch", lambda watch, out: {})
    while table.server.moments[0]["object"]["kind"] == "Pod":
        table.server.advance()
    table.train(capsys)
    assert table.lines() == [f"JobSet {COMPLETED} of 1 pod was created", f"a line of {COMPLETED}-node-0-0-nmzvr"]


def test_what_we_send_is_what_the_real_server_took(recordings: Path) -> None:
    """Defaults are the server's. Since then, an ended JobSet is kept for a time, and a guard starts the trainer."""
    recorded = Recorded(recordings, CANCELLED)
    sent = recorded.manifest()
    assert sent["metadata"]["name"] == CANCELLED
    assert sent["spec"].pop("ttlSecondsAfterFinished") == 3600
    assert without_guard(sent) == ["python", "-m", "xlnet_cluster", CANCELLED, "Workflow", recorded.owner["name"]]
    assert beyond(sent, recorded.made) == []


def without_guard(jobset: dict[str, Any]) -> list[str]:
    """Take what the guard needs out of a JobSet that we send, as none was recorded; return the words that start it."""
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"]
    pod["automountServiceAccountToken"] = False
    words = pod["containers"][0]["args"]
    pod["containers"][0]["args"] = words[6:]
    return list(words[:6])


def beyond(ours: Any, real: Any, place: str = "") -> list[str]:
    """What the first has that the second has not, or has otherwise: places in both, with dots."""
    if isinstance(ours, dict) and isinstance(real, dict):
        return [
            word
            for key, value in ours.items()
            for word in (beyond(value, real[key], f"{place}.{key}") if key in real else [f"{place}.{key}"])
        ]
    if isinstance(ours, list) and isinstance(real, list) and len(ours) == len(real):
        return [word for number, value in enumerate(ours) for word in beyond(value, real[number], f"{place}.{number}")]
    return [] if ours == real else [f"{place}: {ours!r} is {real!r}"]


# What our own server shows at the same moments. --------------------------------------------------------------------

CHANGING = ("resourceVersion", "uid", "creationTimestamp", "generateName", "managedFields")
PROGRAM = ["sh", "-c", "trap 'exit 75' TERM; echo ready; while :; do sleep 0.02; done"]


def shape(found: Any, key: str = "") -> Any:
    """A field without ids and times; the letters that end a pod's name are an id, too.

    So is a program's last message: the recorded pods were plain processes, without a kubelet that reads their logs.
    """
    if key in CHANGING or key.endswith(("-uid", "job-key", "Time", "Timestamp", "edAt")):
        return "…"
    if isinstance(found, dict):
        apart = ("managedFields", *(["message"] if "exitCode" in found else []))
        return {name: shape(value, name) for name, value in found.items() if name not in apart}
    if isinstance(found, list):
        return [shape(one) for one in found]
    return re.sub(r"(-node-0-0)-\w{5}$", r"\1-POD", found) if isinstance(found, str) else found


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """A JobSet or a pod; of pods without what a list leaves out, and their specification, which nobody here reads."""
    if "generateName" in found["metadata"]:
        return {name: shape(found[name]) for name in ("metadata", "status")}
    spec = {name: value for name, value in found["spec"].items() if name != "ttlSecondsAfterFinished"}
    return dict(shape({**found, "spec": spec}))


def test_our_server_shows_the_jobset_and_its_pods_as_the_real_one_did(recordings: Path, tmp_path: Path) -> None:
    recorded = Recorded(recordings, CANCELLED)
    wanted = [comparable(one["object"]) for one in recorded.moments]
    ours: list[Any] = []
    with KubernetesServer(tmp_path / "cluster") as server:
        server.program = PROGRAM

        def see() -> None:
            with server.lock:
                for jobset in server.jobsets.values():
                    ours.append(comparable(server.shown(jobset)))
                ours.extend(comparable(one) for pods in server.sets.values() for one in pods.records())

        caller = {"authorization": f"Bearer {server.token}"}
        path = f"{GROUP}/namespaces/kubeflow/jobsets"
        sent = recorded.manifest()
        without_guard(sent)
        made = server.answer(Request("POST", path, {}, sent, caller))
        assert made[0] == 200, made
        ours.append(comparable(made[1]))
        pods = server.sets[CANCELLED]
        see()
        server.settle(lambda: pods.pods[0].process)
        server.settle(lambda: pods.pods[0].lines)  # its shell has set the trap
        see()
        pods.pods[0].terminate()
        see()
        assert pods.pods[0].process
        pods.pods[0].process.wait(10)
        see()
        server.settle(lambda: server.sets.get(CANCELLED) not in (None, pods))
        see()
        server.settle(lambda: server.sets[CANCELLED].pods[0].process)
        server.settle(lambda: True)
        with server.lock:
            server._reconcile()
        see()
        server.remove(CANCELLED)
        see()
    strange = [one for one in ours if one not in wanted]
    assert not strange, [min((beyond(one, real) + beyond(real, one) for real in wanted), key=len) for one in strange]
    unseen = sum(one not in ours for one in wanted)
    assert unseen <= 12, "moments between two looks"
