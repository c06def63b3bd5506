"""Says what this machine's processor can compute. Does not import torch."""

import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def features() -> frozenset[str]:
    """Return the processor's instruction sets as Linux names them, such as ``amx_bf16``; empty on other systems."""
    return frozenset(CPUINFO.read_text(encoding="utf-8").split() if sys.platform == "linux" else ())
