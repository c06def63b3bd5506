"""Devices to train on: placement, precision, random state, synchronisation, memory.

Each kind of device is a class with the same interface; :class:`Device` itself is the CPU. Communication between
devices is in :mod:`xlnet.training.distributed`.
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
from xlnet.errors import UserError
from xlnet.model.kernels import native
from xlnet.model.layout import Capacity, Layout
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.distributed import SingleRank
from xlnet.training.inputs import Inputs
from xlnet.training.optim import AdamW
from xlnet.training.precision import on_cpu


class Device:
    """The CPU, and the interface that the training loop uses for every device.

    Attributes:
        torch: the ``torch.device`` that holds the tensors.
        ranks: the processes that train together, including this one.
        shapes: the kind of batch shapes.
        precision: data type of matrix products.
        is_automatic: whether the device chose the precision, and may choose again for a model.
        workers: number of processes that prepare batches while the device computes.
        name: the device's name, for display.
    """

    kind = "cpu"

    def __init__(self, precision: str = "auto", ranks: SingleRank | None = None, shapes: Shapes | None = None) -> None:
        self.ranks = ranks or SingleRank()
        self.torch = self._torch_device()
        self.shapes = shapes or Packed()
        self.is_automatic = precision == "auto"
        self.precision = self._auto_precision() if self.is_automatic else getattr(torch, precision)
        self.workers = 0
        self.name = self._device_name()

    def _torch_device(self) -> torch.device:
        return torch.device("cpu")

    def _device_name(self) -> str:
        return f"cpu ({torch.get_num_threads()} threads)"

    def _auto_precision(self) -> torch.dtype:
        """Choose the data type for precision ``auto``, before the model is known."""
        return torch.float32

    def choose_shapes(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """Choose the batch shapes for this data, before batches are planned."""

    def keep_programs(self, directory: Path) -> None:
        """Cache compiled programs in this directory, for the next start. Call before the first computation."""

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """Move the model to the device, and choose the settings that depend on the device."""
        model = model.to(self.torch)
        model.transformer.recompute = recompute
        has_kernels = not native.obstacle("cpu", str(torch.float32), native.LANES)
        model.transformer.sparse_gradient = has_kernels
        if self.is_automatic and has_kernels:
            self.precision = getattr(torch, on_cpu("auto", model.config.task, model.config.d_model))
        return model

    def prepare_optimizer(self, model: XLNetClassifier, optimizer: AdamW) -> None:
        """Create the optimizer state that a compiled step needs. Call before the first step."""

    def prefetch(self, shares: Iterable[Share]) -> Iterator[Share]:
        """Yield the same shares. Some devices copy the next share to the device while the current one computes."""
        return iter(shares)

    def seed(self, seed: int, step: int) -> None:
        """Derive the step's random numbers from (seed, step) alone, so that resuming needs no stored random state."""
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
        """Copy an array to the device."""
        return torch.from_numpy(array)

    def compute(self, work: Callable[[Inputs], Tensor], model: XLNetClassifier, inputs: Inputs) -> Tensor:
        """Compute a scalar, such as a loss, with a function that is the same at every step."""
        return work(inputs)

    def fetch(self, scalars: list[Tensor]) -> Tensor:
        """Return the scalars' values on the host: [n]."""
        return torch.stack(scalars).cpu()

    def describe(self) -> str:
        """Describe the devices of all ranks."""
        return f"{self.ranks.size} × {self.name}" if self.ranks.size > 1 else self.name

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products use ``precision``; weights and optimizer stay float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, self.precision)

    def step(self) -> None:
        """Mark the end of an update. A device with lazy execution starts the collected work here."""

    def synchronise(self) -> None:
        """Wait for all queued work. The CPU has no queue."""

    def memory(self) -> dict[str, int]:
        """Return the peak memory use (``peak``) and the memory size (``total``) in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak": peak, "total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


class Cuda(Device):
    """The CUDA device of this process's local rank."""

    kind = "cuda"

    def __init__(self, precision: str = "auto", ranks: SingleRank | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(precision, ranks, shapes)
        self.workers = 2
        self.capacity: Capacity | None = None  # size of the CUDA graphs; None if updates are not recorded
        self.adds = False  # whether an update's gradients are those of several batches
        self._graph: Any = None

    def _torch_device(self) -> torch.device:
        return torch.device("cuda", self.ranks.local_rank)

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.torch)

    def _auto_precision(self) -> torch.dtype:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32

    def choose_shapes(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """See :class:`Device`. Decides whether updates are recorded as CUDA graphs, and of what size."""
        lengths = data.split("train").lengths
        is_sharded = recipe.shard_weights and self.ranks.size > 1  # sharded layers communicate in every pass
        if len(lengths) and not is_sharded and os.environ.get("XLNET_CUDA_GRAPHS") != "0":
            from xlnet.training import cuda_graph

            self.capacity = cuda_graph.capacity(lengths, recipe, self.ranks.parts)
            self.adds = recipe.micro_batch_tokens > 0

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """See :class:`Device`."""
        from xlnet.training import cuda_graph

        model = model.to(self.torch)
        model.transformer.recompute = recompute
        model.transformer.hidden_type = _hidden_type(self.precision)
        if self.capacity and not cuda_graph.pays(self.capacity.tokens, model.config.d_model, self.ranks.size):
            self.capacity = None
        return model

    def compute(self, work: Callable[[Inputs], Tensor], model: XLNetClassifier, inputs: Inputs) -> Tensor:
        """See :class:`Device`. The first call records a CUDA graph if every kernel supports it."""
        if self.capacity is None or model.transformer.attention_name() != "triton":
            return work(inputs)
        from xlnet.training.cuda_graph import CudaGraph, fits

        if not fits(inputs.layout, self.capacity):
            return work(inputs)
        if self._graph is None:
            self.ranks.add_gradients(last=False)  # nothing is exchanged while a graph is recorded
            self._graph = CudaGraph(work, model, self.capacity, inputs, self.adds)
        return self._graph(inputs)

    def tensor(self, array: np.ndarray) -> Tensor:
        """See :class:`Device`. The copy comes from pinned memory, so it does not block the caller."""
        return torch.from_numpy(array).pin_memory().to(self.torch, non_blocking=True)

    def synchronise(self) -> None:
        """See :class:`Device`."""
        torch.cuda.synchronize(self.torch)

    def memory(self) -> dict[str, int]:
        """See :class:`Device`."""
        total = torch.cuda.get_device_properties(self.torch).total_memory
        return {"peak": torch.cuda.max_memory_allocated(self.torch), "total": total}


def _hidden_type(precision: torch.dtype) -> torch.dtype:
    """Return the type of hidden states between layers: that of matrix products, or float32 if the environment says so.

    Raises:
        UserError: the environment names another type.
    """
    asked = os.environ.get("XLNET_HIDDEN_STATES", "auto")
    if asked not in ("auto", "float32"):
        raise UserError(f"XLNET_HIDDEN_STATES is {asked!r}; allowed: auto, float32")
    return precision if asked == "auto" else torch.float32
