"""The network's shape, read from and written to Hugging Face's ``config.json``."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.errors import UserError
from xlnet.recipe import ModelRecipe

# What every published XLNet has, and what our mathematics assumes.
PUBLISHED: dict[str, Any] = {
    "attn_type": "bi",
    "bi_data": False,
    "same_length": False,
    "untie_r": True,
    "ff_activation": "gelu",
    "summary_type": "last",
    "summary_use_proj": True,
    "summary_activation": "tanh",
}


@dataclass(frozen=True)
class XLNetConfig:
    """Everything the network's computation depends on. Field names are those of ``config.json``."""

    vocab_size: int
    n_layer: int
    d_model: int
    n_head: int
    d_head: int
    d_inner: int
    dropout: float = 0.1
    summary_last_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    clamp_len: int = -1
    pad_token_id: int = 5
    task: str = "classification"
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Width of the logits: one per class, or one value for regression."""
        return len(self.classes) if self.task == "classification" else 1


def from_recipe(recipe: ModelRecipe, vocab_size: int, pad_token_id: int, task: str, classes: list[str]) -> XLNetConfig:
    """The shape a recipe asks for, with a head for these classes."""
    return XLNetConfig(
        vocab_size=vocab_size,
        n_layer=recipe.n_layer,
        d_model=recipe.d_model,
        n_head=recipe.n_head,
        d_head=recipe.d_head,
        d_inner=recipe.d_inner,
        dropout=recipe.dropout,
        summary_last_dropout=recipe.summary_dropout,
        pad_token_id=pad_token_id,
        task=task,
        classes=tuple(classes),
    )


def read(path: str | Path) -> XLNetConfig:
    """Read a ``config.json`` in Hugging Face's layout, ours or theirs.

    Raises:
        UserError: missing, no JSON, no XLNet, or an XLNet variant whose maths differs from ours.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; name a directory with config.json and model.safetensors") from None
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None
    if values.get("model_type") != "xlnet":
        raise UserError(f"'{path}' describes a {values.get('model_type')!r} model; allowed: 'xlnet'")
    for name in ("vocab_size", "n_layer", "d_model", "n_head", "d_inner"):
        if not isinstance(values.get(name), int):
            raise UserError(f"'{path}' has no whole number '{name}'; it is no XLNet configuration")
    _refuse_variants(path, values)
    names = {int(index): str(name) for index, name in values.get("id2label", {0: "LABEL_0", 1: "LABEL_1"}).items()}
    regression = values.get("problem_type") == "regression"
    return XLNetConfig(
        vocab_size=values["vocab_size"],
        n_layer=values["n_layer"],
        d_model=values["d_model"],
        n_head=values["n_head"],
        d_head=values.get("d_head") or values["d_model"] // values["n_head"],
        d_inner=values["d_inner"],
        dropout=values.get("dropout", 0.1),
        summary_last_dropout=values.get("summary_last_dropout", 0.1),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        initializer_range=values.get("initializer_range", 0.02),
        clamp_len=values.get("clamp_len", -1),
        pad_token_id=values.get("pad_token_id", 5),
        task="regression" if regression else "classification",
        classes=() if regression else tuple(names[index] for index in sorted(names)),
    )


def _refuse_variants(path: str | Path, values: dict[str, Any]) -> None:
    """Settings that no published XLNet uses and that would silently change the result."""
    for name, value in PUBLISHED.items():
        if values.get(name, value) != value:
            raise UserError(f"'{path}' sets {name} = {values[name]!r}; allowed: {value!r}, as in the published models")


def to_json(config: XLNetConfig) -> str:
    """The ``config.json`` that ``transformers.XLNetForSequenceClassification`` loads as is."""
    values = dataclasses.asdict(config)
    task, classes = values.pop("task"), values.pop("classes")
    names = list(classes) if task == "classification" else ["value"]
    values |= {
        "architectures": ["XLNetForSequenceClassification"],
        "model_type": "xlnet",
        "dtype": "float32",
        **PUBLISHED,
        "mem_len": None,
        "reuse_len": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "problem_type": "single_label_classification" if task == "classification" else "regression",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
