"""Converts the weights of a released TensorFlow checkpoint to the names and shapes of Hugging Face's files.

Source of the names: github.com/zihangdai/xlnet, ``modeling.py``, which makes these variables.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlnet.errors import UserError
from xlnet.model.tensorflow_files import TensorFlowCheckpoint, open_checkpoint

TRANSFORMER, HEAD_BIAS, HEAD_WEIGHT = "model/transformer/", "model/lm_loss/bias", "model/lm_loss/weight"
NAMES = {
    r"word_embedding/lookup_table": r"word_embedding.weight",
    r"mask_emb/mask_emb": r"mask_emb",
    r"layer_(\d+)/rel_attn/([qkvor])/kernel": r"layer.\1.rel_attn.\2",
    r"layer_(\d+)/(rel_attn|ff)/LayerNorm/gamma": r"layer.\1.\2.layer_norm.weight",
    r"layer_(\d+)/(rel_attn|ff)/LayerNorm/beta": r"layer.\1.\2.layer_norm.bias",
    r"layer_(\d+)/ff/layer_([12])/kernel": r"layer.\1.ff.layer_\2.weight",
    r"layer_(\d+)/ff/layer_([12])/bias": r"layer.\1.ff.layer_\2.bias",
}
FOR_ALL_LAYERS = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")  # variables whose first dimension is the layer


@dataclass(frozen=True)
class _Origin:
    """The variable that a weight comes from, its layer there if it holds all layers, and whether it is transposed."""

    variable: str
    layer: int | None = None
    transposed: bool = False


def shapes(index: Path) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each weight, from the index alone."""
    checkpoint = open_checkpoint(index)
    found = {}
    for name, origin in _origins(checkpoint).items():
        shape = checkpoint.entries[origin.variable].shape
        shape = shape if origin.layer is None else shape[1:]
        found[name] = shape[::-1] if origin.transposed else shape
    return found


def read(index: Path) -> dict[str, np.ndarray]:
    """Read all weights as float32, by Hugging Face's names. Other variables, such as an optimizer's, are left out.

    Raises:
        UserError: the checkpoint is not XLNet's, or its format differs from that of the released ones.
        CorruptArtifact: a file is damaged.
    """
    checkpoint = open_checkpoint(index)
    weights = {}
    for name, origin in _origins(checkpoint).items():
        value = checkpoint.read(origin.variable)
        value = value if origin.layer is None else value[origin.layer]
        weights[name] = np.array(value.T if origin.transposed else value, np.float32, order="C")
    return weights


def _origins(checkpoint: TensorFlowCheckpoint) -> dict[str, _Origin]:
    if HEAD_WEIGHT in checkpoint.entries:
        raise UserError(
            f"'{checkpoint.prefix}' has {HEAD_WEIGHT}; allowed: an output that shares the embedding's weights"
        )
    found: dict[str, _Origin] = {}
    for variable, entry in checkpoint.entries.items():
        short = variable.removeprefix(TRANSFORMER)
        if variable == HEAD_BIAS:
            found["lm_loss.bias"] = _Origin(variable)
        elif short in FOR_ALL_LAYERS and short != variable:
            layers = range(entry.shape[0] if entry.shape else 0)
            found |= {f"transformer.layer.{layer}.rel_attn.{short}": _Origin(variable, layer) for layer in layers}
        elif short != variable and (name := _name(short)):
            found[f"transformer.{name}"] = _Origin(variable, None, "/ff/layer_" in variable and "kernel" in variable)
    if not found:
        raise UserError(f"'{checkpoint.prefix}' has no {TRANSFORMER}…: it is not a checkpoint of XLNet's released code")
    return found


def _name(short: str) -> str:
    """Return Hugging Face's name of a variable; empty if it is not a weight."""
    for pattern, name in NAMES.items():
        if match := re.fullmatch(pattern, short):
            return match.expand(name)
    return ""
