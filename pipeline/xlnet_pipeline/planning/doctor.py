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
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from xlnet import http
from xlnet.errors import UserError
from xlnet_pipeline.planning import google_probes
from xlnet_pipeline.planning.diagnosis import BAD, OK, TIMEOUT, UNSET, Diagnosis, Environment, Finding

PATIENCE = 20.0  # time-out of one probe, seconds
VARIABLES = re.compile(r"[A-Z][A-Z0-9_]*")
SECRET = re.compile(
    "TOKEN|(?<!^KFP_REGISTRY_)SECRET|PASSWORD|KEY"
)  # KFP_REGISTRY_SECRET holds the name of a secret, not a secret


def probe(around: Environment) -> list[Diagnosis]:
    """Run all probes in parallel and return their results in a fixed order."""
    with ThreadPoolExecutor(len(PROBES)) as pool:
        started = {name: pool.submit(function, around) for name, function in PROBES.items()}
        return [_result(name, future) for name, future in started.items()]


def _result(name: str, future: Future[Finding]) -> Diagnosis:
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
        raise UserError("--from-terraform: there is no output 'environment'; run it in infra/terraform, applied")
    wrong = [
        name for name, value in values.items() if not VARIABLES.fullmatch(name) or not isinstance(value, str | None)
    ]
    if wrong:
        raise UserError(
            f"--from-terraform: environment.{wrong[0]} is not a variable with a string; apply infra/terraform"
        )
    return {name: value for name, value in values.items() if value}


def variables(around: Environment) -> Finding:
    """Test that the shell has the variables that terraform's output names."""
    if around.exported is None:
        return UNSET, "no terraform outputs were given"
    if not around.exported:
        return OK, "the shell has all of terraform's outputs"
    shown = {name: "…" if SECRET.search(name) else shlex.quote(value) for name, value in around.exported.items()}
    lines = " ".join(f"{name}={value}" for name, value in sorted(shown.items()))
    return BAD, f"the shell lacks {len(around.exported)} of terraform's outputs", f"export {lines}"


def packages(around: Environment) -> Finding:
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


def kfp_endpoint(around: Environment) -> Finding:
    """Ask Kubeflow Pipelines for its health."""
    endpoint = around["KFP_ENDPOINT"].rstrip("/")
    if not endpoint:
        return UNSET, "KFP_ENDPOINT is not set", "export KFP_ENDPOINT=http://127.0.0.1:8080"
    forward = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
    if not endpoint.startswith(("http://", "https://")):
        return BAD, f"KFP_ENDPOINT '{endpoint}' is not a URL", f"export KFP_ENDPOINT=https://{endpoint}"
    headers = {"Authorization": f"Bearer {around['KFP_TOKEN']}"} if around["KFP_TOKEN"] else {}
    import requests

    try:
        answer = requests.get(f"{endpoint}/apis/v2beta1/healthz", headers=headers, timeout=TIMEOUT)
        answer.raise_for_status()
        found = answer.json()
    except requests.HTTPError as error:
        status = error.response.status_code
        known = {401: ("unknown to it", "export KFP_TOKEN=…"), 403: ("refused", "export KFP_TOKEN=…")}
        what, repair = known.get(status, (f"answers {status}", "kubectl get pods -n kubeflow"))
        return BAD, f"{endpoint}: {what}", repair
    except requests.JSONDecodeError:
        return BAD, f"{endpoint} cannot be reached (it is something else)", forward
    except (OSError, ValueError) as error:
        return BAD, f"{endpoint} cannot be reached ({http.short(error)[:80]})", forward
    users = ", with users of their own" if isinstance(found, dict) and found.get("multi_user") else ""
    return OK, f"{endpoint}{users}"


def docker(around: Environment) -> Finding:
    """Test that Docker's daemon answers."""
    return _tool(
        "docker",
        ["info", "--format", "{{.ServerVersion}}"],
        "the daemon does not answer",
        "sudo systemctl start docker",
    )


def kind(around: Environment) -> Finding:
    """Test for kind (Kubernetes in Docker)."""
    return _tool("kind", ["version"], "does not run", "kind version")


def kubectl(around: Environment) -> Finding:
    """Test that kubectl reaches a cluster."""
    arguments = ["config", "current-context"]
    return _tool(
        "kubectl", arguments, "has no cluster", "gcloud container clusters get-credentials NAME --region=REGION"
    )


def gpu(around: Environment) -> Finding:
    """Test for NVIDIA's driver, and for a torch build that supports it."""
    if not shutil.which("nvidia-smi"):
        return UNSET, "no NVIDIA driver here"
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    state, detail, *repair = _tool("nvidia-smi", query, "the driver does not answer", "nvidia-smi")
    if state == OK and _version("torch").endswith("+cpu"):
        return BAD, f"{detail}; torch was built without CUDA", "pip install --force-reinstall torch"
    return state, detail, *repair


def tpu(around: Environment) -> Finding:
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


def _tool(name: str, arguments: list[str], failed: str, repair: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return UNSET, f"{name} is not installed"
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return BAD, failed, repair
    said = " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    return (BAD, failed, repair) if done.returncode or not said else (OK, said[:120])


PROBES: dict[str, Callable[[Environment], Finding]] = {
    "packages": packages,
    "variables": variables,
    "kfp endpoint": kfp_endpoint,
    "credentials": google_probes.credentials,
    "bucket": google_probes.bucket,
    "project services": google_probes.services,
    "quota": google_probes.quota,
    "node quota": google_probes.node_quota,
    "docker": docker,
    "kind": kind,
    "kubectl": kubectl,
    "gpu": gpu,
    "tpu": tpu,
}
