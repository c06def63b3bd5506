"""Runs the train step on several machines, or on spot machines, of a cluster: creates a JobSet and watches it.

The step's own pod is small and does not train. It creates the JobSet (or finds the one that it created before a
restart), forwards rank 0's output, reports failures and restarts of pods, and ends with the JobSet's result.
"""

import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import Preempted, RunError, UserError
from xlnet.http import HttpError
from xlnet.training import buckets
from xlnet.training.preemption import SIGNALS, handling
from xlnet_cluster.api import Api
from xlnet_cluster.jobset import COMMAND, CONTAINER, OUT, RUN, Requirements, TrainingJob, manifest
from xlnet_cluster.pods import PendingPods, PodFailures, leader

POLL = 2.0  # seconds between two polls
OUTAGE = 1800.0  # seconds that the API server may be unreachable; the training itself does not need it
MANIFESTS = "https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml"


class Cancelled(BaseException):
    """A signal has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def train(
    needs: Requirements, recipe_json: str, dataset: str, out: str, command: tuple[str, ...] = COMMAND
) -> dict[str, Any]:
    """Train in a JobSet, and wait until it ends.

    Args:
        needs: the resources that the pods need from the cluster.
        recipe_json: JSON of the step's part of the recipe.
        dataset: directory of the dataset, in a mounted bucket.
        out: directory of the model to write, in a mounted bucket.
        command: the program that every pod starts.

    Returns:
        Facts for the model's metadata; see :func:`xlnet.training.launch.train`.

    Raises:
        UserError: the cluster does not support or permit it, or the program reported a user's mistake.
        RunError: the program failed or was preempted too often.
        Preempted: this process was asked to stop; the JobSet is deleted, but its checkpoints are kept.
    """
    watch = JobSetWatcher(needs, recipe_json, dataset, out, command)
    try:
        with _signals():
            watch.start()
            watch.finish()
    except Cancelled as cancelled:
        watch.remove()
        print(f"stopping on {signal.Signals(cancelled.number).name}: JobSet {watch.name} is deleted", flush=True)
        raise (KeyboardInterrupt if cancelled.number == signal.SIGINT else Preempted) from None
    return watch.fetch(out)


def _signals() -> AbstractContextManager[None]:
    """Raise Cancelled on the first signal that asks this process to end; ignore later ones."""

    def cancel(number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Cancelled(number)

    return handling(SIGNALS, cancel)


class JobSetWatcher:
    """Watches one JobSet from its creation to its end."""

    def __init__(
        self, needs: Requirements, recipe_json: str, dataset: str, out: str, command: tuple[str, ...] = COMMAND
    ) -> None:
        self._needs = needs
        self._api = Api()
        addresses = _address(dataset), _address(out)
        pod = self._own_pod()
        self._work = TrainingJob(
            os.environ.get("XLNET_RUN_ID") or pod["metadata"]["uid"],
            recipe_json,
            *addresses,
            owner=_owner(pod),
            command=command,
            account=pod["spec"].get("serviceAccountName", ""),
            pull_secrets=tuple(pod["spec"].get("imagePullSecrets", ())),
        )
        self.name = self._work.name
        self._out = self._work.out
        self._failures, self._pending = PodFailures(needs.hosts), PendingPods(_say)
        self._restarts = (0, 0)
        self._followed = ("", "")  # the pod whose log is forwarded, and the time of its last line

    def _own_pod(self) -> dict[str, Any]:
        name = os.environ.get("XLNET_POD_NAME") or os.environ.get("HOSTNAME", "")
        pod = self._api.pod(name)
        if pod is None:
            raise UserError(f"there is no pod '{name}' in namespace '{self._api.namespace}'; set XLNET_POD_NAME")
        return pod

    def start(self) -> None:
        """Create the JobSet, or find the one that an earlier attempt of this step has created.

        Raises:
            UserError: the cluster has no JobSet API, or this pod may not create a JobSet.
        """
        while (found := self._api.jobset(self.name)) and "deletionTimestamp" in found["metadata"]:
            time.sleep(POLL)
        if found:
            if found["metadata"].get("labels", {}).get(RUN) != self._work.run[:63]:
                raise RunError(f"JobSet {self.name} is of another run; delete it: kubectl delete jobset {self.name}")
            self._out = found["metadata"]["annotations"][OUT]
            _say(f"JobSet {self.name} exists already: continuing with it")
            return
        try:
            self._api.create(manifest(self._needs, self._work))
        except HttpError as error:
            if error.status == 404:
                what = "this cluster has no JobSets, which several nodes and --spot need"
                raise UserError(f"{what}; type: kubectl apply --server-side -f {MANIFESTS}") from None
            if error.status != 409:  # 409: an earlier try succeeded, but its answer was lost
                raise
        hosts = self._needs.hosts
        _say(f"JobSet {self.name} of {hosts} {'pods' if hosts > 1 else 'pod'} was created")

    def finish(self) -> None:
        """Watch the JobSet until it has succeeded.

        Raises:
            UserError: see :func:`train`.
            RunError: see :func:`train`.
        """
        while not self._ended(self._look()):
            time.sleep(POLL)

    def _look(self) -> dict[str, Any]:
        """Return the JobSet's current state; wait while the API server is unreachable."""
        deadline = time.monotonic() + OUTAGE
        while True:
            try:
                found = self._api.jobset(self.name)
                break
            except HttpError:
                raise
            except RunError as error:
                if time.monotonic() > deadline:
                    raise
                _say(f"{error}; training goes on meanwhile")
        if found is None:
            raise RunError(f"JobSet {self.name} was deleted by somebody else; checkpoints are kept: run again to go on")
        return found

    def _ended(self, found: dict[str, Any]) -> bool:
        """Whether the JobSet has succeeded; reports what has happened since the last poll."""
        status = found.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
        pods = self._api.pods(self.name)
        self._tell_restarts(status)
        self._failures.record(pods)
        self._follow(leader(pods, self._restarts[0]))
        if "Completed" in conditions:
            return True
        if "Failed" in conditions:
            raise self._failures.failure(self._restarts[1], conditions["Failed"].get("message", ""))
        if problem := self._pending.problem(pods):
            self.remove()
            raise UserError(problem)
        self._check_budget(found)
        return False

    def _tell_restarts(self, status: dict[str, Any]) -> None:
        """Report restarts: ``restarts`` counts all, ``restartsCountTowardsMax`` those after a failed program."""
        restarts, failures = status.get("restarts", 0), status.get("restartsCountTowardsMax", 0)
        if restarts > self._restarts[0] and restarts - failures <= self._needs.preemptions:
            if failures > self._restarts[1]:
                why = f"after a failure, {failures} of {self._needs.retries}"
            else:
                why = f"after a preemption, {restarts - failures} of {self._needs.preemptions}"
            words = self._failures.last()
            _say(f"JobSet {self.name} starts again {why}{f': {words}' if words else ''}")
        self._restarts = restarts, failures

    def _check_budget(self, found: dict[str, Any]) -> None:
        restarts, failures = self._restarts
        if restarts - failures <= self._needs.preemptions:
            return
        if not found["spec"].get("suspend"):  # keep it: a restarted step must find the JobSet and end the same way
            self._api.suspend(self.name)
        raise RunError(
            f"training was preempted {restarts - failures} times, more than {self._needs.preemptions}; its "
            "checkpoints are kept: run again to go on, without --spot or on another --machine if this goes on"
        )

    def _follow(self, pod: dict[str, Any] | None) -> None:
        """Forward the output of rank 0's pod since the last poll."""
        if pod is None or pod.get("status", {}).get("phase") == "Pending":
            return
        name, since = pod["metadata"]["name"], ""
        if self._followed[0] == name:
            since = self._followed[1]
        last = since
        for line in self._api.log(name, CONTAINER, since):
            moment, _, text = line.partition(" ")
            if moment > since:
                print(text, flush=True)
                last = moment
        self._followed = name, last

    def remove(self) -> None:
        """Delete the JobSet with all its pods."""
        self._api.delete(self.name)

    def fetch(self, out: str) -> dict[str, Any]:
        """Copy the finished model to the place that the pipeline expects, and return its facts."""
        if not Path(out, provenance.LINEAGE).is_file():
            with provenance.writing(out, "model") as folder:
                objects.download(self._out, folder)
        provenance.verify(out)
        return buckets.facts(out)


def _address(path: str) -> str:
    address = objects.address(path)
    if not objects.is_remote(address):
        raise UserError(
            f"'{path}' is not in a bucket, so other machines cannot reach it; set KFP_PIPELINE_ROOT to a bucket's "
            "folder, such as gs://BUCKET/FOLDER"
        )
    return address


def _owner(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the JobSet's owner: the run that this pod belongs to, because it outlives restarts of the pod."""
    owners = pod["metadata"].get("ownerReferences") or [
        {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    ]
    return {key: owners[0][key] for key in ("apiVersion", "kind", "name", "uid")}


def _say(text: str) -> None:
    print(text, flush=True)
