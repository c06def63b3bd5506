"""How much a recipe asks for: rows, tokens and the network, from a look at the real data before anything runs."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlnet.data.readers import Reject, Row, read_rows
from xlnet.data.storage import Source, list_sources, local_path
from xlnet.data.tokenizer import load_tokenizer
from xlnet.model import config as configs
from xlnet.recipe import AUTO_VOCABULARY, PRESETS, DataRecipe, ModelRecipe, Recipe

COUNTED = 64 << 20  # bytes of input whose rows are counted one by one; beyond, by their mean size
TOKENISED = 2000  # rows, spread over those read, that tell the lengths
STAND_IN = "xlnet-base-cased"  # the vocabulary that tells the lengths where the recipe trains its own
PUBLISHED = {"xlnet-base-cased": "base", "xlnet-large-cased": "large"}  # hub name → preset of the same shape


@dataclass(frozen=True)
class Workload:
    """What a training has to go through."""

    rows: int  # to train on
    mean: float  # tokens of a row
    longest: int  # tokens of the longest row looked at
    attended: float  # tokens that a token sees on average, its own text's: longer texts weigh more
    vocabulary: int
    outputs: int  # classes, or 1 for a value
    steps: int  # updates of the weights
    batch_tokens: int  # tokens of an update
    basis: str  # where the figures are from

    @property
    def tokens(self) -> float:
        """Tokens of the whole training, every pass counted."""
        return float(self.steps * self.batch_tokens)


def measure(recipe: Recipe) -> Workload:
    """Count rows, tokenise a part of them, and work out the steps.

    Raises:
        UserError: the data are not there or do not fit the recipe.
    """
    sources = list_sources("data.train", recipe.data.train)
    rows, read, whole = _count(sources, recipe.data)
    share = 1.0
    share -= 0.0 if recipe.data.validation else recipe.data.validation_fraction
    share -= 0.0 if recipe.data.test else recipe.data.test_fraction
    trained_on = max(1, round(rows * share))
    lengths, vocabulary = token_lengths(read, recipe.data)
    mean = sum(lengths) / max(1, len(lengths))
    classes = {row.label for row in read} if recipe.data.task == "classification" else {""}
    budget = recipe.training.batch_tokens
    batch = min(max(budget, math.ceil(mean)), math.ceil(trained_on * mean))
    steps = recipe.training.steps or max(1, math.ceil(recipe.training.epochs * trained_on * mean / batch))
    return Workload(
        rows=trained_on,
        mean=mean,
        longest=max(lengths, default=1),
        attended=sum(length**2 for length in lengths) / max(1, sum(lengths)),
        vocabulary=vocabulary,
        outputs=len(classes),
        steps=steps,
        batch_tokens=batch,
        basis=f"{'all' if whole else 'the first'} {len(read):,} rows read, {len(lengths):,} of them tokenised",
    )


def first_rows(source: Source, recipe: DataRecipe, limit: int) -> list[Row | Reject]:
    """The first rows of a source, or all of them; raises what :func:`read_rows` raises."""
    return list(itertools.islice(read_rows(source, recipe), limit))


def shape(model: ModelRecipe) -> ModelRecipe:
    """The recipe's network; with pretrained weights, theirs: they win.

    A hub name that is not one of the published two keeps the recipe's own shape: nothing is downloaded here.
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
    """Rows in all sources, those that were read, and whether that was all of them."""
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
    """The rows of a source up to so many bytes of text, and how much of the file they are, in bytes as stored."""
    rows: list[Row] = []
    seen = 0
    for row in _usable(source, recipe):
        rows.append(row)
        seen += len(row.text) + len(row.text_pair or "") + len(row.label) + 2
        if seen > limit:
            return rows, min(seen, source.size)
    return rows, source.size


def _usable(source: Source, recipe: DataRecipe) -> Iterator[Row]:
    for row in read_rows(source, recipe):
        if isinstance(row, Row):
            yield row


def token_lengths(rows: list[Row], recipe: DataRecipe) -> tuple[list[int], int]:
    """Lengths of rows spread over those given, and the size of the vocabulary."""
    own = recipe.tokenizer == "train"
    tokenizer = load_tokenizer(STAND_IN if own else recipe.tokenizer)
    some = rows[:: max(1, len(rows) // TOKENISED)][:TOKENISED]
    pairs = [row.text_pair for row in some] if recipe.text_pair is not None else None
    encoded = tokenizer.encode([row.text for row in some], pairs, recipe.max_length)
    vocabulary = recipe.vocab_size or AUTO_VOCABULARY if own else tokenizer.vocab_size
    return [len(ids) for ids in encoded.input_ids], vocabulary
