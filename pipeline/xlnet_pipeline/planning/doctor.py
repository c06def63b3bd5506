"""Tests the services and tools that a run may need: one line each, with the remedy.

Each probe tests one thing and returns the result. It leaves nothing behind: the bucket's probe deletes the object that
it wrote. Secrets are read from the environment and never shown.
"""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.data import gcs, objects
from xlnet.errors import RunError, UserError
from xlnet_pipeline.placement.machines import Machine

OK, BAD, UNSET = "ok", "bad", "-"
PATIENCE = 20.0  # time-out of one probe, seconds
TIMEOUT = 5.0  # time-out of one request, seconds
SERVICE_USAGE = "https://serviceusage.googleapis.com"
SERVICES = ("aiplatform.googleapis.com", "artifactregistry.googleapis.com", "storage.googleapis.com")
LOGIN = "gcloud auth application-default login"
QUOTA_PAGE = "https://console.cloud.google.com/iam-admin/quotas"
VARIABLES = re.compile(r"[A-Z][A-Z0-9_]*")
SECRET = re.compile(
    "TOKEN|(?<!^KFP_REGISTRY_)SECRET|PASSWORD|KEY"
)  # KFP_REGISTRY_SECRET holds the name of a secret, not a secret


@dataclass(frozen=True)
class Diagnosis:
    """The result of one probe. ``state``: ok, bad, or - if the service is not set up and was not tested."""

    name: str
    state: str
    detail: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}{self.name:<18}{self.detail}" + (f"; type: {self.repair}" if self.repair else "")


@dataclass(frozen=True)
class Surroundings:
    """What the probes test.

    Attributes:
        environment: variables that name services, as in ``os.environ``.
        exported: those of the variables that are not yet set in the shell.
        machine: machine whose quota to test; None: no quota.
        service_usage: URL of Google's Service Usage API.
        credentials: Google credentials; None: the application default.
    """

    environment: Mapping[str, str]
    exported: Mapping[str, str] | None = None
    machine: Machine | None = None
    service_usage: str = SERVICE_USAGE
    credentials: Any = None

    def __getitem__(self, name: str) -> str:
        return self.environment.get(name, "")


def probe(around: Surroundings) -> list[Diagnosis]:
    """Run all probes in parallel and return their results in a fixed order."""
    with ThreadPoolExecutor(len(PROBES)) as pool:
        started = {name: pool.submit(function, around) for name, function in PROBES.items()}
        return [_result(name, future) for name, future in started.items()]


def _result(name: str, future: Any) -> Diagnosis:
    try:
        state, detail, *repair = future.result(timeout=PATIENCE)
    except TimeoutError:
        return Diagnosis(
            name, BAD, f"no answer within {PATIENCE:.0f} s", "xlnet-pipeline doctor  # again, or see network"
        )
    return Diagnosis(name, state, detail, *repair)


def from_terraform(text: str) -> dict[str, str]:
    """Return the variables in terraform's output ``environment``, from the text of ``terraform output -json``.

    Raises:
        UserError: the text is not terraform's JSON, or lacks this output.
    """
    try:
        outputs = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "type: terraform output -json | xlnet-pipeline doctor --from-terraform -"
        raise UserError(f"--from-terraform was given no JSON ({error.msg}); {hint}") from None
    values = outputs.get("environment", {}).get("value") if isinstance(outputs, dict) else None
    if not isinstance(values, dict) or not values:
        raise UserError(
            "--from-terraform: there is no output 'environment'; run it in infra/terraform/example, applied"
        )
    wrong = [
        name for name, value in values.items() if not VARIABLES.fullmatch(name) or not isinstance(value, str | None)
    ]
    if wrong:
        raise UserError(
            f"--from-terraform: environment.{wrong[0]} is no variable with a string; apply our example's outputs"
        )
    return {name: value for name, value in values.items() if value}


Seen = tuple[str, ...]  # state, detail and optionally the remedy


def variables(around: Surroundings) -> Seen:
    """Test that the shell has the variables that terraform's output names."""
    if around.exported is None:
        return UNSET, "no terraform outputs were given"
    if not around.exported:
        return OK, "the shell has all of terraform's outputs"
    shown = {name: "…" if SECRET.search(name) else shlex.quote(value) for name, value in around.exported.items()}
    lines = " ".join(f"{name}={value}" for name, value in sorted(shown.items()))
    return BAD, f"the shell lacks {len(around.exported)} of terraform's outputs", f"export {lines}"


def packages(around: Surroundings) -> Seen:
    """Test the installed packages."""
    wanted = ("kfp", "mlflow-skinny", "google-cloud-storage", "torch")
    versions = {name: _version(name) for name in wanted}
    lacking = [name for name, version in versions.items() if not version]
    if lacking:
        return BAD, f"not installed: {', '.join(lacking)}", "pip install 'xlnet-pipeline[pipeline]'"
    return OK, ", ".join(f"{name} {version}" for name, version in versions.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def kfp_endpoint(around: Surroundings) -> Seen:
    """Ask Kubeflow Pipelines for its health."""
    endpoint = around["KFP_ENDPOINT"].rstrip("/")
    if not endpoint:
        return UNSET, "KFP_ENDPOINT is not set", "export KFP_ENDPOINT=http://127.0.0.1:8080"
    forward = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
    if not endpoint.startswith(("http://", "https://")):
        return BAD, f"KFP_ENDPOINT '{endpoint}' is no URL", f"export KFP_ENDPOINT=https://{endpoint}"
    headers = {"Authorization": f"Bearer {around['KFP_TOKEN']}"} if around["KFP_TOKEN"] else {}
    request = urllib.request.Request(f"{endpoint}/apis/v2beta1/healthz", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        known = {401: ("unknown to it", "export KFP_TOKEN=…"), 403: ("refused", "export KFP_TOKEN=…")}
        what, repair = known.get(error.code, (f"answers {error.code}", "kubectl get pods -n kubeflow"))
        return BAD, f"{endpoint}: {what}", repair
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error) if isinstance(error, OSError) else "it is something else"
        return BAD, f"{endpoint} cannot be reached ({str(reason)[:80]})", forward
    users = ", with users of their own" if isinstance(found, dict) and found.get("multi_user") else ""
    return OK, f"{endpoint}{users}"


def credentials(around: Surroundings) -> Seen:
    """Test that Google credentials exist and can be refreshed."""
    if not (around["VERTEX_PROJECT_ID"] or _root(around)) or around["STORAGE_EMULATOR_HOST"]:
        return UNSET, "nothing here needs Google credentials"
    try:
        found = _google(around)
        if not getattr(found, "valid", False):
            from google.auth.transport.requests import Request

            found.refresh(Request())
    except Exception as error:  # the library's errors, and the network's
        return BAD, _short(error), LOGIN
    account = getattr(found, "service_account_email", "") or "a user's"
    return OK, f"application default credentials ({account})"


def _google(around: Surroundings) -> Any:
    if around.credentials is not None:
        return around.credentials
    import google.auth

    return google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]


def bucket(around: Surroundings) -> Seen:
    """Write, read and delete one object under the pipeline root."""
    root = _root(around)
    if not root:
        return UNSET, "VERTEX_PIPELINE_ROOT and KFP_PIPELINE_ROOT are not set"
    if not root.startswith("gs://"):
        return _s3_bucket(root)
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError

    content, did = uuid.uuid4().hex.encode(), "neither written nor read"
    try:
        name, folder = objects.split(root)
        blob = gcs.storage_client().bucket(name).blob(f"{folder.rstrip('/')}/doctor-{content.decode()}".lstrip("/"))
        blob.upload_from_string(content, retry=None, timeout=TIMEOUT)
        did = "written, but not read"
        same = blob.download_as_bytes(retry=None, timeout=TIMEOUT) == content
        did = "written and read, but not deleted"
        blob.delete(retry=None, timeout=TIMEOUT)
    except NotFound:
        return BAD, f"bucket '{name}' does not exist", f"gcloud storage buckets create gs://{name}"
    except Forbidden as error:
        grant = (
            f"gcloud storage buckets add-iam-policy-binding gs://{name} --role=roles/storage.objectUser --member=user:…"
        )
        return BAD, f"{root}: an object could be {did} ({_short(error)})", grant
    except GoogleAuthError as error:
        return BAD, f"{root}: {_short(error)}", LOGIN
    except (GoogleAPIError, UserError, OSError) as error:
        return BAD, f"{root}: an object could be {did} ({_short(error)})", f"gcloud storage ls {root}"
    return (OK, f"{root}: wrote, read and deleted an object") if same else (BAD, f"{root} gave other bytes back")


def _s3_bucket(root: str) -> Seen:
    """Write, read and delete one object under an S3 pipeline root."""
    content = uuid.uuid4().hex.encode()
    place = f"{root.rstrip('/')}/doctor-{content.decode()}"
    try:
        objects.split(root)
        objects.write(place, content)
        same = objects.read(place) == content
        objects.delete(place)
    except (UserError, RunError) as error:
        reason, _, remedy = str(error).partition("; ")
        return BAD, reason, remedy
    return (OK, f"{root}: wrote, read and deleted an object") if same else (BAD, f"{root} gave other bytes back")


def _root(around: Surroundings) -> str:
    return around["VERTEX_PIPELINE_ROOT"] or around["KFP_PIPELINE_ROOT"]


def services(around: Surroundings) -> Seen:
    """Test that the project has enabled the services that a run uses."""
    project = around["VERTEX_PROJECT_ID"]
    if not project:
        return UNSET, "VERTEX_PROJECT_ID is not set"
    names = "&".join(f"names=projects/{project}/services/{name}" for name in SERVICES)
    try:
        found = _get(around, f"/v1/projects/{project}/services:batchGet?{names}").get("services", [])
    except _Refused as refused:
        return BAD, f"project '{project}': {refused}", refused.repair
    off = [str(one["name"]).rpartition("/")[2] for one in found if one.get("state") != "ENABLED"]
    if off:
        return (
            BAD,
            f"project '{project}' lacks {', '.join(off)}",
            f"gcloud services enable {' '.join(off)} --project={project}",
        )
    return OK, f"project '{project}' has {', '.join(name.partition('.')[0] for name in SERVICES)}"


def quota(around: Surroundings) -> Seen:
    """Test Vertex AI's quota of the machine's accelerators in the region."""
    return _quota(around, "aiplatform.googleapis.com", _is_for)


def node_quota(around: Surroundings) -> Seen:
    """Test Compute Engine's quota, without which a cluster's node pool stays empty."""
    if not (around["KFP_ENDPOINT"] or around["KFP_PIPELINE_ROOT"]):
        return UNSET, "KFP_ENDPOINT and KFP_PIPELINE_ROOT are not set"
    return _quota(around, "compute.googleapis.com", _is_for_nodes)


def _quota(around: Surroundings, service: str, is_for: Callable[[Machine, str], bool]) -> Seen:
    project, machine = around["VERTEX_PROJECT_ID"], around.machine
    if not project or machine is None or machine.kind == "cpu":
        return UNSET, "name a machine to look at its quota: --machine l4"
    region = around["VERTEX_LOCATION"] or "us-central1"
    path = f"/v1beta1/projects/{project}/services/{service}/consumerQuotaMetrics?pageSize=500&view=FULL"
    try:
        metrics = _get(around, path).get("metrics", [])
    except _Refused as refused:
        return BAD, f"project '{project}': {refused}", refused.repair
    limits = [
        int(bucket.get("effectiveLimit", 0))
        for metric in metrics
        if is_for(machine, str(metric.get("metric", "")))
        for limit in metric.get("consumerQuotaLimits", [])
        for bucket in limit.get("quotaBuckets", [])
        if bucket.get("dimensions", {}).get("region", region) == region
        and machine.machine_type.startswith(bucket.get("dimensions", {}).get("tpu_family", "").lower())
    ]
    most = max(limits, default=0)
    enough = most < 0 or most >= machine.chips  # -1: no limit
    told = f"{'no limit on' if most < 0 else most} '{machine.family}' accelerators in {region}"
    return (
        (OK, told)
        if enough
        else (BAD, f"{told}, '{machine.name}' needs {machine.chips}", f"open {QUOTA_PAGE}?project={project}")
    )


def _is_for(machine: Machine, metric: str) -> bool:
    """Whether a quota metric, such as ``…/custom_model_training_nvidia_l4_gpus``, counts a machine's accelerators."""
    family = machine.family.replace("-40g", "").replace("-80g", "_80gb")
    name = metric.rpartition("/")[2]
    return bool(re.fullmatch(rf"custom_model_training_(preemptible_)?(nvidia_|tpu_)?{family}(_gpus)?", name))


def _is_for_nodes(machine: Machine, metric: str) -> bool:
    """Whether a metric of Compute Engine, such as ``…/preemptible_nvidia_l4_gpus``, counts a machine's accelerators.

    Newer TPUs share one metric, whose dimension ``tpu_family`` is the beginning of the machine type.
    """
    tpus = {"v5e": "tpu_lite_podslice_v5"}.get(machine.family, "tpus_per_tpu_family")
    family = machine.family.replace("-40g", "").replace("-80g", "_80gb")
    name = tpus if machine.kind == "tpu" else f"nvidia_{family}_gpus"
    return metric.rpartition("/")[2].removeprefix("preemptible_") == name


class _Refused(Exception):
    """Google's API refused a request. The error holds the remedy."""

    def __init__(self, message: str, repair: str) -> None:
        super().__init__(message)
        self.repair = repair


def _get(around: Surroundings, path: str) -> dict[str, Any]:
    try:
        from google.auth.transport.requests import AuthorizedSession

        answer = AuthorizedSession(_google(around)).get(around.service_usage + path, timeout=TIMEOUT)
    except Exception as error:  # the library's errors, and the network's
        raise _Refused(_short(error), LOGIN) from None
    if answer.status_code in (401, 403):
        role = "ask for roles/serviceusage.serviceUsageConsumer; gcloud auth list"
        raise _Refused(f"asking was refused ({answer.status_code})", LOGIN if answer.status_code == 401 else role)
    if answer.status_code != 200:
        raise _Refused(f"Service Usage answers {answer.status_code}", "gcloud services list")
    found: dict[str, Any] = answer.json()
    return found


def docker(around: Surroundings) -> Seen:
    """Test that Docker's daemon answers."""
    return _tool(
        "docker",
        ["info", "--format", "{{.ServerVersion}}"],
        "the daemon does not answer",
        "sudo systemctl start docker",
    )


def kind(around: Surroundings) -> Seen:
    """Test for kind (Kubernetes in Docker)."""
    return _tool("kind", ["version"], "does not run", "kind version")


def kubectl(around: Surroundings) -> Seen:
    """Test that kubectl reaches a cluster."""
    arguments = ["config", "current-context"]
    return _tool(
        "kubectl", arguments, "has no cluster", "gcloud container clusters get-credentials NAME --region=REGION"
    )


def gpu(around: Surroundings) -> Seen:
    """Test for NVIDIA's driver, and for a torch build that supports it."""
    if not shutil.which("nvidia-smi"):
        return UNSET, "no NVIDIA driver here"
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    state, detail, *repair = _tool("nvidia-smi", query, "the driver does not answer", "nvidia-smi")
    if state == OK and _version("torch").endswith("+cpu"):
        return BAD, f"{detail}; torch was built without CUDA", "pip install --force-reinstall torch"
    return state, detail, *repair


def tpu(around: Surroundings) -> Seen:
    """Test for TPU devices and torch-xla."""
    libraries = [f"{name} {_version(name)}" for name in ("torch_tpu", "torch_xla", "libtpu") if _version(name)]
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    if not devices and not libraries:
        return UNSET, "no TPU here"
    if not devices:
        return UNSET, f"no TPU device here; {', '.join(libraries)}"
    if not libraries:
        return BAD, f"{len(devices)} TPU devices, but no library for them", "pip install 'torch_xla[tpu]'"
    return OK, f"{len(devices)} TPU devices; {', '.join(libraries)}"


def _tool(name: str, arguments: list[str], failed: str, repair: str) -> Seen:
    path = shutil.which(name)
    if path is None:
        return UNSET, f"{name} is not installed"
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return BAD, failed, repair
    said = " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    return (BAD, failed, repair) if done.returncode or not said else (OK, said[:120])


def _short(error: Exception) -> str:
    if type(error).__name__ == "DefaultCredentialsError":
        return "there are no application default credentials"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


PROBES: dict[str, Callable[[Surroundings], Seen]] = {
    "packages": packages,
    "variables": variables,
    "kfp endpoint": kfp_endpoint,
    "credentials": credentials,
    "bucket": bucket,
    "project services": services,
    "quota": quota,
    "node quota": node_quota,
    "docker": docker,
    "kind": kind,
    "kubectl": kubectl,
    "gpu": gpu,
    "tpu": tpu,
}
