"""Building images: what the engine is told, what is recorded, and what a person reads when it fails.

The engines are stand-ins that record their calls; tests/test_containers.py builds with the real one.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from xlnet.errors import RunError, UserError
from xlnet_pipeline import cli
from xlnet_pipeline.images import build

ID = "sha256:" + "1" * 64
DIGEST = "sha256:" + "2" * 64
DOCKER = r"""
case "$*" in
  info) [ ! -e "$STATE/no-daemon" ] ;;
  "image inspect --format {{.Id}} "*) [ -e "$STATE/built" ] && echo ID ;;
  "image inspect --format {{json .RepoDigests}} "*) echo '["'"${5%:*}"'@DIGEST"]' ;;
  build*) if [ -e "$STATE/fails" ]; then cat "$STATE/fails"; exit 1; fi; echo "Step 1/22"; touch "$STATE/built" ;;
  push*) [ ! -e "$STATE/denied" ] || { echo "denied: requested access"; exit 1; } ;;
esac"""
GCLOUD = r"""
case "$*" in
  "builds submit"*) cp "${3#--config=}" "$STATE/config"; touch "$STATE/built" ;;
  *describe*) [ -e "$STATE/built" ] && echo DIGEST ;;
esac"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with stand-ins for docker and gcloud; its directory holds ``calls``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"docker": DOCKER, "gcloud": GCLOUD}.items():
        text = f'#!/bin/bash\necho "{name} $*" >>"$STATE/calls"\n{body}\n'
        (programs / name).write_text(text.replace("echo ID", f"echo {ID}").replace("DIGEST", DIGEST))
        (programs / name).chmod(0o755)
    for name in ("bash", "sh", "cat", "cp", "touch", "git"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("STATE", str(tmp_path))
    for name in ("CONTAINER_IMAGE_REGISTRY", "CLOUD_BUILD_SA_EMAIL", "CLOUD_BUILD_STAGING", "REGISTRY_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def calls(machine: Path, start: str) -> list[str]:
    path = machine / "calls"
    return [line for line in path.read_text().splitlines() if line.startswith(start)] if path.exists() else []


def xlnet_pipeline(*words: str) -> int:
    return cli.main(["build", *words])


def test_an_image_is_built_once_and_recorded(
    machine: Path, isolated_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert xlnet_pipeline() == 0
    (told,) = calls(machine, "docker build")
    assert "--file containers/Dockerfile --target cpu --tag xlnet-pipeline:cpu-" in told
    assert f"--label org.opencontainers.image.version={build.xlnet.__version__}" in told
    assert told.endswith(" .")
    shown = capsys.readouterr().out
    assert f"digest {ID}\nnext: xlnet-pipeline run --target docker\n" in shown
    found = build.recorded("cpu", isolated_state)
    assert found is not None
    assert (found.reference, found.pushed) == (ID, False)
    assert xlnet_pipeline() == 0
    assert len(calls(machine, "docker build")) == 1
    assert capsys.readouterr().out.startswith(f"nothing changed: {found.tag} is there\n")


def test_a_pushed_image_has_the_registry_s_digest(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xlnet_pipeline("--accelerator", "gpu", "--push", "--registry", "registry.example/team/") == 0
    reference = f"registry.example/team/xlnet-pipeline@{DIGEST}"
    assert f"next: xlnet-pipeline compile -o pipeline.yaml --image {reference}\n" in capsys.readouterr().out
    (told,) = calls(machine, "docker push")
    assert told.startswith("docker push registry.example/team/xlnet-pipeline:gpu-")


def test_an_image_for_kind_goes_to_the_cluster_s_registry(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert xlnet_pipeline("--load-kind", "xlnet") == 0
    reference = f"localhost:5001/xlnet-pipeline@{DIGEST}"
    assert capsys.readouterr().out.endswith(f"next: xlnet-pipeline run --target kfp --wait --image {reference}\n")
    assert calls(machine, "docker push localhost:5001/xlnet-pipeline:cpu-")
    monkeypatch.setenv("REGISTRY_PORT", "5009")
    assert xlnet_pipeline("--load-kind", "xlnet") == 0
    assert calls(machine, "docker push localhost:5009/xlnet-pipeline:cpu-")


def test_the_port_of_kind_s_registry_is_that_of_the_scripts() -> None:
    from xlnet_pipeline.commands.build import KIND_REGISTRY_PORT

    settings = (build.checkout() / "infra/kind/settings.sh").read_text()
    assert f"REGISTRY_PORT:-{KIND_REGISTRY_PORT}}}" in settings


def test_cloud_build_gets_the_same_build(
    machine: Path, isolated_state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTAINER_IMAGE_REGISTRY", "us-docker.pkg.dev/p/xlnet")
    monkeypatch.setenv("CLOUD_BUILD_SA_EMAIL", "xlnet-build@p.iam.gserviceaccount.com")
    monkeypatch.setenv("CLOUD_BUILD_STAGING", "gs://b/cloud-build")
    assert xlnet_pipeline("--accelerator", "tpu", "--cloud-build") == 0
    config = json.loads((machine / "config").read_text())
    (tag,) = config["images"]
    assert tag.startswith("us-docker.pkg.dev/p/xlnet/xlnet-pipeline:tpu-")
    assert config["steps"][0]["args"][:5] == ["build", "--file", "containers/Dockerfile", "--target", "tpu"]
    assert config["serviceAccount"] == "projects/p/serviceAccounts/xlnet-build@p.iam.gserviceaccount.com"
    assert " --gcs-source-staging-dir=gs://b/cloud-build " in calls(machine, "gcloud builds submit")[0]
    assert not calls(machine, "docker")
    found = build.recorded("tpu", isolated_state)
    assert found is not None
    assert found.reference == f"us-docker.pkg.dev/p/xlnet/xlnet-pipeline@{DIGEST}"
    assert xlnet_pipeline("--accelerator", "tpu", "--cloud-build") == 0
    assert len(calls(machine, "gcloud builds submit")) == 1


# --- the fingerprint --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of which files can be changed."""
    copy = tmp_path / "checkout"
    for folder in ("components", "containers"):
        shutil.copytree(build.checkout() / folder, copy / folder)
    monkeypatch.setattr(build, "checkout", lambda: copy)
    return copy


@pytest.mark.parametrize(
    "file",
    [
        "containers/Dockerfile",
        "containers/entry.py",
        "containers/cpu.lock",
        "containers/kfp.lock",
        "components/xlnet/errors.py",
    ],
)
def test_what_goes_in_changes_the_tag(copied: Path, file: str) -> None:
    before = build.Build().tag
    with (copied / file).open("a") as changed:
        changed.write("\n# changed\n")
    assert build.Build().tag != before


def test_what_stays_out_does_not_change_the_tag(copied: Path) -> None:
    before = build.Build().tag
    (copied / "components/xlnet/__pycache__").mkdir(exist_ok=True)
    (copied / "components/xlnet/__pycache__/x.pyc").write_text("x")
    (copied / "containers/gpu.lock").write_text("x")
    assert build.Build().tag == before
    assert build.Build("gpu").tag != before
    assert build.Build(base_image="debian").tag != before
    assert build.Build(arguments=("A=1",)).tag != before
    assert replace(build.Build(), registry="r").tag == f"r/{before}"


def test_the_context_holds_what_the_dockerfile_copies() -> None:
    """An ignored file that is copied fails a build at its end; one that is there and not copied changes layers."""
    root = build.checkout()
    copied = [
        line.split()[1:-1] for line in (root / "containers/Dockerfile").read_text().splitlines() if "COPY" in line
    ]
    sources = {word for words in copied for word in words if not word.startswith(("--", "/opt"))}
    kept = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    within = [[path, *path.parents] for path in map(Path, sources)]
    assert all(any(path.match(pattern) for path in paths for pattern in kept) for paths in within)
    assert all((root / source).exists() for source in sources)


def test_every_accelerator_has_a_stage_and_a_lock_of_hashes() -> None:
    containers = build.checkout() / "containers"
    assert "\nFROM cpu AS serve\n" in (containers / "Dockerfile").read_text()
    for accelerator in build.ACCELERATORS[:-1]:
        assert f"\nFROM runtime AS {accelerator}\n" in (containers / "Dockerfile").read_text()
        lock = (containers / f"{accelerator}.lock").read_text()
        names = [line for line in lock.splitlines() if "==" in line]
        assert len(names) > 50
        assert lock.count("--hash=sha256:") >= len(names)
    assert "torch==2.13.0+cpu" in (containers / "cpu.lock").read_text()


def test_the_locks_hold_the_versions_that_were_tested() -> None:
    root = build.checkout()
    pins = dict(
        line.lower().split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for name in ("cpu", "gpu", "kfp"):
        for line in (root / f"containers/{name}.lock").read_text().splitlines():
            package, _, version = line.rstrip(" \\").partition("==")
            if version and package.lower() in pins:
                assert version.partition("+")[0] == pins[package.lower()], f"{package}: run containers/lock.sh"


# --- mistakes ---------------------------------------------------------------------------------------------------------


def error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_no_engine_and_no_daemon(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "no-daemon").touch()
    assert xlnet_pipeline() == 2
    assert "no docker daemon answers; start it (systemctl start docker)" in error(capsys)
    assert xlnet_pipeline("--engine", "podman") == 2
    assert error(capsys) == "error: podman is not installed; install Docker or Podman"
    assert xlnet_pipeline("--engine", "rkt") == 2
    assert error(capsys) == "error: engine 'rkt' is unknown; allowed: docker, podman"


def test_wrong_words(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xlnet_pipeline("--accelerator", "npu") == 2
    assert error(capsys) == "error: accelerator 'npu' is unknown; allowed: cpu, gpu, tpu, tpu-native, serve"
    assert xlnet_pipeline("--push") == 2
    assert "--push needs a registry; type --registry HOST/PATH" in error(capsys)
    assert xlnet_pipeline("--cloud-build") == 2
    assert "--cloud-build needs a registry" in error(capsys)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("manifest unknown: manifest unknown", UserError, "base image 'x:1' cannot be pulled: .*--base-image IMAGE"),
        ("write /opt/venv/x: no space left on device", RunError, "no space left on device while building; free some"),
        ("ERROR: hashes do not match", RunError, "the build failed: ERROR: hashes do not match"),
    ],
)
def test_a_build_that_fails(machine: Path, said: str, kind: type[Exception], message: str) -> None:
    (machine / "fails").write_text(f"Step 1/22\n{said}\n")
    with pytest.raises(kind, match=message):
        build.build(build.Build(base_image="x:1"), machine, program="docker", say=lambda text: None)
    assert build.recorded("cpu", machine) is None


def test_sources_that_change_while_they_are_built(machine: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(line: str) -> None:
        if line.startswith("building "):
            (copied / "components/xlnet/errors.py").write_text("# changed\n")

    with pytest.raises(RunError, match="the sources changed while they were built into an image; build again"):
        build.build(build.Build(), machine, program="docker", say=edit)
    assert build.recorded("cpu", machine) is None
    assert f"rmi {build.NAME}:cpu-" in (machine / "calls").read_text()


def test_a_push_that_is_denied(machine: Path) -> None:
    (machine / "denied").touch()
    with pytest.raises(RunError, match="cannot push .*denied.*; sign in first: docker login r.example"):
        build.build(build.Build(registry="r.example/x"), machine, program="docker", push=True, say=lambda text: None)


def test_an_installed_package_builds_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.xlnet, "__file__", str(tmp_path / "site-packages/xlnet/__init__.py"))
    with pytest.raises(UserError, match="images are built from a checkout"):
        build.checkout()
