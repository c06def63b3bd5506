"""The pipeline compiled for each target and machine: golden files, kfp's validation, Kubernetes' schemas, refusals."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kfp import components
from servers.jobset_schema import checked

from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet.steps import STEPS
from xlnet.training.preemption import GRACE
from xlnet_cluster.jobset import Requirements, TrainingJob, manifest
from xlnet_pipeline import dag
from xlnet_pipeline.placement import PREEMPTION_RETRIES, PROGRAM_RETRIES, Placement, placement
from xlnet_pipeline.placement.machines import MACHINES, SPOT_SELECTOR, Machine, offered
from xlnet_pipeline.placement.vertex import LAUNCHER_IMAGE
from xlnet_pipeline.targets import settings
from xlnet_pipeline.targets.kfp.target import KfpTarget
from xlnet_pipeline.targets.submission import Submission

IMAGE = "registry.example/team/xlnet@sha256:" + "0123456789abcdef" * 4
GOLDEN = Path(__file__).parent / "golden"
TELLING = {
    "kfp-l4": ("kfp", "l4", 1, False),
    "kfp-v5e-4": ("kfp", "v5e-4", 1, False),
    "kfp-v5e-256": ("kfp", "v5e-256", 1, False),
    "vertex-a100-40g-8-spot": ("vertex", "a100-40g-8", 2, True),
    "vertex-v6e-8": ("vertex", "v6e-8", 1, False),
}


def where(target: str, name: str, nodes: int = 1, spot: bool = False) -> Placement:
    return placement(target, IMAGE, MACHINES[name], nodes=nodes, spot=spot)


def rows() -> list[tuple[str, Machine]]:
    return [
        (target, machine)
        for target, machine in itertools.product(("kfp", "vertex"), MACHINES.values())
        if target in machine.targets
    ]


def without_sources(value: Any) -> Any:
    """The document with each step's own Python left out: it changes with the step, and not with the machine."""
    if isinstance(value, dict):
        return {key: without_sources(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_sources(one) for one in value]
    if isinstance(value, str) and value.startswith("{") and ("job_spec" in value or "node_selector" in value):
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
    wholly = machine.name in ("cpu", "l4", "v5e-4")
    documents = dag.documents(
        placement(target, IMAGE, machine, spot=machine.spot_only), pretrains=wholly, shards=1 + wholly
    )
    assert len(documents) == (2 if target == "kfp" else 1), "the Vertex client refuses a second document"
    assert components.load_component_from_text(yaml.safe_dump_all(documents))
    if target == "kfp":
        for step in STEPS if wholly else ("train",):
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


def handed_over(place: Placement) -> dict[str, Any]:
    """The JobSet that a train step's pod makes."""
    (spec, _) = dag.documents(place)
    env = {one["name"]: one["value"] for one in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "b"}
    work = TrainingJob(
        "0a1b2c3d-1111-2222-3333-444455556666", '{"x": "$(y)"}', "gs://b/dataset", "gs://b/model", owner, "steps"
    )
    return manifest(Requirements.from_json(env["XLNET_JOBSET"]), work)


@pytest.mark.parametrize("machine", offered("kfp"), ids=lambda row: row.name)
def test_every_machine_is_a_jobset_that_kubernetes_takes(machine: Machine) -> None:
    nodes = 1 if machine.kind == "tpu" else 2
    place = dataclasses.replace(
        placement("kfp", IMAGE, machine, nodes=nodes, spot=True), output_root="gs://b/root", registry_secret="registry"
    )
    job = checked(handed_over(place))["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == nodes * machine.hosts
    (container,) = job["template"]["spec"]["containers"]
    limits = {machine.resource: str(machine.count)} if machine.resource else None
    assert container["resources"].get("limits") == limits
    assert job["template"]["spec"]["nodeSelector"] == {**machine.selectors, **SPOT_SELECTOR}
    spec, platform = dag.documents(place)
    kubernetes_validate.validate(pod("train", spec, platform), "1.33", strict=True)
    assert not pod("train", spec, platform)["spec"]["nodeSelector"], "who watches runs on no spot machine"


def test_a_slice_of_many_hosts_is_one_job_on_one_node_pool() -> None:
    jobset = handed_over(where("kfp", "v5e-256"))
    assert jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"].endswith("gke-nodepool")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["backoffLimit"]) == (64, 0)
    spec = job["template"]["spec"]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert '{"x": "$$(y)"}' in container["args"], "a dollar is no variable of Kubernetes"
    assert spec["terminationGracePeriodSeconds"] > GRACE


def test_preemptions_have_a_budget_of_their_own() -> None:
    policy = handed_over(where("kfp", "l4", spot=True))["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == PROGRAM_RETRIES
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert PREEMPTION_RETRIES > 5 * PROGRAM_RETRIES
    tasks = dag.documents(where("kfp", "l4"))[0]["root"]["dag"]["tasks"]
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == PROGRAM_RETRIES, "one pod that nobody takes back"


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
        (("kfp", "v5e-8", 4), "TPUs train together within one slice: take a larger one, such as --machine v5e-32"),
        (("kfp", "v6e-256", 2), "such as --machine v6e-256"),
        (("vertex", "l4", 0), "--nodes is 0; allowed: 1 or more"),
        (("vertex", "h100", 1), "on spot and flex-start only; add --spot"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_what_it_can(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        where(*arguments)


def test_a_tag_is_refused_with_the_command_that_reads_its_digest() -> None:
    with pytest.raises(UserError, match="imagetools inspect registry.example/xlnet:latest"):
        placement("kfp", "registry.example/xlnet:latest", MACHINES["cpu"])


@pytest.mark.parametrize(
    ("variables", "endpoint", "secrets"),
    [
        (
            {},
            "http://seaweedfs.kubeflow:9000",
            {"xlnet-registry": True, "mlpipeline-minio-artifact": True},
        ),
        (
            {"KFP_PIPELINE_ROOT": "minio://mlpipeline/v2/artifacts"},
            "http://seaweedfs.kubeflow:9000",
            {"xlnet-registry": True, "mlpipeline-minio-artifact": True},
        ),
        (
            {"KFP_PIPELINE_ROOT": "s3://b/r", "KFP_S3_ENDPOINT": "http://s3:1", "KFP_S3_SECRET": "keys"},
            "http://s3:1",
            {"xlnet-registry": True, "keys": True},
        ),
        ({"KFP_PIPELINE_ROOT": "s3://b/r", "KFP_REGISTRY_SECRET": "mine"}, None, {"mine": False}),
        ({"KFP_PIPELINE_ROOT": "gs://b/r", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}, None, {}),
    ],
)
@pytest.mark.parametrize("nodes", [1, 2])
def test_steps_find_their_storage_and_registry(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    endpoint: str | None,
    secrets: dict[str, bool],
    nodes: int,
) -> None:
    """Secret → whether a pod starts without it. The pods of a JobSet are told the same."""
    for name in ("KFP_PIPELINE_ROOT", "MLFLOW_TRACKING_URI", "KFP_REGISTRY_SECRET", "KFP_S3_ENDPOINT", "KFP_S3_SECRET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"KFP_ENDPOINT": "http://kfp", **variables}.items():
        monkeypatch.setenv(name, value)
    target = KfpTarget(settings.read(settings.KfpSettings, None, needs=()))
    given = target.place(Submission(Recipe(), image=IMAGE, machine="cpu", nodes=nodes))
    spec, platform = dag.documents(given)
    container = spec["deploymentSpec"]["executors"]["exec-register"]["container"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment.get("AWS_ENDPOINT_URL_S3") == endpoint
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-register"].get("secretAsEnv", [])
    assert {one["secretName"]: one.get("optional", False) for one in asked} == secrets
    if nodes == 2:
        train = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
        (jobset,) = (json.loads(one["value"]) for one in train["env"] if "node_selector" in one["value"])
        named = {one["valueFrom"]["secretKeyRef"]["name"] for one in jobset["env"] if "valueFrom" in one}
        assert named == set(secrets)
