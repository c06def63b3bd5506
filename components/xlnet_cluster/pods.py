"""What the pods of a JobSet tell: which one leads, what they wait for, and how one of them ended."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from xlnet.errors import LostPeer, Preempted, RunError, UserError

INDEX = "batch.kubernetes.io/job-completion-index"
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
NO_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
PATIENCE = 120.0  # seconds in which an image may still be pulled, or a secret appear
QUIET = 60.0  # seconds between two words about machines that are waited for
KILLED = (137, 143)  # by SIGKILL and SIGTERM: somebody else's doing, most often
TAIL = 20  # lines of a pod's last words that are shown

Pod = dict[str, Any]


def index(pod: Pod) -> int:
    """Which of the machines a pod is, from 0."""
    about = pod["metadata"]
    return int(about.get("annotations", {}).get(INDEX) or about.get("labels", {}).get(INDEX) or 0)


def leader(pods: Iterable[Pod], attempt: int) -> Pod | None:
    """The pod of machine 0 in this attempt, if there is one: it writes the log and the model."""
    present = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ATTEMPT, "0") == str(attempt)]
    return next((pod for pod in present if index(pod) == 0), None)


class Ends:
    """How pods have ended, as far as it was seen before they were deleted."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._ended: dict[str, tuple[Pod, dict[str, Any]]] = {}  # name → the pod, and its container's end

    def see(self, pods: Iterable[Pod]) -> None:
        """Take note of the pods as they are now."""
        for pod in pods:
            for container in pod.get("status", {}).get("containerStatuses", []):
                end = container.get("state", {}).get("terminated")
                if end and (end["exitCode"] or end.get("reason") == "OOMKilled"):
                    self._ended[pod["metadata"]["name"]] = pod, end

    def culprit(self) -> tuple[Pod, dict[str, Any]] | None:
        """Of the latest attempt's pods the one whose end explains the others'."""
        if not self._ended:
            return None
        latest = max(_attempt(pod) for pod, _ in self._ended.values())
        present = [one for one in self._ended.values() if _attempt(one[0]) == latest]
        return min(present, key=lambda one: (_blame(one[1]), one[1].get("finishedAt") or ""))

    def last(self) -> str:
        """The end of the latest attempt in one line; empty: nobody saw it."""
        found = self.culprit()
        return self._describe(*found) if found else ""

    def failure(self, restarts: int, fallback: str) -> UserError | RunError:
        """What to raise for a JobSet that failed; shows the last words of a pod whose log is not passed on.

        Args:
            restarts: how often the program was started again.
            fallback: what the JobSet says of itself.
        """
        found = self.culprit()
        if found is None:
            return RunError(f"training failed, and no pod is left to say why: {fallback}")
        pod, end = found
        if index(pod):
            lines = (end.get("message") or "").splitlines()[-TAIL:]
            print(f"last words of pod {pod['metadata']['name']}:", *lines, sep="\n  ", flush=True)
        again = f" (started again {restarts} {'time' if restarts == 1 else 'times'})" if restarts else ""
        kind = UserError if end["exitCode"] == UserError.exit_status else RunError
        return kind(f"{self._describe(pod, end)}{again}")

    def _describe(self, pod: Pod, end: dict[str, Any]) -> str:
        who = f"pod {pod['metadata']['name']}"
        if self._hosts > 1:
            who += f" (node {index(pod)} of {self._hosts})"
        if end.get("reason") == "OOMKilled":
            return f"{who} was killed for want of memory (OOMKilled); take a larger --machine or smaller batches"
        for condition in pod["status"].get("conditions", []):
            if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
                return f"{who} was disrupted: {condition.get('message') or condition.get('reason', '')}"
        words = last_words(end.get("message") or "")
        return f"{who} ended with exit status {end['exitCode']}{f': {words}' if words else ''}"


def last_words(message: str) -> str:
    """The error in the last lines of a log, in one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    if error.endswith("Traceback (most recent call last):"):
        error = f"{error.removesuffix('Traceback (most recent call last):').rstrip(' :')}: {lines[-1]}"
    return (error.removeprefix("error: ") or (lines[-1] if lines else ""))[:500]


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"].get("labels", {}).get(ATTEMPT, 0))


def _blame(end: dict[str, Any]) -> int:
    """A program's own failure comes first; who lost another machine says least."""
    if end["exitCode"] in KILLED:
        return 1
    return {Preempted.exit_status: 2, LostPeer.exit_status: 3}.get(end["exitCode"], 0)


class Waits:
    """What pods wait for before they run: told in the words of the scheduler, or an image that never comes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told, self._told_at = "", -QUIET
        self._since: dict[str, float] = {}
        self._causes: dict[str, str] = {}

    def see(self, pods: Iterable[Pod]) -> str:
        """What will not come by waiting; empty: go on."""
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
        return f"the container of pod {name} cannot be made ({reason}): {self._causes[name]}"
