"""Plans a training: the number of steps, and the steps that end with a validation, checkpoint or line of history."""

import math
import os
import time
from dataclasses import dataclass

import numpy as np

from xlnet.data.shapes import Shapes
from xlnet.errors import UserError
from xlnet.recipe import TrainingRecipe

LOGS = 200  # approximate number of history lines per training


@dataclass(frozen=True)
class TrainingSchedule:
    """The steps of a training.

    Attributes:
        steps: total number of updates.
        validations: steps that are followed by a validation, including the last step.
        checkpoints: steps that are followed by a checkpoint.
        log_every: steps between two lines of history.
    """

    steps: int
    validations: frozenset[int]
    checkpoints: frozenset[int]
    log_every: int

    def logs(self, step: int) -> bool:
        """Whether to write a line of the history after this step."""
        return step % self.log_every == 0 or step in self.validations


def plan(lengths: np.ndarray, recipe: TrainingRecipe, shapes: Shapes) -> TrainingSchedule:
    """Make the schedule of a recipe for rows of these lengths."""
    steps, epoch, ends = 0, 0, []
    target = recipe.steps or math.inf
    while steps < target and (recipe.steps or epoch < recipe.epochs):
        batches = len(shapes.plan(lengths, recipe.batch_tokens, recipe.seed, epoch))
        share = 1.0 if recipe.steps else min(1.0, recipe.epochs - epoch)
        steps, epoch = steps + max(1, round(batches * share)), epoch + 1
        ends.append(steps)
    steps = int(min(steps, target))
    every = recipe.evaluate_every
    validations = {*range(every, steps, every), steps} if every else {min(end, steps) for end in ends}
    if recipe.initialisation == "linear":
        validations |= {0}  # the start already is a model, and it is kept if training only makes it worse
    every = recipe.checkpoint_every
    checkpoints = {*range(every, steps, every)} if every else validations - {0, steps}
    return TrainingSchedule(steps, frozenset(validations), frozenset(checkpoints), max(1, steps // LOGS))


class CheckpointClock:
    """Decides when a checkpoint is due by time, so that a sudden failure of the machine loses little work.

    After a checkpoint that training waited t seconds for, the next one is due after SHARE * t seconds at the earliest,
    so checkpoints take at most 1 / SHARE of the training time.
    """

    SHARE = 100

    def __init__(self, every: float) -> None:
        """Make a checkpoint due every ``every`` seconds; 0 means never."""
        self.every = every
        self._next = time.monotonic() + every

    @classmethod
    def from_environment(cls) -> "CheckpointClock":
        """Make the clock that ``XLNET_CHECKPOINT_SECONDS`` asks for.

        Raises:
            UserError: the variable is not a number of seconds.
        """
        given = os.environ.get("XLNET_CHECKPOINT_SECONDS", "0")
        try:
            every = float(given)
        except ValueError:
            every = -1.0
        if not 0 <= every < math.inf:
            raise UserError(f"XLNET_CHECKPOINT_SECONDS is '{given}'; give a number of seconds, or 0 for none")
        return cls(every)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return bool(self.every) and time.monotonic() >= self._next

    def saved(self, waited: float) -> None:
        """Restart the clock after a checkpoint that training waited ``waited`` seconds for."""
        self._next = time.monotonic() + max(self.every, self.SHARE * waited)
