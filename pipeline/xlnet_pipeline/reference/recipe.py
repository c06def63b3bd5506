"""The meaning of each recipe field. ``init`` writes it into ``recipe.toml``; ``docs/recipe.md`` is made from it."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from xlnet.recipe import PRESETS, ClassWeights, Paths, Recipe

SECTIONS = {
    "data": "which rows, and how they become token ids",
    "model": "the network",
    "training": "the optimisation; one step is one update of the weights",
    "evaluation": "how the model is judged, and what it takes to replace the champion",
    "registry": "where the model is kept",
    "pretraining": 'the permutation objective: for data.task = "pretrain", or for a corpus before a training',
}

MEANINGS = {
    "data.train": "what to train on: files, directories, globs, gs://BUCKET/OBJECT or demo:uci_sentences; may be .gz",
    "data.validation": "rows that choose the best checkpoint; empty: a stratified share of train",
    "data.test": "rows that the model is evaluated on; empty: a stratified share of train",
    "data.labels": "files with the label of each line of the text files, in the order train, validation, test",
    "data.validation_fraction": "share of train that becomes the validation rows when validation is empty",
    "data.test_fraction": "share of train that becomes the test rows when test is empty",
    "data.split_seed": "random seed that decides which rows of train become validation and test rows",
    "data.format": "format of the files; auto: decided by each file's name",
    "data.encoding": "encoding of text files; auto: UTF-8, else by the first bytes, else a guess with a warning",
    "data.delimiter": "character between columns; auto: a comma in CSV, or ; tab or | where the first lines show it",
    "data.quoting": "how a quote inside quotes is written; none: quotes are text; auto: found, and said where unusual",
    "data.quote": "quote character; auto: \", or ' where the first lines show it",
    "data.sheet": "sheet of a workbook (.xlsx); empty: the only one that holds rows",
    "data.header": "whether the first line names the columns; auto: decided by the columns asked for and by each file",
    "data.text": "column of the text: its name, or its index from 0",
    "data.text_pair": "column of the second text, for sentence pairs",
    "data.label": 'column of the class, or of the number if task = "regression"',
    "data.id": "column that identifies a row; each prediction repeats it",
    "data.task": "classification into the classes found in train, regression on a number, or pretrain on a corpus",
    "data.tokenizer": 'the shipped vocabulary; "train" to learn one from your text; or a directory with spiece.model',
    "data.vocab_size": 'pieces to learn if tokenizer = "train"; 0: as many as the text supports, at most about 8,000',
    "data.max_length": "most tokens of a text, with <sep> and <cls>; longer texts are truncated, and counted",
    "data.max_rejects": "largest share of unreadable rows; the run fails above it; rejects.jsonl lists every such row",
    "data.max_record_lines": "most lines of a quoted CSV record; the first line of a longer one is rejected",
    "data.max_record_bytes": "most bytes of a CSV record, or of a line in any format: this much must fit into memory",
    "data.shards": "tasks that tokenise a part of the input each; equal bytes; auto: 1, or more from 4 GB on remotely",
    "model.preset": "size of the network, with training defaults that suit it",
    "model.pretrained": "weights to start from: a Hugging Face name or a directory; their shape is used",
    "model.n_layer": "number of layers",
    "model.d_model": "width of the hidden states; even",
    "model.n_head": "number of attention heads",
    "model.d_head": "width of an attention head",
    "model.d_inner": "inner width of the feed-forward network",
    "model.dropout": "dropout rate",
    "model.summary_dropout": "dropout rate in the classification head",
    "training.epochs": "passes over the training rows; auto, here and below: chosen for the number of tokens",
    "training.steps": "number of updates; 0: as many as epochs needs",
    "training.batch_tokens": "most tokens in one update, over all devices",
    "training.micro_batch_tokens": "most tokens that one device computes at once; 0: its whole share of an update",
    "training.learning_rate": "peak learning rate: reached after warm-up, then falls linearly to 0",
    "training.warmup": "share of the steps in which the learning rate rises to its peak",
    "training.layer_decay": "factor on the learning rate for each layer below the top; 1: all layers learn alike",
    "training.weight_decay": "AdamW's decoupled weight decay, on matrices only",
    "training.adam_beta1": "AdamW's decay rate of the mean gradient",
    "training.adam_beta2": "AdamW's decay rate of the mean squared gradient",
    "training.adam_epsilon": "AdamW's epsilon, which prevents division by zero",
    "training.clip_norm": "gradient clipping: largest norm of the gradient over all weights; 0: no clipping",
    "training.token_dropout": "share of input tokens hidden in training; helps on small data",
    "training.label_smoothing": "label smoothing: share of the target spread over all classes",
    "training.class_weights": "weight of each class in the loss; balanced: all classes together count alike",
    "training.select_by": "validation metric that chooses the weights to keep; auto: evaluation.metric",
    "training.max_minutes": "most minutes of training, of one attempt; 0: no limit; results then depend on the machine",
    "training.precision": "type of matrix products; weights stay float32; `auto`: bfloat16 on GPUs and CPUs with AMX",
    "training.shard_weights": "spread weights, gradients and optimizer over all devices (FSDP): each needs less memory",
    "training.recompute": "activation checkpointing: less memory, but a step takes a third longer",
    "training.evaluate_every": "steps between validations; 0: validate after each epoch",
    "training.patience": "early stopping: stop after this many validations without improvement; 0: never",
    "training.checkpoint_every": "steps between checkpoints, which let a killed run resume; 0: at each validation",
    "training.seed": "random seed of the initial weights, the order of rows and dropout",
    "training.initialisation": "how new weights start: random, from a linear model, or (pairs) matching equal tokens",
    "evaluation.metric": "metric that decides; auto: accuracy, pearson (regression) or bits_per_byte (pretrain)",
    "evaluation.margin": "amount by which a challenger must beat the champion on the same rows",
    "evaluation.confidence": "confidence level of the bootstrap intervals",
    "evaluation.resamples": "number of bootstrap resamples",
    "evaluation.baseline": "what the model is compared with: TF-IDF and a linear model, the majority class, nothing",
    "evaluation.worst": "number of mistakes shown in the report",
    "evaluation.seed": "random seed of the bootstrap",
    "registry.name": "name of the registered model; its versions are numbered",
    "registry.uri": "MLflow tracking URI; empty: $MLFLOW_TRACKING_URI, else a file in the state directory",
    "registry.force": "make the model champion even if the gate rejects it; run --force sets this",
    "pretraining.corpus": "files of text to pretrain on before the training; `train`: the rows that are trained on",
    "pretraining.one_in": "one token in so many is predicted (K in the paper); the others are context",
    "pretraining.reuse_len": "tokens of each segment that become memory of the next; 0: no memory",
    "pretraining.mem_len": "most tokens that memory holds, at most data.max_length; 0: no memory",
    "pretraining.bidirectional": "with memory, half of each update reads the corpus from its end, tokens in reverse",
    "pretraining.max_length": "with corpus: tokens of a segment; 0: 128, or data.max_length if that is less",
    "pretraining.epochs": "with corpus: passes over it; `auto`: chosen from its size",
    "pretraining.steps": "with corpus: updates of the weights; 0: as many as epochs needs",
    "pretraining.batch_tokens": "with corpus: most tokens in one update; `auto`: chosen from its size",
    "pretraining.learning_rate": "with corpus: peak learning rate; `auto`: chosen from the width of the network",
    "pretraining.max_minutes": "with corpus: most minutes, of one attempt; 0: no limit",
    "pretraining.seed": "with corpus: random seed of its targets, orders, weights and dropout",
}


def default(name: str) -> Any:
    """Return the default of ``section.field``: its value in preset ``tiny``."""
    section, field = name.split(".")
    return getattr(getattr(PRESETS["tiny"](), section), field)


def allowed(name: str) -> str:
    """Describe the allowed values of ``section.field``."""
    section, field = name.split(".")
    section_type = typing.get_type_hints(Recipe)[section]
    metadata = section_type.__dataclass_fields__[field].metadata
    if "allowed" in metadata:
        return ", ".join(metadata["allowed"])
    expected = typing.get_type_hints(section_type)[field]
    if expected == ClassWeights:
        return "none, balanced, or a weight for each class: {spam = 5}"
    return f"{'auto, or ' * metadata.get('auto', False)}{_kind(expected)}{_bounds(metadata)}"


def toml(value: Any) -> str:
    """Write a field's value as TOML; None, which TOML cannot write, becomes ``(none)``."""
    if value is None:
        return "(none)"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def commented_toml(values: Mapping[str, Any], title: str) -> str:
    """Return a TOML recipe with every field and its meaning. Fields that are not in ``values`` are commented out.

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
    """Return the reference of all fields as a Markdown page."""
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
    """Return the lines of a table of the presets' values."""
    recipes = {name: dataclasses.asdict(preset()) for name, preset in PRESETS.items()}
    plain = dataclasses.asdict(PRESETS["tiny"]())
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
