"""What each field of a recipe means: the table behind ``recipe.toml`` from ``init`` and behind ``docs/recipe.md``."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from xlnet.recipe import PRESETS, Paths, Recipe

SECTIONS = {
    "data": "which rows, and how they become token ids",
    "model": "the network",
    "training": "the optimisation; one step is one update of the weights",
    "evaluation": "how the model is judged, and what it takes to replace the champion",
    "registry": "where the model is kept",
}

MEANINGS = {
    "data.train": "what to train on: files, directories, globs, gs://BUCKET/OBJECT or demo:uci_sentences; may be .gz",
    "data.validation": "rows that choose the best checkpoint; empty: a stratified share of train",
    "data.test": "rows that judge the model; empty: a stratified share of train",
    "data.validation_fraction": "share of train held back when validation is empty",
    "data.test_fraction": "share of train held back when test is empty",
    "data.split_seed": "which rows those shares are",
    "data.format": "format of the files; auto: by their names",
    "data.encoding": "encoding of text files; auto: UTF-8, what the first bytes say, or a guess that is said",
    "data.delimiter": "between the columns of CSV; auto: a comma, else what the first lines agree on (; tab or |)",
    "data.header": "whether the first line names the columns; auto: as the columns and each file tell",
    "data.text": "column of the text: its name, or its index from 0",
    "data.text_pair": "column of the second text, for sentence pairs",
    "data.label": 'column of the class, or of the number with task = "regression"',
    "data.id": "column that identifies a row; kept with each prediction",
    "data.task": "classification into the classes that train has, or regression on a number",
    "data.tokenizer": 'the shipped vocabulary; "train" to learn one from your text; or a directory with spiece.model',
    "data.vocab_size": 'pieces to learn, with tokenizer = "train"; 0: what the text supports, about 8,000 at most',
    "data.max_length": "tokens of a text, <sep> and <cls> included; longer texts are cut, and counted",
    "data.max_rejects": "share of unreadable rows above which the run fails; every one is listed in rejects.jsonl",
    "data.max_record_lines": "lines of a quoted CSV record; a longer one is none, and its first line a reject",
    "data.max_record_bytes": "the same in bytes, and of a line in any format: what memory has to hold",
    "model.preset": "the network's size, and training defaults that suit it",
    "model.pretrained": "weights to start from: a Hugging Face name or a directory; their shape wins",
    "model.n_layer": "layers",
    "model.d_model": "width of the hidden states; even",
    "model.n_head": "attention heads",
    "model.d_head": "width of a head",
    "model.d_inner": "width inside the feed-forward network",
    "model.dropout": "share of activations dropped in training",
    "model.summary_dropout": "the same, in the classification head",
    "training.epochs": "passes over the training rows",
    "training.steps": "updates; 0: as many as epochs asks for",
    "training.batch_tokens": "tokens that an update sees, at most, on all devices together",
    "training.micro_batch_tokens": "tokens that one device computes at once, at most; 0: its whole share of an update",
    "training.learning_rate": "at its peak, after warm-up; it then falls linearly to 0",
    "training.warmup": "share of the steps in which the learning rate rises",
    "training.layer_decay": "a layer's learning rate is this power of its distance from the top; 1: all the same",
    "training.weight_decay": "AdamW's decoupled decay, on matrices only",
    "training.adam_beta1": "AdamW's decay of the mean gradient",
    "training.adam_beta2": "AdamW's decay of the mean squared gradient",
    "training.adam_epsilon": "AdamW's term against division by zero",
    "training.clip_norm": "longest gradient, all weights together; 0: no clipping",
    "training.token_dropout": "share of input tokens hidden in training; helps small data",
    "training.label_smoothing": "share of the target spread over all classes",
    "training.precision": "type of matrix products; weights and optimizer stay float32; `auto`: bfloat16 on a GPU",
    "training.shard_weights": "spread weights, gradients and optimizer over all devices (FSDP): less memory on each",
    "training.recompute": "compute activations again in the backward pass: less memory, a third more time",
    "training.evaluate_every": "steps between looks at the validation rows; 0: once an epoch",
    "training.patience": "looks without a better one before training stops early; 0: never",
    "training.checkpoint_every": "steps between checkpoints that a killed run goes on from; 0: at every look",
    "training.seed": "of the first weights, the order of rows and dropout",
    "evaluation.metric": 'the one that decides; auto: accuracy, or pearson with task = "regression"',
    "evaluation.margin": "by how much a candidate must beat the champion on the same rows",
    "evaluation.confidence": "of the bootstrap intervals",
    "evaluation.resamples": "of the bootstrap",
    "evaluation.worst": "mistakes shown in the report",
    "evaluation.seed": "of the bootstrap",
    "registry.name": "the registered model's name; versions count up under it",
    "registry.uri": "MLflow tracking URI; empty: $MLFLOW_TRACKING_URI, else a file in the state directory",
    "registry.force": "make the model champion whatever the gate says; run --force sets it",
}


def default(name: str) -> Any:
    """Default of ``section.field``, that of preset ``tiny``."""
    section, field = name.split(".")
    return getattr(getattr(Recipe(), section), field)


def allowed(name: str) -> str:
    """What ``section.field`` may be, in words."""
    section, field = name.split(".")
    if name == "model.preset":
        return ", ".join(PRESETS)
    section_type = typing.get_type_hints(Recipe)[section]
    metadata = section_type.__dataclass_fields__[field].metadata
    if "allowed" in metadata:
        return ", ".join(metadata["allowed"])
    expected = typing.get_type_hints(section_type)[field]
    return f"{_kind(expected)}{_bounds(metadata)}"


def toml(value: Any) -> str:
    """A field's value as TOML; ``(none)`` for None, which TOML lacks."""
    if value is None:
        return "(none)"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def commented_toml(values: Mapping[str, Any], title: str) -> str:
    """A recipe with every field and its meaning; those in ``values`` are set, the others commented out.

    Args:
        values: ``section.field`` → value.
        title: comment lines at the top.
    """
    lines = [f"# {line}".rstrip() for line in title.splitlines()]
    for section, meaning in SECTIONS.items():
        lines += ["", "", f"[{section}] # {meaning}"]
        for name in (name for name in MEANINGS if name.startswith(f"{section}.")):
            field = name.split(".")[1]
            lines += ["", f"# {MEANINGS[name]}", f"# allowed: {allowed(name)}; default: {toml(default(name))}"]
            hint = toml(default(name)) if default(name) is not None else '"column"'
            lines.append(f"{field} = {toml(values[name])}" if name in values else f"# {field} = {hint}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The reference of all fields as a Markdown page."""
    lines = [
        "# The recipe",
        "",
        "A run is its recipe: a TOML file that starts from a preset and changes fields. Every field can also be set on",
        "the command line: `--set training.epochs=5`. `xlnet-pipeline init` writes a file with all of it in comments.",
        "",
        "Generated by `python -m xlnet_pipeline.reference`; change `xlnet_pipeline/reference/recipe.py` instead.",
    ]
    for section, meaning in SECTIONS.items():
        lines += ["", f"## [{section}]: {meaning}", "", "| field | meaning | allowed | default |", "|---|---|---|---|"]
        for name in (name for name in MEANINGS if name.startswith(f"{section}.")):
            cells = (f"`{name.split('.')[1]}`", MEANINGS[name], allowed(name), f"`{toml(default(name))}`")
            lines.append("| " + " | ".join(cell.replace("<", "&lt;").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *_presets()]) + "\n"


def _presets() -> list[str]:
    """A table of what each preset sets."""
    recipes = {name: dataclasses.asdict(preset()) for name, preset in PRESETS.items()}
    plain = dataclasses.asdict(Recipe())
    differing = [
        name
        for name in MEANINGS
        for section, field in [name.split(".")]
        if name != "model.preset"
        and any(recipe[section][field] != plain[section][field] for recipe in recipes.values())
    ]
    lines = ["## Presets", "", f"| field | {' | '.join(PRESETS)} |", "|---" * (len(PRESETS) + 1) + "|"]
    for name in differing:
        section, field = name.split(".")
        lines.append(f"| `{name}` | {' | '.join(str(recipe[section][field]) for recipe in recipes.values())} |")
    return [*lines, "", "`base` and `large` are XLNet's published shapes (Yang et al. 2019)."]


def _kind(expected: Any) -> str:
    if expected == Paths:
        return "a path or a list of paths"
    kinds = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(words[kind] for kind in kinds if kind in words)


def _bounds(metadata: Mapping[str, Any]) -> str:
    if "low" not in metadata:
        return ""
    low, high = metadata["low"], metadata["high"]
    return f", {low} or more" if high == math.inf else f", {low} to {high}"
