"""JobSets and pods as the API of a real cluster was recorded to show them."""

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servers.jobset_controller import PodSet
    from servers.pod_process import PodProcess

PREFIX = "jobset.sigs.k8s.io"
INDEX = "batch.kubernetes.io/job-completion-index"
READY = ("Initialized", "Ready", "ContainersReady", "PodScheduled")


def with_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """A JobSet's specification with what version 0.12 adds to it."""
    jobs = [{"groupName": "default", "replicas": 1, **one} for one in spec["replicatedJobs"]]
    for one in jobs:
        one["template"] = {"metadata": {}, **one["template"]}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "successPolicy": {"operator": "All"},
        **spec,
        "failurePolicy": {"restartStrategy": "Recreate", **spec["failurePolicy"]},
        "replicatedJobs": jobs,
    }


def restarting(jobset: dict[str, Any], rule: str, action: str, now: str) -> None:
    """Note that the pods are made anew."""
    job = f"{jobset['metadata']['name']}-{jobset['spec']['replicatedJobs'][0]['name']}-0"
    message = f"applying {action} failure policy action (first failed job: {job})"
    _condition(jobset, "True", f"FailurePolicy_{rule}" if rule else "RestartJobSet", message, now)


def ready(jobset: dict[str, Any], now: str) -> None:
    """Note that those pods run."""
    if any(one["type"] == "RestartingJobSet" for one in jobset["status"].get("conditions", [])):
        _condition(jobset, "False", "JobsReady", "all jobs are ready", now)


def _condition(jobset: dict[str, Any], state: str, reason: str, message: str, now: str) -> None:
    about = {"type": "RestartingJobSet", "status": state, "reason": reason, "message": message}
    kept = [one for one in jobset["status"].get("conditions", []) if one["type"] != about["type"]]
    jobset["status"]["conditions"] = [*kept, {**about, "lastTransitionTime": now}]


def jobs_status(jobset: dict[str, Any], pods: "PodSet | None") -> list[dict[str, Any]]:
    """How many of the JobSet's Jobs, of which there is one, are in which state."""
    ended = jobset["status"].get("terminalState")
    live = pods is not None and pods.failure is None and not ended
    going = "deletionTimestamp" in jobset["metadata"]  # nobody counts any more
    active = live and not any((pod.asked_to_end and not going) or pod.ended() for pod in pods.pods)  # type: ignore[union-attr]
    counts = {
        "active": active,
        "failed": ended == "Failed",
        "ready": active and all(pod.process for pod in pods.pods),  # type: ignore[union-attr]
        "succeeded": ended == "Completed",
        "suspended": bool(jobset["spec"].get("suspend")),
    }
    name = jobset["spec"]["replicatedJobs"][0]["name"]
    return [{"name": name, **{key: int(value) for key, value in counts.items()}}]


def pod(one: "PodProcess", namespace: str, jobset_uid: str, job_uid: str) -> dict[str, Any]:
    """The pod as the API shows it; its specification is the template's, without the defaults of a cluster."""
    return {
        "metadata": _metadata(one, namespace, jobset_uid, job_uid),
        "spec": one.template["spec"],
        "status": _status(one),
    }


def _metadata(one: "PodProcess", namespace: str, jobset_uid: str, job_uid: str) -> dict[str, Any]:
    job = f"{one.jobset}-{one.job}-0"
    numbers = {"global-replicas": "1", "group-replicas": "1", "job-global-index": "0", "job-group-index": "0"}
    names = {
        **numbers,
        "group-name": "default",
        "job-index": "0",
        "job-key": hashlib.sha1(f"{namespace}/{job}".encode()).hexdigest(),
        "jobset-name": one.jobset,
        "jobset-uid": jobset_uid,
        "replicatedjob-name": one.job,
        "replicatedjob-replicas": "1",
        "restart-attempt": str(one.attempt),
    }
    about = {f"{PREFIX}/{key}": value for key, value in names.items()} | {INDEX: str(one.index)}
    of_job = {"controller-uid": job_uid, "job-name": job}
    of_job |= {f"batch.kubernetes.io/{key}": value for key, value in of_job.items()}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": job_uid}
    going = {"deletionGracePeriodSeconds": one.template["spec"]["terminationGracePeriodSeconds"]}
    finalizers = {} if one.ended() or not one.tracked else {"finalizers": ["batch.kubernetes.io/job-tracking"]}
    return {
        "name": one.name,
        "namespace": namespace,
        "generateName": f"{job}-{one.index}-",
        "generation": 2 if one.asked_to_end else 1,
        "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, one.name)),
        "resourceVersion": "1",
        "creationTimestamp": one.made,
        "annotations": about,
        "labels": {**one.template["metadata"]["labels"], **about, **of_job, f"{PREFIX}/priority": "0"},
        "ownerReferences": [{**owner, "blockOwnerDeletion": True, "controller": True}],
        **finalizers,
        **({"deletionTimestamp": one.asked_to_end, **going} if one.asked_to_end else {}),
    }


def _status(one: "PodProcess") -> dict[str, Any]:
    unscheduled = any(found["status"] == "False" for found in one.conditions)
    status: dict[str, Any] = {"phase": "Pending", "qosClass": "Burstable"}
    if one.conditions:
        status["conditions"] = [{"lastProbeTime": None, "lastTransitionTime": None, **each} for each in one.conditions]
    if unscheduled or not (one.process or "message" in one.waiting):
        return status  # no kubelet has heard of it
    if one.process is None:
        return {**status, "containerStatuses": [_container(one, {"waiting": one.waiting})]}
    state: dict[str, Any] = {"running": {"startedAt": one.started}}
    if one.ended():
        status["phase"] = "Failed" if one.exit_code else "Succeeded"
        end = {"exitCode": one.exit_code, "finishedAt": one.finished, "startedAt": one.started}
        state = {"terminated": {**end, "reason": "Error" if one.exit_code else "Completed", **one.last_words()}}
    else:
        status["phase"] = "Running"
    where = {"hostIP": "127.0.0.1", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}], "startTime": one.started}
    conditions = [_ready(kind, one.ended()) for kind in READY]
    conditions += [each for each in status.get("conditions", []) if each["type"] not in READY]
    return {**status, **where, "conditions": conditions, "containerStatuses": [_container(one, state)]}


def _ready(kind: str, ended: bool) -> dict[str, Any]:
    no_more = ended and kind in ("Ready", "ContainersReady")
    state = {"status": "False", "reason": "PodCompleted"} if no_more else {"status": "True"}
    return {"lastProbeTime": None, "lastTransitionTime": None, "type": kind, **state}


def _container(one: "PodProcess", state: dict[str, Any]) -> dict[str, Any]:
    image, runs = one.container["image"], "running" in state
    about = {"image": image, "imageID": image if one.process else "", "name": one.container["name"], "restartCount": 0}
    identity = {"containerID": f"proc://{one.container['name']}"} if one.process else {}
    return {**about, **identity, "lastState": {}, "ready": runs, "started": runs, "state": state}
