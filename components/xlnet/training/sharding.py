"""Weights, gradients and optimizer spread over all ranks, by torch's fully sharded data parallel (FSDP2).

Source: Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023 (PyTorch FSDP).
"""

from typing import Any

from xlnet.errors import UserError
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training.device import Device


def shard(model: XLNetClassifier, device: Device) -> None:
    """Spread the model's parameters, in place; one layer's are gathered at a time.

    Raises:
        UserError: the device has no such thing.
    """
    if device.kind not in ("cpu", "cuda"):
        raise UserError(f"training.shard_weights=true needs a CUDA device or the CPU, not {device.kind!r}")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.kind, (device.ranks.size,))
    model.transformer.sparse_gradient = False  # a part of a table has no use for it
    sharded: list[Any] = [fully_shard(layer, mesh=mesh) for layer in model.transformer.layer]
    sharded.append(fully_shard(model, mesh=mesh))
    for module in sharded:
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        module.set_gradient_divide_factor(1.0)  # losses are shares of the mean already: gradients are added
