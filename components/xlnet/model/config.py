"""The model's configuration, read from and written to Hugging Face's ``config.json``."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.errors import UserError
from xlnet.recipe import ModelRecipe

# Settings that every published XLNet has, and that our implementation assumes.
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
MOST = {"vocab_size": 2**31, "n_layer": 1000, "d_model": 2**20, "n_head": 2**16, "d_inner": 2**24}
SYNONYMS = {
    "n_token": "vocab_size",
    "hidden_size": "d_model",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
RELEASED = "xlnet_config.json"  # beside the released TensorFlow checkpoints
CLASSIFIER = "XLNetForSequenceClassification"
LANGUAGE_MODEL = "XLNetLMHeadModel"
NOT_A_CLASSIFIER = "it is not a trained classifier; to fine-tune it, name it in model.pretrained"
TOKENIZER = "tokenizer_digest"  # our own field: of the tokenizer that the weights were trained with
PRETRAIN = "pretrain"  # the task of language models
MULTI_LABEL = "multi_label"  # a task of models trained elsewhere: each output is an independent probability
PROBLEMS = {
    None: "classification",
    "single_label_classification": "classification",
    "multi_label_classification": MULTI_LABEL,
    "regression": "regression",
}


@dataclass(frozen=True)
class XLNetConfig:
    """Every setting that the model's computation depends on. Field names are those of ``config.json``."""

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
    value_mean: float = 0.0  # mean of a regression's train labels; in training the head has standardised values
    value_deviation: float = 1.0

    @property
    def outputs(self) -> int:
        """Width of the logits: one per class, or 1 for regression."""
        return 1 if self.task == "regression" else len(self.classes)


def from_recipe(
    recipe: ModelRecipe,
    vocab_size: int,
    pad_token_id: int,
    task: str,
    classes: list[str],
    scale: tuple[float, float] = (0.0, 1.0),
) -> XLNetConfig:
    """Make the configuration that a recipe asks for, with a head for these classes, or for values of this scale."""
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
        value_mean=scale[0],
        value_deviation=scale[1],
    )


def read(path: str | Path, outputs: int | None = None) -> XLNetConfig:
    """Read a ``config.json`` in Hugging Face's layout.

    Args:
        path: the file.
        outputs: width of the head in the weights beside it; None reads no head, and the returned config then has
            no classes.

    Raises:
        UserError: the file is missing, is not JSON, is not an XLNet config, describes an unsupported variant of XLNet,
            or does not describe ``outputs`` outputs.
    """
    values = _values(path)
    if values.get("model_type") != "xlnet":
        raise UserError(f"'{path}' describes a {values.get('model_type')!r} model; allowed: 'xlnet'")
    _refuse_variants(path, values)
    number = functools.partial(_number, path, values)
    sizes: dict[str, int] = {name: number(name, None, 1, most) for name, most in MOST.items()}
    if sizes["d_model"] % 2:
        raise UserError(f"'{path}' has d_model = {sizes['d_model']}; allowed: even numbers")
    task, classes = ("classification", ()) if outputs is None else _head(path, values, outputs)
    return XLNetConfig(
        **sizes,
        d_head=number("d_head", max(1, sizes["d_model"] // sizes["n_head"]), 1, MOST["d_model"]),
        dropout=number("dropout", 0.1, 0.0, 1.0),
        summary_last_dropout=number("summary_last_dropout", 0.1, 0.0, 1.0),
        layer_norm_eps=number("layer_norm_eps", 1e-12, 0.0, 1.0),
        initializer_range=number("initializer_range", 0.02, 0.0, 1e9),
        clamp_len=number("clamp_len", -1, -1, 2**31),
        pad_token_id=number("pad_token_id", 5, 0, 2**31),
        task=task,
        classes=classes,
    )


def is_language_model(directory: Path) -> bool:
    """Whether a directory's configuration names a language model. A released TensorFlow archive always is one."""
    path = directory / "config.json"
    if not path.is_file():
        return (directory / RELEASED).is_file()
    return LANGUAGE_MODEL in (_values(path).get("architectures") or [])


def _values(path: str | Path) -> dict[str, Any]:
    """Read the file's fields, under the names that this module uses."""
    path = Path(path)
    is_released = not path.exists() and path.with_name(RELEASED).is_file()
    path = path.with_name(RELEASED) if is_released else path
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"'{path}' does not exist; name a directory with config.json and model.safetensors") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' is not JSON: it holds no object, so it is not an XLNet configuration")
    values = {name: values[other] for other, name in SYNONYMS.items() if other in values} | values
    return {"model_type": "xlnet"} | values if is_released else values


def _number(path: str | Path, values: dict[str, Any], name: str, default: Any, low: Any, high: Any) -> Any:
    """Return a field's number, an integer if ``low`` is one. A field without a default must be present."""
    value = values.get(name)
    if value is None and default is not None:
        return default
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "whole number" if whole else "number"
        raise UserError(f"'{path}' has no {kind} '{name}'; it is not an XLNet configuration")
    if not low <= value <= high:
        raise UserError(f"'{path}' has {name} = {value}; allowed: {low} to {high}")
    return value


def _head(path: str | Path, values: dict[str, Any], outputs: int) -> tuple[str, tuple[str, ...]]:
    """Return a head's task and the names of its outputs. One output without a problem type means regression."""
    kinds = values.get("architectures") or [CLASSIFIER]
    if CLASSIFIER not in kinds:
        raise UserError(f"'{path}' describes a {kinds[0]}: {NOT_A_CLASSIFIER}")
    problem = values.get("problem_type")
    if problem not in PROBLEMS:
        allowed = ", ".join(str(one) for one in PROBLEMS if one)
        raise UserError(f"'{path}' has problem_type {problem!r}; allowed: {allowed}")
    names = _names(path, values, outputs)
    if problem == "regression" or (problem is None and outputs == 1):
        if outputs > 1:
            raise UserError(f"'{path}' describes a regression with {outputs} values; allowed: one value")
        return "regression", ()
    if problem == "single_label_classification" and outputs == 1:
        raise UserError(
            f"'{path}' has one output and problem_type '{problem}', a certainty; allowed: regression, or "
            "multi_label_classification for a yes or no"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"'{path}' names {len(twice)} outputs {twice[0]!r}; give each its own name in id2label")
    return PROBLEMS[problem], names


def _names(path: str | Path, values: dict[str, Any], outputs: int) -> tuple[str, ...]:
    """Return the outputs' names in order, from ``id2label``; missing names become ``LABEL_0`` and so on."""
    named = values.get("id2label") or {}
    if not isinstance(named, dict) or not all(isinstance(one, str | int | float) for one in named.values()):
        raise UserError(f"'{path}' has an id2label that is not a table of numbers and names")
    try:
        by_index = {int(index): str(name) for index, name in named.items()}
    except ValueError as error:
        raise UserError(f"'{path}' has an id2label whose keys are not whole numbers: {error}") from None
    # Names may be missing, but if the last outputs have none, the config belongs to another head.
    last = max(by_index) if by_index else _number(path, values, "num_labels", outputs, 0, 2**31) - 1
    if last != outputs - 1 or min(by_index, default=0) < 0:
        what = f"id2label ends with output {last}" if by_index else f"num_labels is {last + 1}"
        raise UserError(f"'{path}' does not fit the weights: {what}, and their head has outputs 0 to {outputs - 1}")
    return tuple(by_index.get(index, f"LABEL_{index}") for index in range(outputs))


def _refuse_variants(path: str | Path, values: dict[str, Any]) -> None:
    """Raise UserError for settings that no published XLNet uses and that would silently change the result."""
    for name, value in PUBLISHED.items():
        if values.get(name, value) != value:
            raise UserError(f"'{path}' sets {name} = {values[name]!r}; allowed: {value!r}, as in the published models")


def tokenizer_digest(directory: Path) -> str:
    """Return the digest of the tokenizer that a model's weights were trained with; empty if the config lacks it."""
    return str(_values(directory / "config.json").get(TOKENIZER, ""))


def to_json(config: XLNetConfig, trained_with: str = "") -> str:
    """Format the ``config.json`` that ``transformers`` loads as it is, with the tokenizer's digest if it is known."""
    values = dataclasses.asdict(config) | ({TOKENIZER: trained_with} if trained_with else {})
    task, classes = values.pop("task"), values.pop("classes")
    del values["value_mean"], values["value_deviation"]  # weights are written in the labels' own scale
    is_language_model = task == PRETRAIN
    values |= {
        "architectures": [LANGUAGE_MODEL if is_language_model else CLASSIFIER],
        "model_type": "xlnet",
        "dtype": "float32",
        **PUBLISHED,
        "mem_len": None,
        "reuse_len": None,
        "use_mems_eval": is_language_model,  # transformers.pipeline cannot join the memories of a batch of texts
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if not is_language_model:
        names = ["value"] if task == "regression" else list(classes)
        values |= {
            "problem_type": next(name for name, known in PROBLEMS.items() if name and known == task),
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
