"""infra/kind: the scripts run against stand-ins for kind, kubectl and docker that record how they were called.

No cluster can be made where the tests run. The stand-ins keep what was made in a directory, so that a second run, a
half-made cluster and a removal can be tried; what they are told is what the real programs would be told.
"""

import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "infra" / "kind"

STAND_INS = {
    "kind": r"""
case "$1 $2" in
  "version ") echo "kind v0.$(cat "$STATE/kind-version" 2>/dev/null || echo 30).0 go1.24.6 linux/amd64" ;;
  "get clusters") cat "$STATE/clusters" 2>/dev/null ;;
  "get nodes") printf 'x-control-plane\nx-worker\nx-worker2\n' ;;
  "create cluster") cat >"$STATE/config.yaml"; echo "$4" >>"$STATE/clusters" ;;
  "delete cluster") rm -f "$STATE/clusters" ;;
esac""",
    "kubectl": r"""
case "$*" in
  *"get --raw /readyz"*) [ ! -e "$STATE/dead" ] || { rm "$STATE/dead"; exit 1; } ;;
  *fake=gpu*) echo node/x-worker ;;
  *fake=tpu*) echo node/x-worker2 ;;
  *"jsonpath={.data.accesskey}"*) printf minio | base64 ;;
  *"jsonpath={.data.secretkey}"*) printf minio123 | base64 ;;
  *"get deployments"*) printf 'deployment.apps/ml-pipeline\ndeployment.apps/mlflow\n' ;;
  *"rollout status deployment.apps/mlflow"*) [ ! -e "$STATE/slow" ] ;;
esac""",
    "docker": r"""
case "$*" in
  "info") [ ! -e "$STATE/no-daemon" ] ;;
  *NCPU*) cat "$STATE/cpus" ;;
  *MemTotal*) echo 16600000000 ;;
  *DockerRootDir*) echo "$STATE" ;;
  "inspect "*) [ -e "$STATE/registry" ] && echo true ;;
  "run -d"*) touch "$STATE/registry" ;;
  "rm -f"*) rm -f "$STATE/registry" ;;
  "image inspect built"*) exit 0 ;;
  "image inspect "*) exit 1 ;;
  "exec -i "*) { echo "$3: $*"; cat; } >>"$STATE/hosts" ;;
esac""",
    "git": "",
}


@dataclass
class Machine:
    """A machine with stand-ins, and what they were told."""

    folder: Path
    environment: dict[str, str]

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, script: str, **settings: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").unlink(missing_ok=True)
        command = ["bash", str(FOLDER / script)]
        environment = {**self.environment, **settings}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a Docker daemon of 8 CPUs and 16 GB, and no cluster."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        path = programs / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$STATE/calls"\n{body}\n')
        path.chmod(0o755)
    for name in ("bash", "sh", "sed", "grep", "df", "tail", "cat", "rm", "touch", "dirname", "env", "base64"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "cpus").write_text("8\n")
    settings = {"UI_PORT": str(free_port()), "REGISTRY_PORT": str(free_port()), "NEEDS_DISK_GIB": "0"}
    settings["SETTINGS_FILE"] = str(tmp_path / "kind.env")
    return Machine(tmp_path, {"PATH": str(programs), "STATE": str(tmp_path), "HOME": str(tmp_path), **settings})


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[str]:
    """A port that somebody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield str(held.getsockname()[1])


def test_up_makes_everything_in_order_and_says_where_it_is(machine: Machine) -> None:
    done = machine.run("up.sh")
    assert done.returncode == 0, done.stderr
    told = "\n".join(machine.calls)
    order = [
        "docker run -d --restart=unless-stopped",
        "kind create cluster --name xlnet --image kindest/node:v1.34.0@sha256:",
        "docker network connect kind xlnet-registry",
        "taint nodes -l node-role.kubernetes.io/control-plane node-role.kubernetes.io/control-plane:NoSchedule-",
        "taint --overwrite node/x-worker nvidia.com/gpu=present:NoSchedule",
        "taint --overwrite node/x-worker2 google.com/tpu=present:NoSchedule",
        "manifests/kustomize/cluster-scoped-resources?ref=2.17.0",
        "wait --for=condition=established",
        "manifests/kustomize/env/platform-agnostic?ref=2.17.0",
        "apply --server-side --force-conflicts -f https://github.com/kubernetes-sigs/jobset/releases/download/v0.12.0/",
        "apply -k ../kustomize/overlays/kind",
        "rollout status deployment.apps/ml-pipeline --timeout=600s",
        "rollout status deployment.apps/mlflow",
    ]
    places = [told.find(one) for one in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)
    assert f"http://localhost:{machine.environment['UI_PORT']}" in done.stdout
    assert "waiting for ml-pipeline" in done.stdout
    written = machine.folder / "kind.env"
    assert written.stat().st_mode & 0o077 == 0, "it holds the storage's keys"
    values = dict(line.split("=", 1) for line in written.read_text().splitlines())
    assert values == {
        "KFP_ENDPOINT": f"http://localhost:{machine.environment['UI_PORT']}",
        "KFP_PIPELINE_ROOT": "minio://mlpipeline/v2/artifacts",
        "KFP_SERVICE_ACCOUNT": "xlnet-steps",
        "KFP_REGISTRY_SECRET": "xlnet-registry",
        "AWS_ENDPOINT_URL_S3": "http://localhost:9000",
        "AWS_ACCESS_KEY_ID": "minio",
        "AWS_SECRET_ACCESS_KEY": "minio123",
    }
    assert "set -a; . kind.env; set +a" in done.stdout
    kubectl = [call for call in machine.calls if call.startswith("kubectl")]
    assert kubectl
    assert all("--context kind-xlnet" in call for call in kubectl), "another cluster must never be touched"


def test_the_cluster_is_described_to_kind_with_the_chosen_port(machine: Machine) -> None:
    assert machine.run("up.sh").returncode == 0
    config = yaml.safe_load((machine.folder / "config.yaml").read_text())
    (port,) = config["nodes"][0]["extraPortMappings"]
    assert port == {
        "containerPort": 31380,
        "hostPort": int(machine.environment["UI_PORT"]),
        "listenAddress": "127.0.0.1",
    }
    assert any("nodePort" in call and "31380" in call for call in machine.calls)
    labels = [node.get("labels", {}) for node in config["nodes"]]
    assert labels[0]["cloud.google.com/gke-spot"] == "true"
    assert labels[1]["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert labels[2]["cloud.google.com/gke-tpu-topology"] == "2x2"


def test_a_second_run_makes_nothing_twice(machine: Machine) -> None:
    assert machine.run("up.sh").returncode == 0
    done = machine.run("up.sh")
    assert done.returncode == 0, done.stderr
    assert not [call for call in machine.calls if "create cluster" in call or call.startswith("docker run")]
    assert [call for call in machine.calls if "apply -k ../kustomize" in call], "it repairs what is missing"


def test_a_half_made_cluster_is_made_again(machine: Machine) -> None:
    (machine.folder / "clusters").write_text("xlnet\n")
    (machine.folder / "dead").touch()
    done = machine.run("up.sh")
    assert done.returncode == 0, done.stderr
    told = "\n".join(machine.calls)
    assert -1 < told.find("kind delete cluster --name xlnet") < told.find("kind create cluster --name xlnet")


def test_nodes_reach_registries_through_a_mirror(machine: Machine) -> None:
    assert machine.run("up.sh", REGISTRY_MIRROR="https://mirror.example").returncode == 0
    hosts = (machine.folder / "hosts").read_text()
    for node in ("x-control-plane", "x-worker", "x-worker2"):
        for registry in ("docker.io", "ghcr.io", "quay.io"):
            assert re.search(rf"^{node}: .*certs\.d/{registry}/hosts\.toml", hosts, re.MULTILINE)
    blocks = re.findall(r"^\[host\.\".*?\n  capabilities.*?$", hosts, re.MULTILINE | re.DOTALL)
    found = {name for block in blocks for name in tomllib.loads(block)["host"]}
    assert found == {"https://mirror.example", "http://xlnet-registry:5000"}


def test_manifests_of_a_checkout_are_used_where_there_are_some(machine: Machine) -> None:
    manifests = machine.folder / "kustomize"
    manifests.mkdir()
    assert machine.run("up.sh", KFP_MANIFESTS=str(manifests)).returncode == 0
    assert any(call.endswith(f"-k {manifests}/env/platform-agnostic") for call in machine.calls)


def test_an_image_is_pushed_where_nodes_find_it(machine: Machine) -> None:
    done = machine.run("up.sh", IMAGE="built:1")
    assert done.returncode == 0, done.stderr
    assert f"docker push localhost:{machine.environment['REGISTRY_PORT']}/built:1" in machine.calls


def test_down_removes_what_up_made_and_nothing_else(machine: Machine) -> None:
    assert machine.run("up.sh").returncode == 0
    assert machine.run("down.sh").returncode == 0
    assert "kind delete cluster --name xlnet" in machine.calls
    assert "docker rm -f -v xlnet-registry" in machine.calls
    assert not (machine.folder / "clusters").exists()
    again = machine.run("down.sh")
    assert again.returncode == 0
    assert "there is no cluster 'xlnet'" in again.stdout
    assert not [call for call in machine.calls if "delete cluster" in call]


def refused(machine: Machine, script: str = "up.sh", **settings: str) -> str:
    """The one line on standard error of a run that made nothing."""
    done = machine.run(script, **settings)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("program", ["kind", "kubectl", "docker", "git"])
def test_a_missing_program_is_named(machine: Machine, program: str) -> None:
    (machine.folder / "bin" / program).unlink()
    assert f"'{program}' is not installed; " in refused(machine)
    assert not [call for call in machine.calls if "create" in call or "run -d" in call]


@pytest.mark.parametrize("script", ["up.sh", "down.sh"])
def test_no_docker_daemon(machine: Machine, script: str) -> None:
    (machine.folder / "no-daemon").touch()
    assert "no Docker daemon answers; start it" in refused(machine, script)


def test_too_small_a_machine_is_refused_before_anything_is_made(machine: Machine) -> None:
    (machine.folder / "cpus").write_text("2\n")
    assert "Docker has 2 CPUs, 4 are needed; give it more, or try all the same: NEEDS_CPUS=2" in refused(machine)
    (machine.folder / "cpus").write_text("8\n")
    assert "Docker has 16 GiB of memory, 99 are needed" in refused(machine, NEEDS_MEMORY_GIB="99")
    assert "GiB of disk are free below" in refused(machine, NEEDS_DISK_GIB="9999999")
    assert not [call for call in machine.calls if "create" in call or "run -d" in call]


def test_a_kind_that_is_too_old(machine: Machine) -> None:
    (machine.folder / "kind-version").write_text("26")
    assert "kind 0.26 is too old, 0.27 or newer is needed" in refused(machine)
    assert not [call for call in machine.calls if "create" in call or "run -d" in call]


def test_a_taken_port(machine: Machine, taken_port: str) -> None:
    message = f"port {taken_port} is taken; choose another: {{}}={int(taken_port) + 1} make kind-up"
    assert message.format("UI_PORT") in refused(machine, UI_PORT=taken_port)
    (machine.folder / "registry").unlink()
    assert message.format("REGISTRY_PORT") in refused(machine, REGISTRY_PORT=taken_port)


def test_an_image_that_was_not_built(machine: Machine) -> None:
    assert "image 'absent:1' is not in Docker; build it first" in refused(machine, IMAGE="absent:1")


def test_a_part_that_does_not_become_ready(machine: Machine) -> None:
    (machine.folder / "slow").touch()
    assert "'mlflow' is not ready after 600 s (pods above); run make kind-up again" in refused(machine)


def test_kfp_is_of_the_sdk_s_line() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    (sdk,) = [one for one in project["optional-dependencies"]["pipeline"] if one.startswith("kfp~=")]
    settings = (FOLDER / "settings.sh").read_text()
    assert f"KFP_VERSION:-{sdk.removeprefix('kfp~=')}" in settings


@pytest.mark.parametrize(("target", "script"), [("kind-up", "up.sh"), ("kind-down", "down.sh")])
def test_make_runs_the_scripts(target: str, script: str) -> None:
    shown = subprocess.run(["make", "-n", target], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert shown.split() == [f"infra/kind/{script}"]
