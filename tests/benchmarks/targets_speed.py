"""What the remote targets cost a user who waits: compiling, submitting, and listing a thousand runs.

    python tests/benchmarks/targets_speed.py [--repeats 5] [--runs 1000] [--json FILE]

Whole commands in processes of their own, against the servers of the tests and an emulated bucket, none of which runs
what it is sent. Prints medians in seconds with the least and the most, in all and beyond what
the servers themselves took.
"""

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
from conftest import PINNED_IMAGE, write_sentences
from servers import execution
from servers.kfp_server import KfpServer
from servers.storage import bucket_server
from servers.vertex_server import VertexServer
from servers.web import WebServer

RECIPE = '[data]\ntrain = "gs://bucket/data/rows.csv"\nmax_length = 32\n[model]\npreset = "tiny"\n'


class Clock:
    """Seconds that a server spends on its answers."""

    def __init__(self, server: WebServer) -> None:
        self.seconds = 0.0
        self._answer = server.answer
        server.answer = self.answer  # type: ignore[method-assign]

    def answer(self, request: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._answer(request)
        finally:
            self.seconds += time.perf_counter() - started


def command(clock: Clock | None, *arguments: str) -> tuple[float, float]:
    """Seconds that a command took, and how many of them were a server's."""
    before, started = clock.seconds if clock else 0.0, time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "xlnet_pipeline", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - started, (clock.seconds if clock else 0.0) - before


def multiply(server: Any, store: dict[str, dict[str, Any]], key: str, count: int) -> None:
    """Let a server have many runs: copies of the one it has."""
    ((name, run),) = list(store.items())
    for number in range(count - 1):
        other = f"{name}{number:04d}"
        store[other] = {**copy.deepcopy(run), key: other}
        server.executions[other] = server.executions[name]


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[Any, str]]]:
    """Both targets' servers by name, with the field that names a run there; the environment names them too."""
    with pytest.MonkeyPatch.context() as patch, bucket_server(patch) as bucket:
        patch.setattr(execution.Execution, "start", lambda self: None)
        bucket.blob("data/rows.csv").upload_from_filename(str(write_sentences(folder / "rows.csv")))
        with KfpServer(folder / "kfp") as kfp, VertexServer(folder / "vertex") as vertex:
            for name, value in {
                "KFP_ENDPOINT": kfp.url,
                "KFP_PIPELINE_ROOT": "gs://bucket/root",
                "VERTEX_ENDPOINT": vertex.url,
                "GOOGLE_OAUTH_ACCESS_TOKEN": "a-token",
                "VERTEX_LOGGING_ENDPOINT": vertex.url,
                "VERTEX_PROJECT_ID": "demo",
                "VERTEX_PIPELINE_ROOT": "gs://bucket/root",
                "XLNET_IMAGE": PINNED_IMAGE,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/registry.db",
            }.items():
                patch.setenv(name, value)
            yield {"kfp": (kfp, "run_id"), "vertex": (vertex, "name")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1000, help="to be listed")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as targets:
        recipe = Path(name, "recipe.toml")
        recipe.write_text(RECIPE)
        pipeline = str(Path(name, "pipeline.yaml"))
        found["compile"] = [command(None, "compile", "-o", pipeline) for _ in range(options.repeats)]
        for target, (server, key) in targets.items():
            clock = Clock(server)
            store = server.runs if target == "kfp" else server.jobs
            submit = ["run", str(recipe), "--target", target]
            found[f"{target}: submit"] = []
            for _ in range(options.repeats):
                store.clear()
                found[f"{target}: submit"].append(command(clock, *submit))
            multiply(server, store, key, options.runs)
            listing = ["runs", "list", "--target", target]
            found[f"{target}: list {options.runs}"] = [command(clock, *listing) for _ in range(options.repeats)]
    for what, times in found.items():
        whole = [seconds for seconds, _ in times]
        beyond = [seconds - servers for seconds, servers in times]
        spread, ours = f"({min(whole):.2f} to {max(whole):.2f})", statistics.median(beyond)
        print(f"{what:18} {statistics.median(whole):5.2f} s {spread:16}  beyond the server {ours:.2f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    os.environ.pop("XLNET_PIPELINE_HOME", None)
    main()
