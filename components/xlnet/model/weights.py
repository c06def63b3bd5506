"""Reads and writes weights in Hugging Face's layout: ``config.json`` and ``model.safetensors``.

The files have three tensors for the projections of queries, keys and values; our model has one parameter.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xlnet.data.tokenizer import load_tokenizer
from xlnet.errors import CorruptArtifact, UserError, warn
from xlnet.model import config as configs
from xlnet.model import tensor_files
from xlnet.model.config import XLNetConfig
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.pretrained import BODY, fetch, refuse_misfit, refuse_other_tokens
from xlnet.model.xlnet import XLNetClassifier

FUSED = ".rel_attn.qkv"
HEAD, HEAD_BIAS = "logits_proj.weight", "logits_proj.bias"
HEADS = ("sequence_summary.", "logits_proj.")  # a pretrained language model lacks these
LM_HEAD = "lm_loss.bias"
MEMORY = "memory"  # hidden states of a training's last segments; saved models do not contain them


def save_model(
    weights: Mapping[str, Tensor], config: XLNetConfig, directory: str | Path, trained_with: str = ""
) -> None:
    """Write ``config.json`` and ``model.safetensors``; equal weights give equal bytes.

    A regression's head is converted to the scale of the labels, which ``transformers`` expects.

    Args:
        weights: of the model.
        config: of the model.
        directory: where the files are written.
        trained_with: digest of the tokenizer that the weights were trained with; empty if unknown.
    """
    Path(directory, "config.json").write_text(configs.to_json(config, trained_with), encoding="utf-8")
    kept = {name: value for name, value in weights.items() if name != MEMORY}
    state = {name: value.detach().to("cpu", torch.float32) for name, value in kept.items()}
    tensors = {name: value.contiguous() for name, value in split_qkv(in_scale_of_labels(state, config)).items()}
    save_file(tensors, str(Path(directory, "model.safetensors")), metadata={"format": "pt"})


def load_classifier(directory: str | Path) -> XLNetClassifier:
    """Load a classifier that we or ``transformers`` have written: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: the directory has no XLNet classifier, or its config does not match the weights.
        CorruptArtifact: the weights cannot be read, or some are not finite.
    """
    directory = Path(directory)
    config_file = directory / "config.json"
    configs.read(config_file)  # refuse other models before reading their weights
    found = tensor_files.read(directory)
    tensors = join_qkv(found)
    head = tensors.get(HEAD)
    if head is None or head.dim() != 2 or not len(head):
        if LM_HEAD in tensors and head is None:
            raise UserError(
                f"'{directory}' is a language model, not a trained classifier; to fine-tune it, name it in "
                "model.pretrained; to write text with it, type 'generate'"
            )
        raise UserError(f"'{directory}' lacks {HEAD}: {configs.NOT_A_CLASSIFIER}")
    config = configs.read(config_file, outputs=len(head))
    with torch.device("meta"), _Uninitialised():
        model = XLNetClassifier(config)
    _refuse_misfit(directory, model, tensors)
    # What was read is still a map of the file, which other programs may write to. Joined tensors are copies already.
    own = {name: tensors[name].to(torch.float32, copy=name in found) for name in model.state_dict()}
    model.load_state_dict(own, assign=True)
    _refuse_not_finite(directory, model)
    return model.eval()


def load_language_model(directory: str | Path) -> XLNetLanguageModel:
    """Load a language model that we or ``transformers`` have written: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: the directory has no XLNet language model, or its config does not match the weights.
        CorruptArtifact: the weights cannot be read, or some are not finite.
    """
    directory = Path(directory)
    config = replace(configs.read(directory / "config.json"), task=configs.PRETRAIN)
    tensors = join_qkv(tensor_files.read(directory))
    if LM_HEAD not in tensors:
        why = "it is a classifier" if HEAD in tensors else f"it lacks {LM_HEAD}"
        raise UserError(f"'{directory}' is not a language model: {why}; make one with data.task = 'pretrain'")
    with torch.device("meta"), _Uninitialised():
        model = XLNetLanguageModel(config)
    _refuse_misfit(directory, model, tensors)
    model.to_empty(device="cpu").load_state_dict(tensors, strict=False)
    _refuse_not_finite(directory, model)
    return model.eval()


class _Uninitialised(TorchFunctionMode):
    """Skips ``torch.nn.init``, which would import torch's compiler in 1.4 s: the weights are loaded anyway."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **(kwargs or {}))


def _refuse_not_finite(directory: Path, model: torch.nn.Module) -> None:
    if broken := _first_not_finite(model):
        raise CorruptArtifact(f"the weights in '{directory}' are not all finite: {broken}; train the model again")


def _first_not_finite(model: torch.nn.Module) -> str:
    """Return the name of the first parameter that has a number that is not finite; empty if there is none.

    A sum takes a fifth of the time of looking at each number, which is done only if the sum is not finite.
    """
    for name, value in model.named_parameters():
        if not value.detach().sum().isfinite() and not value.isfinite().all():
            return name
    return ""


def _refuse_misfit(directory: Path, model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if a weight is missing or does not have the shape that the config gives."""
    own = model.state_dict()
    if missing := [name for name in own if name not in tensors]:
        raise UserError(
            f"'{directory}' lacks {missing[0]} ({len(missing)} weights missing): {configs.NOT_A_CLASSIFIER}"
        )
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"'{directory}' has {name} of shape {list(tensors[name].shape)}, and its config.json asks for "
                f"{list(value.shape)}; take both files from the same model"
            )
        if not tensors[name].is_floating_point():
            raise UserError(f"'{directory}' has {name} as {tensors[name].dtype}; allowed: weights in floating point")


def load_pretrained(
    name: str, tokenizer: str | Path, task: str, classes: list[str], scale: tuple[float, float] = (0.0, 1.0)
) -> Any:
    """Load pretrained weights, with a new head for this task.

    Args:
        name: a directory in Hugging Face layout, or a hub name such as ``xlnet-base-cased``.
        tokenizer: directory of the dataset's tokenizer; the weights must have been trained with the same one.
        task: ``"classification"``, ``"regression"`` or ``"pretrain"``.
        classes: class names in index order.
        scale: mean and deviation of a regression's train labels.

    Returns:
        A classifier, or a language model.

    Raises:
        UserError: there is no such model, it is not XLNet, or it has another vocabulary.
    """
    directory = fetch(name)
    published = configs.read(directory / "config.json")
    refuse_other_tokens(name, directory, load_tokenizer(tokenizer), published.vocab_size)
    mean, deviation = scale
    given = {"task": task, "classes": tuple(classes), "value_mean": mean, "value_deviation": deviation}
    config = XLNetConfig(**{**vars(published), **given})
    model = XLNetLanguageModel(config) if task == configs.PRETRAIN else XLNetClassifier(config)
    found = _with_prefix(tensor_files.read(directory))
    refuse_misfit(name, {key: tuple(value.shape) for key, value in found.items()}, config)
    tensors, own = _standardised(join_qkv(found), config), model.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and own[key].shape == value.shape}
    is_language_model = LM_HEAD in tensors and HEAD not in tensors
    missing = sorted(own.keys() - fitting.keys())
    if is_language_model and all(key.startswith(HEADS) for key in missing):
        missing = []  # a language model never has a classifier's head, so this needs no warning
    model.load_state_dict(fitting, strict=False)
    if broken := _first_not_finite(model):
        raise CorruptArtifact(f"the weights of model.pretrained '{name}' are not all finite: {broken}")
    if missing:
        warn(f"model.pretrained '{name}' has no fitting {', '.join(missing)}: training starts these from random values")
    return model


def in_scale_of_labels(weights: Mapping[str, Tensor], config: XLNetConfig) -> dict[str, Tensor]:
    """Convert a regression's head from standardised values to the scale of the labels."""
    scaled, deviation = dict(weights), config.value_deviation
    if config.task == "regression":
        scaled[HEAD] = (weights[HEAD].double() * deviation).float()
        scaled[HEAD_BIAS] = (weights[HEAD_BIAS].double() * deviation + config.value_mean).float()
    return scaled


def _standardised(tensors: Mapping[str, Tensor], config: XLNetConfig) -> dict[str, Tensor]:
    """Undo :func:`in_scale_of_labels` for a head that will be trained further, if the tensors have a head."""
    given = dict(tensors)
    if config.task == "regression" and {HEAD, HEAD_BIAS} <= given.keys():
        given[HEAD] = (given[HEAD].double() / config.value_deviation).float()
        given[HEAD_BIAS] = ((given[HEAD_BIAS].double() - config.value_mean) / config.value_deviation).float()
    return given


def split_qkv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert our tensors to Hugging Face's: split each ``…rel_attn.qkv`` [D, 3, N, H] into q, k and v [D, N, H]."""
    split: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(FUSED):
            stem = name.removesuffix("qkv")
            split |= {f"{stem}{letter}": part for letter, part in zip("qkv", value.unbind(1), strict=True)}
        else:
            split[name] = value
    return split


def join_qkv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert Hugging Face's tensors to ours. A layer that lacks q, k or v stays unchanged; the caller refuses it."""
    joined = dict(tensors)
    for name in tensors:
        stem = name.removesuffix("q")
        parts = [f"{stem}{letter}" for letter in "qkv"]
        if name.endswith(".rel_attn.q") and all(part in tensors for part in parts):
            joined[f"{stem}qkv"] = torch.stack([joined.pop(part) for part in parts], 1)
    return joined


def _with_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the prefix ``transformer.`` that classifiers have to the names of a bare XLNetModel's tensors."""
    if any(name.startswith(BODY) for name in tensors):
        return tensors
    return {f"{BODY}{name}": value for name, value in tensors.items()}
