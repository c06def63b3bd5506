"""Chooses the device to train on: the requested one, or the best available one."""

import glob
import os
from importlib.util import find_spec

import torch

from xlnet.errors import UserError
from xlnet.training import DEVICES
from xlnet.training.allocator import keep_freed_memory
from xlnet.training.device import Cuda, Device
from xlnet.training.distributed import join

MISSING = {
    "cuda": "torch sees no CUDA device",
    "xla": "torch_xla is not installed, or there is no TPU and PJRT_DEVICE is not set (PJRT_DEVICE=CPU tries it out)",
    "tpu": "torch_tpu is not installed, or there is no TPU",
}


def available() -> list[str]:
    """List the kinds of devices that can be used here, best first."""
    chips = _tpu_chips()
    there = {
        "cuda": torch.cuda.is_available(),
        "xla": bool(find_spec("torch_xla") and (chips or os.environ.get("PJRT_DEVICE"))),
        "tpu": bool(find_spec("torch_tpu") and chips),
        "cpu": True,
    }
    return [kind for kind, here in there.items() if here]


def _tpu_chips() -> list[str]:
    """List the device files of a machine's TPU chips; this is cheaper than importing a TPU library."""
    return glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")


def detect(kind: str = "", precision: str = "auto") -> Device:
    """Return the requested or the best available device, after joining the ranks that the environment describes.

    Args:
        kind: one of :data:`xlnet.training.DEVICES`; empty means ``XLNET_DEVICE``, else the best device found.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``.

    Raises:
        UserError: the device is unknown or not available.
        RunError: other ranks did not join.
    """
    kind = choose(kind)
    if kind == "cpu":
        keep_freed_memory()  # before the model takes memory
    device = _class(kind)  # before ranks join: the class may register their communication backend
    return device(precision, join(kind))


def choose(kind: str = "") -> str:
    """Return the kind of device that :func:`detect` uses.

    Raises:
        UserError: the device is unknown or not available.
    """
    kind = kind or os.environ.get("XLNET_DEVICE", "auto")
    if kind not in DEVICES:
        raise UserError(f"device is {kind!r}; allowed: {', '.join(DEVICES)}")
    found = available()
    if kind == "auto":
        return found[0]
    if kind not in found:
        raise UserError(f"device {kind!r} was asked for, but {MISSING[kind]}; allowed here: {', '.join(found)}")
    return kind


def rank_count(kind: str) -> int:
    """Return how many ranks to start on this machine: one per device, or one for all devices."""
    return {"cuda": torch.cuda.device_count(), "tpu": len(_tpu_chips())}.get(kind, 1)


def _class(kind: str) -> type[Device]:
    if kind == "xla":  # import torch_xla only if it is used
        from xlnet.training.xla import Xla

        return Xla
    if kind == "tpu":
        from xlnet.training.tpu import Tpu

        return Tpu
    return {"cpu": Device, "cuda": Cuda}[kind]
