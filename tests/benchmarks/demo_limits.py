"""Measure what the demo promises: time, memory, an unchanged rerun, ``--help``, and what the DAG adds to the work.

    make bench                                              # or:
    python tests/benchmarks/demo_limits.py --json FILE

Prints a table, writes the figures as JSON, and exits with 1 if a limit is broken. Takes about four minutes on two
cores. Memory is the largest sum of resident sizes of the command and all processes below it, sampled fifty times
a second; shared pages count once for every process, so the figure errs upwards.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from dag_overhead import ONE_CALL, PIPELINE, seconds

COMMAND = [str(Path(sys.executable).with_name("xlnet-pipeline"))]


@dataclass(frozen=True)
class Limit:
    """A promise and what was measured."""

    name: str
    measured: float
    allowed: float
    unit: str

    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.measured < self.allowed


def timed(command: list[str], folder: Path, home: Path) -> tuple[float, float]:
    """Run ``command`` in ``folder``; return seconds and the peak memory in GiB of its process tree."""
    environment = {**os.environ, "XLNET_PIPELINE_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "output.txt").open("w") as output:
        began = time.perf_counter()
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.02)
        elapsed = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:100]} failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    return elapsed, peak / 2**30


def resident(process: psutil.Process) -> int:
    """Bytes of memory of a process and all its descendants; those that end meanwhile count nothing."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


def overhead(folder: Path, repeats: int) -> float:
    """Seconds that a whole run takes more than the same work as one Python call; the fastest of each."""
    runs = [seconds(PIPELINE, folder / f"run{i}") for i in range(repeats)]
    calls = [seconds(ONE_CALL, folder / f"call{i}") for i in range(repeats)]
    return min(runs) - min(calls)


def measure(folder: Path, repeats: int) -> list[Limit]:
    """Every promise, measured in an empty directory."""
    home = folder / "home"
    whole, memory = timed([*COMMAND, "run"], folder, home)
    again = min(timed([*COMMAND, "run"], folder, home)[0] for _ in range(repeats))
    usage = min(timed([*COMMAND, "--help"], folder, home)[0] for _ in range(repeats + 2))
    return [
        Limit("demo", whole, 180, "s"),
        Limit("peak memory", memory, 2, "GiB"),
        Limit("unchanged rerun", again, 5, "s"),
        Limit("--help", usage, 0.5, "s"),
        Limit("DAG overhead", overhead(folder, repeats), 5, "s"),
    ]


def main() -> int:
    """Measure, print and write; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("demo_limits.json"), help="where the figures go")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each short measurement; the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        limits = measure(Path(folder), options.repeats)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {platform.machine()}, Python {platform.python_version()}")
    for one in limits:
        verdict = "holds" if one.holds() else "BROKEN"
        print(f"{one.name:<16} {one.measured:8.2f} {one.unit:<4} limit {one.allowed:g} {one.unit:<4} {verdict}")
    figures = {"cores": cores, "machine": platform.machine(), "limits": [vars(one) for one in limits]}
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(one.holds() for one in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
