"""The recipe: the whole of what a run is, as one immutable value with strict JSON and TOML readers.

A recipe starts from a preset (``tiny``, ``small``, ``base``, ``large``: functions that return a
complete recipe), is changed by a TOML file and by ``section.field=value`` settings, and crosses
every border as one JSON string. Times, places of execution and run ids stay out of it, so that
equal recipes over equal data are the same work.
"""

import codecs
import dataclasses
import hashlib
import io
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet.errors import UserError, nearest
from xlnet.redaction import holds_secret, redacted
from xlnet.steps import KEPT

NAME_LENGTH = 200
Column = str | int  # a column's name, or its index from 0
Paths = tuple[str, ...]  # local paths, globs, gs:// URIs, demo:NAME

AUTO_VOCABULARY = 8000  # target if data.vocab_size is 0; less for little text, more for scripts with many characters
SMALLEST_VOCABULARY = 64


def _choice(default: str, *allowed: str) -> Any:
    return field(default=default, metadata={"allowed": allowed})


def _number(default: float | int, low: float, high: float = math.inf) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class DataRecipe:
    """Which rows, and how they become token ids."""

    train: Paths = ()
    validation: Paths = ()  # empty: a stratified fraction of train
    test: Paths = ()  # empty: a stratified fraction of train
    validation_fraction: float = _number(0.1, 0.0, 0.9)
    test_fraction: float = _number(0.1, 0.0, 0.9)
    split_seed: int = _number(0, 0)
    format: str = _choice("auto", "auto", "csv", "tsv", "jsonl", "parquet", "text", "label-first")
    encoding: str = "auto"  # auto: UTF-8, or what the byte order mark says; else a codec's name in Python
    delimiter: str = "auto"  # auto: found in the first lines of each CSV file
    header: str = _choice("auto", "auto", "yes", "no")
    text: Column = "text"
    text_pair: Column | None = None
    label: Column = "label"
    id: Column | None = None
    task: str = _choice("classification", "classification", "regression")
    tokenizer: str = "xlnet-base-cased"  # shipped; "train"; or a directory with spiece.model
    vocab_size: int = _number(0, 0, 1_000_000)  # pieces to learn; 0: what the text supports, at most 8,000
    max_length: int = _number(128, 4, 131_072)  # tokens, including <sep> and <cls>
    max_rejects: float = _number(0.05, 0.0, 1.0)  # share of unreadable rows above which the run fails
    max_record_lines: int = _number(500, 1)  # per quoted CSV record; reviews and e-mails have fewer
    max_record_bytes: int = _number(16 << 20, 1024, 1 << 30)  # per CSV record or line


@dataclass(frozen=True)
class ModelRecipe:
    """The network. Names are those of the published configuration files."""

    preset: str = "tiny"
    pretrained: str = ""  # a hub name or a directory in Hugging Face layout; its shape is used
    n_layer: int = _number(2, 1, 256)
    d_model: int = _number(128, 2, 65_536)
    n_head: int = _number(4, 1, 1024)
    d_head: int = _number(32, 1, 1024)
    d_inner: int = _number(512, 1, 262_144)
    dropout: float = _number(0.1, 0.0, 0.99)
    summary_dropout: float = _number(0.1, 0.0, 0.99)


@dataclass(frozen=True)
class TrainingRecipe:
    """The optimisation. One step is one update of the weights."""

    epochs: float = _number(3.0, 0.0)
    steps: int = _number(0, 0)  # updates; 0: as many as ``epochs`` needs
    batch_tokens: int = _number(4096, 1)  # most tokens in one update
    micro_batch_tokens: int = _number(0, 0)  # most tokens on a device at once; 0: its share of an update
    learning_rate: float = _number(1e-3, 0.0, 10.0)  # peak, after warm-up
    warmup: float = _number(0.1, 0.0, 1.0)  # share of the steps in which the learning rate rises
    layer_decay: float = _number(1.0, 0.01, 1.0)  # learning rate of layer l: decay ** (n_layer - l)
    weight_decay: float = _number(0.01, 0.0)
    adam_beta1: float = _number(0.9, 0.0, 0.999999)
    adam_beta2: float = _number(0.999, 0.0, 0.999999)
    adam_epsilon: float = _number(1e-6, 0.0)
    clip_norm: float = _number(1.0, 0.0)  # gradient clipping; 0: none
    token_dropout: float = _number(0.0, 0.0, 0.9)  # share of input tokens hidden behind mask_emb
    label_smoothing: float = _number(0.0, 0.0, 0.9)
    precision: str = _choice("auto", "auto", "float32", "bfloat16")  # of matrix products
    shard_weights: bool = False  # FSDP: each rank holds a part of weights, gradients and optimizer
    recompute: bool = False  # activation checkpointing: less memory, a third more time
    evaluate_every: int = _number(0, 0)  # steps between validations; 0: after each epoch
    patience: int = _number(0, 0)  # early stopping after this many validations without improvement; 0: never
    checkpoint_every: int = _number(0, 0)  # steps between checkpoints; 0: at each validation
    seed: int = _number(0, 0, 2**63 - 1)


@dataclass(frozen=True)
class EvaluationRecipe:
    """How the model is judged, and what it takes to replace the champion."""

    metric: str = _choice("auto", "auto", "accuracy", "macro_f1", "mcc", "pearson", "spearman")
    margin: float = _number(0.0, -1.0, 1.0)  # amount by which the challenger must beat the champion
    confidence: float = _number(0.95, 0.5, 0.9999)
    resamples: int = _number(1000, 100, 1_000_000)
    worst: int = _number(20, 0, 1000)  # mistakes shown in the report
    seed: int = _number(0, 0, 2**63 - 1)


@dataclass(frozen=True)
class RegistryRecipe:
    """Where the model is kept."""

    name: str = "xlnet"
    uri: str = ""  # MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else a file in the state directory
    force: bool = False  # make the model champion even if the gate rejects it


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    registry: RegistryRecipe = RegistryRecipe()

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            _check_section(section.name, getattr(self, section.name))

    def to_json(self) -> str:
        """Every field, sorted keys, no spaces: equal recipes give equal strings."""
        return _dump(dataclasses.asdict(self))

    def digest(self) -> str:
        """Identity of the recipe: ``sha256:`` of its JSON."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()

    def part(self, *sections: str) -> str:
        """JSON of these sections alone: what one step depends on, and so what its cache key holds."""
        whole = dataclasses.asdict(self)
        return _dump({name: whole[name] for name in sections})

    def replace(self, **sections: Mapping[str, Any]) -> "Recipe":
        """Return this recipe with fields changed: ``recipe.replace(training={"seed": 1})``."""
        return _merge(self, sections)


def parts(text: str) -> tuple[str, ...]:
    """JSON of the part of a recipe that each kept step depends on, in the steps' order; ``text``: the whole recipe."""
    whole = from_json(text)
    return tuple(whole.part(*step.sections) for step in KEPT.values())


def tiny() -> Recipe:
    """The demo's network: trains on a few thousand sentences in a minute on two cores."""
    return Recipe()


def small() -> Recipe:
    """A network to train from scratch on tens of thousands of texts on a CPU, with the dropout that this takes."""
    return Recipe(
        model=ModelRecipe("small", "", 4, 256, 4, 64, 1024, dropout=0.2, summary_dropout=0.2),
        training=TrainingRecipe(epochs=2.0, batch_tokens=2048, learning_rate=5e-4, token_dropout=0.2),
    )


def base() -> Recipe:
    """XLNet-Base, Cased: 12 layers, hidden 768, 12 heads (Yang et al. 2019, released configuration)."""
    return _published("base", n_layer=12, d_model=768, n_head=12, d_inner=3072, learning_rate=3e-5)


def large() -> Recipe:
    """XLNet-Large, Cased: 24 layers, hidden 1024, 16 heads (Yang et al. 2019, table 7)."""
    recipe = _published("large", n_layer=24, d_model=1024, n_head=16, d_inner=4096, learning_rate=2e-5)
    return recipe.replace(training={"layer_decay": 0.75})


def _published(name: str, *, n_layer: int, d_model: int, n_head: int, d_inner: int, learning_rate: float) -> Recipe:
    return Recipe(
        data=DataRecipe(max_length=512),
        model=ModelRecipe(name, n_layer=n_layer, d_model=d_model, n_head=n_head, d_head=64, d_inner=d_inner),
        training=TrainingRecipe(learning_rate=learning_rate, batch_tokens=16_384),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"tiny": tiny, "small": small, "base": base, "large": large}


def load(path: str | Path | None = None, settings: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe and apply ``section.field=value`` settings over it.

    Paths in the file are relative to the file, paths in settings to the working directory.

    Raises:
        UserError: the file is missing or no TOML; a section, field or value is not allowed.
    """
    changes = _read_toml(Path(path)) if path is not None else {}
    for setting in settings:
        section, name, value = _parse_setting(setting)
        changes.setdefault(section, {})[name] = _anchor(section, name, value, Path.cwd())
    return from_changes(changes)


def from_changes(changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Start from the preset that ``changes["model"]["preset"]`` names and apply the rest over it."""
    model = _section_table("model", changes.get("model", {}))
    preset = model.get("preset", "tiny")
    if preset not in PRESETS:
        raise UserError(f"model.preset is {preset!r}; allowed: {', '.join(PRESETS)}{nearest(str(preset), PRESETS)}")
    shape = [name for name in ("n_layer", "d_model", "n_head", "d_head", "d_inner") if name in model]
    if model.get("pretrained") and shape:
        raise UserError(f"model.{shape[0]} is set beside model.pretrained, whose own shape wins; remove one of the two")
    return _merge(PRESETS[preset](), changes)


def from_json(text: str) -> Recipe:
    """Read what :meth:`Recipe.to_json` or :meth:`Recipe.part` wrote; absent sections get defaults.

    Raises:
        UserError: not JSON, or an unknown or wrong section, field or value.
    """
    try:
        changes = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the recipe is not JSON: {error}") from None
    if not isinstance(changes, dict):
        raise UserError(f"the recipe is {type(changes).__name__}, not a JSON object of sections")
    return _merge(Recipe(), changes)


def of_artifact(directory: str | Path) -> Recipe:
    """The recipe beside an artifact: the sections that made it, defaults for the others."""
    return from_json(Path(directory, "recipe.json").read_text(encoding="utf-8"))


def field_names() -> list[str]:
    """Every ``section.field`` there is, in order."""
    return [
        f"{section.name}.{item.name}"
        for section in dataclasses.fields(Recipe)
        for item in dataclasses.fields(_section_type(section.name))
    ]


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"recipe '{path}' does not exist; write one with: xlnet-pipeline init") from None
    except IsADirectoryError:
        raise UserError(f"recipe '{path}' is a directory; name the .toml file in it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe '{path}' is not TOML: {error}") from None
    table.pop("target", None)  # how targets are reached: no part of what a run is; xlnet_pipeline.targets reads it
    folder = path.resolve().parent
    return {
        section: {
            name: _anchor(section, name, value, folder) for name, value in _section_table(section, fields).items()
        }
        for section, fields in table.items()
    }


def _section_table(section: str, fields: Any) -> Mapping[str, Any]:
    if not isinstance(fields, Mapping):
        raise UserError(f"{section} is {fields!r}; it must be a section: [{section}] with fields below it")
    return fields


def _anchor(section: str, name: str, value: Any, folder: Path) -> Any:
    """Make a relative local path absolute; leave URIs, hub names and the shipped names alone."""
    if section == "data" and name in ("train", "validation", "test"):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            return value  # the type check says what is wrong with it
        return [item if _is_uri(item) else str(folder / _own(item)) for item in items if item]
    is_path_or_name = (section, name) in {("data", "tokenizer"), ("model", "pretrained")}
    if is_path_or_name and isinstance(value, str) and value and os.path.isdir(folder / _own(value)):
        return str(folder / _own(value))
    return value


def _own(path: str) -> str:
    """A path whose ``~`` is a home directory; one of an unknown user stays as it is."""
    return os.path.expanduser(path)


def _is_uri(path: str) -> bool:
    return path.startswith("demo:") or "://" in path


def _parse_setting(setting: str) -> tuple[str, str, Any]:
    key, equals, raw = setting.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--set {setting!r} is not section.field=value, such as training.steps=500")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # an unquoted string, as shells hand it over
    declared = _section_type(section, key).__dataclass_fields__.get(name)
    if declared is not None and declared.type in (str, "str") and not isinstance(value, str):
        value = raw  # a name such as 2026 stays the string it was typed as
    return section, name, value


def _section_type(section: str, given: str = "") -> Any:
    hints = typing.get_type_hints(Recipe)
    if section not in hints:
        known = [*hints, *(field_names() if "." in given else [])]
        raise UserError(f"unknown section '{section}'; allowed: {', '.join(hints)}{nearest(given or section, known)}")
    return hints[section]


def _merge(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    sections = {}
    for section, fields in changes.items():
        section_type = _section_type(section)
        hints = typing.get_type_hints(section_type)
        converted = {}
        for name, value in _section_table(section, fields).items():
            if name not in hints:
                raise UserError(f"unknown field '{section}.{name}'{_nearest_field(section, name, hints)}")
            converted[name] = _convert(f"{section}.{name}", value, hints[name])
        sections[section] = dataclasses.replace(getattr(recipe, section), **converted)
    return dataclasses.replace(recipe, **sections)


def _nearest_field(section: str, name: str, fields: Iterable[str]) -> str:
    here = nearest(name, fields)
    if here:
        return here.replace("'", f"'{section}.", 1)
    elsewhere = [full for full in field_names() if full.split(".")[1] == name]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else f"; allowed: {', '.join(fields)}"


def _convert(full_name: str, value: Any, expected: Any) -> Any:
    """Check ``value`` against a field's type; the only conversions are int → float and str → paths."""
    if expected == Paths:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(item for item in items if item)
        raise UserError(f"{full_name} is {value!r}; allowed: a path or a list of paths")
    kinds = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds and not (value is None and type(None) in kinds):
        words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
        raise UserError(f"{full_name} is {value!r}; allowed: {' or '.join(words[kind] for kind in kinds)}")
    return value


def _check_section(section: str, values: Any) -> None:
    for item in dataclasses.fields(values):
        value, full_name = getattr(values, item.name), f"{section}.{item.name}"
        _refuse_secret(full_name, value)
        allowed = item.metadata.get("allowed")
        if allowed and value not in allowed:
            raise UserError(f"{full_name} is {value!r}; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}")
        if "low" in item.metadata and not item.metadata["low"] <= value <= item.metadata["high"]:
            low, high = item.metadata["low"], item.metadata["high"]
            bounds = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise UserError(f"{full_name} is {value!r}; allowed: {bounds}")
        if item.name in ("text", "text_pair", "label", "id") and isinstance(value, int) and value < 0:
            raise UserError(f"{full_name} is {value}; allowed: a column's name, or its index from 0")
    if section == "model" and values.preset not in PRESETS:
        raise UserError(f"model.preset is {values.preset!r}; allowed: {', '.join(PRESETS)}")
    if section == "model" and values.d_model % 2:
        raise UserError(f"model.d_model is {values.d_model}; allowed: an even number (half sines, half cosines)")
    if section == "training" and not values.epochs and not values.steps:
        raise UserError("training.epochs and training.steps are both 0; set one of them")
    if section == "data" and 0 < values.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"data.vocab_size is {values.vocab_size}; allowed: {SMALLEST_VOCABULARY} to 1000000, "
            "or 0 for what the text supports"
        )
    if section == "data":
        _check_dialect(values)
    if section == "data" and values.validation_fraction + values.test_fraction > 0.9:
        raise UserError(
            f"data.validation_fraction + data.test_fraction is {values.validation_fraction + values.test_fraction:g};"
            " allowed: 0.9 at most, so that rows are left to train on"
        )
    if section == "registry":
        _check_name(values.name)


def _check_dialect(data: DataRecipe) -> None:
    if data.delimiter != "auto" and (len(data.delimiter) != 1 or data.delimiter in '"\r\n'):
        raise UserError(f"data.delimiter is {data.delimiter!r}; allowed: auto, or one character, such as ';'")
    try:
        if data.encoding != "auto":
            io.TextIOWrapper(io.BytesIO(), encoding=codecs.lookup(data.encoding).name)  # refuses what is no text
    except (LookupError, ValueError):
        known = "utf-8, utf-16-le, cp1252, latin-1, gb18030"
        raise UserError(
            f"data.encoding is {data.encoding!r}; allowed: auto, or an encoding that Python knows, such as {known}"
        ) from None


def _check_name(name: str) -> None:
    """Refuse a registry's name that could not be typed as NAME:VERSION, or that some registry would take for a path."""
    if not name or name in (".", "..") or any(c in "/:@" or c.isspace() or not c.isprintable() for c in name):
        raise UserError(f"registry.name is {name!r}; allowed: a name without spaces, '/', ':' and '@'")
    if len(name) > NAME_LENGTH:
        raise UserError(f"registry.name has {len(name)} characters; allowed: {NAME_LENGTH}")


def _refuse_secret(full_name: str, value: Any) -> None:
    """Refuse an address with a password: recipes are kept beside every artifact, and shown."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and holds_secret(text):
            raise UserError(
                f"{full_name} '{redacted(text)}' was given with a password, which the recipe would keep; leave it out "
                "and set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, instead"
            )
