"""Prepares batches ahead of time, so that the device does not wait for them.

One process decides the order of rows. Worker processes pack the batches for an accelerator; on the CPU, the main
process packs them.
"""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from xlnet.data.batches import Batch, PaddedBatch, Rows
from xlnet.data.shapes import Budget, Shapes, Share
from xlnet.recipe import TrainingRecipe
from xlnet.training.device import Device


class Feed:
    """This rank's share of steps ``first`` to ``steps - 1``.

    Attributes:
        waited: seconds that training has waited for batches.
    """

    def __init__(
        self,
        split: Rows,
        recipe: TrainingRecipe,
        first: int,
        steps: int,
        device: Device,
        class_weights: np.ndarray | None = None,
    ) -> None:
        """Prepare shares of ``split``; ``class_weights`` holds each class's weight in the loss, [C]; None: 1 each."""
        self.waited = 0.0
        ranks = device.ranks
        budget = Budget(ranks.part, ranks.parts, recipe.batch_tokens, recipe.micro_batch_tokens)
        self._shares: DataLoader[Share] = DataLoader(
            _Shares(split, device.shapes, budget, class_weights),
            sampler=_Order(split.lengths, recipe, device.shapes, first, steps),
            batch_size=None,
            num_workers=device.workers,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_signals,
        )

    def __iter__(self) -> Iterator[Share]:
        shares = iter(self._shares)
        while True:
            asked = time.perf_counter()
            share = next(shares, None)
            self.waited += time.perf_counter() - asked
            if share is None:
                return
            yield share


def row_stream(
    lengths: np.ndarray, recipe: TrainingRecipe, shapes: Shapes, first: int, steps: int
) -> Iterator[np.ndarray]:
    """Yield the row numbers of steps ``first`` to ``steps - 1``. Those of step k depend only on (seed, k)."""
    step, epoch = 0, 0
    while step < steps:
        plan = shapes.plan(lengths, recipe.batch_tokens, recipe.seed, epoch)[: steps - step]
        yield from plan[max(0, first - step) :]
        step, epoch = step + len(plan), epoch + 1


class _Order(Sampler[np.ndarray]):
    def __init__(self, lengths: np.ndarray, recipe: TrainingRecipe, shapes: Shapes, first: int, steps: int) -> None:
        self.arguments = (lengths, recipe, shapes, first, steps)

    def __iter__(self) -> Iterator[np.ndarray]:
        return row_stream(*self.arguments)


class _Shares(Dataset[Share]):
    def __init__(self, split: Rows, shapes: Shapes, budget: Budget, class_weights: np.ndarray | None) -> None:
        self.split, self.shapes, self.budget = split, shapes, budget
        self.class_weights = class_weights

    def __getitem__(self, rows: np.ndarray) -> Share:
        share = self.shapes.share(self.split, rows, self.budget)
        if self.class_weights is None:
            return share
        return replace(share, batches=tuple(_weighted(batch, self.class_weights) for batch in share.batches))


def _weighted(batch: Batch | PaddedBatch, class_weights: np.ndarray) -> Batch | PaddedBatch:
    """Return the batch with each text's weight multiplied by that of its class."""
    if isinstance(batch, PaddedBatch):
        return replace(batch, weights_B=batch.weights_B * class_weights[batch.labels_B])
    return replace(batch, weights_S=batch.weights_S * class_weights[batch.labels_S])


def _unchanged(share: Any) -> Any:
    return share


def _ignore_signals(worker: int) -> None:
    """Ignore signals: the training process handles them, and it needs batches until its last checkpoint."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
