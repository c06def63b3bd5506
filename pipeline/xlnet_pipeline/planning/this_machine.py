"""This machine as rows of the table of machines: its CPU, and its GPUs."""

import dataclasses
import os
import shutil
import subprocess
import time

from xlnet_pipeline.placement import machines
from xlnet_pipeline.placement.machines import Machine
from xlnet_pipeline.planning import estimate


def here() -> list[Machine]:
    """Return this machine as rows of the table: its CPU, and its GPUs if the table has them."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    memory = pages * size / estimate.GIB
    rate = _matrix_rate()
    cpu = machines.machine("cpu")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [dataclasses.replace(cpu, cpus=cpus, host_memory=memory, memory_per_chip=memory, peak=rate)]
    gpus = [family for name in _gpu_names() if (family := _family(name))]
    if gpus:
        wanted = gpus[0] if len(gpus) == 1 else f"{gpus[0]}-{len(gpus)}"
        rows += [machines.MACHINES[wanted]] if wanted in machines.MACHINES else []
    return rows


def _matrix_rate() -> float:
    """Measure the TFLOP/s of float32 matrix products on this machine, in a few hundredths of a second."""
    import numpy as np

    a, best = np.ones((768, 768), np.float32), 0.0
    for _ in range(4):  # the first pass starts the threads
        begun = time.perf_counter()
        a @ a
        best = max(best, 2 * 768**3 / (time.perf_counter() - begun))
    return best / 1e12


def _gpu_names() -> list[str]:
    if not (tool := shutil.which("nvidia-smi")):
        return []
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _family(name: str) -> str | None:
    """Return the table's family for the driver's name of a GPU."""
    if "A100" in name:
        return "a100-80g" if "80" in name else "a100-40g"
    return next((family for family in ("h200", "h100", "t4", "l4") if family.upper() in name.split()), None)
