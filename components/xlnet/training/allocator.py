"""How the C library allocates memory while a CPU trains."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST = 2**31 - 1
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed memory for the next update instead of returning it to the system; return whether that was possible.

    An update frees what it allocates, hundreds of MiB. By default glibc returns most of it, and the kernel clears every
    page again when the next update touches it, which takes a tenth of an update's processor time. Peak memory stays the
    same within a few percent. If the user has set one of glibc's allocator variables, nothing is changed.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # not glibc
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MOST) and library.mallopt(M_TRIM_THRESHOLD, MOST))
