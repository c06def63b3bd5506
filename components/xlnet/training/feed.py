"""Batches on their way to the device: packed ahead of time, so that the device does not wait.

The order of rows is decided here, in one process; packing happens in worker processes where the device
computes beside the CPU, and in line where it is the CPU.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from xlnet.data.batches import Batch, Rows, collate, epoch_plan
from xlnet.recipe import TrainingRecipe


class Feed:
    """The batches of steps ``first`` to ``steps - 1``.

    Attributes:
        waited: seconds that the consumer has waited for batches.
    """

    def __init__(self, split: Rows, recipe: TrainingRecipe, first: int, steps: int, workers: int) -> None:
        self.waited = 0.0
        order = _Order(split.lengths, recipe, first, steps)
        self._batches: DataLoader[Batch] = DataLoader(
            _Packed(split), sampler=order, batch_size=None, num_workers=workers, collate_fn=_as_it_is
        )

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def row_stream(lengths: np.ndarray, recipe: TrainingRecipe, first: int, steps: int) -> Iterator[np.ndarray]:
    """Which rows steps ``first`` to ``steps - 1`` see; step k's are a function of (seed, k) alone."""
    step, epoch = 0, 0
    while step < steps:
        plan = epoch_plan(lengths, recipe.batch_tokens, recipe.seed, epoch)[: steps - step]
        yield from plan[max(0, first - step) :]
        step, epoch = step + len(plan), epoch + 1


class _Order(Sampler[np.ndarray]):
    def __init__(self, lengths: np.ndarray, recipe: TrainingRecipe, first: int, steps: int) -> None:
        self.arguments = (lengths, recipe, first, steps)

    def __iter__(self) -> Iterator[np.ndarray]:
        return row_stream(*self.arguments)


class _Packed(Dataset[Batch]):
    def __init__(self, split: Rows) -> None:
        self.split = split

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return collate(self.split, rows)


def _as_it_is(batch: Any) -> Any:
    return batch
