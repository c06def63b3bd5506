"""Builds the images that steps run in, with Docker, Podman or Cloud Build.

An image's tag is a fingerprint of everything that goes into it, so an unchanged image is not built again.
``images.json`` in the state directory records the built images.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import xlnet
from xlnet import provenance
from xlnet.errors import RunError, UserError
from xlnet_pipeline.targets import processes

ACCELERATORS = ("cpu", "gpu", "tpu", "tpu-native", "serve")  # serve: serves a model over HTTP, on CPUs
NAME = "xlnet-pipeline"
ENGINES = ("docker", "podman")
RECORD = "images.json"

_NO_BASE = re.compile(
    r"pull access denied|manifest unknown|not found: manifest|name unknown|unable to pull|failed to resolve source"
    r"|(Get|Head) .?https?://[^ ]*/v2/"
)
_NO_SPACE = re.compile(r"no space left on device", re.IGNORECASE)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """A built image. Pass its ``reference`` to ``compile`` or ``docker run``."""

    accelerator: str
    tag: str  # NAME:FINGERPRINT
    digest: str  # the manifest's digest in the registry; for an image that was never pushed, its id
    pushed: bool
    created: str

    @property
    def reference(self) -> str:
        """``NAME@sha256:…`` of a pushed image; the id of an image that only this machine has."""
        return f"{self.tag.rpartition(':')[0]}@{self.digest}" if self.pushed else self.digest


@dataclass(frozen=True)
class Build:
    """What to build, and from which inputs."""

    accelerator: str = "cpu"
    registry: str = ""  # prefix of the name; required for a push
    base_image: str = ""  # empty: the Dockerfile's default
    arguments: tuple[str, ...] = ()  # further build arguments, NAME=VALUE
    network: str = ""  # during the build; empty: the engine's default

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise UserError(f"accelerator '{self.accelerator}' is unknown; allowed: {', '.join(ACCELERATORS)}")

    @property
    def tag(self) -> str:
        """``NAME:FINGERPRINT`` of the image."""
        name = f"{self.registry.rstrip('/')}/{NAME}" if self.registry else NAME
        return f"{name}:{self.accelerator}-{self.fingerprint()[7:23]}"

    def fingerprint(self) -> str:
        """``sha256:`` of the Dockerfile, the locks, our sources and the arguments."""
        root = checkout()
        lock = "cpu.lock" if self.accelerator == "serve" else f"{self.accelerator}.lock"
        files = [root / "containers" / one for one in ("Dockerfile", "install.sh", "entry.py", "kfp.lock", lock)]
        files += sorted(path for path in (root / "components").rglob("*") if path.is_file() and _is_source(path))
        digests = [[file.relative_to(root).as_posix(), provenance.digest_file(file)] for file in files]
        return provenance.digest_json([digests, self.base_image, list(self.arguments)])

    def options(self) -> list[str]:
        """Return the options of ``docker build``, except for the destination of the image."""
        chosen = [f"BASE_IMAGE={self.base_image}"] if self.base_image else []
        revision = provenance.git_sha()
        facts = {"revision": revision, "version": xlnet.__version__, "source": _source_url()}
        options = ["--file", "containers/Dockerfile", "--target", self.accelerator, "--tag", self.tag]
        for argument in (*chosen, *self.arguments, f"REVISION={revision}"):
            options += ["--build-arg", argument]
        for name, value in facts.items():
            options += ["--label", f"org.opencontainers.image.{name}={value}"]
        return options + (["--network", self.network] if self.network else [])


def checkout() -> Path:
    """Return the source tree that contains this package.

    Raises:
        UserError: the package was installed without its source tree, which an image build needs.
    """
    root = Path(xlnet.__file__).resolve().parents[2]
    if not (root / "containers" / "Dockerfile").is_file():
        raise UserError("images are built from a checkout, and this is an installed package; clone the project first")
    return root


def _source_url() -> str:
    """Return the repository's URL inside a GitHub workflow. Empty elsewhere, so that a private remote stays private."""
    server, repository = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
    return f"{server}/{repository}" if server and repository else ""


def _is_source(path: Path) -> bool:
    return "__pycache__" not in path.parts and not any(part.endswith(".egg-info") for part in path.parts)


def engine(name: str = "") -> str:
    """Return the program that builds and runs images: ``name``, else docker, else podman.

    Raises:
        UserError: no such program is installed, or its daemon does not answer.
    """
    if name and name not in ENGINES:
        raise UserError(f"engine '{name}' is unknown; allowed: {', '.join(ENGINES)}")
    found = next((one for one in ([name] if name else ENGINES) if shutil.which(one)), None)
    if not found:
        raise UserError(f"{' or '.join([name] if name else ENGINES)} is not installed; install Docker or Podman")
    answer = subprocess.run([found, "info"], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(
            f"no {found} daemon answers; start it (systemctl start {found}), or set DOCKER_HOST to where it is"
        )
    return found


def build(wanted: Build, home: Path, *, program: str, push: bool = False, say: Say) -> Image:
    """Build an image unless the engine already has it, and record it.

    Args:
        wanted: what to build.
        home: the state directory, which holds the record.
        program: ``docker`` or ``podman``.
        push: also push it, so that it gets a digest that other machines can use.
        say: called with each line of the engine's output.

    Raises:
        UserError: there is no base image, or no registry to push to.
        RunError: the build failed, for instance because the disk is full.
    """
    if push and not wanted.registry:
        raise UserError("--push needs a registry; type --registry HOST/PATH or set CONTAINER_IMAGE_REGISTRY")
    tag = wanted.tag
    identity = image_id(program, tag)
    if identity:
        say(f"nothing changed: {tag} is there")
    else:
        say(f"building {tag}")
        lines = _run([program, "build", *wanted.options(), "."], say)
        if lines is not None:
            raise _build_failure(lines, wanted)
        if wanted.tag != tag:
            subprocess.run([program, "rmi", tag], capture_output=True, check=False)
            raise RunError("the sources changed while they were built into an image; build again")
        identity = image_id(program, tag)
        if not identity:
            raise RunError(f"{program} reported success, but has no image '{tag}'; type: {program} images")
    digest = _pushed(program, tag, say) if push else identity
    return record(Image(wanted.accelerator, tag, digest, push, provenance.now()), home)


def build_in_cloud(wanted: Build, home: Path, say: Say) -> Image:
    """Build and push an image with Cloud Build, and record it.

    Raises:
        UserError: gcloud is not installed, or no registry is named.
        RunError: the build failed.
    """
    if not shutil.which("gcloud"):
        raise UserError("'gcloud' is not installed; see https://cloud.google.com/sdk/docs/install")
    if not wanted.registry:
        raise UserError("--cloud-build needs a registry; type --registry HOST/PATH or set CONTAINER_IMAGE_REGISTRY")
    digest = _cloud_digest(wanted.tag)
    if digest:
        say(f"nothing changed: {wanted.tag} is there")
    else:
        say(f"building {wanted.tag} on Cloud Build")
        steps = {
            "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", *wanted.options(), "."]}],
            "images": [wanted.tag],
            "options": {"logging": "CLOUD_LOGGING_ONLY", "machineType": "E2_HIGHCPU_8"},
            "timeout": "3600s",
        }
        account = os.environ.get("CLOUD_BUILD_SA_EMAIL")
        if account:
            project = account.partition("@")[2].removesuffix(".iam.gserviceaccount.com")
            steps["serviceAccount"] = f"projects/{project}/serviceAccounts/{account}"
        config = home / "cloudbuild.json"
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(steps), encoding="utf-8")
        command = ["gcloud", "builds", "submit", f"--config={config}", "--ignore-file=.dockerignore"]
        staging = os.environ.get("CLOUD_BUILD_STAGING")  # a bucket that the account above can read
        command += [f"--gcs-source-staging-dir={staging}"] if staging else []
        lines = _run([*command, "."], say)
        digest = _cloud_digest(wanted.tag)
        if lines is not None or not digest:
            raise RunError(f"the build on Cloud Build failed: {_last(lines or [])}")
    return record(Image(wanted.accelerator, wanted.tag, digest, True, provenance.now()), home)


def _cloud_digest(tag: str) -> str:
    command = ["gcloud", "artifacts", "docker", "images", "describe", tag, "--format=value(image_summary.digest)"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def image_id(program: str, reference: str) -> str:
    """Return ``sha256:…`` of an image in the engine. Empty if the engine has no image of that name."""
    command = [program, "image", "inspect", "--format", "{{.Id}}", reference]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"sha256:{found.removeprefix('sha256:')}" if found else ""


def _pushed(program: str, tag: str, say: Say) -> str:
    lines = _run([program, "push", tag], say)
    if lines is not None:
        host = tag.partition("/")[0]
        raise RunError(f"cannot push '{tag}': {_last(lines)}; sign in first: {program} login {host}")
    command = [program, "image", "inspect", "--format", "{{json .RepoDigests}}", tag]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name = tag.rpartition(":")[0]
    digests: list[str] = [one.partition("@")[2] for one in json.loads(shown) if one.partition("@")[0] == name]
    if not digests:
        raise RunError(f"'{tag}' was pushed, but {program} knows no digest of it; type: {program} image inspect {tag}")
    return digests[0]


def _run(command: Sequence[str], say: Say) -> list[str] | None:
    """Run a program in the checkout and pass its output to ``say``. Return its lines if it failed, else None."""
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        say(f"  {text}")

    stop = processes.Cancellation()
    try:
        with stop.on_signals():
            status = processes.run(command, {}, processes.Watch(BytesIO(), line, stop), directory=checkout())
    except processes.Stopped:
        raise KeyboardInterrupt from None
    return lines if status else None


def _build_failure(lines: list[str], wanted: Build) -> UserError | RunError:
    text = "\n".join(lines[-40:])
    if _NO_SPACE.search(text):
        return RunError("no space left on device while building; free some (docker system prune) and build again")
    if _NO_BASE.search(text):
        base = wanted.base_image or "the Dockerfile's base image"
        return UserError(f"base image '{base}' cannot be pulled: {_last(lines)}; name another: --base-image IMAGE")
    return RunError(f"the build failed: {_last(lines)}")


def _last(lines: list[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def record(image: Image, home: Path) -> Image:
    """Record the image as the latest one for its accelerator."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / RECORD
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    provenance.replace_file(path, json.dumps({**known, image.accelerator: asdict(image)}, indent=1))
    return image


def recorded(accelerator: str, home: Path) -> Image | None:
    """Return the latest image built for an accelerator. None if there is none."""
    path = home / RECORD
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Image(**known[accelerator]) if accelerator in known else None
