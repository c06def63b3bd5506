"""Records where artifacts came from: content digests, a ``lineage.json`` in each artifact, and atomic writes.

An artifact is a directory. Its digest covers the names and bytes of its content files;
``lineage.json`` and everything below ``logs/`` (wall-clock times, TensorBoard events) stay outside,
so that equal work gives equal digests.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import modulefinder
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xlnet
from xlnet.errors import CorruptArtifact, UserError
from xlnet.redaction import redacted
from xlnet.steps import STEPS

SCHEMA = 1
LINEAGE = "lineage.json"
LOGS = "logs"
LOG_NAMES = ("speed.jsonl", "events.out.tfevents")  # prefixes of the log files' names

# Packages whose version can change a result.
_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "numpy", "pyarrow", "safetensors", "mlflow-skinny")


def digest_file(path: str | Path) -> str:
    """Return ``sha256:…`` of a file's bytes."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """Return ``sha256:…`` of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_directory(directory: str | Path) -> str:
    """Return ``sha256:…`` over the relative names and bytes of an artifact's content files."""
    root = Path(directory)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    content = [file for file in files if file.parts[0] not in (LINEAGE, LOGS)]
    return digest_json([[file.as_posix(), digest_file(root / file)] for file in content])


@contextlib.contextmanager
def writing(directory: str | Path, type: str = "") -> Iterator[Path]:
    """Yield a directory beside ``directory``; rename it into place when the block ends without an error.

    A killed process or a full disk therefore leaves no half-written artifact under the real name. An existing artifact
    is replaced if it has the same type. In a mounted bucket (``XLNET_GCS_MOUNT``, else ``/gcs``) directories cannot be
    renamed, so the files are copied there, ``lineage.json`` last.

    Args:
        directory: directory of the artifact to write.
        type: type of the artifact, see :func:`record`; empty: any.

    Raises:
        UserError: the directory holds anything but an artifact of this type.
    """
    final = Path(directory).absolute()
    if final.is_relative_to(os.environ.get("XLNET_GCS_MOUNT", "/gcs")):
        with tempfile.TemporaryDirectory(prefix="xlnet-artifact-") as scratch:
            yield Path(scratch)
            _copy_into_bucket(Path(scratch), final)
        return
    final = final.resolve()  # a link stays; its target is replaced
    refuse_foreign(directory, type)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
        aside.mkdir()
    except OSError as error:
        raise UserError(f"'{directory}' cannot be written: {error.strerror}; name another directory") from None
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                sync(path)
        try:
            refuse_foreign(directory, type)
        except UserError as error:  # somebody else wrote there in the meantime
            kept = aside.replace(final.with_name(f"{final.name}-{uuid.uuid4().hex[:8]}"))
            raise UserError(f"{error}; this step's result is in '{kept}'") from None
        if final.exists():
            shutil.rmtree(final)
        os.replace(aside, final)
        sync(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@dataclass
class Made:
    """An artifact that a step is writing: its directory, and what its lineage will say; see :func:`node`."""

    directory: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Mapping[str, Any]] = ()
    digest: str = ""  # once it is written


@contextlib.contextmanager
def making(directory: str | Path, type: str, step: str, started: str = "") -> Iterator[Made]:
    """Yield an artifact to fill; see :func:`writing`. Its lineage is recorded when the block ends without an error."""
    started = started or now()
    with writing(directory, type) as aside:
        yield (made := Made(aside))
        facts = {"parameters": made.parameters, "metadata": made.metadata, "inputs": made.inputs}
        made.digest = record(aside, type=type, step=step, started=started, **facts)["artifact"]["digest"]


def refuse_foreign(directory: str | Path, type: str = "") -> None:
    """Raise UserError if a directory holds anything but one unchanged artifact of this type (empty: any type)."""
    final, shown = Path(directory).resolve(), directory
    remedy = "name a new directory"
    if final.is_dir() and Path.cwd().is_relative_to(final):
        raise UserError(f"'{shown}' is the working directory, or holds it; {remedy}")
    if not os.path.lexists(final) or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir():
        raise UserError(f"'{shown}' is a file; {remedy}")
    try:
        found = read(final)["artifact"]
    except (UserError, CorruptArtifact):
        name = min(path.name for path in final.iterdir())
        raise UserError(f"'{shown}' holds files that no step wrote, such as '{name}'; {remedy}") from None
    if type and found["type"] != type:
        raise UserError(f"'{shown}' is a {found['type']}, which a {type} must not replace; {remedy}")
    logs = final / LOGS
    foreign_logs = logs.exists() and not all(path.name.startswith(LOG_NAMES) for path in logs.iterdir())
    if foreign_logs or digest_directory(final) != found["digest"]:
        raise UserError(f"'{shown}' was changed since a step wrote it; remove it, or {remedy}")


def refuse_foreign_file(path: Path, is_ours: Callable[[str], bool]) -> None:
    """Raise UserError if a file is there that this program did not write.

    Args:
        path: the file to write.
        is_ours: returns whether this program wrote a given text.
    """
    if path.is_dir():
        raise UserError(f"'{path}' is a directory; name a file")
    try:
        with contextlib.suppress(UnicodeDecodeError):
            if not path.is_file() or not path.stat().st_size or is_ours(path.read_text(encoding="utf-8")):
                return
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; name a file in a directory of yours") from None
    raise UserError(f"'{path}' was not written by this command; name another file, or remove it")


def _copy_into_bucket(source: Path, final: Path) -> None:
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda file: file == Path(LINEAGE)):
        (final / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, final / file)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Write a file so that every reader sees its old content or all of the new one.

    Args:
        path: the file, in a directory that exists.
        content: bytes, or text to be written as UTF-8.
        durable: wait until the content is on the disk, or a loss of power could leave an empty file.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def now() -> str:
    """Return the current time in UTC as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def record(directory: str | Path, **facts: Any) -> dict[str, Any]:
    """Write ``lineage.json`` into a finished artifact directory and return it.

    Args:
        directory: the artifact, all content files written.
        facts: the arguments of :func:`node`, except for the digest.
    """
    lineage = node(digest=digest_directory(directory), **facts)
    text = json.dumps(redacted(lineage), indent=1, ensure_ascii=False)
    Path(directory, LINEAGE).write_text(text, encoding="utf-8")
    return lineage


def node(
    *,
    type: str,
    digest: str,
    step: str,
    started: str,
    parameters: Mapping[str, Any],
    metadata: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return one node of the lineage graph: an artifact, the execution that made it, and its inputs' nodes.

    Args:
        type: ``"snapshot"``, ``"dataset"``, ``"model"``, ``"evaluation"`` or ``"registration"``.
        digest: digest of the artifact's content.
        step: the step that made it.
        started: :func:`now` at the step's start.
        parameters: the step's parameters, such as its part of the recipe.
        metadata: facts about the artifact that a reader wants to see first.
        inputs: the lineage of each input, as :func:`read` or this function returns it.
    """
    return {
        "schema": SCHEMA,
        "artifact": {"type": type, "digest": digest, "metadata": dict(metadata)},
        "execution": {
            "step": step,
            "code": {"version": xlnet.__version__, "fingerprint": code_fingerprint(step), "git_sha": git_sha()},
            "image_digest": os.environ.get("XLNET_IMAGE_DIGEST", ""),
            "run": os.environ.get("XLNET_RUN_ID", ""),
            "parameters": dict(parameters),
            "machine": machine(),
            "started": started,
            "ended": now(),
        },
        "inputs": [dict(one) for one in inputs],
    }


def read(directory: str | Path) -> dict[str, Any]:
    """Read an artifact's lineage.

    Raises:
        UserError: the directory has no ``lineage.json``.
        CorruptArtifact: the file is not a lineage.
    """
    path = Path(directory, LINEAGE)
    try:
        lineage = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"'{directory}' has no {LINEAGE}; name an artifact directory that a step wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"'{path}' is damaged ({error}); run the step again to rewrite it") from None
    if not isinstance(lineage, dict) or not {"artifact", "execution", "inputs"} <= lineage.keys():
        raise CorruptArtifact(f"'{path}' is not a lineage record; run the step again to rewrite it")
    return lineage


def verify(directory: str | Path) -> str:
    """Return the artifact's digest after checking that its bytes still have it.

    Raises:
        UserError: the directory has no ``lineage.json``.
        CorruptArtifact: the content does not match the digest in the lineage.
    """
    promised = read(directory)["artifact"]["digest"]
    found = digest_directory(directory)
    if promised != found:
        raise CorruptArtifact(
            f"'{directory}' was changed after it was written: digest {found}, lineage says {promised}"
        )
    return found


def code_fingerprint(step: str) -> str:
    """Return ``sha256:…`` of all sources that a step can reach by imports within ``xlnet``, and of library versions.

    A change in a module that the step never imports does not change its fingerprint.
    """
    return digest_json(code_parts(step))


def code_parts(step: str) -> dict[str, str]:
    """Return the parts of a step's fingerprint: digests of reachable modules and kernels, and library versions."""
    files = {name: _source(name) for name in _reachable(STEPS[step].module)}
    for name, path in list(files.items()):
        if path.name == "__init__.py":  # to a package belong its kernels, compiled on first use, and their tiles
            files |= {f"{name}/{kernel.name}": kernel for kernel in sorted(path.parent.glob("*.[chj]*"))}
    sources = {name: digest_file(path) for name, path in files.items()}
    return {**sources, **_library_versions(), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def _reachable(module: str) -> list[str]:
    """Return the names of a module and of all xlnet modules that it imports, directly or not, at any time."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or not _source(name).is_file():
            continue
        seen.add(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        file = _source(name).stat()
        waiting += _imported_by(name, file.st_mtime_ns, file.st_size)
    return sorted(seen)


@functools.cache
def _imported_by(module: str, modified: int, size: int) -> list[str]:
    """Return what :func:`_imports` finds in a module's source; read the source again only after it has changed."""
    return list(_imports(compile(_source(module).read_bytes(), module, "exec", dont_inherit=True)))


def _imports(code: types.CodeType) -> Iterator[str]:
    """Yield the names of xlnet modules that ``code`` imports, and of the objects that it imports from them.

    This reads byte code, since ``ast.parse`` fails at random in Python 3.11 when a garbage collection in the middle of
    it runs code that parses too (python/cpython issue 106905).
    """
    for kind, found in modulefinder.ModuleFinder().scan_opcodes(code):
        if kind == "absolute_import" and found[1].split(".")[0] == "xlnet":
            names, module = found
            yield module
            yield from (f"{module}.{name}" for name in names or ())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports(constant)


def _source(module: str) -> Path:
    base = Path(xlnet.__file__).parent.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@functools.cache
def _library_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@functools.cache
def git_sha() -> str:
    """Return the source tree's commit, with ``-dirty`` if it has changes; empty outside a checkout."""
    if sha := os.environ.get("XLNET_GIT_SHA"):
        return sha
    folder = Path(xlnet.__file__).resolve().parent
    if "site-packages" in folder.parts:
        return ""  # a checkout around an installed copy is the user's own
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def code_facts() -> dict[str, str]:
    """Return facts about the code that made an artifact, for the backends' pages."""
    return {"git_sha": git_sha(), "image_digest": os.environ.get("XLNET_IMAGE_DIGEST", "")}


def machine() -> dict[str, Any]:
    """Return the facts about this machine that can change a result or a duration."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": "none",
        "packages": _library_versions(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts
