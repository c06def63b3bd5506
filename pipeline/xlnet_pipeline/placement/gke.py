"""A task on a node of a Kubernetes cluster: selectors, tolerations, limits, shared memory and retries (kfp-kubernetes).

A machine without accelerator asks for little and names no node, so that a kind cluster on a laptop can run it.
"""

import math

from kfp import dsl, kubernetes

from xlnet_pipeline.machines import SPOT_SELECTOR, Machine
from xlnet_pipeline.placement import BACKOFF, HEAVY, Placement

REGISTRY = "MLFLOW_TRACKING_URI"
SPOT_TAINT = "cloud.google.com/gke-spot"
RUN_LABEL = "metadata.labels['pipeline/runid']"
SMALL = ("500m", "1Gi")  # what a light step asks for
SHARE = 0.8  # of a host's CPUs and memory; the rest is the node's own
SHARED_MEMORY = 0.25  # of the host's memory, at /dev/shm, through which data loaders hand over batches


def place(task: dsl.PipelineTask, step: str, where: Placement) -> None:
    """Say where in the cluster a step's task runs."""
    kubernetes.use_field_path_as_env(task, "XLNET_RUN_ID", RUN_LABEL)
    if where.registry_secret:
        kubernetes.use_secret_as_env(task, where.registry_secret, {REGISTRY: REGISTRY})
    task.set_retry(where.retries if step in HEAVY else 1, **BACKOFF)
    machine = where.machine if step == "train" else where.single
    if step not in HEAVY or machine.resource is None:
        cpus, memory = SMALL if step not in HEAVY else ("1", "2Gi")
        task.set_cpu_request(cpus).set_memory_request(memory)
    else:
        _on_accelerator(task, machine)
    if step in HEAVY:
        size = max(1, math.floor(machine.host_memory * SHARED_MEMORY)) if machine.resource else 1
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=f"{size}Gi"
        )
        if where.spot:
            for key, value in SPOT_SELECTOR.items():
                kubernetes.add_node_selector(task, key, value)
            kubernetes.add_toleration(task, key=SPOT_TAINT, operator="Equal", value="true", effect="NoSchedule")


def _on_accelerator(task: dsl.PipelineTask, machine: Machine) -> None:
    task.set_accelerator_type(str(machine.resource)).set_accelerator_limit(machine.limit)
    task.set_cpu_request(f"{machine.cpus * SHARE:g}").set_memory_request(f"{math.floor(machine.host_memory * SHARE)}Gi")
    for key, value in machine.selectors.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in machine.tolerations:
        kubernetes.add_toleration(task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
