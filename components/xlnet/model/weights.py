"""Weights in and out, in Hugging Face's layout: ``config.json`` and ``model.safetensors``.

Queries, keys and values are three tensors there and one parameter here.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from xlnet.data.tokenizer import TOKENIZER_FILES, Tokenizer, has_tokenizer, load_tokenizer
from xlnet.errors import CorruptArtifact, UserError, warn
from xlnet.model import config as configs
from xlnet.model import tensor_files
from xlnet.model.config import XLNetConfig
from xlnet.model.xlnet import XLNetClassifier

FUSED = ".rel_attn.qkv"
HEAD = "logits_proj.weight"
NO_CLASSIFIER = ": it is no trained classifier; to fine-tune it name it as model.pretrained"
HEADS = ("sequence_summary.", "logits_proj.")  # absent from a pretrained language model


def save_classifier(weights: Mapping[str, Tensor], config: XLNetConfig, directory: str | Path) -> None:
    """Write ``config.json`` and, of a model's state, ``model.safetensors``; equal weights give equal bytes."""
    Path(directory, "config.json").write_text(configs.to_json(config), encoding="utf-8")
    state = {name: value.detach().to("cpu", torch.float32) for name, value in weights.items()}
    tensors = {name: value.contiguous() for name, value in split_qkv(state).items()}
    save_file(tensors, str(Path(directory, "model.safetensors")), metadata={"format": "pt"})


def load_classifier(directory: str | Path) -> XLNetClassifier:
    """Load a trained classifier, ours or one of ``transformers``: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: the directory holds no XLNet classifier, or one that its config does not describe.
        CorruptArtifact: its weights cannot be read, or are not all finite.
    """
    directory = Path(directory)
    config_file = directory / "config.json"
    configs.read(config_file)  # what is no XLNet is said before its weights are read
    tensors = join_qkv(tensor_files.read(directory))
    head = tensors.get(HEAD)
    if head is None or head.dim() != 2 or not len(head):
        raise UserError(f"'{directory}' lacks {HEAD}{NO_CLASSIFIER}")
    config = configs.read(config_file, outputs=len(head))
    with torch.device("meta"):
        model = XLNetClassifier(config)
    _refuse_misfit(directory, model, tensors)
    model.to_empty(device="cpu").load_state_dict(tensors, strict=False)
    if broken := next((name for name, value in model.named_parameters() if not value.isfinite().all()), None):
        raise CorruptArtifact(f"the weights in '{directory}' are not all finite: {broken}; train the model again")
    return model.eval()


def _refuse_misfit(directory: Path, model: XLNetClassifier, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if a weight is missing or of another shape than the config says."""
    own = model.state_dict()
    if missing := [name for name in own if name not in tensors]:
        raise UserError(f"'{directory}' lacks {missing[0]} ({len(missing)} weights missing){NO_CLASSIFIER}")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"'{directory}' has {name} of shape {list(tensors[name].shape)}, and its config.json asks for "
                f"{list(value.shape)}; take both files from the same model"
            )
        if not tensors[name].is_floating_point():
            raise UserError(f"'{directory}' has {name} as {tensors[name].dtype}; allowed: weights in floating point")


def load_pretrained(name: str, tokenizer: str | Path, task: str, classes: list[str]) -> XLNetClassifier:
    """Start from published or own weights, with a head for this task.

    Args:
        name: a directory in Hugging Face layout, or a hub name such as ``xlnet-base-cased``.
        tokenizer: directory of the dataset's tokenizer, which must be the one the weights were trained with.
        task: ``"classification"`` or ``"regression"``.
        classes: class names in index order.

    Raises:
        UserError: nothing there, not XLNet, or another vocabulary.
    """
    directory = fetch(name)
    published = configs.read(directory / "config.json")
    _refuse_other_tokens(name, directory, load_tokenizer(tokenizer), published.vocab_size)
    config = XLNetConfig(**{**vars(published), "task": task, "classes": tuple(classes)})
    model = XLNetClassifier(config)
    tensors = join_qkv(_with_prefix(tensor_files.read(directory)))
    own = model.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and own[key].shape == value.shape}
    missing = sorted(own.keys() - fitting.keys())
    if lost := [key for key in missing if not key.startswith(HEADS)]:
        raise UserError(f"model.pretrained '{name}' lacks {lost[0]} ({len(lost)} weights missing or of another shape)")
    model.load_state_dict(fitting, strict=False)
    if broken := next((key for key, value in model.named_parameters() if not value.isfinite().all()), None):
        raise CorruptArtifact(f"the weights of model.pretrained '{name}' are not all finite: {broken}")
    if missing:
        warn(f"model.pretrained '{name}' has no fitting {', '.join(missing)}: training starts these from random values")
    return model


def _refuse_other_tokens(name: str, directory: Path, ours: Tokenizer, vocab_size: int) -> None:
    """Raise UserError if a token id means one piece in the dataset and another one to the pretrained weights."""
    remedy = "set data.tokenizer to the directory of the pretrained model"
    if vocab_size != ours.vocab_size:
        raise UserError(
            f"model.pretrained '{name}' has {vocab_size} tokens, the dataset's tokenizer {ours.vocab_size}; {remedy}"
        )
    if not has_tokenizer(directory):
        warn(f"model.pretrained '{name}' comes without a tokenizer: its tokens are taken to be the dataset's")
        return
    if difference := ours.difference(load_tokenizer(directory)):
        raise UserError(f"model.pretrained '{name}' has another tokenizer than the dataset: {difference}; {remedy}")


def find(name: str) -> Path:
    """Where a pretrained model's ``config.json`` is: in its directory, or fetched from the hub by the model's name.

    Raises:
        UserError: neither has it.
    """
    if Path(name).is_dir():
        return Path(name, "config.json")
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from None


def _not_found(name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"model.pretrained is '{name}': no such directory, and the hub did not give it ({reason}); "
        "give a directory with config.json and model.safetensors"
    )


def fetch(name: str) -> Path:
    """The directory of a pretrained model: itself, or its files fetched from the hub by name."""
    config = find(name)
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils.hub import cached_file

    try:
        weights = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        weights = weights or cached_file(name, "pytorch_model.bin")
        for file in TOKENIZER_FILES:
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from None
    if config.parent != Path(str(weights)).parent:
        raise CorruptArtifact(f"the hub's cache holds '{name}' in two revisions; delete it and try again")
    return config.parent


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


def _with_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A bare XLNetModel's file names its tensors without the ``transformer.`` that classifiers have."""
    if any(name.startswith("transformer.") for name in tensors):
        return tensors
    return {f"transformer.{name}": value for name, value in tensors.items()}
