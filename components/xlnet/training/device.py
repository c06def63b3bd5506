"""Where training runs: placement, precision, random state, synchronisation, memory.

One class per kind of device behind one interface; :class:`Device` itself is the CPU. What several devices
exchange is in :mod:`xlnet.training.distributed`.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet.data.batches import Batch, PaddedBatch
from xlnet.data.dataset import Dataset
from xlnet.data.shapes import Packed, Shapes, Share
from xlnet.model.kernels import native
from xlnet.model.layout import Layout, Room
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.distributed import Alone
from xlnet.training.inputs import Inputs
from xlnet.training.optim import AdamW


class Device:
    """The CPU; also the interface of every device to the training loop.

    Attributes:
        torch: what tensors are placed on.
        ranks: the processes that train together, of which this is one.
        shapes: the form of batches.
        precision: type of matrix products.
        workers: processes that make batches while the device computes.
        name: for people.
    """

    kind = "cpu"

    def __init__(self, precision: str = "auto", ranks: Alone | None = None, shapes: Shapes | None = None) -> None:
        self.ranks = ranks or Alone()
        self.torch = self._place()
        self.shapes = shapes or Packed()
        self.precision = self._faster() if precision == "auto" else getattr(torch, precision)
        self.workers = 0
        self.name = self._name()

    def _place(self) -> torch.device:
        return torch.device("cpu")

    def _name(self) -> str:
        return f"cpu ({torch.get_num_threads()} threads)"

    def _faster(self) -> torch.dtype:
        """The type of matrix products where the recipe leaves it open: bfloat16 only where it is known to be faster."""
        return torch.float32

    def fit(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """Set what depends on the data, before anything is planned."""

    def keep_programs(self, directory: Path) -> None:
        """Before anything is computed: where to keep compiled programs, so that a restart need not compile again."""

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """Place the model, and set what in it depends on where it trains."""
        model = model.to(self.torch)
        model.transformer.recompute = recompute
        model.transformer.sparse_gradient = not native.obstacle("cpu", str(torch.float32), native.LANES)
        return model

    def settle(self, model: XLNetClassifier, optimizer: AdamW) -> None:
        """Before the first step: make what a compiled program of a step has to find."""

    def ahead(self, shares: Iterable[Share]) -> Iterator[Share]:
        """The same shares, of which the next one is moved here while one is computed with, where that pays."""
        return iter(shares)

    def seed(self, seed: int, step: int) -> None:
        """Make the step's random numbers a function of (seed, step) alone: resuming needs no stored state."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))

    def move(self, batch: Batch | PaddedBatch) -> Inputs:
        """Copy a batch to the device."""
        if isinstance(batch, PaddedBatch):
            return Inputs(
                self.tensor(batch.input_ids_BL.reshape(-1)),
                self.tensor(batch.segment_ids_BL.reshape(-1)),
                Layout.padded(self.tensor(batch.real_BL.reshape(-1)), batch.real_BL.shape[1], batch.first_text),
                self.tensor(batch.labels_B),
                self.tensor(batch.weights_B),
            )
        return Inputs(
            self.tensor(batch.input_ids_T),
            self.tensor(batch.segment_ids_T),
            Layout.of(batch.lengths_S, self.torch, batch.first_token, batch.first_text),
            self.tensor(batch.labels_S),
            self.tensor(batch.weights_S),
        )

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array on the device."""
        return torch.from_numpy(array)

    def compute(self, work: Callable[[Inputs], Tensor], model: XLNetClassifier, inputs: Inputs) -> Tensor:
        """A scalar of a model in training, by work that is the same at every step."""
        return work(inputs)

    def fetch(self, scalars: list[Tensor]) -> Tensor:
        """Their values on the host: [n]."""
        return torch.stack(scalars).cpu()

    def describe(self) -> str:
        """What all ranks train on."""
        return f"{self.ranks.size} × {self.name}" if self.ranks.size > 1 else self.name

    def autocast(self) -> AbstractContextManager[Any]:
        """Where matrix products take the recipe's type; weights and optimizer stay float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, self.precision)

    def step(self) -> None:
        """The boundary between two updates, where a device that collects its work may start on it."""

    def synchronise(self) -> None:
        """Wait for the work queued so far. The CPU has no queue."""

    def memory(self) -> dict[str, int]:
        """Bytes: the most that was ever in use (``peak``), and what there is (``total``)."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak": peak, "total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


class Cuda(Device):
    """One CUDA device: that of this process's local rank."""

    kind = "cuda"

    def __init__(self, precision: str = "auto", ranks: Alone | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(precision, ranks, shapes)
        self.workers = 2
        self.room: Room | None = None  # of what is recorded as a graph; None: nothing is
        self._recording: Any = None

    def _place(self) -> torch.device:
        return torch.device("cuda", self.ranks.local_rank)

    def _name(self) -> str:
        return torch.cuda.get_device_name(self.torch)

    def _faster(self) -> torch.dtype:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32

    def fit(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """See :class:`Device`: whether updates are recorded as a graph, and of what size."""
        lengths = data.split("train").lengths
        whole = self.ranks.size == 1 and not recipe.micro_batch_tokens and not recipe.recompute
        if len(lengths) and whole and os.environ.get("XLNET_CUDA_GRAPHS") != "0":
            from xlnet.training import recording

            self.room = recording.room(lengths, recipe)

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """See :class:`Device`."""
        model = model.to(self.torch)
        model.transformer.recompute = recompute
        return model

    def compute(self, work: Callable[[Inputs], Tensor], model: XLNetClassifier, inputs: Inputs) -> Tensor:
        """See :class:`Device`: recorded the first time, where every kernel lets itself be recorded."""
        if self.room is None or model.transformer.attention_name() != "triton":
            return work(inputs)
        from xlnet.training.recording import Recording, fits

        if not fits(inputs.layout, self.room):
            return work(inputs)
        self._recording = self._recording or Recording(work, model, self.room, inputs)
        return self._recording(inputs)

    def tensor(self, array: np.ndarray) -> Tensor:
        """See :class:`Device`; a copy from pinned memory does not hold up the one who asks for it."""
        return torch.from_numpy(array).pin_memory().to(self.torch, non_blocking=True)

    def synchronise(self) -> None:
        """See :class:`Device`."""
        torch.cuda.synchronize(self.torch)

    def memory(self) -> dict[str, int]:
        """See :class:`Device`."""
        total = torch.cuda.get_device_properties(self.torch).total_memory
        return {"peak": torch.cuda.max_memory_allocated(self.torch), "total": total}
