"""Checks the values of a recipe's fields. Each error names the field and the allowed values."""

import codecs
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from xlnet.errors import UserError, nearest
from xlnet.redaction import holds_secret, redacted

NAME_LENGTH = 200
SEGMENT = 128  # tokens of a segment in the pretrain step, unless the recipe sets a number
BEFORE_TRAINING = ("max_length", "epochs", "steps", "batch_tokens", "learning_rate", "max_minutes", "seed")
SMALLEST_VOCABULARY = 64
SMALLEST_REST = 5  # tokens of a segment that do not become memory: <sep>, <sep>, <cls>, and one on each side
FOR_MLFLOW = (
    "leave it out and set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, instead"
)
FOR_BUCKETS = (
    "name a gs:// or s3:// address without it: gs:// takes the login of gcloud, "
    "s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; download other addresses first"
)


def check_section(section: str, values: Any) -> None:
    """Raise UserError if a value is not allowed, by itself or together with the section's other values."""
    for item in dataclasses.fields(values):
        value, full_name = getattr(values, item.name), f"{section}.{item.name}"
        _refuse_secret(full_name, value)
        if item.metadata.get("auto") and value == "auto":
            continue
        allowed = item.metadata.get("allowed")
        if allowed and value not in allowed:
            raise UserError(f"{full_name} is {value!r}; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}")
        if "low" in item.metadata and not item.metadata["low"] <= value <= item.metadata["high"]:
            low, high = item.metadata["low"], item.metadata["high"]
            bounds = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise UserError(f"{full_name} is {value!r}; allowed: {bounds}")
        if item.name in ("text", "text_pair", "label", "id") and isinstance(value, int) and value < 0:
            raise UserError(f"{full_name} is {value}; allowed: a column's name, or its index from 0")
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
    if section == "data" and values.labels and values.format not in ("auto", "text"):
        raise UserError(
            f"data.labels goes with files of one text a line, but data.format is {values.format!r}; leave out one"
        )
    if section == "data" and values.labels and values.text_pair is not None:
        raise UserError("data.labels goes with files of one text a line, which have no data.text_pair; leave out one")
    if section == "data" and values.validation_fraction + values.test_fraction > 0.9:
        raise UserError(
            f"data.validation_fraction + data.test_fraction is {values.validation_fraction + values.test_fraction:g};"
            " allowed: 0.9 at most, so that rows are left to train on"
        )
    if section == "registry":
        _check_name(values.name)


def refuse_unknown_classes(weights: Mapping[str, float], classes: Iterable[str]) -> None:
    """Raise UserError if ``training.class_weights`` names a class that is not among the labels."""
    known = list(classes)
    for name in weights:
        if name not in known:
            some = ", ".join(f"'{one}'" for one in known[:10]) + (", …" if len(known) > 10 else "")
            hint = nearest(name, known)
            raise UserError(f"training.class_weights names '{name}', no class of the data; allowed: {some}{hint}")


def check_together(recipe: Any) -> None:
    """Raise UserError if sections do not fit together."""
    given, longest = recipe.pretraining, recipe.data.max_length
    if bool(given.mem_len) != bool(given.reuse_len):
        raise UserError(
            f"pretraining.reuse_len is {given.reuse_len} and pretraining.mem_len is {given.mem_len}; "
            "memory needs both, so set both above 0, or neither"
        )
    if recipe.training.initialisation in ("linear", "matching"):
        _refuse_initialisation(recipe, recipe.training.initialisation)
    if recipe.data.task != "pretrain":
        if given.max_length:
            _check_segment(given, given.max_length, "pretraining.max_length")
        return
    if given.corpus:
        raise UserError(
            'pretraining.corpus is for a classification or regression that follows, but data.task is "pretrain"; '
            "name the corpus in data.train"
        )
    _check_segment(given, longest, "data.max_length")
    if recipe.training.token_dropout not in ("auto", 0):
        raise UserError(
            f"training.token_dropout is {recipe.training.token_dropout:g}, but pretraining never hides its input; "
            "leave it out, or set it to 0"
        )


def check_whole(recipe: Any) -> None:
    """Raise UserError if fields of a whole recipe contradict each other; a step's part of a recipe is not checked."""
    given = recipe.pretraining
    if recipe.data.task != "pretrain" and not given.corpus:
        odd = next((one.name for one in dataclasses.fields(given) if getattr(given, one.name) != one.default), "")
        if odd:
            raise UserError(
                f'pretraining.{odd} is set, but nothing is pretrained; set pretraining.corpus = "train" (or files of '
                'text) to pretrain before the training, or data.task = "pretrain"'
            )
    odd = next((name for name in BEFORE_TRAINING if getattr(given, name) not in (0, "auto")), "")
    if recipe.data.task == "pretrain" and odd:
        section = "data" if odd == "max_length" else "training"
        raise UserError(f'pretraining.{odd} is not read with data.task = "pretrain"; set {section}.{odd} instead')
    if given.corpus:
        _check_segment(given, segment_length(recipe), "pretraining.max_length")
        if not given.epochs and not given.steps:
            raise UserError("pretraining.epochs and pretraining.steps are both 0; set one of them")


def segment_length(recipe: Any) -> int:
    """Return the number of tokens in a segment of the pretrain step."""
    return int(recipe.pretraining.max_length or min(SEGMENT, recipe.data.max_length))


def _check_segment(given: Any, length: int, name: str) -> None:
    """Raise UserError if segments of ``length`` tokens do not fit ``pretraining``; field ``name`` sets the length."""
    reuse, one_in = given.reuse_len, given.one_in
    if given.mem_len > length:
        raise UserError(
            f"pretraining.mem_len is {given.mem_len}, longer than a segment; allowed: {name} = {length} at most"
        )
    if length < reuse + SMALLEST_REST:
        raise UserError(
            f"{name} is {length}, too few for pretraining.reuse_len = {reuse} and the rest of a "
            f"segment; allowed: {reuse + SMALLEST_REST} or more"
        )
    fewest = min(reuse or length, length - reuse)
    if fewest < one_in:
        raise UserError(
            f"pretraining.one_in = {one_in} predicts none of a segment's {fewest} tokens; lower it, or raise {name}"
        )


def _refuse_initialisation(recipe: Any, given: str) -> None:
    what = "data.task is 'pretrain'" if recipe.data.task == "pretrain" else ""
    is_pairs = recipe.data.text_pair is not None
    if given == "linear":
        what = what or ("data.text_pair makes the rows pairs" if is_pairs else "")
    else:
        if recipe.data.train:  # a part of a recipe names no data
            what = what or ("" if is_pairs else "data.text_pair names no second text")
        what = what or ("model.pretrained gives the weights" if recipe.model.pretrained else "")
        what = what or ("pretraining.corpus gives the weights" if recipe.pretraining.corpus else "")
    if what:
        raise UserError(f"training.initialisation is '{given}', but {what}; allowed: auto, random")


def _check_dialect(data: Any) -> None:
    if data.delimiter != "auto" and (len(data.delimiter) != 1 or data.delimiter in '"\r\n'):
        raise UserError(f"data.delimiter is {data.delimiter!r}; allowed: auto, or one character, such as ';'")
    if data.quote != "auto" and (len(data.quote) != 1 or data.quote in "\\\r\n"):
        raise UserError(f'data.quote is {data.quote!r}; allowed: auto, or one character, such as "\'"')
    if data.quote != "auto" and data.quote == data.delimiter:
        raise UserError(f"data.quote and data.delimiter are both {data.quote!r}; give two characters")
    if data.quote != "auto" and data.quoting == "none":
        raise UserError(f"data.quote is {data.quote!r}, but data.quoting is 'none'; leave out one of them")
    try:
        if data.encoding != "auto":
            io.TextIOWrapper(io.BytesIO(), encoding=codecs.lookup(data.encoding).name)  # refuses what is no text
            bytes(4).decode(data.encoding, "surrogateescape")  # refuses codecs of host names, such as idna
    except (LookupError, ValueError):
        known = "utf-8, utf-16-le, cp1252, latin-1, gb18030"
        raise UserError(
            f"data.encoding is {data.encoding!r}; allowed: auto, or an encoding that Python knows, such as {known}"
        ) from None


def _check_name(name: str) -> None:
    """Refuse a name that cannot be typed as NAME:VERSION, or that a registry would take for a path."""
    if not name or name in (".", "..") or any(c in "/:@" or c.isspace() or not c.isprintable() for c in name):
        raise UserError(f"registry.name is {name!r}; allowed: a name without spaces, '/', ':' and '@'")
    if len(name) > NAME_LENGTH:
        raise UserError(f"registry.name has {len(name)} characters; allowed: {NAME_LENGTH}")


def _refuse_secret(full_name: str, value: Any) -> None:
    """Refuse an address with a password, because recipes are stored with every artifact and shown to readers."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and holds_secret(text):
            remedy = FOR_MLFLOW if full_name == "registry.uri" else FOR_BUCKETS
            raise UserError(
                f"{full_name} '{redacted(text)}' was given with a password, which the recipe would keep; {remedy}"
            )
