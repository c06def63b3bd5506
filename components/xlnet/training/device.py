"""Where training runs: placement, random state, synchronisation."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet.data.batches import Batch
from xlnet.errors import UserError
from xlnet.model.kernels import native
from xlnet.model.layout import Layout
from xlnet.model.xlnet import XLNetClassifier


@dataclass(frozen=True)
class Inputs:
    """A batch on the device."""

    input_ids_T: Tensor
    segment_ids_T: Tensor
    layout: Layout
    labels_S: Tensor


class Device:
    """A CPU or one CUDA device behind the few calls that the training loop makes."""

    def __init__(self, kind: str, precision: str = "auto") -> None:
        self.torch = torch.device(kind)
        self.precision = _precision(kind, precision)
        self.workers = 0 if kind == "cpu" else 2  # processes that pack batches while the device computes
        self.name = torch.cuda.get_device_name() if kind == "cuda" else f"cpu ({torch.get_num_threads()} threads)"

    def seed(self, seed: int, step: int) -> None:
        """Make the step's random numbers a function of (seed, step) alone: resuming needs no stored state."""
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))

    def move(self, batch: Batch) -> Inputs:
        """Copy a batch to the device."""
        return Inputs(
            self._tensor(batch.input_ids_T),
            self._tensor(batch.segment_ids_T),
            Layout.of(batch.lengths_S, self.torch),
            self._tensor(batch.labels_S),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        # A copy from pinned memory does not hold up the one who asks for it.
        return tensor.pin_memory().to(self.torch, non_blocking=True) if self.torch.type == "cuda" else tensor

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """Set what in the model depends on where it trains."""
        model.transformer.recompute = recompute
        on_cpu = self.torch.type == "cpu"
        model.transformer.sparse_gradient = on_cpu and not native.obstacle("cpu", str(torch.float32), native.LANES)
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        """Where matrix products take the recipe's type; weights and optimizer stay float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, self.precision)

    def synchronise(self) -> None:
        """Wait for the work queued so far. The CPU has no queue."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize()


def _precision(kind: str, precision: str) -> torch.dtype:
    """The type of matrix products: bfloat16 by itself only where it is known to be faster."""
    if precision == "auto":
        return torch.bfloat16 if kind == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32
    return getattr(torch, precision)


def detect(kind: str = "", precision: str = "auto") -> Device:
    """The device asked for, or the best there is.

    Args:
        kind: ``"cpu"``, ``"cuda"``, or empty for ``XLNET_DEVICE`` and then what is found.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``.

    Raises:
        UserError: an unknown device, or one that is not there.
    """
    kind = kind or os.environ.get("XLNET_DEVICE", "auto")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {kind!r}; allowed: auto, cpu, cuda")
    if kind == "cuda" and found == "cpu":
        raise UserError("device 'cuda' was asked for, but torch sees none here; allowed: cpu")
    return Device(found if kind == "auto" else kind, precision)
