"""What a second process brings, and what checkpoints cost: tokens/s of the whole trainer on SST-2's rows.

python tests/benchmarks/ranks_speed.py                 # one process of one thread against two of them, interleaved
python tests/benchmarks/ranks_speed.py --runs 5 --steps 200

On a CPU with at least two cores. Each run is ``python -m xlnet train``; the second figure is the share of training time
that it waited for checkpoints, with one every 50 steps.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from real_rows import SETS, SHARED

SETTINGS = (
    "model.n_layer=4", "model.d_model=256", "model.n_head=4", "model.d_head=64", "model.d_inner=1024",
    "training.batch_tokens=2048", "training.checkpoint_every=50", "training.evaluate_every=100000",
)  # fmt: skip


def xlnet(step: str, settings: list[str], *arguments: str, ranks: int = 1) -> tuple[dict[str, float], str]:
    """Run one step; its facts, and what it said."""
    command = [sys.executable, "-m", "xlnet", step, *arguments, *(f"--set={one}" for one in settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLNET_NPROC": str(ranks)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout[done.stdout.index("{\n") :]), done.stderr


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each kind, taking turns")
    parser.add_argument("--steps", type=int, default=120, help="updates of a run")
    arguments = parser.parse_args()
    source = SETS["sst2"]
    data = [f"data.{name}={source[name]}" for name in ("text", "label", "header", "max_length")]
    data.append(f"data.train={SHARED / str(source['train'])}")
    with tempfile.TemporaryDirectory() as folder:
        dataset = str(Path(folder, "dataset"))
        xlnet("preprocess", data, "--out", dataset)
        rates: dict[int, list[float]] = {1: [], 2: []}
        waits: list[float] = []
        for run in range(arguments.runs):
            for ranks in (1, 2):
                out = str(Path(folder, f"model-{run}-{ranks}"))
                settings = [*SETTINGS, f"training.steps={arguments.steps}"]
                facts, said = xlnet("train", settings, "--dataset", dataset, "--out", out, ranks=ranks)
                rates[ranks].append(facts["tokens_per_second"])
                seconds = facts["tokens"] / facts["tokens_per_second"]
                found = re.search(r"([\d.]+) s for checkpoints", said)
                if found:
                    waits.append(float(found.group(1)) / seconds)
                print(f"run {run}  {ranks} process(es)  {rates[ranks][-1]:,.0f} tokens/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"one process   {statistics.median(rates[1]):,.0f} tokens/s")
    print(f"two           {statistics.median(rates[2]):,.0f} tokens/s")
    print(f"ratio         {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"checkpoints   {100 * statistics.median(waits):.2f} % of training time (at most {100 * max(waits):.2f} %)")


if __name__ == "__main__":
    main()
