"""The doctor's probes of Google Cloud: credentials, the bucket, the project's services and quotas."""

import re
import uuid
from collections.abc import Callable
from typing import Any

from xlnet.data import gcs, objects
from xlnet.errors import RunError, UserError
from xlnet_pipeline.placement.machines import Machine
from xlnet_pipeline.planning.diagnosis import BAD, OK, TIMEOUT, UNSET, Environment, Finding

SERVICES = ("aiplatform.googleapis.com", "artifactregistry.googleapis.com", "storage.googleapis.com")
LOGIN = "gcloud auth application-default login"
QUOTA_PAGE = "https://console.cloud.google.com/iam-admin/quotas"


def credentials(around: Environment) -> Finding:
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


def _google(around: Environment) -> Any:
    if around.credentials is not None:
        return around.credentials
    import google.auth

    return google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]


def bucket(around: Environment) -> Finding:
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


def _s3_bucket(root: str) -> Finding:
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


def _root(around: Environment) -> str:
    return around["VERTEX_PIPELINE_ROOT"] or around["KFP_PIPELINE_ROOT"]


def services(around: Environment) -> Finding:
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


def quota(around: Environment) -> Finding:
    """Test Vertex AI's quota of the machine's accelerators in the region."""
    return _quota(around, "aiplatform.googleapis.com", _is_for)


def node_quota(around: Environment) -> Finding:
    """Test Compute Engine's quota, without which a cluster's node pool stays empty."""
    if not (around["KFP_ENDPOINT"] or around["KFP_PIPELINE_ROOT"]):
        return UNSET, "KFP_ENDPOINT and KFP_PIPELINE_ROOT are not set"
    return _quota(around, "compute.googleapis.com", _is_for_nodes)


def _quota(around: Environment, service: str, is_for: Callable[[Machine, str], bool]) -> Finding:
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


def _get(around: Environment, path: str) -> dict[str, Any]:
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
    return answer.json()


def _short(error: Exception) -> str:
    if type(error).__name__ == "DefaultCredentialsError":
        return "there are no application default credentials"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
