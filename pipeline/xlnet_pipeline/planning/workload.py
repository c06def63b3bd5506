"""Measures a recipe's workload before anything runs: rows and tokens from the real data, and the network."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xlnet.data import corpus
from xlnet.data import snapshot as snapshots
from xlnet.data.documents import rows_of
from xlnet.data.readers import Reject, Row, file_format
from xlnet.data.storage import Source, local_path
from xlnet.data.tokenizer import load_tokenizer
from xlnet.model import config as configs
from xlnet.recipe import AUTO_VOCABULARY, OWN_ROWS, PRESETS, DataRecipe, ModelRecipe, Recipe, budget

COUNTED = 64 << 20  # bytes of input whose rows are counted one by one; the rest is estimated from their mean size
TOKENISED = 2000  # rows to tokenise, spread over the rows read
STAND_IN = "xlnet-base-cased"  # vocabulary for the estimate if the recipe trains its own
PUBLISHED = {"xlnet-base-cased": "base", "xlnet-large-cased": "large"}  # hub name → preset of the same shape


@dataclass(frozen=True)
class Workload:
    """The amount of work of a training or a pretraining."""

    rows: int  # to train on
    mean: float  # tokens per row
    longest: int  # tokens of the longest row that was read
    attended: float  # mean number of tokens that a token attends to; longer texts weigh more
    vocabulary: int
    outputs: int  # classes, 1 for a value, or 0 for a language model
    steps: int  # updates of the weights
    batch_tokens: int  # tokens per update
    basis: str  # source of the figures
    chosen: str = ""  # what the budget chose for fields that are "auto"
    predicted: float = 0.0  # share of the tokens that pretraining predicts
    minutes: float = 0.0  # most that it may take; 0: no limit

    @property
    def tokens(self) -> float:
        """The tokens of the whole training, over all epochs."""
        return float(self.steps * self.batch_tokens)


def measure(recipe: Recipe) -> Workload:
    """Count the rows, tokenise some of them, and compute the number of steps.

    Raises:
        UserError: the data are missing or do not fit the recipe.
    """
    rows, read, whole = _count(_train_sources(recipe), recipe.data)
    return _measured(recipe, rows * _train_share(recipe.data), read, whole)


def measure_pretraining(recipe: Recipe) -> Workload | None:
    """Do the same for the pretrain step; None if the run has none."""
    if not recipe.pretrains:
        return None
    step = corpus.step_recipe(recipe)
    rows, read, whole = _count([file.source for file in snapshots.corpus_files(recipe, [], [])], step.data)
    if OWN_ROWS in recipe.pretraining.corpus:
        own, own_read, all_read = _count(_train_sources(recipe), recipe.data)
        rows, read, whole = rows + round(own * _train_share(recipe.data)), read + own_read, whole and all_read
    return _measured(step, rows * (1 - 1 / corpus.VALIDATION_SHARE), read, whole)


def _train_sources(recipe: Recipe) -> list[Source]:
    return [file.source for file in snapshots.listed(recipe.data, []) if file.split == "train"]


def _train_share(data: DataRecipe) -> float:
    """Return the share of the train files' rows that stay in the train split."""
    validation = 0.0 if data.validation else data.validation_fraction
    return 1.0 - validation - (0.0 if data.test else data.test_fraction)


def _measured(recipe: Recipe, rows: float, read: list[Row], whole: bool) -> Workload:
    """Return the work of training on so many rows, of which some were read."""
    trained_on, is_language = max(1, round(rows)), recipe.data.task == "pretrain"
    lengths, vocabulary = token_lengths(read, recipe.data)
    mean = sum(lengths) / max(1, len(lengths))
    classes = {row.label for row in read} if recipe.data.task == "classification" else {""}
    longest = recipe.data.max_length if is_language else max(lengths, default=1)
    attended = sum(length**2 for length in lengths) / max(1, sum(lengths))
    width = shape(recipe.model).d_model if recipe.model.pretrained else 0
    size = budget.Size(trained_on, math.ceil(trained_on * mean), longest, width)
    decided = budget.decide(recipe, size)
    batch = min(max(decided.training.batch_tokens, math.ceil(mean)), math.ceil(trained_on * mean))
    steps = decided.training.steps or max(1, math.ceil(decided.training.epochs * trained_on * mean / batch))
    return Workload(
        rows=trained_on,
        mean=mean,
        longest=longest,
        attended=longest + recipe.pretraining.mem_len if is_language else attended,
        vocabulary=vocabulary,
        outputs=0 if is_language else len(classes),
        steps=steps,
        batch_tokens=batch,
        basis=f"{'all' if whole else 'the first'} {len(read):,} rows read, {len(lengths):,} of them tokenised",
        chosen=budget.explain(recipe, decided, size),
        predicted=1 / recipe.pretraining.one_in if is_language else 0.0,
        minutes=recipe.training.max_minutes,
    )


def first_rows(source: Source, recipe: DataRecipe, limit: int) -> list[Row | Reject]:
    """Return the first rows of a source, or all of them. Raises what :func:`rows_of` raises."""
    return list(itertools.islice(rows_of(source, recipe), limit))


def shape(model: ModelRecipe) -> ModelRecipe:
    """Return the network's shape: that of the pretrained weights if there are any, else the recipe's.

    Nothing is downloaded: for a hub name other than the two published models, the recipe's shape is returned.
    """
    if not model.pretrained:
        return model
    if (folder := Path(model.pretrained)).is_dir():
        found = configs.read(folder / "config.json")
        return ModelRecipe(
            model.preset, model.pretrained, found.n_layer, found.d_model, found.n_head, found.d_head, found.d_inner
        )
    preset = PUBLISHED.get(model.pretrained.rpartition("/")[2])
    return PRESETS[preset]().model if preset else model


def _count(sources: list[Source], recipe: DataRecipe) -> tuple[int, list[Row], bool]:
    """Return the number of rows in all sources, the rows that were read, and whether all were read."""
    read: list[Row] = []
    counted = total = 0
    for source in sources:
        total += source.size
        if counted < COUNTED and (local_path(source) or not counted):
            rows, bytes_read = _read(source, recipe, COUNTED - counted)
            read += rows
            counted += bytes_read
    whole = counted >= total
    return (len(read) if whole else round(len(read) * total / max(1, counted))), read, whole


def _read(source: Source, recipe: DataRecipe, limit: int) -> tuple[list[Row], int]:
    """Return a source's rows up to ``limit`` bytes of text, and how many stored bytes of the file they take."""
    rows: list[Row] = []
    seen = 0
    for row in _usable(source, recipe):
        rows.append(row)
        seen += len(row.text) + len(row.text_pair or "") + len(row.label) + 2
        if seen > limit:
            return rows, min(seen, source.size)
    return rows, source.size


def _usable(source: Source, recipe: DataRecipe) -> Iterator[Row]:
    is_plain = recipe.task == "pretrain" and file_format(source, recipe) == "text"  # a plain text has no pairs
    for row in rows_of(source, replace(recipe, text_pair=None) if is_plain else recipe):
        if isinstance(row, Row):
            yield row


def token_lengths(rows: list[Row], recipe: DataRecipe) -> tuple[list[int], int]:
    """Return the token counts of a sample of the rows, and the size of the vocabulary."""
    own = recipe.tokenizer == "train"
    tokenizer = load_tokenizer(STAND_IN if own else recipe.tokenizer)
    some = rows[:: max(1, len(rows) // TOKENISED)][:TOKENISED]
    pairs = [row.text_pair for row in some] if recipe.text_pair is not None else None
    texts = [row.text for row in some]
    if recipe.task == "pretrain":
        encoded = tokenizer.encode_documents(texts, pairs)
    else:
        encoded = tokenizer.encode(texts, pairs, recipe.max_length)
    vocabulary = recipe.vocab_size or AUTO_VOCABULARY if own else tokenizer.vocab_size
    return [len(ids) for ids in encoded.input_ids], vocabulary
