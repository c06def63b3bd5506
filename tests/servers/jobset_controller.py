"""The controllers of JobSets and Jobs: they make pods, judge how those ended, and start them again by the policies.

As the Job controller of Kubernetes 1.31 or newer and the JobSet controller 0.6 or newer do.
"""

import uuid
from typing import TYPE_CHECKING, Any

from servers import kubernetes_records as records
from servers.pod_process import PodProcess, now

if TYPE_CHECKING:
    from servers.kubernetes_server import KubernetesServer


def reconcile(server: "KubernetesServer") -> None:
    """Do what the controllers do when they look at the JobSets and their pods."""
    for name, jobset in list(server.jobsets.items()):
        pods = server.sets.get(name)
        if "deletionTimestamp" in jobset["metadata"]:
            if pods is None or pods.stopped():
                del server.jobsets[name]
                server.sets.pop(name, None)
                server.deleted.append(name)
        elif not ended(jobset):
            _advance(server, name, jobset, pods)


def _advance(server: "KubernetesServer", name: str, jobset: dict[str, Any], pods: "PodSet | None") -> None:
    if jobset["spec"].get("suspend"):
        if pods:
            pods.stop()
            if pods.stopped():
                del server.sets[name]
        return
    if pods is None:
        server.sets[name] = PodSet(server, jobset)
        server.attempts.append(name)
        return
    pods.start()
    if all(pod.process for pod in pods.pods):
        records.ready(jobset, now())
    if pods.failure is None and pods.succeeded():
        condition(jobset, "Completed", "AllJobsCompleted", "jobset completed successfully")
    if pods.failure is not None and pods.stopped():  # a Job has failed once all of its pods have ended
        _failed(server, name, jobset, *pods.failure)


def _failed(server: "KubernetesServer", name: str, jobset: dict[str, Any], reason: str, message: str) -> None:
    policy, status = jobset["spec"]["failurePolicy"], jobset["status"]
    rules = policy.get("rules", [])
    matching = [rule for rule in rules if reason in (rule.get("onJobFailureReasons") or [reason])]
    action = matching[0]["action"] if matching else "RestartJobSet"
    counted = status.get("restartsCountTowardsMax", 0)
    if action == "FailJobSet":
        condition(jobset, "Failed", "FailJobSetFailurePolicyAction", message)
    elif action == "RestartJobSet" and counted >= policy.get("maxRestarts", 0):
        condition(jobset, "Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")
    else:
        status["restarts"] += 1
        if action == "RestartJobSet":
            status["restartsCountTowardsMax"] = counted + 1
        records.restarting(jobset, matching[0]["name"] if matching else "", action, now())
        del server.sets[name]


def condition(jobset: dict[str, Any], kind: str, reason: str, message: str) -> None:
    about = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
    jobset["status"].setdefault("conditions", []).append(about)
    jobset["status"]["terminalState"] = kind


def ended(jobset: dict[str, Any]) -> bool:
    return bool({one["type"] for one in jobset["status"].get("conditions", [])} & {"Completed", "Failed"})


class PodSet:
    """The pods of one attempt: one indexed Job."""

    def __init__(self, server: "KubernetesServer", jobset: dict[str, Any]) -> None:
        (self.replicated,) = jobset["spec"]["replicatedJobs"]
        self.server, self.job = server, self.replicated["template"]["spec"]
        assert self.job["completionMode"] == "Indexed"
        assert self.job["completions"] == self.job["parallelism"]
        self.failure: tuple[str, str] | None = None
        self.uids = jobset["metadata"]["uid"], str(uuid.uuid4())  # the JobSet's, the Job's
        attempt = jobset["status"]["restarts"]
        self.pods = [
            PodProcess(
                jobset["metadata"]["name"],
                self.replicated["name"],
                index,
                attempt,
                self.job["template"],
                server.root / f"{jobset['metadata']['name']}-{attempt}-{index}",
            )
            for index in range(self.job["completions"])
        ]

    def start(self) -> None:
        """Let pods run that can, and judge those that have ended."""
        for number, pod in enumerate(self.pods):
            if pod.process is None and pod.exit_code is None and self.failure is None:
                has_node = self.server.capacity is None or number < self.server.capacity
                if pod.may_start(has_node, self.server.images):
                    server = self.server
                    variables = server.account() | server.environment if self._has_token() else server.environment
                    pod.start(variables, server.secrets, server.hosts, server.program)
            if pod.ended() and pod.exit_code and self.failure is None:
                self.failure = self._judge(pod)
                self.stop()

    def _has_token(self) -> bool:
        """Whether its pods find the token of their service account."""
        return bool(self.job["template"]["spec"].get("automountServiceAccountToken", True))

    def _judge(self, pod: PodProcess) -> tuple[str, str]:
        """Why the Job fails: the first rule of podFailurePolicy that fits, else backoffLimit (which is 0 here)."""
        assert self.job["backoffLimit"] == 0
        for number, rule in enumerate(self.job.get("podFailurePolicy", {}).get("rules", [])):
            codes = rule.get("onExitCodes")
            by_code = codes and (pod.exit_code in codes["values"]) == (codes["operator"] == "In")
            wanted = {(one["type"], one["status"]) for one in rule.get("onPodConditions", [])}
            if by_code or wanted & {(one["type"], one["status"]) for one in pod.conditions}:
                assert rule["action"] == "FailJob"
                return "PodFailurePolicy", f"pod {pod.name} matches FailJob rule at index {number}"
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"

    def records(self) -> list[dict[str, Any]]:
        """The pods as the API shows them."""
        return [records.pod(pod, self.server.namespace, *self.uids) for pod in self.pods]

    def succeeded(self) -> bool:
        return all(pod.ended() and pod.exit_code == 0 for pod in self.pods)

    def forget(self) -> None:
        """Its Job is deleted, and keeps no pod from being deleted."""
        for pod in self.pods:
            pod.tracked = False

    def stop(self) -> None:
        """Ask all pods to end; who has not after its grace is killed."""
        for pod in self.pods:
            pod.terminate()

    def stopped(self) -> bool:
        return all(pod.ended() for pod in self.pods)

    def kill(self) -> None:
        for pod in self.pods:
            pod.kill()
