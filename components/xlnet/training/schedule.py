"""How many steps a training takes, and what happens after which of them."""

import math
from dataclasses import dataclass

import numpy as np

from xlnet.data.shapes import Shapes
from xlnet.recipe import TrainingRecipe

LOGS = 200  # about as many lines of history as a training has


@dataclass(frozen=True)
class Schedule:
    """The steps of a training.

    Attributes:
        steps: updates in all.
        validations: steps after which the validation split is looked at; the last step is one of them.
        checkpoints: steps after which a checkpoint is written.
        log_every: steps between two lines of history.
    """

    steps: int
    validations: frozenset[int]
    checkpoints: frozenset[int]
    log_every: int

    def logs(self, step: int) -> bool:
        """Whether a line of history is written after this step."""
        return step % self.log_every == 0 or step in self.validations


def plan(lengths: np.ndarray, recipe: TrainingRecipe, shapes: Shapes) -> Schedule:
    """The schedule of a recipe for rows of these lengths."""
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
    every = recipe.checkpoint_every
    checkpoints = {*range(every, steps, every)} if every else validations - {steps}
    return Schedule(steps, frozenset(validations), frozenset(checkpoints), max(1, steps // LOGS))
