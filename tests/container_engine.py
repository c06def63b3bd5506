"""A Docker daemon and a base image of the tests' own, on a machine that can pull no image: Debian's packages and root.

The daemon runs with no network of its own (builds and runs name theirs), in a directory of its own, and ends with the
tests. The base image is a minimal Debian from debootstrap with Python, and, in a layer that only tests use, the
machine's certificates and package index. The torch wheel that lies on the machine is offered by a server on loopback.
"""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("dockerd", "docker", "debootstrap")
START = 60.0  # seconds that a daemon has to answer
BASE = "xlnet-tests/base"


def missing() -> str:
    """Why there can be no engine here; empty: there can."""
    if os.getuid() != 0:
        return "a Docker daemon of the tests' own needs root"
    absent = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"not installed: {', '.join(absent)}" if absent else ""


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """A running daemon; yields what DOCKER_HOST has to be. Everything of it is gone afterwards.

    It shares nothing with a daemon that the machine has, and ends when this process is killed, too.
    """
    host = f"unix://{folder}/docker.sock"
    command = ["setpriv", "--pdeathsig=TERM", "dockerd", "--containerd-namespace=xlnet-tests"]
    command += [
        "--containerd-plugins-namespace=xlnet-tests-plugins",
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
        "--host",
        host,
    ]
    command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    process = _started(command, host, folder / "log")
    try:
        yield host
    finally:
        process.terminate()
        process.wait(timeout=60)
        clear(folder)


def _started(command: list[str], host: str, log: Path) -> "subprocess.Popen[bytes]":
    """A daemon that answers; thrice tried, since it gives its containerd 15 seconds, too few on a busy machine."""
    for _ in range(3):
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_administrator()
            )
        patience = time.monotonic() + START
        while process.poll() is None and time.monotonic() < patience:
            if not docker(host, "info", check=False).returncode:
                return process
            time.sleep(0.2)
        process.kill()
        process.wait()
    pytest.fail("dockerd did not start: " + log.read_text()[-500:])


def _administrator() -> dict[str, str]:
    """Our environment, with where Debian keeps programs for root: not every shell of root's looks there."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def clear(folder: Path) -> None:
    """Remove what a daemon that ended leaves; its network namespaces are still mounted."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([one for one in mounts if one.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", mount], check=True)
    shutil.rmtree(folder)


def docker(host: str, *words: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Docker's client against a daemon."""
    environment = {**os.environ, "DOCKER_HOST": host}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        ["docker", *words], env=environment, text=True, capture_output=True, check=check, **options
    )


def buildkit() -> dict[str, str]:
    """Variables with which ``docker build`` uses BuildKit: new clients need their buildx plugin, old ones speak it."""
    for client in filter(None, (shutil.which("docker"), shutil.which("docker", path="/usr/bin"))):
        said = subprocess.run([client, "--version"], capture_output=True, text=True, check=True).stdout
        old = int(said.removeprefix("Docker version ").partition(".")[0]) < 23
        if old or not subprocess.run([client, "buildx", "version"], capture_output=True, check=False).returncode:
            return {"DOCKER_BUILDKIT": "1", "PATH": f"{Path(client).parent}:{os.environ['PATH']}"}
    raise AssertionError("no Docker client here builds with BuildKit; Debian's docker.io does")


CLASSIC = {"DOCKER_BUILDKIT": "0"}


def files(host: str, image: str) -> list[str]:
    """What an image holds: kind, mode, owner and name of all there is, digests of all files but compiled Python."""
    script = (
        "cd /; find bin etc opt usr var tmp ! -name __pycache__ ! -name '*.pyc' -printf '%M %U:%G %p %l\\n' | sort;"
        " find opt usr -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum"
    )
    words = ("run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", image, "-c", script)
    return docker(host, *words).stdout.splitlines()


def import_base(host: str, folder: Path) -> None:
    """Make the base image :data:`BASE`."""
    root, context = folder / "root", folder / "context"
    command = [
        "debootstrap",
        "--variant=minbase",
        "--include=python3,python3-venv,ca-certificates",
        "bookworm",
        str(root),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_administrator())
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / waste)
        (root / waste).mkdir()
    archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    docker(host, "import", "-", f"{BASE}:debian", stdin=archive.stdout)
    assert archive.wait() == 0
    shutil.rmtree(root)
    context.mkdir()
    (context / "pip.conf").write_text("\n".join(["[global]", *_pip_settings()]) + "\n")
    shutil.copy(_certificates(), context / "certificates.crt")
    (context / "Dockerfile").write_text(
        f"FROM {BASE}:debian\nCOPY certificates.crt /etc/ssl/certs/ca-certificates.crt\nCOPY pip.conf /etc/pip.conf\n"
    )
    docker(host, "build", "--tag", BASE, str(context))


def _certificates() -> str:
    return os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"


def _pip_settings() -> list[str]:
    index = _pip("global.index-url")
    return ["cert = /etc/ssl/certs/ca-certificates.crt", *([f"index-url = {index}"] if index else [])]


def _pip(setting: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", setting]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def torch_wheels() -> list[Path]:
    """CPU builds of torch on this machine, where pip's configuration says that wheels are."""
    places = f"{os.environ.get('PIP_FIND_LINKS', '')} {_pip('global.find-links')}".split()
    return sorted({wheel for place in places if "://" not in place for wheel in Path(place).glob("torch-*+cpu-*.whl")})


@contextlib.contextmanager
def torch_index(folder: Path) -> Iterator[str]:
    """Build arguments that make the CPU build of torch come from this machine, if it is here."""
    wheels = torch_wheels()
    if not wheels:
        yield ""
        return
    (folder / "torch").mkdir()
    for wheel in wheels:
        (folder / "torch" / wheel.name).symlink_to(wheel)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *words: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"TORCH_INDEX=http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
