"""TPUs through torch_tpu: an eager device with one rank per chip; the whole model is compiled.

Importing torch_tpu changes ``torch.compile``. Only this module imports it, and only if a TPU was found or requested.
The import was tested; no TPU has run this code yet.
"""

import torch
import torch_tpu  # noqa: F401  registers the device where there is one
from torch import Tensor

from xlnet.data.dataset import Dataset
from xlnet.data.shapes import Padded
from xlnet.errors import UserError
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.device import Device
from xlnet.training.optim import AdamW


def set_rank_variables(machines: int, chips: int) -> None:
    """Set the environment variables by which ranks find each other's chips.

    Raises:
        UserError: the numbers contradict the chips or variables that are present.
    """
    try:
        torch.tpu.distributed.set_tpu_launch_env(nnodes=machines, nproc_per_node=chips)  # type: ignore[attr-defined]
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ranks cannot be started on this TPU machine: {error}") from None


class Tpu(Device):
    """The TPU chip of this process's local rank."""

    kind = "tpu"

    def _torch_device(self) -> torch.device:
        try:
            device = torch.device("tpu", self.ranks.local_rank)
        except RuntimeError:
            raise UserError("torch_tpu is installed, but finds no TPU here; allowed: auto, cpu") from None
        torch.tpu.set_device(device)  # type: ignore[attr-defined]
        return device

    def _device_name(self) -> str:
        return str(torch.tpu.get_device_name())  # type: ignore[attr-defined]

    def _auto_precision(self) -> torch.dtype:
        return torch.bfloat16

    def choose_shapes(self, data: Dataset, recipe: TrainingRecipe) -> None:
        """See :class:`Device`."""
        self.workers = 2
        self.shapes = Padded.fitting(data)

    def prepare(self, model: XLNetClassifier, recompute: bool = False) -> XLNetClassifier:
        """See :class:`Device`."""
        model = model.to(self.torch)
        model.transformer.recompute = recompute
        model.compile(backend="tpu", dynamic=False)
        return model

    def prepare_optimizer(self, model: XLNetClassifier, optimizer: AdamW) -> None:
        """See :class:`Device`."""
        optimizer.start()

    def fetch(self, scalars: list[Tensor]) -> Tensor:
        """See :class:`Device`. Scalars are fetched one by one, because each different count would compile a program."""
        return torch.stack([scalar.cpu() for scalar in scalars])

    def synchronise(self) -> None:
        """See :class:`Device`."""
        torch.tpu.synchronize()  # type: ignore[attr-defined]

    def memory(self) -> dict[str, int]:
        """See :class:`Device`. torch_tpu reports the memory size, but not its use."""
        total = torch.tpu.get_device_properties().total_memory  # type: ignore[attr-defined]
        return {"peak": 0, "total": total}
