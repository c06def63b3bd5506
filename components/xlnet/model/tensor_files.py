"""Reads a model's tensors from files of ``transformers`` or TensorFlow, without unpickling other objects."""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xlnet.errors import CorruptArtifact, UserError
from xlnet.model import released, tensorflow_files
from xlnet.model.pretrained import INDEX, PICKLED, RELEASED, SAFE, shards

UNREADABLE = (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


def read(directory: Path) -> dict[str, Tensor]:
    """Read all tensors of a model's directory, by name.

    Raises:
        UserError: the directory has no weights, or they contain objects other than tensors.
        CorruptArtifact: a file is damaged or missing.
    """
    for name in (SAFE, PICKLED):
        if (directory / name).is_file():
            return _file(directory / name)
        if (directory / f"{name}{INDEX}").is_file():
            return _shards(directory / f"{name}{INDEX}")
    if index := tensorflow_files.find(directory):
        return {name: torch.from_numpy(value) for name, value in released.read(index).items()}
    raise UserError(f"'{directory}' has no weights; allowed: {SAFE} or {PICKLED}, whole or in shards, or {RELEASED}")


def _shards(index: Path) -> dict[str, Tensor]:
    places = shards(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        tensors |= _file(index.parent / name)
    if lost := sorted(places.keys() - tensors.keys()):
        raise CorruptArtifact(f"'{index}' lists {lost[0]}, which its files do not hold ({len(lost)} weights missing)")
    return tensors


def _file(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb"):  # unlike safetensors, this says why a file cannot be read
            pass
        if path.suffix == ".safetensors":
            return load_file(str(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"'{path}' holds Python objects or is damaged, and is not opened: such a file can run any program; "
            f"save the model again as {SAFE}"
        ) from None
    except UNREADABLE as error:
        raise CorruptArtifact(f"the weights in '{path}' cannot be read: {_line(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"'{path}' does not hold a model's tensors; save the model again as {SAFE}")
    return dict(found)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
