"""What the pipeline costs on top of its work: all steps through the DAG, against the same work as one Python call.

    python tests/benchmarks/dag_overhead.py [REPEATS]

Both sides are whole processes, interpreter and imports included, with an empty state directory each time; then the
unchanged rerun. Prints medians in seconds. The claim in the README: overhead below 5 s, unchanged rerun below 5 s.
"""

import json
import os
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


def seconds(code: str, home: Path) -> float:
    """Wall time of a Python process that runs ``code`` with the name ``home`` set."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "XLNET_PIPELINE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", f"home = {str(home)!r}; {code}"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begun


def main() -> None:
    """Alternate the two sides, so that a busy machine is busy for both."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    times: dict[str, list[float]] = {"pipeline": [], "one_call": [], "unchanged_rerun": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            times["one_call"].append(seconds(ONE_CALL, Path(folder, "one")))
            times["pipeline"].append(seconds(PIPELINE, Path(folder, "many")))
            times["unchanged_rerun"].append(seconds(PIPELINE, Path(folder, "many")))
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    overhead = round(medians["pipeline"] - medians["one_call"], 2)
    print(json.dumps({**medians, "overhead": overhead, "repeats": repeats}))


if __name__ == "__main__":
    main()
