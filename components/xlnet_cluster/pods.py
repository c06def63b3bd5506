"""Interprets the states of a JobSet's pods: the leader, the reason for waiting, and the cause of a failure."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from xlnet.errors import LostPeer, Preempted, RunError, UserError

INDEX = "batch.kubernetes.io/job-completion-index"
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
NO_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
PATIENCE = 120.0  # seconds to wait for an image or a secret that is missing
QUIET = 60.0  # seconds between two messages about missing machines
KILLED = (137, 143)  # exit statuses after SIGKILL and SIGTERM, which usually have an external cause
TAIL = 20  # lines shown from the end of a pod's log

Pod = dict[str, Any]


def index(pod: Pod) -> int:
    """Return the pod's machine number, from 0."""
    about = pod["metadata"]
    return int(about.get("annotations", {}).get(INDEX) or about.get("labels", {}).get(INDEX) or 0)


def leader(pods: Iterable[Pod], attempt: int) -> Pod | None:
    """Return the pod of machine 0 in this attempt, if there is one; it writes the log and the model."""
    present = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ATTEMPT, "0") == str(attempt)]
    return next((pod for pod in present if index(pod) == 0), None)


class PodFailures:
    """Records how pods ended, because Kubernetes may delete them."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._ended: dict[str, tuple[Pod, dict[str, Any]]] = {}  # name → pod and the final state of its container

    def record(self, pods: Iterable[Pod]) -> None:
        """Record the current state of the pods."""
        for pod in pods:
            for container in pod.get("status", {}).get("containerStatuses", []):
                end = container.get("state", {}).get("terminated")
                if end and (end["exitCode"] or end.get("reason") == "OOMKilled"):
                    self._ended[pod["metadata"]["name"]] = pod, end

    def first_cause(self) -> tuple[Pod, dict[str, Any]] | None:
        """Return the pod of the latest attempt that caused the failure."""
        if not self._ended:
            return None
        latest = max(_attempt(pod) for pod, _ in self._ended.values())
        present = [one for one in self._ended.values() if _attempt(one[0]) == latest]
        return min(present, key=lambda one: (_blame(one[1]), one[1].get("finishedAt") or ""))

    def last(self) -> str:
        """Describe the end of the latest attempt in one line; empty if its end was not recorded."""
        found = self.first_cause()
        return self._describe(*found) if found else ""

    def failure(self, restarts: int, fallback: str) -> UserError | RunError:
        """Return the exception for a failed JobSet; print the end of a pod's log if it was not forwarded.

        Args:
            restarts: how often the program was restarted.
            fallback: the JobSet's own message.
        """
        found = self.first_cause()
        if found is None:
            return RunError(f"training failed, and no pod is left to say why: {fallback}")
        pod, end = found
        if index(pod):
            lines = (end.get("message") or "").splitlines()[-TAIL:]
            print(f"last lines of pod {pod['metadata']['name']}:", *lines, sep="\n  ", flush=True)
        again = f" (started again {restarts} {'time' if restarts == 1 else 'times'})" if restarts else ""
        kind = UserError if end["exitCode"] == UserError.exit_status else RunError
        return kind(f"{self._describe(pod, end)}{again}")

    def _describe(self, pod: Pod, end: dict[str, Any]) -> str:
        who = f"pod {pod['metadata']['name']}"
        if self._hosts > 1:
            who += f" (node {index(pod)} of {self._hosts})"
        if end.get("reason") == "OOMKilled":
            return f"{who} ran out of memory and was killed (OOMKilled); take a larger --machine or smaller batches"
        for condition in pod["status"].get("conditions", []):
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                return f"{who} was disrupted: {condition.get('message') or condition.get('reason', '')}"
        words = last_words(end.get("message") or "")
        return f"{who} ended with exit status {end['exitCode']}{f': {words}' if words else ''}"


def last_words(message: str) -> str:
    """Extract the error from a log's last lines, as one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    if error.endswith("Traceback (most recent call last):"):
        error = f"{error.removesuffix('Traceback (most recent call last):').rstrip(' :')}: {lines[-1]}"
    return (error.removeprefix("error: ") or (lines[-1] if lines else ""))[:500]


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"].get("labels", {}).get(ATTEMPT, 0))


def _blame(end: dict[str, Any]) -> int:
    """Rank a pod's end as the cause of a failure: 0 for a program's own error, 3 for a lost connection."""
    if end["exitCode"] in KILLED:
        return 1
    return {Preempted.exit_status: 2, LostPeer.exit_status: 3}.get(end["exitCode"], 0)


class PendingPods:
    """Reports why pods wait: the scheduler's message, or an image that cannot be pulled."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told, self._told_at = "", -QUIET
        self._since: dict[str, float] = {}
        self._causes: dict[str, str] = {}

    def problem(self, pods: Iterable[Pod]) -> str:
        """Return a problem that waiting will not solve; empty if there is none."""
        for pod in pods:
            name, status = pod["metadata"]["name"], pod.get("status", {})
            for condition in status.get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    self._tell(condition.get("message") or condition.get("reason", ""))
            for container in status.get("containerStatuses", []):
                waiting = container.get("state", {}).get("waiting", {})
                if problem := self._stuck(name, waiting.get("reason", ""), waiting.get("message", "")):
                    return problem
        return ""

    def _tell(self, message: str) -> None:
        now = time.monotonic()
        if message != self._told and now - self._told_at >= QUIET:
            self._say(f"waiting for machines: {' '.join(message.split())}")
            self._told, self._told_at = message, now

    def _stuck(self, name: str, reason: str, message: str) -> str:
        if reason not in NO_IMAGE | NO_CONTAINER:
            self._since.pop(name, None)
            return ""
        since = self._since.setdefault(name, time.monotonic())
        if reason != "ImagePullBackOff" or name not in self._causes:
            self._causes[name] = " ".join(message.split())[:300]
        if reason != "InvalidImageName" and time.monotonic() - since < PATIENCE:
            return ""
        if reason in NO_IMAGE:
            return (
                f"pod {name} cannot pull its image: {self._causes[name] or reason}; push it, or let the nodes' service "
                "account read the registry"
            )
        return f"the container of pod {name} cannot be created ({reason}): {self._causes[name]}"
