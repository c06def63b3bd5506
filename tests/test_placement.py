"""The pipeline compiled for each target and machine: golden files, kfp's validation, Kubernetes' schemas, refusals."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kfp import components

from xlnet.errors import UserError
from xlnet_pipeline import dag
from xlnet_pipeline.machines import MACHINES, Machine
from xlnet_pipeline.placement import TITLES, Placement, placement
from xlnet_pipeline.placement.vertex import LAUNCHER_IMAGE

IMAGE = "registry.example/team/xlnet@sha256:" + "0123456789abcdef" * 4
GOLDEN = Path(__file__).parent / "golden"
TELLING = {
    "kfp-l4": ("kfp", "l4", 1, False),
    "kfp-v5e-4": ("kfp", "v5e-4", 1, False),
    "vertex-v5e-256": ("vertex", "v5e-256", 1, False),
    "vertex-a100-40g-8-spot": ("vertex", "a100-40g-8", 2, True),
    "vertex-v6e-8": ("vertex", "v6e-8", 1, False),
}


def where(target: str, name: str, nodes: int = 1, spot: bool = False) -> Placement:
    return placement(target, IMAGE, MACHINES[name], nodes=nodes, spot=spot)


def rows() -> list[tuple[str, Machine]]:
    return [
        (target, machine)
        for target, machine in itertools.product(("kfp", "vertex"), MACHINES.values())
        if target in machine.targets and (target == "vertex" or machine.hosts == 1)
    ]


def without_sources(value: Any) -> Any:
    """The document with each step's own Python left out: it changes with the step, and not with the machine."""
    if isinstance(value, dict):
        return {key: without_sources(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_sources(one) for one in value]
    if isinstance(value, str) and value.startswith("{") and "job_spec" in value:
        return without_sources(json.loads(value))
    return "<source>" if isinstance(value, str) and "from kfp import dsl" in value else value


@pytest.mark.parametrize("name", TELLING)
def test_compiled_specifications_are_those_of_the_golden_files(name: str) -> None:
    """UPDATE_GOLDEN=1 writes them anew; read the difference before committing it."""
    text = yaml.safe_dump_all([without_sources(one) for one in dag.documents(where(*TELLING[name]))])
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("target", "machine"), rows(), ids=lambda value: getattr(value, "name", value))
def test_every_machine_compiles_and_passes_kfp_and_kubernetes(target: str, machine: Machine) -> None:
    documents = dag.documents(placement(target, IMAGE, machine, spot=machine.spot_only))
    assert len(documents) == (2 if target == "kfp" else 1), "the Vertex client refuses a second document"
    assert components.load_component_from_text(yaml.safe_dump_all(documents))
    if target == "kfp":
        for step in TITLES if machine.name in ("cpu", "l4", "v5e-4") else ("train",):
            kubernetes_validate.validate(pod(step, *documents), "1.33", strict=True)


def pod(step: str, spec: dict[str, Any], platform: dict[str, Any]) -> dict[str, Any]:
    """The pod that Kubeflow Pipelines makes of a task, as far as the compiled documents say."""
    container = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    wishes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    resources = container.get("resources", {})
    asked = {"cpu": resources["resourceCpuRequest"], "memory": resources["resourceMemoryRequest"]}
    limits = {}
    if accelerator := resources.get("accelerator"):
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    mounts = wishes.get("emptyDirMounts", [])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": step},
        "spec": {
            "nodeSelector": wishes.get("nodeSelector", {}).get("labels", {}),
            "tolerations": wishes.get("tolerations", []),
            "volumes": [
                {"name": one["volumeName"], "emptyDir": {"medium": one["medium"], "sizeLimit": one["sizeLimit"]}}
                for one in mounts
            ],
            "containers": [
                {
                    "name": "main",
                    "image": container["image"],
                    "env": [
                        {"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}}
                        for one in wishes["fieldPathAsEnv"]
                    ],
                    "resources": {"requests": asked, "limits": limits},
                    "volumeMounts": [{"name": one["volumeName"], "mountPath": one["mountPath"]} for one in mounts],
                }
            ],
        },
    }


def test_a_gpu_pod_gets_its_node_and_all_its_accelerators() -> None:
    found = pod("train", *dag.documents(where("kfp", "a100-80g-4")))["spec"]
    assert found["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}
    assert found["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    light = pod("preprocess", *dag.documents(where("kfp", "a100-80g-4")))["spec"]
    assert not light["nodeSelector"], "preprocessing needs no accelerator"


def test_a_spot_run_has_a_larger_budget_for_preemption_than_for_a_failing_program() -> None:
    def retries(spot: bool) -> int:
        return int(
            dag.documents(where("kfp", "l4", spot=spot))[0]["root"]["dag"]["tasks"]["train"]["retryPolicy"][
                "maxRetryCount"
            ]
        )

    assert retries(spot=True) > 5 * retries(spot=False)


def payload(place: Placement) -> dict[str, Any]:
    container = dag.documents(place)[0]["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert container["image"] == LAUNCHER_IMAGE
    found: dict[str, Any] = json.loads(container["args"][container["args"].index("--payload") + 1])["job_spec"]
    return found


def test_a_custom_job_has_one_pool_for_the_first_replica_and_one_for_the_rest() -> None:
    pools = payload(where("vertex", "a100-40g-8", nodes=4))["worker_pool_specs"]
    assert [pool["replica_count"] for pool in pools] == [1, 3]
    assert {pool["machine_spec"]["accelerator_type"] for pool in pools} == {"NVIDIA_TESLA_A100"}
    assert pools[0]["container_spec"] == pools[1]["container_spec"]
    assert pools[0]["container_spec"]["image_uri"] == IMAGE
    assert "{{$.json_escape[1]}}" in pools[0]["container_spec"]["args"]


def test_a_custom_job_says_spot_and_restarts_with_its_workers() -> None:
    scheduling = payload(where("vertex", "v6e-8", spot=True))["scheduling"]
    assert scheduling["strategy"] == "SPOT"
    assert scheduling["restart_job_on_worker_restart"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kfp", "h200"), "not offered on target 'kfp'; the nearest is 'h200-8'"),
        (("kfp", "v5e-256"), "64 hosts; .*--target vertex, or --machine v5e-8"),
        (("kfp", "l4", 2), "one pod on one host: use --target vertex"),
        (("vertex", "l4", 0), "--nodes is 0; allowed: 1 or more"),
        (("vertex", "h100", 1), "on spot alone; add --spot"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_what_it_can(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        where(*arguments)


def test_a_tag_is_refused_with_the_command_that_reads_its_digest() -> None:
    with pytest.raises(UserError, match="imagetools inspect registry.example/xlnet:latest"):
        placement("kfp", "registry.example/xlnet:latest", MACHINES["cpu"])
