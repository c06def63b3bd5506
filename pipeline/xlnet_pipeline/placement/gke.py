"""Places tasks in a Kubernetes cluster: selectors, tolerations, limits, shared memory, retries (kfp-kubernetes).

A machine without accelerator requests little and selects no node, so that a kind cluster on a laptop can run it. A
training on several hosts, or on preemptible hosts, is a JobSet, which the task's small pod creates.
"""

import math
from typing import Any

from kfp import dsl, kubernetes

from xlnet.data import index
from xlnet.steps import STEPS
from xlnet_cluster.jobset import Requirements
from xlnet_pipeline.placement import (
    BACKOFF,
    LAUNCHER_RETRIES,
    PREEMPTION_RETRIES,
    PROGRAM_RETRIES,
    SHORT_SPOT_RETRIES,
    Placement,
)
from xlnet_pipeline.placement.machines import SPOT_SELECTOR, Machine
from xlnet_steps import supervisor
from xlnet_steps.training import JOBSET

REGISTRY = "MLFLOW_TRACKING_URI"
REGISTRY_SECRET = "xlnet-registry"  # infra/kustomize creates it with the address of the cluster's MLflow
STORAGE_KEYS = {
    "accesskey": "AWS_ACCESS_KEY_ID",
    "secretkey": "AWS_SECRET_ACCESS_KEY",
}  # keys of Kubeflow Pipelines' secret
SPOT_TAINT = "cloud.google.com/gke-spot"
RUN_LABEL = "metadata.labels['pipeline/runid']"
NODE_NAME = "metadata.annotations['workflows.argoproj.io/node-name']"  # ends with the attempt's number
SMALL = ("500m", "1Gi")  # CPU and memory requests of a light step
SHARD = ("1", "1Gi")  # of a step that tokenises a shard; it takes more CPUs where a node has them
CHECKPOINT_SECONDS = "60"  # most work that a training in the step's own pod can lose, besides the time of one write
SHARE = 0.8  # of a host's CPUs and memory; the node needs the rest
SHARED_MEMORY = 0.25  # of the host's memory, at /dev/shm, which data loaders use to pass batches


def place(task: dsl.PipelineTask, step: str, where: Placement) -> None:
    """Configure where in the cluster a step's task runs."""
    kubernetes.use_field_path_as_env(task, supervisor.RUN, RUN_LABEL)
    kubernetes.use_field_path_as_env(task, supervisor.NODE, NODE_NAME)
    if where.output_root:
        task.set_env_variable(supervisor.INDEX, f"{where.output_root.rstrip('/')}/{index.FOLDER}")
    for secret, (keys, optional) in _secrets(where).items():
        kubernetes.use_secret_as_env(task, secret, keys, optional=optional)
    task.set_retry(PROGRAM_RETRIES, **BACKOFF)
    if STEPS[step].trains and where.checkpoints:
        task.set_env_variable("XLNET_CHECKPOINTS", where.checkpoints)
        if step != "train" or not where.several_pods:
            # On SIGTERM the launcher kills the program before it can write a last checkpoint.
            task.set_env_variable("XLNET_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
    if step == "train" and where.several_pods:
        _hand_over(task, where)
    elif STEPS[step].heavy:
        _compute(task, where.machine if step == "train" else where.single, where.spot)
    else:
        cpus, memory = SHARD if STEPS[step].looped else SMALL
        task.set_cpu_request(cpus).set_memory_request(memory)


def _compute(task: dsl.PipelineTask, machine: Machine, spot: bool) -> None:
    cpus, memory = _asked(machine)
    task.set_cpu_request(cpus).set_memory_request(memory)
    if machine.resource:
        task.set_accelerator_type(machine.resource).set_accelerator_limit(machine.count)
    for key, value in _selectors(machine, spot).items():
        kubernetes.add_node_selector(task, key, value)
    for taint in _tolerations(machine, spot):
        kubernetes.add_toleration(task, **taint)
    size = _shared_memory(machine)
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=size)
    if spot:
        task.set_retry(SHORT_SPOT_RETRIES, **BACKOFF)


def _hand_over(task: dsl.PipelineTask, where: Placement) -> None:
    """Make the task create and watch a JobSet, and give it what the JobSet's pods need."""
    task.set_cpu_request(SMALL[0]).set_memory_request(SMALL[1]).set_retry(LAUNCHER_RETRIES, **BACKOFF)
    kubernetes.use_field_path_as_env(task, "XLNET_POD_NAME", "metadata.name")
    task.set_env_variable(JOBSET, requirements(where).to_json())


def requirements(where: Placement) -> Requirements:
    """Return what a JobSet's pods need from the cluster."""
    machine = where.machine
    cpus, memory = _asked(machine)
    limits = {"limits": {machine.resource: str(machine.count)}} if machine.resource else {}
    return Requirements(
        hosts=where.hosts,
        slice=machine.hosts > 1,
        image=where.image,
        env=_environment(where),
        resources={"requests": {"cpu": cpus, "memory": memory}, **limits},
        node_selector=_selectors(machine, where.spot),
        tolerations=_tolerations(machine, where.spot),
        shared_memory=_shared_memory(machine),
        retries=PROGRAM_RETRIES,
        preemptions=PREEMPTION_RETRIES,
    )


def _environment(where: Placement) -> list[dict[str, Any]]:
    plain = {**where.environment, "XLNET_IMAGE": where.image, "XLNET_IMAGE_DIGEST": where.digest}
    if where.checkpoints:
        plain["XLNET_CHECKPOINTS"] = where.checkpoints
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    for secret, (keys, optional) in _secrets(where).items():
        for key, name in keys.items():
            one = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            found.append({"name": name, "valueFrom": {"secretKeyRef": one}})
    return found


def _secrets(where: Placement) -> dict[str, tuple[dict[str, str], bool]]:
    """Map each secret to its keys and their environment variables, and to whether a pod starts without it.

    Steps find the cluster's own MLflow without a setting, through the secret of infra/kustomize.
    """
    found: dict[str, tuple[dict[str, str], bool]] = {}
    if where.registry_secret or REGISTRY not in where.environment:
        found[where.registry_secret or REGISTRY_SECRET] = ({REGISTRY: REGISTRY}, not where.registry_secret)
    if where.storage_secret:
        found[where.storage_secret] = (
            STORAGE_KEYS,
            True,
        )  # optional: a step reports missing keys, but a pod would wait for ever
    return found


def _asked(machine: Machine) -> tuple[str, str]:
    """Return the CPU and memory requests of a pod that trains or evaluates."""
    if machine.resource is None:
        return "1", "2Gi"
    return f"{machine.cpus * SHARE:g}", f"{math.floor(machine.host_memory * SHARE)}Gi"


def _shared_memory(machine: Machine) -> str:
    return f"{max(1, math.floor(machine.host_memory * SHARED_MEMORY)) if machine.resource else 1}Gi"


def _selectors(machine: Machine, spot: bool) -> dict[str, str]:
    return {**machine.selectors, **(SPOT_SELECTOR if spot else {})}


def _tolerations(machine: Machine, spot: bool) -> list[dict[str, str]]:
    device = {"key": str(machine.resource), "operator": "Exists", "effect": "NoSchedule"}
    spot_taint = {"key": SPOT_TAINT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return [device] * (machine.resource is not None) + [spot_taint] * spot
