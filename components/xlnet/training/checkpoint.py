"""Checkpoints: a killed training resumes at its exact next batch and ends with bit-identical weights.

A checkpoint is a folder ``step-N`` in the checkpoint store. It holds ``state.json`` (data position, history,
scores), the tensors of model and optimizer, and ``manifest.json`` with a checksum of each file. A thread writes it
while training goes on; the finished checkpoint appears atomically. The store's location is computed from the recipe,
the dataset and the code, so a retry, a rescheduled pod or a new run of the same work finds it. Random numbers and
batches are functions of (seed, step), so no other random state needs to be saved, on any rank.
"""

import json
import os
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlnet import provenance
from xlnet.errors import RunError, UserError
from xlnet.training import buckets
from xlnet.training.checkpoint_store import MANIFEST, CheckpointStore, open_checkpoint_store
from xlnet.training.tensors import Replicated

KEEP = 2  # how many of the newest checkpoints are kept
LOCK_SECONDS = 30.0  # how long to wait until a killed process of the same training has released the lock
STATE, ABOUT, BEST = "state.json", "about.json", "best-"


@dataclass
class State:
    """The training state between two steps, without weights and optimizer."""

    step: int = 0
    tokens: int = 0
    validated: int = -1  # step of the last validation; -1: none yet
    evaluations_waited: int = 0  # validations since the best one after an update
    best_trained: dict[str, float] = field(default_factory=dict)  # its scores, which may be worse than the start's
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)  # one per step since the last line of history
    history: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)  # steps at which training resumed after an interruption

    def facts(self) -> dict[str, Any]:
        """Return the state as a dict without nesting, for metadata."""
        return {
            "global_step": self.step,
            "best_step": self.best_step,
            **{name: round(value, 6) for name, value in self.best.items()},
            "tokens": self.tokens,
            "resumed_from": self.resumed[-1] if self.resumed else 0,
            "interruptions": len(self.resumed),
        }


def training_of(store: CheckpointStore) -> dict[str, Any] | None:
    """Identify the training that these checkpoints belong to (recipe, dataset, classes); None if there are none."""
    text = store.read(ABOUT)
    return None if text is None else json.loads(text)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its name, its local files, and their content except the tensors."""

    name: str
    folder: Path
    state: State
    best_weights: dict[str, Tensor]


def complete(store: CheckpointStore, say: Callable[[str], None]) -> Iterator[Checkpoint]:
    """Yield the complete checkpoints of a store, newest first; report each damaged one through ``say``."""
    for name in reversed(store.names()):
        try:
            folder = store.fetch(name)
            sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for file, expected in sums.items():
                if Path(file).name != file:
                    raise RunError(f"its manifest names a file outside its folder, {file!r}")
                _verify(store.fetch(file) if file.startswith(BEST) else folder / file, expected)
            state = State(**json.loads((folder / STATE).read_text(encoding="utf-8")))
            name_of_best = _best_name(state.best_step)
            best = load_file(store.fetch(name_of_best)) if name_of_best in sums else {}
        except (OSError, ValueError, TypeError, AttributeError, RunError, SafetensorError) as error:
            say(f"checkpoint {name} is damaged and not used: {_first_line(error)}")
            continue
        yield Checkpoint(name, folder, state, best)


class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        seconds: how long training has waited for tensor copies and for unfinished writes.
    """

    def __init__(
        self, store: CheckpointStore, tensors: Replicated, about: Mapping[str, Any], say: Callable[[str], None]
    ):
        self.seconds = 0.0
        self.store = store
        self._tensors, self._say = tensors, say
        self._about = dict(about)
        self._best_sum: tuple[int, list[int]] = (-1, [])  # step and checksum of the best weights written so far
        self._writer = _Writer(say)

    def start(self) -> None:
        """Check that checkpoints can be written, before training spends any time.

        Raises:
            UserError: the store cannot be written, is full, or belongs to another training.
        """
        earlier = training_of(self.store)
        if earlier is not None and (differing := _differences(earlier, self._about)):
            raise UserError(
                f"'{self.store}' holds checkpoints of another training: {'; '.join(differing)}; "
                "name another place in XLNET_CHECKPOINTS, or remove it"
            )
        if self._tensors.leads:
            self.store.prepare(self._tensors.size())
            self.store.lock(LOCK_SECONDS)
            self.store.clean()
            self.store.write(ABOUT, json.dumps(self._about, indent=1).encode())

    def restore(self) -> tuple[State, dict[str, Tensor]]:
        """Load the newest complete checkpoint into model and optimizer.

        Returns:
            The state to resume from, and the best weights so far; a new state and no weights without a checkpoint.

        Raises:
            UserError: the checkpoint's model has another shape.
        """
        for checkpoint in complete(self.store, self._say):
            self._tensors.load(checkpoint.folder)
            checkpoint.state.resumed.append(checkpoint.state.step)
            return checkpoint.state, checkpoint.best_weights
        return State(), {}

    def save(self, state: State, best_weights: dict[str, Tensor], wait: bool = False) -> None:
        """Copy the tensors now, and write them in a background thread.

        Args:
            state: the current state.
            best_weights: full weights on the host; the caller must not change them afterwards.
            wait: block until everything is written.

        Raises:
            RunError: the checkpoint could not be written (only with ``wait``).
        """
        started = time.perf_counter()
        content, step, best_step = json.dumps(vars(state)).encode(), state.step, state.best_step
        self._writer.wait()
        copied = self._tensors.copy()
        self._writer.start(lambda: self._write(step, content, copied, best_step, best_weights))
        if wait and (problem := self._writer.wait()):
            raise RunError(f"the checkpoint of step {step} could not be written: {problem}")
        self.seconds += time.perf_counter() - started

    def _write(
        self, step: int, state: bytes, copied: dict[str, Tensor], best_step: int, best: dict[str, Tensor]
    ) -> None:
        name = f"step-{step:08d}-best-{best_step:08d}"
        with self.store.folder(name) as folder:
            own = self._tensors.write(copied, folder)
            copied.clear()
            self.store.put_files(name, folder, own)
            sums = self._tensors.gather({file: checksum(folder / file) for file in own})
            if not self._tensors.leads:
                return
            if best and self._best_sum[0] != best_step:
                path = folder / _best_name(best_step)
                save_file(best, path)
                self._best_sum = best_step, checksum(path)
                self.store.add(path, path.name)
            (folder / STATE).write_bytes(state)
            self.store.put_files(name, folder, [STATE])
            manifest = {file: value for part in sums for file, value in part.items()}
            manifest[STATE] = checksum(folder / STATE)
            manifest |= {_best_name(best_step): self._best_sum[1]} if best else {}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            self.store.commit(name, folder)
        names = self.store.names()
        for old in names[:-KEEP]:
            self.store.remove(old)
        needed = {_best_name(int(name.rpartition("-")[2])) for name in names[-KEEP:]}
        for old in self.store.files(BEST):
            if old not in needed:
                self.store.remove(old)

    def close(self) -> None:
        """Wait for the last write, then release the store's lock."""
        self._writer.close()
        self.store.unlock()

    def directory(self) -> Path:
        """Return a local directory for files that help to diagnose a failure."""
        return self.store.local()

    def clear(self) -> None:
        """Delete the checkpoints of a finished training."""
        if self._tensors.leads:
            self.store.remove()


class _Writer:
    """Writes one checkpoint at a time in a thread. It reports a failed write; the next checkpoint tries again."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._problem = ""

    def start(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._thread.start()
        self._work.put(work)

    def wait(self) -> str:
        """Wait for the last write; return its error message, or an empty string."""
        self._work.join()
        return self._problem

    def close(self) -> None:
        self.wait()
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._problem = ""
            try:
                work()
            except Exception as error:  # training goes on, because the previous checkpoint still exists
                self._problem = _first_line(error)
                self._say(f"a checkpoint could not be written ({self._problem}); the one before it is kept")
            finally:
                self._work.task_done()
        self._work.task_done()


def store_of(out: str | Path, recipe_json: str, dataset_digest: str, batches: str = "packed") -> CheckpointStore:
    """Return the checkpoint store of a training.

    It is below ``XLNET_CHECKPOINTS`` (a directory or ``gs://`` prefix), in the state directory, or beside the output.

    Args:
        out: the model artifact's directory or ``gs://`` address.
        recipe_json: JSON of every setting that shapes the training.
        dataset_digest: digest of the dataset artifact.
        batches: the kind of batch shapes; it decides which rows an update sees.
    """
    key = provenance.digest_json([recipe_json, dataset_digest, batches, provenance.code_fingerprint("train")])[7:39]
    home = os.environ.get("XLNET_PIPELINE_HOME")
    default = str(Path(home, "checkpoints")) if home else buckets.beside(str(out))
    return open_checkpoint_store(f"{os.environ.get('XLNET_CHECKPOINTS') or default}/{key}")


def checksum(path: Path) -> list[int]:
    """Return a file's size and CRC-32. They detect truncation and corruption, not tampering."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _verify(path: Path, expected: list[int]) -> None:
    found = checksum(path)
    if found != expected:
        raise RunError(
            f"{path.name} has {found[0]:,} bytes with checksum {found[1]:08x}, "
            f"not {expected[0]:,} with {expected[1]:08x}"
        )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the fields that differ, such as ``["training.seed is 0 there and 1 here"]``."""
    found = []
    for name in sorted({*earlier, *now}):
        there, here = earlier.get(name), now.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found += [f"{name}.{line}" if name != "recipe" else line for line in _differences(there, here)]
        elif there != here:
            found.append(f"{name} is {there!r} there and {here!r} here")
    return found


def _best_name(step: int) -> str:
    return f"{BEST}{step:08d}.safetensors"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
