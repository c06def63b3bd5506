"""Which device to train on: the one asked for, or the best there is."""

import glob
import os
from importlib.util import find_spec

import torch

from xlnet.errors import UserError
from xlnet.training import DEVICES
from xlnet.training.device import Cuda, Device
from xlnet.training.distributed import join

MISSING = {
    "cuda": "torch sees no CUDA device",
    "xla": "torch_xla is not installed, or there is no TPU and PJRT_DEVICE is not set (PJRT_DEVICE=CPU tries it out)",
    "tpu": "torch_tpu is not installed, or there is no TPU",
}


def available() -> list[str]:
    """The kinds of devices that can be used here, the best first."""
    chips = _tpu_chips()
    there = {
        "cuda": torch.cuda.is_available(),
        "xla": bool(find_spec("torch_xla") and (chips or os.environ.get("PJRT_DEVICE"))),
        "tpu": bool(find_spec("torch_tpu") and chips),
        "cpu": True,
    }
    return [kind for kind, here in there.items() if here]


def _tpu_chips() -> list[str]:
    """Device files of a TPU machine's chips; to look is cheaper than to import what drives them."""
    return glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")


def detect(kind: str = "", precision: str = "auto") -> Device:
    """The device asked for, or the best there is, as one of the ranks that the environment names.

    Args:
        kind: one of :data:`xlnet.training.DEVICES`, or empty for ``XLNET_DEVICE`` and then what is found.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``.

    Raises:
        UserError: an unknown device, or one that is not there.
        RunError: other ranks are missing.
    """
    kind = choose(kind)
    device = _class(kind)  # before ranks join: it may bring a way for them to exchange what they have to
    return device(precision, join(kind))


def choose(kind: str = "") -> str:
    """The kind of device that :func:`detect` takes.

    Raises:
        UserError: an unknown device, or one that is not there.
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


def count(kind: str) -> int:
    """How many ranks a machine has that a device of this kind is used with: one for each, or one for all of them."""
    return {"cuda": torch.cuda.device_count(), "tpu": len(_tpu_chips())}.get(kind, 1)


def _class(kind: str) -> type[Device]:
    if kind == "xla":  # torch_xla is loaded by those who use it
        from xlnet.training.xla import Xla

        return Xla
    if kind == "tpu":
        from xlnet.training.tpu import Tpu

        return Tpu
    return {"cpu": Device, "cuda": Cuda}[kind]
