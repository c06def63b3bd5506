"""Freed memory is kept for the next update."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, resource, sys
from xlnet.training.allocator import keep_freed_memory
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = library.malloc(ctypes.c_size_t(200 << 20))
    ctypes.memset(place, 1, 200 << 20)
    library.free(ctypes.c_void_p(place))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = keep_freed_memory()
faults()
print(int(kept), faults(), int(" hg" in open("/proc/self/smaps").read()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is about glibc")
@pytest.mark.parametrize(("environment", "kept"), [({}, 1), ({"MALLOC_MMAP_THRESHOLD_": "262144"}, 0)])
def test_an_update_uses_the_pages_of_the_one_before(environment, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    said, faults, huge = map(int, done.stdout.split())
    if said < kept:
        pytest.skip("the C library is not glibc")
    assert said == kept
    assert (faults < 1000) == bool(kept)
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert huge == kept
