"""Says what this machine's processor can compute. Does not import torch."""

import os
import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def features() -> frozenset[str]:
    """Return the processor's instruction sets as Linux names them, such as ``amx_bf16``; empty on other systems.

    Those that ``XLNET_PROCESSOR_WITHOUT`` lists, with commas between them, are left out.
    """
    found = frozenset(CPUINFO.read_text(encoding="utf-8").split() if sys.platform == "linux" else ())
    return found - set(os.environ.get("XLNET_PROCESSOR_WITHOUT", "").split(","))
