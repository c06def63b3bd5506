"""Checkpoints: a killed training continues at its exact next batch.

The place is a function of the work (recipe, dataset, code), so that a retry or a new run of the
same work finds it by itself. Random numbers and batches are functions of (seed, step), so that the
step number is all the state they need, and a resumed training ends in the same bits.
"""

import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlnet import provenance

FILE = "checkpoint.pt"


@dataclass
class State:
    """Where a training stands between two steps, weights and optimiser aside."""

    step: int = 0
    tokens: int = 0
    evaluations_waited: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last line of history
    history: list[str] = field(default_factory=list)


class Checkpoints:
    """The one newest checkpoint of a piece of work, replaced atomically."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, state: State, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write aside, then rename: a kill in the middle leaves the one before it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        aside = self.directory / f".{uuid.uuid4().hex[:8]}.partial"
        content = {"state": asdict(state), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        try:
            with aside.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.directory / FILE)
        finally:
            aside.unlink(missing_ok=True)

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, str]:
        """Load the newest checkpoint into model and optimiser, if there is a whole one.

        Returns:
            The state to go on from, and a line that says what was found; empty where nothing was.
        """
        path = self.directory / FILE
        if not path.is_file():
            return State(), ""
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            state, weights, moments = State(**content["state"]), content["model"], content["optimizer"]
        except Exception as error:  # a torn file can make the unpickler raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return State(), f"the checkpoint of this training is damaged and not used ({reason}); starting over"
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        return state, f"continuing an interrupted training after step {state.step}"

    def clear(self) -> None:
        """Forget the work: it is done."""
        shutil.rmtree(self.directory, ignore_errors=True)


def place(out: str | Path, recipe: str, dataset_digest: str) -> Checkpoints:
    """The checkpoints of this work: in the state directory, or beside the artifact to be written.

    Args:
        out: the model artifact's directory.
        recipe: JSON of everything that shapes the training.
        dataset_digest: of the dataset artifact.
    """
    key = provenance.digest_json([recipe, dataset_digest, provenance.code_fingerprint("train")])[7:39]
    home = os.environ.get("XLNET_PIPELINE_HOME")
    root = Path(home, "checkpoints") if home else Path(out).with_name(f".{Path(out).name}.checkpoints")
    return Checkpoints(root / key)
