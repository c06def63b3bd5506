"""Weights in and out, in Hugging Face's layout: ``config.json`` and ``model.safetensors``.

Queries, keys and values are three tensors there and one parameter here.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlnet.errors import CorruptArtifact, UserError
from xlnet.model import config as configs
from xlnet.model.config import XLNetConfig
from xlnet.model.xlnet import XLNetClassifier

log = logging.getLogger("xlnet")

FUSED = ".rel_attn.qkv"
HEADS = ("sequence_summary.", "logits_proj.")  # absent from a pretrained language model


def save_classifier(weights: Mapping[str, Tensor], config: XLNetConfig, directory: str | Path) -> None:
    """Write ``config.json`` and, of a model's state, ``model.safetensors``; equal weights give equal bytes."""
    Path(directory, "config.json").write_text(configs.to_json(config), encoding="utf-8")
    state = {name: value.detach().to("cpu", torch.float32) for name, value in weights.items()}
    tensors = {name: value.contiguous() for name, value in split_qkv(state).items()}
    save_file(tensors, str(Path(directory, "model.safetensors")), metadata={"format": "pt"})


def load_classifier(directory: str | Path) -> XLNetClassifier:
    """Load a trained classifier: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: the directory holds no XLNet classifier.
        CorruptArtifact: its weights cannot be read or do not fit its config.
    """
    config = configs.read(Path(directory, "config.json"))
    model = XLNetClassifier(config)
    tensors = join_qkv(_read_tensors(Path(directory)))
    wrong = model.load_state_dict(tensors, strict=False)
    if wrong.missing_keys:
        raise UserError(
            f"'{directory}' lacks {wrong.missing_keys[0]} ({len(wrong.missing_keys)} weights missing): it is no "
            "trained classifier; to fine-tune it name it as model.pretrained"
        )
    return model.eval()


def load_pretrained(name: str, vocab_size: int, task: str, classes: list[str]) -> XLNetClassifier:
    """Start from published or own weights, with a head for this task.

    Args:
        name: a directory in Hugging Face layout, or a hub name such as ``xlnet-base-cased``.
        vocab_size: of the dataset's tokenizer, which must be the one the weights were trained with.
        task: ``"classification"`` or ``"regression"``.
        classes: class names in index order.

    Raises:
        UserError: nothing there, not XLNet, or another vocabulary.
    """
    directory = fetch(name)
    published = configs.read(directory / "config.json")
    if published.vocab_size != vocab_size:
        raise UserError(
            f"model.pretrained '{name}' has {published.vocab_size} tokens, the dataset's tokenizer {vocab_size}; "
            "set data.tokenizer to the directory of the pretrained model"
        )
    config = XLNetConfig(**{**vars(published), "task": task, "classes": tuple(classes)})
    model = XLNetClassifier(config)
    tensors = join_qkv(_with_prefix(_read_tensors(directory)))
    own = model.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and own[key].shape == value.shape}
    missing = sorted(own.keys() - fitting.keys())
    if lost := [key for key in missing if not key.startswith(HEADS)]:
        raise UserError(f"model.pretrained '{name}' lacks {lost[0]} ({len(lost)} weights missing or of another shape)")
    model.load_state_dict(fitting, strict=False)
    log.info("pretrained %s: %d tensors taken, new: %s", name, len(fitting), ", ".join(missing) or "none")
    return model


def fetch(name: str) -> Path:
    """The directory of a pretrained model: itself, or its files fetched from the hub by name."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils.hub import cached_file

    try:
        config = cached_file(name, "config.json")
        weights = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        weights = weights or cached_file(name, "pytorch_model.bin")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.pretrained is '{name}': no such directory, and the hub did not give it ({reason}); "
            "give a directory with config.json and model.safetensors"
        ) from None
    if Path(str(config)).parent != Path(str(weights)).parent:
        raise CorruptArtifact(f"the hub's cache holds '{name}' in two revisions; delete it and try again")
    return Path(str(config)).parent


def split_qkv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names to Hugging Face's: each ``…rel_attn.qkv`` [D, 3, N, H] becomes ``q``, ``k`` and ``v`` [D, N, H]."""
    split: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(FUSED):
            stem = name.removesuffix("qkv")
            split |= {f"{stem}{letter}": part for letter, part in zip("qkv", value.unbind(1), strict=True)}
        else:
            split[name] = value
    return split


def join_qkv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face's names to ours; a layer that lacks one of the three is left as it is, for the caller to notice."""
    joined = dict(tensors)
    for name in tensors:
        stem = name.removesuffix("q")
        parts = [f"{stem}{letter}" for letter in "qkv"]
        if name.endswith(".rel_attn.q") and all(part in tensors for part in parts):
            joined[f"{stem}qkv"] = torch.stack([joined.pop(part) for part in parts], 1)
    return joined


def _read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    safe, pickled = directory / "model.safetensors", directory / "pytorch_model.bin"
    try:
        if safe.is_file():
            return load_file(str(safe))
        if pickled.is_file():
            return dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise CorruptArtifact(f"the weights in '{directory}' cannot be read: {error}") from None
    raise UserError(f"'{directory}' has no weights; allowed: model.safetensors or pytorch_model.bin")


def _with_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A bare XLNetModel's file names its tensors without the ``transformer.`` that classifiers have."""
    if any(name.startswith("transformer.") for name in tensors):
        return tensors
    return {f"transformer.{name}": value for name, value in tensors.items()}
