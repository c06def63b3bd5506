"""Shards weights, gradients and optimizer over all ranks with torch's fully sharded data parallel (FSDP2).

Source: Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023 (PyTorch FSDP).
"""

from typing import Any

from xlnet.errors import UserError
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training.device import Device


def shard(model: XLNetClassifier, device: Device) -> None:
    """Shard the model's parameters in place; they are gathered for one layer at a time.

    Raises:
        UserError: the device does not support sharding.
    """
    if device.kind not in ("cpu", "cuda"):
        raise UserError(f"training.shard_weights=true needs a CUDA device or the CPU, not {device.kind!r}")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.kind, (device.ranks.size,))
    model.transformer.sparse_gradient = False  # sharded tables do not support it
    sharded: list[Any] = [fully_shard(layer, mesh=mesh) for layer in model.transformer.layer]
    sharded.append(fully_shard(model, mesh=mesh))
    for module in sharded:
        module.set_force_sum_reduction_for_comms(True)  # gloo supports only sums
        module.set_gradient_divide_factor(1.0)  # gradients are summed, because losses are already shares of the mean
