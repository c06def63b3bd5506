"""Places tasks on Vertex AI: the train step as a custom job with its own worker pools, others as pipeline containers.

The pipeline's spec names the launcher image that Google publishes for custom jobs. It starts the job, waits for it,
and gives Vertex AI's page its link. The job runs the step's own command: the step's artifacts and metrics therefore
reach the pipeline's lineage as those of any other step.
"""

import copy
import json
from typing import TYPE_CHECKING, Any

from xlnet.steps import STEPS
from xlnet_pipeline.placement import PROGRAM_RETRIES, Placement

if TYPE_CHECKING:
    from kfp import dsl

LAUNCHER_IMAGE = "gcr.io/ml-pipeline/google-cloud-pipeline-components:2.22.0"
LAUNCHER = ["python3", "-u", "-m", "google_cloud_pipeline_components.container.v1.custom_job.launcher"]
RESOURCES = "gcp_resources"  # output in which the launcher writes the name of its job
EXECUTOR_INPUT = "{{$}}"
ESCAPED_INPUT = "{{$.json_escape[1]}}"  # the same inside a JSON string
TIMEOUT = "604800s"  # seven days, Vertex AI's own limit
WAIT = "86400s"  # longest wait of a flexible start for its machines
BOOT_DISK_GB = 200
SMALL = ("4", "16G")  # CPUs and memory of a light step


def place(task: "dsl.PipelineTask", step: str, where: Placement) -> None:
    """Set what a step's container needs. :func:`with_custom_job` replaces the train step's container."""
    task.set_retry(PROGRAM_RETRIES, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    machine = where.single
    if step == "pretrain" and where.checkpoints:  # the train step's are in its job
        task.set_env_variable("XLNET_CHECKPOINTS", where.checkpoints)
    if STEPS[step].heavy and step != "train" and machine.kind == "gpu" and not machine.spot_only:
        task.set_cpu_limit(str(machine.cpus)).set_memory_limit(f"{machine.host_memory:g}G")
        task.set_accelerator_type(str(machine.accelerator_type)).set_accelerator_limit(machine.count)
    elif step != "train":
        task.set_cpu_limit(SMALL[0]).set_memory_limit(SMALL[1])


def with_custom_job(spec: dict[str, Any], where: Placement) -> dict[str, Any]:
    """Return a pipeline spec whose train step is a custom job."""
    spec = copy.deepcopy(spec)
    component = spec["components"]["comp-train"]
    component["outputDefinitions"].setdefault("parameters", {})[RESOURCES] = {"parameterType": "STRING"}
    executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
    payload = {"display_name": "xlnet-train", "job_spec": job_spec(executor["container"], where)}
    executor["container"] = {
        "image": LAUNCHER_IMAGE,
        "command": LAUNCHER,
        "args": [
            "--type",
            "CustomJob",
            "--payload",
            json.dumps(payload),
            "--project",
            "{{$.pipeline_google_cloud_project_id}}",
            "--location",
            "{{$.pipeline_google_cloud_location}}",
            "--gcp_resources",
            f"{{{{$.outputs.parameters['{RESOURCES}'].output_file}}}}",
        ],
    }
    return spec


def job_spec(container: dict[str, Any], where: Placement) -> dict[str, Any]:
    """Return a CustomJobSpec of Vertex AI that runs a step's container."""
    spec: dict[str, Any] = {
        "worker_pool_specs": _pools(_container(container, where), where),
        "scheduling": {
            "timeout": TIMEOUT,
            "restart_job_on_worker_restart": True,
            "strategy": "SPOT" if where.spot else "FLEX_START" if where.flex_start else "STANDARD",
            "max_wait_duration": WAIT,
        },
    }
    if where.service_account:
        spec["service_account"] = where.service_account
    if where.output_root:
        prefix = f"{where.output_root.rstrip('/')}/custom-jobs/{{{{$.pipeline_job_name}}}}"
        spec["base_output_directory"] = {"output_uri_prefix": prefix}
    return spec


def _container(container: dict[str, Any], where: Placement) -> dict[str, Any]:
    def escape(words: list[str]) -> list[str]:
        return [ESCAPED_INPUT if word == EXECUTOR_INPUT else word for word in words]

    env = [{"name": "XLNET_RUN_ID", "value": "{{$.pipeline_job_name}}"}]
    if where.checkpoints:  # a mounted bucket cannot rename folders
        env.append({"name": "XLNET_CHECKPOINTS", "value": where.checkpoints})
    return {
        "image_uri": container["image"],
        "command": escape(container.get("command", [])),
        "args": escape(container.get("args", [])),
        "env": [*container.get("env", []), *env],
    }


def _pools(container: dict[str, Any], where: Placement) -> list[dict[str, Any]]:
    """Return the worker pools: one with the first replica, one with all others, as Vertex AI requires.

    A TPU slice of several hosts is one replica: its topology says how many hosts there are.
    """
    machine = where.machine
    spec: dict[str, Any] = {"machine_type": machine.machine_type}
    if machine.accelerator_type:
        spec |= {"accelerator_type": machine.accelerator_type, "accelerator_count": machine.count}
    if machine.tpu_topology:
        spec["tpu_topology"] = machine.tpu_topology
    pool = {
        "machine_spec": spec,
        "replica_count": 1,
        "disk_spec": {"boot_disk_size_gb": BOOT_DISK_GB},  # the machine's default disk type
        "container_spec": container,
    }
    return [pool] if where.nodes == 1 else [pool, {**pool, "replica_count": where.nodes - 1}]
