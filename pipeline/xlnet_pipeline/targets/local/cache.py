"""The cache of step results. Each entry is a small JSON file, named by a key of everything that the result depends on.

The key holds the digests of the input artifacts instead of their paths. If an input was made again with equal content,
the step is therefore not run again.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xlnet import provenance, state
from xlnet import recipe as recipes
from xlnet.errors import CorruptArtifact, UserError
from xlnet.steps import KEPT
from xlnet_pipeline.targets import record

SCHEMA = 1
SHOWN_CHANGES = 3
PARAMETERS = {"snapshot": "input data", "pretrained": "pretrained weights"}  # their names in messages
PRUNING = "prune.lock"
HOME = "{home}"  # replaces the state directory in stored warnings, because the directory may be moved
WAIT = 0.2  # seconds between two looks at a lock


class Damaged(Exception):
    """A cached result cannot be used. The message says why."""


def parts_of(step: str, arguments: dict[str, Any], **more: str) -> dict[str, Any]:
    """Return everything that a step's result depends on: code, parameters, digests of the inputs, and ``more``."""
    inputs = {name: value for name, value in arguments.items() if isinstance(value, dict)}
    parameters = {name: value for name, value in arguments.items() if name not in inputs}
    if step in KEPT and KEPT[step].key:
        inputs = {}
    if step in KEPT and "recipe" in parameters:  # of the whole recipe, the step's own part
        parameters["recipe"] = recipes.from_json(parameters["recipe"]).part(*KEPT[step].sections)
    return {
        "step": step,
        "code": parameters.pop("code", ""),
        "parameters": parameters,
        "inputs": {name: value["digest"] for name, value in inputs.items()},
        **more,
    }


def key_of(parts: dict[str, Any]) -> str:
    """Return an entry's name: the step and 40 digits of the digest of everything that the result depends on."""
    return f"{parts['step']}-{provenance.digest_json([SCHEMA, parts])[7:47]}"


class Cache:
    """A directory of entries, which several runs can use at once."""

    def __init__(self, directory: Path, code_parts: Callable[[str], dict[str, str]] = provenance.code_parts) -> None:
        self.directory = directory
        self.code_parts = code_parts  # returns the parts of a step's code
        directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self, key: str, run: str, waiting: Callable[[str], None], check: Callable[[], None]) -> Iterator[None]:
        """Lock a key while its result is made, so that the second of two equal runs waits and then finds the result.

        Args:
            key: the key of the result.
            run: id of the run that makes it.
            waiting: called with ``run ID (process PID)`` of the run that holds the lock, whenever that changes.
            check: called repeatedly while waiting; raises an exception to give up.
        """
        with (self.directory / f"{key}.lock").open("a+", encoding="utf-8") as file:
            said = ""
            while not _locked(file.fileno()):
                file.seek(0)
                holder = file.read() or "another run"
                if holder != said:
                    waiting(holder)
                said = holder
                check()
                time.sleep(WAIT)
            file.truncate(0)
            file.write(f"run {run} (process {os.getpid()})")
            file.flush()
            yield  # closing the file lets go of the lock, and so does the end of the process

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep ``prune`` from removing a result until a record names it. Several runs can do so at once."""
        with (self.directory / PRUNING).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keep every run from using results while ``prune`` decides which to remove, and removes them."""
        with (self.directory / PRUNING).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the entry (``run``, ``inputs``, ``outputs``) after checking its artifacts; None if there is no entry.

        Raises:
            Damaged: the entry exists, but one of its files is gone or was changed.
        """
        path = self._path(key)
        try:
            entry: dict[str, Any] = state.restored(json.loads(path.read_text(encoding="utf-8")), self.directory.parent)
            outputs, _, _ = entry["outputs"], entry["inputs"], entry["run"]
            entry["warnings"] = [line.replace(HOME, str(self.directory.parent)) for line in entry.get("warnings", ())]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(f"cache entry '{path.name}' is damaged") from None
        check(outputs)
        return entry

    def put(
        self,
        key: str,
        parts: dict[str, Any],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
        run: str,
        warnings: Sequence[str] = (),
    ) -> None:
        """Store a result atomically: a reader sees all of it or nothing.

        Args:
            key: the entry's name.
            parts: everything that the result depends on.
            inputs: the step's inputs, in the form of the run's record.
            outputs: the step's outputs, in the same form.
            run: id of the run that made the result.
            warnings: warnings that the step printed. Runs that use the result show them again.
        """
        entry = {"schema": SCHEMA, "key": key, "run": run, "created": provenance.now(), "parts": parts}
        entry |= {"inputs": inputs, "code": self.code_parts(parts["step"]), "outputs": outputs}
        entry["warnings"] = [line.replace(str(self.directory.parent), HOME) for line in warnings]
        text = json.dumps(state.stored(entry, self.directory.parent), indent=1, ensure_ascii=False)
        aside = self._path(key).with_suffix(f".{os.getpid()}.partial")
        try:
            aside.touch(mode=0o600)
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, self._path(key))
        finally:
            aside.unlink(missing_ok=True)

    def why(self, parts: dict[str, Any], model: str) -> str:
        """Explain why a step has to run: name what changed since the last run for the same registered model."""
        entry = self._latest(parts["step"], model)
        if entry is None:
            others = any(self.directory.glob(f"{parts['step']}-*.json"))
            return f"first time for model '{model}'" if others else "first time"
        last = entry["parts"]
        after = self.code_parts(parts["step"])
        changes = [_code_change(entry["code"], after)] if parts["code"] != last["code"] else []
        if parts["definition"] != last["definition"]:
            changes.append("the step's own definition changed")
        inputs = [name for name, digest in parts["inputs"].items() if digest != last["inputs"].get(name)]
        if len(inputs) > SHOWN_CHANGES:
            changes.append(f"{_shortened(inputs)} changed")
        else:
            changes += [f"{name} changed" for name in inputs]
        for name, value in parts["parameters"].items():
            before = last["parameters"].get(name)
            if value != before:
                changes.append(
                    _recipe_change(before, value) if name == "recipe" else PARAMETERS.get(name, name) + " changed"
                )
        if parts.get("registry") != last.get("registry"):
            changes.append(f"registry changed: {last.get('registry')} → {parts.get('registry')}")
        return "; ".join(changes) or "no result is kept"

    def _latest(self, step: str, model: str) -> dict[str, Any] | None:
        """Return the entry of the step from the newest run for the model whose entry still exists."""
        for path in sorted((self.directory.parent / "runs").glob("*/run.json"), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                run = json.loads(path.read_text(encoding="utf-8"))
                keys = {one["name"]: one["cache_key"] for one in run["steps"]}
                if run["recipe"]["registry"]["name"] != model or not keys.get(step):
                    continue
                entry: dict[str, Any] = json.loads(self._path(keys[step]).read_text(encoding="utf-8"))
                if entry["schema"] == SCHEMA and {"parts", "code"} <= entry.keys():
                    return entry
        return None

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.json"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check(artifacts: dict[str, Any]) -> None:
    """Raise :class:`Damaged` if a file of these artifacts is gone or was changed. Parameters are ignored."""
    for name, value in artifacts.items():
        if isinstance(value, dict) and value.get("digest"):
            _check(name, value)


def _check(name: str, output: dict[str, Any]) -> None:
    path = Path(output["uri"])
    if not path.exists():
        raise Damaged(f"cached {name} is gone: '{path}'")
    try:
        found = provenance.verify(path) if path.is_dir() else provenance.digest_file(path)
    except (CorruptArtifact, UserError) as error:
        raise Damaged(f"cached {name} is damaged: {error}") from None
    if found != output["digest"]:
        raise Damaged(f"cached {name} is damaged: '{path}' has digest {found}, {output['digest']} was kept")


def _code_change(before: dict[str, str], after: dict[str, str]) -> str:
    """``"code changed: xlnet.evaluation.report"``."""
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return f"code changed: {_shortened(changed)}" if changed else "code changed"


def _shortened(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN_CHANGES} more" if len(items) > SHOWN_CHANGES else ""
    return ", ".join(items[:SHOWN_CHANGES]) + more


def _recipe_change(before: str | None, after: str) -> str:
    """``"recipe changed: training.seed 0 → 1"``."""
    fields = [record.flat(json.loads(text or "{}")) for text in (before, after)]
    changed = [f"{name} {json.dumps(old)} → {json.dumps(new)}" for name, (old, new) in record.differing(fields).items()]
    return f"recipe changed: {_shortened(changed)}"
