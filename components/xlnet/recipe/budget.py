"""Replaces each "auto" of a recipe by a number, which follows from the rows, the tokens and the network.

The numbers depend only on the recipe and the data, so that equal runs get equal numbers on every machine.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from xlnet.recipe.fields import AUTO, ModelRecipe, Recipe

ENOUGH = 1_000_000  # tokens to train on in all; with fewer, validation still improved on every small set tried
FEWEST, MOST = 5.0, 10.0  # epochs over a small set
FEWEST_LINEAR = 3.0  # if the weights start from a linear model; a large set then gets FEWEST_LARGE
LARGE, LARGE_ENOUGH, FEWEST_LARGE = 2_000_000, 10_000_000, 2.0  # tokens of a large set, to train on, and epochs
BATCH, SMALLEST_BATCH, LARGEST_BATCH = 1024, 256, 8192  # tokens of an update
FEWEST_UPDATES, MOST_UPDATES = 300, 12_000
WARMUP, LONGEST_WARMUP = 0.1, 500  # share of the updates, and updates
PATIENCE = 4  # validations
WIDE = 128  # width from which on the learning rate falls
RATE, PRETRAINED_RATE = 1e-3, 3e-5  # the second: Yang et al. 2019, appendix A.4
PRETRAINED_EPOCHS, PRETRAINED_BATCH = 3.0, 4096
PUBLISHED_WIDTH = 512  # pretrained networks at least this wide are tuned as the paper tunes its own
# Pretraining has no summary, never hides its input, and learns from no labels.
NOT_READ = ("summary_dropout", "token_dropout", "initialisation")


@dataclass(frozen=True)
class Size:
    """The facts about the data that a budget depends on."""

    rows: int  # number of rows to train on
    tokens: int  # number of tokens in these rows
    longest: int  # number of tokens in the longest row
    width: int = 0  # width of the network, if it is pretrained; 0 if unknown


def decide(recipe: Recipe, size: Size) -> Recipe:
    """Return the recipe with a value in place of each "auto" of its model and training sections."""
    pretrains = recipe.data.task == "pretrain"
    smallest = BATCH if pretrains else 1  # only one token in six is predicted: fewer would be too noisy
    small = bool(recipe.model.pretrained) and 0 < size.width < PUBLISHED_WIDTH
    # Small networks that were pretrained for minutes may change more than published ones.
    start = replace(recipe.model, pretrained="") if small else recipe.model
    training, model = _training(recipe, start, size, smallest), _model(recipe.model)
    if pretrains or recipe.data.text_pair is not None:
        training["token_dropout"] = 0.0  # a hidden token would no longer equal its like in the other text
    chosen = {
        "model": {name: value for name, value in model.items() if getattr(recipe.model, name) == AUTO},
        "training": {name: value for name, value in training.items() if getattr(recipe.training, name) == AUTO},
    }
    return recipe.replace(**chosen)


def explain(given: Recipe, decided: Recipe, size: Size) -> str:
    """Explain in one line what was chosen and why; empty if no field of the recipe was "auto".

    ``"chosen for 2,272 rows, 40,112 tokens, weights from scratch: epochs 10, …, 401,120 tokens in all"``
    """
    names = chosen(given)
    unread = NOT_READ if given.data.task == "pretrain" else ()
    shown = [(section, name) for section, name in names if name not in unread]
    if not shown:
        return ""
    numbers = {name: getattr(getattr(decided, section), name) for section, name in shown if name != "initialisation"}
    values = [f"{name} {value:g}" for name, value in numbers.items()]
    total = decided.training.epochs * size.tokens
    values += [f"{total:,.0f} tokens in all"] if not decided.training.steps else []
    return f"chosen for {size.rows:,} rows, {size.tokens:,} tokens, {_start(decided)}: {', '.join(values)}"


def _start(decided: Recipe) -> str:
    if decided.model.pretrained:
        is_linear = decided.training.initialisation == "linear"
        return "pretrained weights" + " and a linear model of the tokens" * is_linear
    if decided.training.initialisation == "linear":
        return "weights from a linear model of the tokens"
    is_matching = decided.training.initialisation == "matching"
    return "weights from scratch" + " that look for equal tokens in both texts" * is_matching


def chosen(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the section and name of each field that is "auto" until :func:`decide`."""
    fields = [("model", name) for name in _model(recipe.model)]
    fields += [("training", name) for name in _training(recipe, recipe.model, Size(1, 1, 1))]
    return [(section, name) for section, name in fields if getattr(getattr(recipe, section), name) == AUTO]


def _model(model: ModelRecipe) -> dict[str, float]:
    """Return the dropout rates. They grow with the network: wide networks without pretraining overfit sooner."""
    rate = 0.1 if model.pretrained or model.d_model <= WIDE else 0.2
    return {"dropout": rate, "summary_dropout": rate}


def _initialisation(whole: Recipe, model: ModelRecipe) -> str:
    """Return how new weights start. A linear model of a pair's tokens cannot compare the two texts."""
    if whole.data.task == "pretrain" or model.pretrained:
        return "random"
    if whole.data.text_pair is None:
        return "linear"
    return "random" if whole.model.pretrained or whole.pretrains else "matching"


def _training(whole: Recipe, model: ModelRecipe, size: Size, smallest: int = 1) -> dict[str, Any]:
    recipe, tokens = whole.training, max(1, size.tokens)
    start = recipe.initialisation if recipe.initialisation != AUTO else _initialisation(whole, model)
    is_linear = start == "linear"
    epochs = recipe.epochs if recipe.epochs != AUTO else _epochs(tokens, bool(model.pretrained), is_linear)
    batch = recipe.batch_tokens
    if batch == AUTO:
        batch = PRETRAINED_BATCH if model.pretrained else _batch(epochs * tokens)
        batch = max(batch, size.longest, smallest)
    updates = recipe.steps or max(1, math.ceil(epochs * tokens / batch))
    rate = PRETRAINED_RATE if model.pretrained else RATE * min(1.0, WIDE / (size.width or model.d_model))
    return {
        "epochs": epochs,
        "batch_tokens": batch,
        "learning_rate": rate,
        "warmup": round(min(WARMUP, LONGEST_WARMUP / updates), 4),
        "token_dropout": 0.0 if model.pretrained else 0.3 if is_linear else 0.1,
        "label_smoothing": 0.1 if is_linear and whole.data.task == "classification" else 0.0,
        "patience": PATIENCE,
        "initialisation": start,
    }


def _epochs(tokens: int, is_pretrained: bool, is_linear: bool) -> float:
    if is_pretrained:
        return PRETRAINED_EPOCHS
    if tokens > LARGE and is_linear:
        return FEWEST_LARGE
    if tokens > LARGE:
        return float(round(min(FEWEST, max(FEWEST_LARGE, LARGE_ENOUGH / tokens))))
    return float(round(min(MOST, max(FEWEST_LINEAR if is_linear else FEWEST, ENOUGH / tokens))))


def _batch(total: float) -> int:
    """Return the tokens per update: 1,024, fewer if that gives too few updates, more if there are many tokens."""
    batch = BATCH
    while batch > SMALLEST_BATCH and total / batch < FEWEST_UPDATES:
        batch //= 2
    while batch < LARGEST_BATCH and total / batch > MOST_UPDATES:
        batch *= 2
    return batch
