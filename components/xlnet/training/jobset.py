"""The JobSet that trains on a cluster: one indexed Job with a pod for each host, and what a pod's end means.

A program that fails is started again a few times, and all its pods with it. A pod that was preempted ends with a
status of its own, or Kubernetes marks it as disrupted: that is another budget, which whoever watches the JobSet
keeps. Names and meanings: https://jobset.sigs.k8s.io, version 0.6 or newer.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlnet.errors import LostPeer, Preempted
from xlnet.training.preemption import grace

GROUP, KIND = "apis/jobset.x-k8s.io/v1alpha2", "jobsets"
JOB, CONTAINER = "node", "train"
RUN, OUT = "xlnet-pipeline/run", "xlnet-pipeline/out"
STEP = "pipelines.kubeflow.org/v2_component"  # the label of KFP's steps, by which network policies know them
EXCLUSIVE = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
KEPT = 86400  # seconds for which an ended JobSet, and with it its pods' logs, is kept
SPARE = 5  # seconds after the grace for a checkpoint, until a pod is killed
JOIN = 1800  # seconds that pods wait for each other: their machines may have to be made first


@dataclass(frozen=True)
class Work:
    """What is to be trained, and for whom.

    Attributes:
        run: the pipeline run's id.
        recipe: JSON of the step's part of the recipe.
        dataset: ``gs://`` address.
        out: ``gs://`` address of the model to be written.
        owner: reference to what the JobSet goes with when it is deleted.
        account: the pods' service account.
        pull_secrets: references to secrets of the image's registry.
    """

    run: str
    recipe: str
    dataset: str
    out: str
    owner: Mapping[str, Any]
    account: str = ""
    pull_secrets: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The JobSet's name: the same whenever the same run asks for the same training."""
        return f"xlnet-train-{hashlib.sha256(f'{self.run} {self.recipe}'.encode()).hexdigest()[:16]}"


def manifest(wishes: Mapping[str, Any], work: Work) -> dict[str, Any]:
    """The JobSet.

    Args:
        wishes: what the placement asks for: ``hosts``, ``image``, ``env``, ``resources``, ``node_selector``,
            ``tolerations``, ``shared_memory``, ``slice`` (the hosts are one TPU slice), ``retries`` of the program.
        work: what is to be done.
    """
    labels = {RUN: work.run[:63], "app.kubernetes.io/part-of": "xlnet-pipeline"}
    preempted = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": work.name,
            "labels": labels,
            "annotations": {OUT: work.out} | (EXCLUSIVE if wishes["slice"] else {}),
            "ownerReferences": [dict(work.owner)],
        },
        "spec": {
            "ttlSecondsAfterFinished": KEPT,
            "failurePolicy": {"maxRestarts": wishes["retries"], "rules": [preempted]},
            "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": _job(wishes, work, labels)}}],
        },
    }


def _job(wishes: Mapping[str, Any], work: Work, labels: Mapping[str, str]) -> dict[str, Any]:
    ends = {
        "containerName": CONTAINER,
        "operator": "In",
        "values": [Preempted.exit_status, LostPeer.exit_status],
    }
    return {
        "completionMode": "Indexed",
        "completions": wishes["hosts"],
        "parallelism": wishes["hosts"],
        "backoffLimit": 0,  # one pod's end is the end of all
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": ends},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"labels": {**labels, STEP: "true"}},
            "spec": _pod(wishes, work),
        },
    }


def _pod(wishes: Mapping[str, Any], work: Work) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(grace()) + SPARE,
        "automountServiceAccountToken": False,  # what trains has nothing to ask Kubernetes
        "nodeSelector": dict(wishes["node_selector"]),
        "tolerations": list(wishes["tolerations"]),
        "containers": [_container(wishes, work)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": wishes["shared_memory"]}}],
    }
    if work.account:
        spec["serviceAccountName"] = work.account
    if work.pull_secrets:
        spec["imagePullSecrets"] = [dict(one) for one in work.pull_secrets]
    return spec


def _container(wishes: Mapping[str, Any], work: Work) -> dict[str, Any]:
    words = ["--recipe-json", work.recipe, "--dataset", work.dataset, "--out", work.out]
    env = {
        "XLNET_RUN_ID": work.run,
        "XLNET_NODES": str(wishes["hosts"]),
        "XLNET_MASTER": f"{work.name}-{JOB}-0-0.{work.name}",  # of the first pod, in the JobSet's headless service
        "XLNET_JOIN_SECONDS": str(JOIN),
        "XLNET_GRACE_SECONDS": f"{grace():g}",
    }
    return {
        "name": CONTAINER,
        "image": wishes["image"],
        # Kubernetes takes $(NAME) for a variable and $$ for a dollar.
        "args": ["python", "-m", "xlnet", "train", *(word.replace("$", "$$") for word in words)],
        "env": [*wishes["env"], *({"name": name, "value": value} for name, value in env.items())],
        "resources": wishes["resources"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
