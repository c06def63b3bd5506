"""Compiles the CPU kernels on first use or ahead of time.

    python build.py FOLDER      # every level of x86-64; with XLNET_KERNELS=FOLDER no compiler is needed later

A library's name contains a hash of the sources, the processor's level and the compiler, so no stale library is loaded
and a second process compiles nothing. The target is a level of x86-64 and not the exact processor, so machines of
equal level compute equal bits.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")
# Processor features of each x86-64 level that speed up the kernels, as Linux names them; best level first.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi2", "f16c"},
    "x86-64": set(),
}


class Unbuildable(Exception):
    """The compiled kernels are not available; the message says why."""


@cache
def library() -> ctypes.CDLL:
    """Load the compiled kernels, after compiling them if needed.

    Raises:
        Unbuildable: there is no compiler, or it failed; the message gives the reason.
    """
    if os.environ.get("XLNET_NATIVE_KERNELS") == "0":
        raise Unbuildable("XLNET_NATIVE_KERNELS is 0")
    target = _find()
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unbuildable(f"'{target}' cannot be loaded: {error}") from None


def level() -> str:
    """Return this processor's best x86-64 level; ``native`` for other processors."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "native"
    from xlnet import processor  # an image compiles the kernels before it has the package

    return next(name for name, needed in LEVELS.items() if needed <= processor.features())


def _find() -> Path:
    """Return this processor's library: compiled ahead of time, cached, or compiled now."""
    ready = Path(os.environ.get("XLNET_KERNELS") or os.devnull) / _name(level())
    if ready.exists():
        return ready
    compiler = _compiler()
    # The compiler's predefined macros identify the compiler and its version.
    macros = _run([compiler, "-dM", "-E", "-x", "c++", os.devnull])
    target = _cache() / _name(level(), macros + torch.__version__)
    if not target.exists():
        _compile(compiler, level(), target)
    return target


def _compiler() -> str:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not compiler:
        raise Unbuildable("no C++ compiler found; install one (apt install g++) or set CXX")
    return compiler


def _name(processor: str, toolchain: str = "") -> str:
    sources = b"".join(path.read_bytes() for path in SOURCES + HEADERS)
    return f"native-{processor}-{hashlib.sha256(sources + toolchain.encode()).hexdigest()[:16]}.so"


def _compile(compiler: str, processor: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [str(Path(folder, source.stem + ".o")) for source in SOURCES]
        for source, compiled in zip(SOURCES, objects, strict=True):
            _run([compiler, *FLAGS, f"-march={processor}", "-c", str(source), "-o", compiled])
        built = Path(folder, "native.so")
        _run([compiler, "-shared", *objects, *_openmp(), "-o", str(built)])
        built.replace(target)  # several processes may do this at once; their files are equal


def _openmp() -> list[str]:
    """Return flags that link torch's OpenMP library. A second library's threads would compete for the processors."""
    found = sorted(Path(torch.__file__).parent.glob("lib/lib*omp*.so*")) or sorted(
        Path(torch.__file__).parent.parent.glob("torch.libs/lib*omp*.so*")
    )
    return [str(found[0])] if found else ["-fopenmp"]


def _cache() -> Path:
    """Return the folder of compiled kernels: the user's cache, or a temporary folder if that is not writable."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlnet-pipeline"
    if _can_write(root):
        root.mkdir(parents=True, exist_ok=True)
        return root
    # Only the folder's owner can put a library there.
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


def main(folder: str) -> None:
    """Compile the kernels for every level into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for processor in LEVELS:
        _compile(_compiler(), processor, Path(folder, _name(processor)))
        print(f"{folder}/{_name(processor)}")


if __name__ == "__main__":
    main(sys.argv[1])
