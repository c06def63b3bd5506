"""The tensors of a checkpoint: model and optimizer by name, replicated on every rank or sharded over the ranks.

Model tensors are named ``model/PARAMETER``; the optimizer's are named ``exp_avg/PARAMETER`` and so on.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xlnet.errors import RunError, UserError
from xlnet.training.distributed import SingleRank

FILE = "tensors.safetensors"
PARTS = "shard-{:05}-*.safetensors"  # files of one rank, which is counted from 1
Named = dict[str, Tensor]


class Replicated:
    """Tensors that are complete on every rank; rank 0 writes them to one safetensors file.

    Attributes:
        leads: whether this is rank 0.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: SingleRank) -> None:
        self._model, self._optimizer, self._ranks = model, optimizer, ranks
        self.leads = ranks.rank == 0

    def named(self) -> Named:
        """Return all tensors by name, without copying."""
        tensors = {f"model/{name}": tensor for name, tensor in self._model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors

    def size(self) -> int:
        """Return the bytes of a checkpoint: weights, two moments for each weight, and the best weights."""
        return 4 * sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())

    def copy(self) -> Named:
        """Copy the tensors to the host, so that training may continue; empty on ranks that do not write."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.named().items()} if self.leads else {}

    def write(self, copied: Named, folder: Path) -> list[str]:
        """Write a copy to the folder; return the names of this rank's files."""
        if not self.leads:
            return []
        save_file({name: value.contiguous() for name, value in copied.items()}, folder / FILE)
        return [FILE]

    def gather(self, value: Any) -> list[Any]:
        """Gather a value from every rank; this waits for all ranks."""
        return [value]

    def load(self, folder: Path) -> None:
        """Load a checkpoint's tensors into model and optimizer.

        Raises:
            UserError: the checkpoint's model has another shape.
        """
        self._assign(read(folder))

    def full_weights(self) -> Named:
        """Copy the full model's weights to the host; only rank 0's result is defined."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._model.state_dict().items()}

    def _assign(self, tensors: Named) -> None:
        weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        _refuse_other_shapes(self._model.state_dict(), tensors)
        self._model.load_state_dict(weights)
        fused = self._optimizer.defaults["fused"]  # otherwise the step counters are on the host
        for name, parameter in self._model.named_parameters():
            state = self._optimizer.state[parameter]
            for full, value in tensors.items():
                key, _, of = full.partition("/")
                if of == name and key != "model":
                    state[key] = value if key == "step" and not fused else value.to(parameter.device)
            if not state:
                del self._optimizer.state[parameter]


class Sharded(Replicated):
    """Tensors that are sharded over the ranks (FSDP); each rank writes its shards with torch.distributed.checkpoint.

    A later training may have another number of ranks. The shards are safetensors files whose headers say where each
    tensor belongs, so nothing is unpickled.
    """

    def copy(self) -> Named:
        """See :class:`Replicated`."""
        return {name: value.detach().clone() for name, value in self.named().items()}

    def write(self, copied: Named, folder: Path) -> list[str]:
        """See :class:`Replicated`."""
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(copied, storage_writer=writer, process_group=self._ranks.background, no_dist=False)
        return [path.name for path in folder.glob(PARTS.format(self._ranks.rank + 1))]

    def gather(self, value: Any) -> list[Any]:
        """See :class:`Replicated`."""
        return self._ranks.gather(value, background=True)

    def load(self, folder: Path) -> None:
        """See :class:`Replicated`."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.tensor import DTensor, distribute_tensor

        for parameter in self._model.parameters():
            state = self._optimizer.state[parameter]
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if (folder / FILE).is_file():  # a training on one rank wrote it
            whole = read(folder)
            _refuse_other_shapes(self._model.state_dict(), whole)
            with torch.no_grad():
                for name, own in self.named().items():
                    if name not in whole:  # the parameter had no gradient yet
                        continue
                    value = whole[name].to(own.device)
                    if isinstance(own, DTensor):
                        value = distribute_tensor(value, own.device_mesh, own.placements)
                    own.copy_(value)
            return
        try:
            dcp.load(self.named(), storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
        except (dcp.api.CheckpointException, SafetensorError) as error:
            raise RunError(f"the checkpoint's parts cannot be read: {error}") from None

    def full_weights(self) -> Named:
        """See :class:`Replicated`."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        full: dict[str, Any] = get_model_state_dict(self._model, options=options)
        return {name: value.clone() for name, value in full.items()}


def read(folder: Path) -> Named:
    """Read all tensors of a replicated or sharded checkpoint to the host, unsharded."""
    if (folder / FILE).is_file():
        return load_file(folder / FILE)
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        about: Any = reader.read_metadata().state_dict_metadata
        tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in about.items()}
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (dcp.api.CheckpointException, SafetensorError) as error:
        raise RunError(f"the checkpoint's parts cannot be read: {error}") from None
    return tensors


def _refuse_other_shapes(own: Named, tensors: Named) -> None:
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    different = sorted(name for name in {*own, *weights} if _shape(own, name) != _shape(weights, name))
    if different:
        name = different[0]
        raise UserError(
            f"the checkpoint is of another model: '{name}' has shape {_shape(weights, name)} there and "
            f"{_shape(own, name)} here, and {len(different) - 1} more differ; remove it, or change the recipe back"
        )


def _shape(tensors: Named, name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
