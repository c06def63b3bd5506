"""Defines the fields of a recipe as immutable sections, and converts a recipe to and from JSON."""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet.errors import UserError, nearest
from xlnet.recipe.checks import check_section, check_together
from xlnet.steps import KEPT, of_run

Column = str | int  # a column's name, or its index from 0
Paths = tuple[str, ...]  # local paths, globs, gs:// URIs, demo:NAME

AUTO: Any = "auto"  # in place of a number: xlnet.recipe.budget chooses it from the data
ClassWeights = str | dict[str, float]

MOST_SHARDS = 100  # Vertex AI hands over at most 100 artifacts of a loop
AUTO_VOCABULARY = 8000  # target if data.vocab_size is 0; less for little text, more for scripts with many characters


def _choice(default: str, *allowed: str) -> Any:
    return field(default=default, metadata={"allowed": allowed})


def _number(default: float | int, low: float, high: float = math.inf, **more: bool) -> Any:
    return field(default=default, metadata={"low": low, "high": high, **more})


_auto = functools.partial(_number, auto=True)  # may be "auto" until xlnet.recipe.budget.decide replaces it
_spread = functools.partial(_auto, spread=True)  # says how work is spread: no result depends on it, so no step's part


OWN_ROWS = "train"  # in pretraining.corpus: the rows that are trained on, never those of validation or test
INPUTS = ("train", "validation", "test", "labels")  # the fields of data that name input files


@dataclass(frozen=True)
class DataRecipe:
    """The rows to read, and how they become token ids."""

    train: Paths = ()
    validation: Paths = ()  # empty: a stratified fraction of train
    test: Paths = ()  # empty: a stratified fraction of train
    labels: Paths = ()  # files of labels, a line for each line of the text files, in the order train, validation, test
    validation_fraction: float = _number(0.1, 0.0, 0.9)
    test_fraction: float = _number(0.1, 0.0, 0.9)
    split_seed: int = _number(0, 0)
    format: str = _choice("auto", "auto", "csv", "tsv", "jsonl", "parquet", "xlsx", "text", "label-first")
    encoding: str = "auto"  # auto: UTF-8, or what the byte order mark says; else a codec's name in Python
    delimiter: str = "auto"  # auto: found in the first lines of each CSV file
    quoting: str = _choice("auto", "auto", "doubled", "backslash", "none")  # how a quote inside quotes is escaped
    quote: str = "auto"  # one character; auto: " unless the first lines show '
    sheet: str = ""  # of a workbook; empty: the only one with rows
    header: str = _choice("auto", "auto", "yes", "no")
    text: Column = "text"
    text_pair: Column | None = None
    label: Column = "label"
    id: Column | None = None
    task: str = _choice("classification", "classification", "regression", "pretrain")
    tokenizer: str = "xlnet-base-cased"  # shipped; "train"; or a directory with spiece.model
    vocab_size: int = _number(0, 0, 1_000_000)  # pieces to learn; 0: what the text supports, at most 8,000
    max_length: int = _number(512, 4, 131_072)  # tokens, including <sep> and <cls>
    max_rejects: float = _number(0.05, 0.0, 1.0)  # share of unreadable rows above which the run fails
    max_record_lines: int = _number(500, 1)  # per quoted CSV record; reviews and e-mails have fewer
    max_record_bytes: int = _number(16 << 20, 1024, 1 << 30)  # per CSV record or line
    shards: int = _spread(AUTO, 1, MOST_SHARDS)  # tokenised on as many machines; the dataset's bytes do not change

    @property
    def inputs(self) -> dict[str, Paths]:
        """Maps each field that names input files to their paths."""
        return {name: getattr(self, name) for name in INPUTS}


@dataclass(frozen=True)
class ModelRecipe:
    """The network. The names are those of the published configuration files."""

    preset: str = _choice("tiny", "tiny", "small", "base", "large")
    pretrained: str = ""  # a hub name or a directory in Hugging Face layout; its shape is used
    n_layer: int = _number(2, 1, 256)
    d_model: int = _number(128, 2, 65_536)
    n_head: int = _number(4, 1, 1024)
    d_head: int = _number(32, 1, 1024)
    d_inner: int = _number(512, 1, 262_144)
    dropout: float = _auto(0.1, 0.0, 0.99)
    summary_dropout: float = _auto(0.1, 0.0, 0.99)


@dataclass(frozen=True)
class TrainingRecipe:
    """The optimisation. A step is one update of the weights."""

    epochs: float = _auto(3.0, 0.0)
    steps: int = _number(0, 0)  # updates; 0: as many as ``epochs`` needs
    batch_tokens: int = _auto(4096, 1)  # most tokens in one update
    micro_batch_tokens: int = _number(0, 0)  # most tokens on a device at once; 0: its share of an update
    learning_rate: float = _auto(1e-3, 0.0, 10.0)  # peak, after warm-up
    warmup: float = _auto(0.1, 0.0, 1.0)  # share of the steps in which the learning rate rises
    layer_decay: float = _number(1.0, 0.01, 1.0)  # learning rate of layer l: decay ** (n_layer - l)
    weight_decay: float = _number(0.01, 0.0)
    adam_beta1: float = _number(0.9, 0.0, 0.999999)
    adam_beta2: float = _number(0.999, 0.0, 0.999999)
    adam_epsilon: float = _number(1e-6, 0.0)
    clip_norm: float = _number(1.0, 0.0)  # gradient clipping; 0: none
    token_dropout: float = _auto(0.0, 0.0, 0.9)  # share of input tokens hidden behind mask_emb
    label_smoothing: float = _auto(0.0, 0.0, 0.9)
    class_weights: ClassWeights = "none"  # none, balanced, or class → weight in the loss (others: 1)
    select_by: str = _choice("auto", "auto", "accuracy", "macro_f1", "mcc", "pearson", "spearman", "loss")
    max_minutes: float = _number(0.0, 0.0)  # of one attempt; 0: no limit
    precision: str = _choice("auto", "auto", "float32", "bfloat16")  # of matrix products
    shard_weights: bool = False  # FSDP: each rank holds a part of weights, gradients and optimizer
    recompute: bool = False  # activation checkpointing: less memory, a third more time
    evaluate_every: int = _number(0, 0)  # steps between validations; 0: after each epoch
    patience: int = _auto(0, 0)  # early stopping after this many validations without improvement; 0: never
    checkpoint_every: int = _number(0, 0)  # steps between checkpoints; 0: at each validation
    seed: int = _number(0, 0, 2**63 - 1)
    initialisation: str = _choice("random", "auto", "random", "linear", "matching")  # of new weights


@dataclass(frozen=True)
class PretrainingRecipe:
    """The permutation objective, for ``data.task = "pretrain"`` or for a pretrain step before the training."""

    corpus: Paths = ()  # for a pretrain step before the training; "train": its train rows; empty: no such step
    one_in: int = _number(6, 1, 1000)  # one token in so many is predicted: K of the paper
    reuse_len: int = _number(0, 0, 65_536)  # tokens of each segment that become memory; 0: no memory
    mem_len: int = _number(0, 0, 65_536)  # most tokens that memory holds; 0: no memory
    bidirectional: bool = True  # with memory, half of each update reads the corpus backwards
    # The next fields are for the pretrain step. With data.task = "pretrain", those of data and training count.
    max_length: int = _number(0, 0, 131_072)  # tokens of a segment; 0: 128, or data.max_length if that is less
    epochs: float = _auto(AUTO, 0.0)
    steps: int = _number(0, 0)  # updates; 0: as many as ``epochs`` needs
    batch_tokens: int = _auto(AUTO, 1)
    learning_rate: float = _auto(AUTO, 0.0, 10.0)
    max_minutes: float = _number(0.0, 0.0)
    seed: int = _number(0, 0, 2**63 - 1)

    @property
    def files(self) -> Paths:
        """The paths of the corpus's files, without the training's own rows."""
        return tuple(path for path in self.corpus if path != OWN_ROWS)


@dataclass(frozen=True)
class EvaluationRecipe:
    """How the model is evaluated, and how much better it must be than the champion."""

    metric: str = _choice("auto", "auto", "accuracy", "macro_f1", "mcc", "pearson", "spearman", "bits_per_byte")
    margin: float = _number(0.0, -1.0, 1.0)  # amount by which the challenger must beat the champion
    confidence: float = _number(0.95, 0.5, 0.9999)
    resamples: int = _number(1000, 100, 1_000_000)
    baseline: str = _choice("tfidf", "tfidf", "majority", "none")  # what the model is compared with
    worst: int = _number(20, 0, 1000)  # mistakes shown in the report
    seed: int = _number(0, 0, 2**63 - 1)


@dataclass(frozen=True)
class RegistryRecipe:
    """Where the model is registered."""

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
    pretraining: PretrainingRecipe = PretrainingRecipe()

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            check_section(section.name, getattr(self, section.name))
        if self.training.select_by == "auto" and self.evaluation.metric not in ("auto", "bits_per_byte"):
            training = dataclasses.replace(self.training, select_by=self.evaluation.metric)
            object.__setattr__(self, "training", training)  # the train step does not read the evaluation section
        check_together(self)

    @property
    def pretrains(self) -> bool:
        """Whether a pretrain step comes before the training."""
        return bool(self.pretraining.corpus)

    @property
    def shards(self) -> int:
        """The number of tasks that tokenise the input: 1 if step preprocess does it all, or as long as it is "auto"."""
        return 1 if self.data.shards == AUTO else self.data.shards

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the run's steps, in order."""
        return tuple(of_run(self.pretrains, self.shards > 1))

    def to_json(self) -> str:
        """Return JSON of all fields with sorted keys and no spaces, so that equal recipes give equal strings."""
        return _dump(dataclasses.asdict(self))

    def digest(self) -> str:
        """Return the recipe's digest: ``sha256:`` of its JSON."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()

    def part(self, *sections: str) -> str:
        """Return JSON of these sections only. A step depends on some sections, and its cache key holds their JSON."""
        whole = {}
        for section in sections:
            values = getattr(self, section)
            kept = [item.name for item in dataclasses.fields(values) if not item.metadata.get("spread")]
            whole[section] = {name: getattr(values, name) for name in kept}
        return _dump(whole)

    def replace(self, **sections: Mapping[str, Any]) -> "Recipe":
        """Return a copy of the recipe with changed fields: ``recipe.replace(training={"seed": 1})``."""
        return merge(self, sections)


def parts(text: str) -> tuple[str, ...]:
    """Return JSON of the sections that each cached step depends on, in the steps' order, from a whole recipe's JSON."""
    whole = from_json(text)
    kept = (step for name, step in of_run(whole.pretrains).items() if name in KEPT)
    return tuple(whole.part(*step.sections) for step in kept if step.cached)


def from_json(text: str) -> Recipe:
    """Read JSON of :meth:`Recipe.to_json` or :meth:`Recipe.part`. Missing sections get their defaults.

    Raises:
        UserError: the text is not JSON, or a section, field or value is unknown or wrong.
    """
    try:
        changes = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the recipe is not JSON: {error}") from None
    if not isinstance(changes, dict):
        raise UserError(f"the recipe is {type(changes).__name__}, not a JSON object of sections")
    return merge(Recipe(), changes)


def of_artifact(directory: str | Path) -> Recipe:
    """Read the recipe in an artifact: the sections that it was made with, and defaults for the others."""
    return from_json(Path(directory, "recipe.json").read_text(encoding="utf-8"))


def field_names() -> list[str]:
    """List the names of all fields as ``section.field``, in order."""
    return [
        f"{section.name}.{item.name}"
        for section in dataclasses.fields(Recipe)
        for item in dataclasses.fields(section_type(section.name))
    ]


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def section_type(section: str, given: str = "") -> Any:
    """Return the class of a section; ``given`` is the whole name that was typed, for the error's proposal."""
    hints = typing.get_type_hints(Recipe)
    if section not in hints:
        known = [*hints, *(field_names() if "." in given else [])]
        raise UserError(f"unknown section '{section}'; allowed: {', '.join(hints)}{nearest(given or section, known)}")
    return hints[section]


def section_table(section: str, fields: Any) -> Mapping[str, Any]:
    """Return a section's fields, or refuse what is not a table of fields."""
    if not isinstance(fields, Mapping):
        raise UserError(f"{section} is {fields!r}; it must be a section: [{section}] with fields below it")
    return fields


def merge(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Return the recipe with these fields changed.

    Raises:
        UserError: a section or field is unknown, or a value has the wrong type or is not allowed.
    """
    sections = {}
    for section, fields in changes.items():
        kind = section_type(section)
        hints = typing.get_type_hints(kind)
        converted = {}
        for name, value in section_table(section, fields).items():
            if name not in hints:
                raise UserError(f"unknown field '{section}.{name}'{_nearest_field(section, name, hints)}")
            may_be_auto = kind.__dataclass_fields__[name].metadata.get("auto", False)
            converted[name] = _convert(f"{section}.{name}", value, hints[name], may_be_auto)
        sections[section] = dataclasses.replace(getattr(recipe, section), **converted)
    return dataclasses.replace(recipe, **sections)


def _nearest_field(section: str, name: str, fields: Iterable[str]) -> str:
    here = nearest(name, fields)
    if here:
        return here.replace("'", f"'{section}.", 1)
    elsewhere = [full for full in field_names() if full.split(".")[1] == name]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else f"; allowed: {', '.join(fields)}"


def _convert(full_name: str, value: Any, expected: Any, may_be_auto: bool = False) -> Any:
    """Check a value against a field's type. Convert only int to float, and str to paths."""
    if may_be_auto and value == AUTO:
        return value
    if expected == ClassWeights:
        return _class_weights(full_name, value)
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
        allowed = "auto or " * may_be_auto + " or ".join(words[kind] for kind in kinds)
        hint = nearest(value, [AUTO]) if may_be_auto and isinstance(value, str) else ""
        raise UserError(f"{full_name} is {value!r}; allowed: {allowed}{hint}")
    return value


def _class_weights(full_name: str, value: Any) -> ClassWeights:
    known = ("none", "balanced")
    if isinstance(value, str) and value in known:
        return value
    if isinstance(value, Mapping) and value:
        numbers = {str(name): float(one) for name, one in value.items() if type(one) in (int, float)}
        if len(numbers) == len(value) and all(0 < one < math.inf for one in numbers.values()):
            return numbers
    hint = nearest(value, known) if isinstance(value, str) else ""
    allowed = "none, balanced, or a weight above 0 for each class, such as {spam = 5}"
    raise UserError(f"{full_name} is {value!r}; allowed: {allowed}{hint}")
