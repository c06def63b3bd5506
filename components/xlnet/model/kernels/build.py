"""Compiles the CPU kernels on first use, for the processor at hand.

The library is kept under a name made from the source, the compiler and the processor's features, so
nothing stale is ever loaded and a second process compiles nothing.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")


class Unbuildable(Exception):
    """Why there are no compiled kernels here."""


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        Unbuildable: no compiler, or it failed; with the reason.
    """
    if os.environ.get("XLNET_NATIVE_KERNELS") == "0":
        raise Unbuildable("XLNET_NATIVE_KERNELS is 0")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not compiler:
        raise Unbuildable("no C++ compiler found; install one (apt install g++) or set CXX")
    target = _cache() / f"native-{_fingerprint(compiler)}.so"
    if not target.exists():
        _compile(compiler, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unbuildable(f"'{target}' cannot be loaded: {error}") from None


def _fingerprint(compiler: str) -> str:
    """A digest of everything the library's bytes depend on: the compiler's macros name it and the processor."""
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    sources = b"".join(path.read_bytes() for path in SOURCES + HEADERS)
    return hashlib.sha256(sources + macros.encode() + torch.__version__.encode()).hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [str(Path(folder, source.stem + ".o")) for source in SOURCES]
        for source, compiled in zip(SOURCES, objects, strict=True):
            _run([compiler, *FLAGS, "-c", str(source), "-o", compiled])
        built = Path(folder, "native.so")
        _run([compiler, "-shared", *objects, *_openmp(), "-o", str(built)])
        built.replace(target)  # several processes may do this at once: the last one wins, all are equal


def _openmp() -> list[str]:
    """torch's own OpenMP library: with a second one, two sets of threads would wait for each other's processor."""
    found = sorted(Path(torch.__file__).parent.glob("lib/lib*omp*.so*")) or sorted(
        Path(torch.__file__).parent.parent.glob("torch.libs/lib*omp*.so*")
    )
    return [str(found[0])] if found else ["-fopenmp"]


def _cache() -> Path:
    """Where compiled kernels are kept: the user's cache, or a temporary folder where that cannot be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlnet-pipeline"
    if _can_write(root):
        root.mkdir(parents=True, exist_ok=True)
        return root
    # The folder's owner is the only one who can put a library there.
    fallback = Path(tempfile.gettempdir()) / f"xlnet-pipeline-{os.getuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if fallback.stat().st_uid != os.getuid():
        raise Unbuildable(f"neither '{root}' nor '{fallback}' can be written; set XDG_CACHE_HOME")
    return fallback


def _can_write(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        raise Unbuildable(f"'{command[0]}' cannot be started: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        line = next((line for line in error.stderr.splitlines() if "error" in line), f"status {error.returncode}")
        raise Unbuildable(f"'{command[0]}' failed on {sys.platform}: {line}") from None
