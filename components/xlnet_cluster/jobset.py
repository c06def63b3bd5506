"""Builds the JobSet that trains on a cluster: one indexed Job with a pod for each host.

If a program fails, all pods are restarted, up to a limit. A preempted pod ends with a special exit status, or
Kubernetes marks it as disrupted; such restarts have a separate limit, which the launcher enforces. For names and
meanings see https://jobset.sigs.k8s.io, version 0.6 or newer.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xlnet.errors import LostPeer, Preempted, UserError
from xlnet.training.preemption import grace

GROUP, VERSION, JOBSETS = "jobset.x-k8s.io", "v1alpha2", "jobsets"
JOB, CONTAINER = "node", "train"
COMMAND = ("python", "-m", "xlnet", "train")
GUARDED = ("python", "-m", "xlnet_cluster")  # starts the command, and xlnet_cluster.guard beside it
RUN, OUT = "xlnet-pipeline/run", "xlnet-pipeline/out"
STEP = "pipelines.kubeflow.org/v2_component"  # the label by which network policies recognise KFP's steps
EXCLUSIVE = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
KEPT = 3600  # seconds until Kubernetes deletes an ended JobSet with its pods' logs, as its workflow may be gone
SPARE = 5  # seconds between the end of the grace period and the kill
JOIN = 1800  # seconds that pods wait for each other, because the cluster may have to create machines first


@dataclass(frozen=True)
class Requirements:
    """The resources that a training's pods need from the cluster. The pipeline passes them as JSON.

    Attributes:
        hosts: number of pods, one per host.
        image: container image, pinned by its digest.
        env: environment variables, as in a container's specification.
        resources: requests and limits of a pod's container.
        node_selector: labels of the nodes to run on.
        tolerations: taints of those nodes that the pods tolerate.
        shared_memory: size of /dev/shm, as Kubernetes writes quantities.
        slice: whether the hosts are one TPU slice, which has its own node pool.
        retries: how often a failed program is restarted.
        preemptions: how often preempted pods are restarted.
    """

    hosts: int
    image: str
    env: list[dict[str, Any]]
    resources: dict[str, Any]
    node_selector: dict[str, str]
    tolerations: list[dict[str, str]]
    shared_memory: str
    slice: bool
    retries: int
    preemptions: int

    def to_json(self) -> str:
        """Format as JSON with sorted keys, so that equal requirements give equal strings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Requirements":
        """Parse the output of :meth:`to_json`.

        Raises:
            UserError: the text is not JSON, or a field is missing or unknown.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"the pod's requirements cannot be read ({error}); compile the pipeline with the version of its image"
            ) from None


@dataclass(frozen=True)
class TrainingJob:
    """A training to run on the cluster, and its pipeline run.

    Attributes:
        run: the pipeline run's id.
        recipe_json: JSON of the step's part of the recipe.
        dataset: bucket address of the dataset.
        out: bucket address of the model to write.
        owner: owner reference; deleting this object also deletes the JobSet.
        command: the program that every pod starts; recipe, dataset and model are added as options.
        account: the pods' service account.
        pull_secrets: references to the image registry's secrets.
    """

    run: str
    recipe_json: str
    dataset: str
    out: str
    owner: Mapping[str, Any]
    command: tuple[str, ...] = COMMAND
    account: str = ""
    pull_secrets: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The JobSet's name, which is the same if the same run asks for the same training again."""
        return f"xlnet-train-{hashlib.sha256(f'{self.run} {self.recipe_json}'.encode()).hexdigest()[:16]}"


def manifest(needs: Requirements, work: TrainingJob) -> dict[str, Any]:
    """Build the JobSet as JSON for the Kubernetes API."""
    labels = {RUN: work.run[:63], "app.kubernetes.io/part-of": "xlnet-pipeline"}
    preempted = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": {
            "name": work.name,
            "labels": labels,
            "annotations": {OUT: work.out} | (EXCLUSIVE if needs.slice else {}),
            "ownerReferences": [dict(work.owner)],
        },
        "spec": {
            "ttlSecondsAfterFinished": KEPT,
            "failurePolicy": {"maxRestarts": needs.retries, "rules": [preempted]},
            "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": _job(needs, work, labels)}}],
        },
    }


def _job(needs: Requirements, work: TrainingJob, labels: Mapping[str, str]) -> dict[str, Any]:
    ends = {
        "containerName": CONTAINER,
        "operator": "In",
        "values": [Preempted.exit_status, LostPeer.exit_status],
    }
    return {
        "completionMode": "Indexed",
        "completions": needs.hosts,
        "parallelism": needs.hosts,
        "backoffLimit": 0,  # if one pod fails, all pods end
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": ends},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"labels": {**labels, STEP: "true"}},
            "spec": _pod(needs, work),
        },
    }


def _pod(needs: Requirements, work: TrainingJob) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(grace()) + SPARE,
        "automountServiceAccountToken": True,  # the first pod's guard looks at the workflow's pods
        "nodeSelector": dict(needs.node_selector),
        "tolerations": list(needs.tolerations),
        "containers": [_container(needs, work)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": needs.shared_memory}}],
    }
    if work.account:
        spec["serviceAccountName"] = work.account
    if work.pull_secrets:
        spec["imagePullSecrets"] = [dict(one) for one in work.pull_secrets]
    return spec


def _container(needs: Requirements, work: TrainingJob) -> dict[str, Any]:
    about = (work.name, work.owner["kind"], work.owner["name"])
    words = ["--recipe-json", work.recipe_json, "--dataset", work.dataset, "--out", work.out]
    env = {
        "XLNET_RUN_ID": work.run,
        "XLNET_NODES": str(needs.hosts),
        "XLNET_MASTER": f"{work.name}-{JOB}-0-0.{work.name}",  # the first pod, in the JobSet's headless service
        "XLNET_JOIN_SECONDS": str(JOIN),
        "XLNET_GRACE_SECONDS": f"{grace():g}",
    }
    return {
        "name": CONTAINER,
        "image": needs.image,
        # Kubernetes replaces $(NAME) by a variable and $$ by a dollar sign.
        "args": [word.replace("$", "$$") for word in (*GUARDED, *about, *work.command, *words)],
        "env": [*needs.env, *({"name": name, "value": value} for name, value in env.items())],
        "resources": needs.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
