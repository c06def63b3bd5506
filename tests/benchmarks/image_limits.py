"""Measure what the CPU image promises: its size, a rebuild after a changed line, a container's start, ``import xlnet``.

    python tests/benchmarks/image_limits.py --json FILE            # as root, with docker.io and debootstrap

Builds the image with a Docker daemon of its own, out of a copy of the checkout, with both of Docker's builders in turn
(--builders classic for one). Prints a table, writes the figures as JSON, exits with 1 if a limit is broken. About ten
minutes on two cores; times are the fastest of --repeats.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from demo_limits import Limit

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests"))
import container_engine as engine  # noqa: E402

IMPORT = "import time; begun = time.perf_counter(); import xlnet.training.loop; print(time.perf_counter() - begun)"


def build(copy: Path, host: str, builder: dict[str, str], arguments: list[str]) -> tuple[float, str]:
    """Build the image of a checkout; seconds and the image's digest."""
    command = [sys.executable, "-m", "xlnet_pipeline", "--home", str(copy / "home"), "build", "--network=host"]
    command += ["--base-image", engine.BASE, *(f"--build-arg={argument}" for argument in arguments)]
    environment = {**os.environ, **builder, "DOCKER_HOST": host, "PYTHONPATH": f"{copy}/components:{copy}/pipeline"}
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr)
    digest = next(line for line in done.stdout.splitlines() if line.startswith("digest "))
    return time.perf_counter() - begun, digest.removeprefix("digest ")


def rebuild(copy: Path, build_again: Callable[[], tuple[float, str]]) -> float:
    """Seconds until an image has a changed line."""
    with (copy / "components/xlnet/evaluation/report.py").open("a") as file:
        file.write("# a changed line\n")
    return build_again()[0]


def measure(builder: str, host: str, folder: Path, arguments: list[str], repeats: int) -> list[Limit]:
    """Every promise about the image that one builder makes."""
    copy = folder / builder
    for name in ("components", "pipeline", "containers"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / ".dockerignore", copy)
    variables = engine.CLASSIC if builder == "classic" else engine.buildkit()
    first, image = build(copy, host, variables, arguments)
    print(f"{builder}: built from nothing in {first:.0f} s", flush=True)

    def run(code: str) -> tuple[float, str]:
        begun = time.perf_counter()
        said = engine.docker(host, "run", "--rm", "--network=none", image, "python", "-c", code).stdout
        return time.perf_counter() - begun, said

    size = int(engine.docker(host, "image", "inspect", "--format", "{{.Size}}", image).stdout)
    start = min(run("print('a step')")[0] for _ in range(repeats))
    imported = min(float(run(IMPORT)[1]) for _ in range(repeats))
    again = min(rebuild(copy, lambda: build(copy, host, variables, arguments)) for _ in range(repeats))
    return [
        Limit(f"{builder}: size", size / 1e9, 1.2, "GB"),
        Limit(f"{builder}: rebuild after a line", again, 20, "s"),
        Limit(f"{builder}: start to first line", start, 1.5, "s"),
        Limit(f"{builder}: import xlnet", imported, 2.5, "s"),
    ]


def main() -> int:
    """Measure, print and write; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("image_limits.json"), help="where the figures go")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement but the first build")
    parser.add_argument("--builders", nargs="+", default=["classic", "buildkit"], choices=["classic", "buildkit"])
    options = parser.parse_args()
    if reason := engine.missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("engine", "base", "index"):
            (folder / part).mkdir()
        with engine.daemon(folder / "engine") as host, engine.torch_index(folder / "index") as index:
            engine.import_base(host, folder / "base")
            arguments = [index] if index else []
            limits = [
                limit
                for builder in options.builders
                for limit in measure(builder, host, folder, arguments, options.repeats)
            ]
    for one in limits:
        verdict = "holds" if one.holds() else "BROKEN"
        print(f"{one.name:<32} {one.measured:8.2f} {one.unit:<3} limit {one.allowed:g} {one.unit:<3} {verdict}")
    options.json.write_text(json.dumps({"limits": [vars(one) for one in limits]}, indent=1) + "\n")
    return 0 if all(one.holds() for one in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
