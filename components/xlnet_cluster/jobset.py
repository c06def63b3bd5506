"""The JobSet that trains on a cluster: one indexed Job with a pod for each host, and what a pod's end means.

A program that fails is started again a few times, and all its pods with it. A pod that was preempted ends with a
status of its own, or Kubernetes marks it as disrupted: that is another budget, which whoever watches the JobSet
keeps. Names and meanings: https://jobset.sigs.k8s.io, version 0.6 or newer.
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
RUN, OUT = "xlnet-pipeline/run", "xlnet-pipeline/out"
STEP = "pipelines.kubeflow.org/v2_component"  # the label of KFP's steps, by which network policies know them
EXCLUSIVE = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
KEPT = 3600  # seconds for which an ended JobSet, and with it its pods' logs, is kept: its workflow may be gone
SPARE = 5  # seconds after the grace for a checkpoint, until a pod is killed
JOIN = 1800  # seconds that pods wait for each other: their machines may have to be made first


@dataclass(frozen=True)
class Requirements:
    """What the pods of a training need of the cluster. Crosses the pipeline's border as JSON.

    Attributes:
        hosts: number of pods, one on each host.
        image: container image, pinned by its digest.
        env: environment variables, as in a container's specification.
        resources: requests and limits of a pod's container.
        node_selector: labels of the nodes to run on.
        tolerations: taints of those nodes that the pods accept.
        shared_memory: size of /dev/shm, as Kubernetes writes quantities.
        slice: the hosts are one TPU slice, which has a node pool of its own.
        retries: how often a program that fails is started again.
        preemptions: how often pods that were preempted are started again.
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
        """Sorted keys: equal requirements give equal strings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Requirements":
        """The requirements that :meth:`to_json` wrote.

        Raises:
            UserError: the text is no JSON, or a field is missing or unknown.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"the pod's requirements cannot be read ({error}); compile the pipeline with the version of its image"
            ) from None


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, and for which run.

    Attributes:
        run: the pipeline run's id.
        recipe: JSON of the step's part of the recipe.
        dataset: bucket address of the dataset.
        out: bucket address of the model to be written.
        owner: reference to the object that takes the JobSet along when it is deleted.
        command: the program that every pod starts; recipe, dataset and model follow as its options.
        account: the pods' service account.
        pull_secrets: references to secrets of the image's registry.
    """

    run: str
    recipe: str
    dataset: str
    out: str
    owner: Mapping[str, Any]
    command: tuple[str, ...] = COMMAND
    account: str = ""
    pull_secrets: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The JobSet's name: the same whenever the same run asks for the same training."""
        return f"xlnet-train-{hashlib.sha256(f'{self.run} {self.recipe}'.encode()).hexdigest()[:16]}"


def manifest(needs: Requirements, work: TrainingJob) -> dict[str, Any]:
    """The JobSet as the Kubernetes API takes it."""
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
        "backoffLimit": 0,  # one pod's end is the end of all
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
        "automountServiceAccountToken": False,  # what trains has nothing to ask Kubernetes
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
    words = ["--recipe-json", work.recipe, "--dataset", work.dataset, "--out", work.out]
    env = {
        "XLNET_RUN_ID": work.run,
        "XLNET_NODES": str(needs.hosts),
        "XLNET_MASTER": f"{work.name}-{JOB}-0-0.{work.name}",  # of the first pod, in the JobSet's headless service
        "XLNET_JOIN_SECONDS": str(JOIN),
        "XLNET_GRACE_SECONDS": f"{grace():g}",
    }
    return {
        "name": CONTAINER,
        "image": needs.image,
        # Kubernetes takes $(NAME) for a variable and $$ for a dollar.
        "args": [word.replace("$", "$$") for word in (*work.command, *words)],
        "env": [*needs.env, *({"name": name, "value": value} for name, value in env.items())],
        "resources": needs.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
