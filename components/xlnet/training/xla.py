"""TPUs through torch_xla, which collects operators into one program per step and shape; XLA compiles it.

One process drives all chips of its machine (SPMD). Every batch is sharded over the chips, weights are replicated or
sharded, and the compiler inserts the communication. Several machines of a slice run the same program on the same
batches, and each machine holds the rows of its chips.

Source: Xu et al. 2021 (GSPMD).
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.backends
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as spmd
import torch_xla.runtime as xr
from torch import Tensor

from xlnet.data.batches import Batch, PaddedBatch
from xlnet.data.dataset import Dataset
from xlnet.data.shapes import Padded, Share
from xlnet.errors import UserError
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.device import Device
from xlnet.training.distributed import SingleRank
from xlnet.training.inputs import Inputs
from xlnet.training.optim import AdamW

AXIS = "chips"
CACHING = {"TPU"}  # devices whose compiled programs are cached; a CPU's can be written but not read again


class Xla(Device):
    """All devices that torch_xla sees on this machine, or on all machines of a slice."""

    kind = "xla"

    def __init__(self, precision: str = "auto", ranks: SingleRank | None = None, shapes: Padded | None = None) -> None:
        self.chips = xr.global_runtime_device_count()
        self._mesh: Any = None
        if self.chips > 1:
            xr.use_spmd()
            self._mesh = spmd.Mesh(np.arange(self.chips), (self.chips,), (AXIS,))
        self._shards = False
        self._sent: dict[int, Inputs] = {}  # prefetched batches
        super().__init__(precision, ranks, shapes)
        self.workers = 2
        if self.precision == torch.float32 and xr.device_type() == "TPU":  # otherwise a TPU multiplies in bfloat16
            torch_xla.backends.set_mat_mul_precision("highest")

    def _torch_device(self) -> torch.device:
        return torch_xla.device()

    def _device_name(self) -> str:
        return f"{self.chips} × {xr.device_type()} (torch_xla {torch_xla.__version__})"

    def _auto_precision(self) -> torch.dtype:
        return torch.bfloat16 if xr.device_type() == "TPU" else torch.float32

    def choose_shapes(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """See :class:`Device`."""
        if recipe.shard_weights and self.ranks.size > 1:
            raise UserError(
                f"training.shard_weights=true is for the chips of one machine here, and these are {self.ranks.size} "
                "machines; a chip holds the largest preset with its optimizer: leave it out"
            )
        self._shards = recipe.shard_weights and self.chips > 1
        self.shapes = Padded.fitting(data, self.chips)

    def keep_programs(self, directory: Path) -> None:
        """See :class:`Device`."""
        if xr.device_type() in CACHING:
            xr.initialize_cache(str(directory))

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """See :class:`Device`."""
        model = model.to(self.torch)
        model.transformer.recompute = recompute
        return model

    def prepare_optimizer(self, model: XLNetClassifier, optimizer: AdamW) -> None:
        """See :class:`Device`."""
        optimizer.start()
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                self._shard(tensor.data, self._longest_side(tensor) if self._shards else None)
        torch_xla.sync(wait=True)

    def _longest_side(self, tensor: Tensor) -> int | None:
        """Return the dimension along which a weight is sharded; None if it is replicated."""
        sides = [(size, -side) for side, size in enumerate(tensor.shape) if size % self.chips == 0]
        return -max(sides)[1] if sides else None

    def _shard(self, tensor: Tensor, side: int | None) -> None:
        if self._mesh is not None:
            places = tuple(AXIS if dimension == side else None for dimension in range(tensor.dim()))
            spmd.mark_sharding(tensor, self._mesh, places)

    def prefetch(self, shares: Iterable[Share]) -> Iterator[Share]:
        """See :class:`Device`."""
        with ThreadPoolExecutor(1, "sender") as sender:
            earlier = None
            for share in shares:
                sent = sender.submit(self._send, share)
                if earlier:
                    yield earlier.result()
                earlier = sent
            if earlier:
                yield earlier.result()

    def _send(self, share: Share) -> Share:
        for batch in share.batches:
            self._sent[id(batch)] = super().move(batch)
        return share

    def move(self, batch: Batch | PaddedBatch) -> Inputs:
        """See :class:`Device`."""
        return self._sent.pop(id(batch), None) or super().move(batch)

    def tensor(self, array: np.ndarray) -> Tensor:
        """See :class:`Device`. Each chip gets its own rows."""
        tensor = torch.from_numpy(array).to(self.torch)
        self._shard(tensor, 0)
        return tensor

    def fetch(self, scalars: list[Tensor]) -> Tensor:
        """See :class:`Device`. Scalars are fetched one by one, because each different count would compile a program."""
        return torch.stack([scalar.cpu() for scalar in scalars])

    def autocast(self) -> AbstractContextManager[Any]:
        """See :class:`Device`."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast("xla", self.precision)

    def step(self) -> None:
        """See :class:`Device`."""
        torch_xla.sync()

    def synchronise(self) -> None:
        """See :class:`Device`."""
        xm.wait_device_ops()

    def memory(self) -> dict[str, int]:
        """See :class:`Device`. The numbers are those of one chip."""
        with contextlib.suppress(RuntimeError):
            info = xm.get_memory_info(self.torch)
            return {"peak": info.get("peak_bytes_used", info["bytes_used"]), "total": info["bytes_limit"]}
        return super().memory()
