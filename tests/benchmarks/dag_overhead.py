"""What the pipeline costs on top of its work: all steps through the DAG, against the same work as one Python call.

    python tests/benchmarks/dag_overhead.py [REPEATS]

Both sides are whole processes, interpreter and imports included, with an empty state directory each time; then the
unchanged rerun. ``cold`` is the pipeline without its fork server: each step starts as a program of its own.

Prints medians in seconds: wall time, and under ``cpu`` the processor time, which a busy machine distorts less.
The goals on an idle machine: an overhead below 2 s, an unchanged rerun below 1.5 s.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = (
    "from xlnet import recipe; whole = recipe.tiny().replace("
    "data={'train': 'demo:uci_sentences', 'text': 0, 'label': 1}, training={'steps': 2});"
)
PIPELINE = RECIPE + (
    "from xlnet_pipeline.targets import Submission; from xlnet_pipeline.targets.local.target import LocalTarget;"
    "run = LocalTarget(home).submit(Submission(whole));"
    "assert run.status == 'SUCCEEDED', run.error"
)
COLD = (
    "from xlnet_pipeline.targets import processes; from xlnet_pipeline.targets.local import fork_server;"
    "fork_server.ForkServer.spawn = lambda self, *given, check: processes.spawn(*given);"
) + PIPELINE
ONE_CALL = RECIPE + (
    "from xlnet.data.snapshot import take; from xlnet.data.preprocess import preprocess;"
    "from xlnet.training.launch import train; from xlnet.evaluation.evaluate import evaluate;"
    "from xlnet.registry.register import register;"
    "text = whole.to_json(); at = lambda name: f'{home}/{name}';"
    "preprocess(text, take(text).digest, at('dataset'));"
    "train(text, at('dataset'), at('model'));"
    "evaluate(text, at('dataset'), at('model'), at('evaluation'));"
    "register(text, at('dataset'), at('model'), at('evaluation'), at('registration'))"
)


def seconds(code: str, home: Path) -> tuple[float, float]:
    """Wall and processor time of a Python process that runs ``code`` with the name ``home`` set."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "XLNET_PIPELINE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # which would compile each module and the pipeline every time
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", f"home = {str(home)!r}; {code}"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - begun
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Alternate the two sides, so that a busy machine is busy for both."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    times: dict[str, list[tuple[float, float]]] = {"pipeline": [], "cold": [], "one_call": [], "unchanged_rerun": []}
    for turn in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            times["one_call"].append(seconds(ONE_CALL, Path(folder, "one")))
            times["pipeline"].append(seconds(PIPELINE, Path(folder, "many")))
            times["unchanged_rerun"].append(seconds(PIPELINE, Path(folder, "many")))
            times["cold"].append(seconds(COLD, Path(folder, "cold")))
        if turn == 0:  # the first round writes bytecode and compiles the pipeline
            times = {name: [] for name in times}
    wall = {name: statistics.median(one[0] for one in values) for name, values in times.items()}
    cpu = {name: statistics.median(one[1] for one in values) for name, values in times.items()}
    for medians in (wall, cpu):
        medians["overhead"] = medians["pipeline"] - medians["one_call"]
    rounded = {name: round(value, 2) for name, value in wall.items()}
    print(json.dumps({**rounded, "cpu": {name: round(value, 2) for name, value in cpu.items()}, "repeats": repeats}))


if __name__ == "__main__":
    main()
