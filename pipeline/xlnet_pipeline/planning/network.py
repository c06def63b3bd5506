"""Models how long devices take to sum their gradients, and how much of that the backward pass hides.

It follows :mod:`xlnet.training.distributed`: buckets of gradients are summed one after another while the backward pass
goes on, the embedding table's gradient after it. On a CPU the table's gradient is exchanged as the rows that the
batch used, and nothing is hidden, because gloo's threads need the processors that compute. A TPU's exchange is
inserted by its compiler; the model assumes that none of it is hidden either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from xlnet_pipeline.placement.machines import Machine

BUCKET = 25 << 20  # bytes; a test compares it with xlnet.training.distributed
NUMBER = 4  # bytes of one gradient

# GB/s at which one chip sums with others of its machine, or of its slice. T4 and L4: PCIe through the host's memory.
# A100, H100, H200: three quarters of NVLink's 300 and 450 GB/s each way, as NCCL's own tests reach. TPU: three quarters
# of the 1,600 and 3,200 Gbit/s of https://docs.cloud.google.com/tpu/docs/v6e.
INSIDE = {"t4": 8.0, "l4": 12.0, "a100-40g": 225.0, "a100-80g": 225.0, "h100": 340.0, "h200": 340.0}
INSIDE |= {"v5e": 150.0, "v6e": 300.0, "cpu": 1.4}  # CPU: measured with gloo, two processes of one machine
# Gbit/s of one machine of this type: https://cloud.google.com/compute/docs/gpus/gpu-network-bandwidth and, for N2,
# https://cloud.google.com/compute/docs/general-purpose-machines. Of A3 Ultra, only what is for its GPUs.
GIGABITS = {
    "n2-standard-8": 16.0,
    "n1-standard-8": 16.0,
    "n1-standard-16": 32.0,
    "n1-standard-32": 32.0,
    "g2-standard-12": 16.0,
    "g2-standard-24": 32.0,
    "g2-standard-48": 50.0,
    "g2-standard-96": 100.0,
    "a2-highgpu-1g": 24.0,
    "a2-highgpu-2g": 32.0,
    "a2-highgpu-4g": 50.0,
    "a2-highgpu-8g": 100.0,
    "a2-ultragpu-1g": 24.0,
    "a2-ultragpu-2g": 32.0,
    "a2-ultragpu-4g": 50.0,
    "a2-ultragpu-8g": 100.0,
    "a3-highgpu-1g": 25.0,
    "a3-highgpu-2g": 50.0,
    "a3-highgpu-4g": 100.0,
    "a3-highgpu-8g": 1000.0,
    "a3-ultragpu-8g": 3200.0,
}
REACHED = 0.7  # share of a network's rate that sums reach (modelled)
HOP = {"cpu": 5e-5, "gpu": 5e-6, "tpu": 1e-6}  # seconds from one device to the next in a machine (modelled)
HOP_BETWEEN = 3e-5  # seconds from one machine to another (modelled)


@dataclass(frozen=True)
class Links:
    """How devices are connected.

    Attributes:
        chips: devices in one machine or slice.
        machines: number of machines.
        inside: GB/s at which a device sums with others of its machine.
        between: GB/s of one machine's network.
        hop: seconds from one device to the next in a machine.
        hop_between: seconds from one machine to another.
    """

    chips: int
    machines: int
    inside: float
    between: float
    hop: float
    hop_between: float = HOP_BETWEEN

    @property
    def devices(self) -> int:
        """All devices."""
        return self.chips * self.machines

    def all_reduce(self, size: float) -> float:
        """Return the seconds to sum ``size`` bytes over all devices.

        In a ring, each device sends and receives nearly ``2 * size`` bytes at the rate of the slowest link. The latency
        is that of a ring or of a tree over the machines, whichever is less.
        """
        if self.devices == 1:
            return 0.0
        between = self.between if self.machines > 1 else math.inf
        rate = min(between, self.inside if self.chips > 1 else math.inf) * 1e9
        slowest = self.hop_between if self.machines > 1 else self.hop
        ring = 2 * (self.devices - 1) * slowest
        tree = 2 * math.ceil(math.log2(self.machines)) * self.hop_between + 2 * (self.chips - 1) * self.hop
        return 2 * size * (1 - 1 / self.devices) / rate + min(ring, tree)

    def all_gather(self, size: float) -> float:
        """Return the seconds to give ``size`` bytes of each device to all devices."""
        return self.all_reduce(size * self.devices) / 2


def links(machine: Machine, nodes: int = 1) -> Links:
    """Return how the devices of so many machines are connected."""
    between = GIGABITS.get(machine.machine_type, 0.0) / 8 * REACHED
    return Links(machine.chips, nodes, INSIDE[machine.family], between, HOP[machine.kind])


@dataclass(frozen=True)
class Gradients:
    """The gradients of one update.

    Attributes:
        dense: number of parameters outside the embedding table.
        table: number of parameters of the embedding table.
        rows: rows of the table that a batch used, if only those are exchanged; 0: all of it is.
        width: parameters in one row.
    """

    dense: int
    table: int
    rows: int = 0
    width: int = 0

    def after_backward(self, net: Links) -> float:
        """Return the seconds that the table's exchange takes once the backward pass is over."""
        if net.devices == 1:
            return 0.0
        return (
            net.all_gather(self.rows * (NUMBER * self.width + 8)) if self.rows else net.all_reduce(NUMBER * self.table)
        )


def waited(gradients: Gradients, net: Links, backward: float) -> float:
    """Return the seconds that an update waits for the exchange after its backward pass.

    Args:
        gradients: what is exchanged.
        net: how the devices are connected.
        backward: seconds of the backward pass that hide an exchange; 0: none do.
    """
    ended = 0.0
    buckets = list(_buckets(NUMBER * gradients.dense))
    for number, size in enumerate(buckets, 1):
        ready = backward * number / len(buckets)
        ended = max(ready, ended) + net.all_reduce(size)
    return max(ended, backward) - backward + gradients.after_backward(net)


def _buckets(size: float) -> Iterator[float]:
    whole, rest = divmod(size, BUCKET)
    yield from [float(BUCKET)] * int(whole)
    if rest:
        yield rest
