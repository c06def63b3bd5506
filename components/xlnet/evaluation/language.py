"""Evaluates a language model: permutation loss, left-to-right perplexity, and bits per byte.

Perplexity depends on the vocabulary. Bits per byte do not, so they also compare models with different tokenizers.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlnet import recipe as recipes
from xlnet.data.dataset import Dataset
from xlnet.data.segments import segments_of
from xlnet.data.tokenizer import load_tokenizer
from xlnet.errors import RunError, UserError
from xlnet.evaluation import page
from xlnet.evaluation.comparison import primary_metric
from xlnet.evaluation.metrics import Estimate
from xlnet.evaluation.permuted import segment_losses
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.scoring import left_to_right
from xlnet.model.weights import load_language_model
from xlnet.recipe import EvaluationRecipe

AT_ONCE = 4_000_000  # drawn counts held at once


def judge(model: str, data: Dataset, recipe: EvaluationRecipe) -> tuple[pa.Table, dict[str, Any]]:
    """Evaluate a language model on a corpus's test documents.

    Args:
        model: directory of the model artifact.
        data: the dataset.
        recipe: settings of the bootstrap.

    Returns:
        A table with one row per document (its loss in nats, tokens and bytes), and the content of ``metrics.json``.

    Raises:
        UserError: the model has another vocabulary than the dataset.
        RunError: a loss is not finite.
    """
    language_model = load_language_model(model)
    refuse_vocabulary(language_model.config.vocab_size, data, model)
    primary = primary_metric(recipe, "pretrain")
    split, made_of = data.split("test"), recipes.of_artifact(model)
    tokens = np.split(split.tokens, split.offsets[1:-1])
    losses = document_losses(language_model, tokens, Path(model))
    rows, sizes = split.table(), split.bytes
    shapes = segments_of(data, made_of)
    permuted = segment_losses(language_model, split, shapes)
    if permuted is None or not np.isfinite([*losses, *permuted[0]]).all():
        raise RunError(f"model '{model}' has losses that are not numbers; train it with a lower training.learning_rate")
    columns: dict[str, Any] = {name: rows[name] for name in ("row", "source", "line", "id", "text", "text_pair")}
    table = pa.table({**columns, "loss": losses, "tokens": split.lengths, "bytes": sizes})
    figures = {
        "bits_per_byte": ratio(losses / math.log(2), sizes, recipe),
        "perplexity": _perplexity(losses, split.lengths, recipe),
        "permutation_loss": ratio(*permuted, recipe),
    }
    content = {
        "task": "pretrain",
        "rows": len(losses),
        "classes": [],
        "primary": primary,
        "confidence": recipe.confidence,
        "metrics": {name: asdict(figure) for name, figure in figures.items()},
        "majority_class": None,
        "baseline": None,
        "confusion": None,
        "roc": None,
    }
    return table, content


def refuse_vocabulary(tokens: int, data: Dataset, name: str) -> None:
    """Raise UserError if the vocabulary of a model with ``tokens`` tokens is not the dataset's."""
    if tokens != data.card["vocab_size"]:
        raise UserError(
            f"model '{name}' knows {tokens} tokens, the dataset has {data.card['vocab_size']}; "
            "evaluate it on a dataset made with its own tokenizer"
        )


def document_losses(model: XLNetLanguageModel, documents: list[np.ndarray], directory: Path) -> np.ndarray:
    """Return the negative log-likelihood of tokenised documents, from left to right, in nats: [documents]."""
    tokenizer = load_tokenizer(directory)
    return left_to_right(model, documents, recipes.of_artifact(directory).data.max_length, tokenizer.end_id)


def ratio(above: np.ndarray, below: np.ndarray, recipe: EvaluationRecipe) -> Estimate:
    """Return the ratio of two sums over documents or segments, with a bootstrap interval (Efron 1979)."""
    tails = [(1 - recipe.confidence) / 2, (1 + recipe.confidence) / 2]
    low, high = np.quantile(_resampled(above, recipe) / _resampled(below, recipe), tails)
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))


def _perplexity(losses: np.ndarray, tokens: np.ndarray, recipe: EvaluationRecipe) -> Estimate:
    found = ratio(losses, tokens, recipe)
    return Estimate(*(math.exp(min(700.0, value)) for value in (found.value, found.low, found.high)))


def _resampled(values: np.ndarray, recipe: EvaluationRecipe) -> np.ndarray:
    """Draw documents with replacement and sum their values: [resamples]. Each call draws the same documents."""
    generator, count = np.random.default_rng(recipe.seed), len(values)
    size = max(1, AT_ONCE // count)
    sums = []
    for first in range(0, recipe.resamples, size):
        draws = generator.integers(0, count, (min(size, recipe.resamples - first), count))
        sums.append(values[draws].sum(1))
    return np.concatenate(sums).astype(np.float64)


def render(content: dict[str, Any], table: pa.Table, worst: int) -> str:
    """Make the report's page: the metrics, and the documents that the model predicts worst."""
    figures = content["metrics"]
    title = f"Bits per byte {figures['bits_per_byte']['value']:.4f}"
    level = f"{content['confidence']:.0%} interval"
    measured = [
        [name.replace("_", " "), page.figure(one["value"]), f"{page.figure(one['low'])} to {page.figure(one['high'])}"]
        for name, one in figures.items()
    ]
    per_byte = table["loss"].to_numpy() / table["bytes"].to_numpy() / math.log(2)
    order = np.argsort(-per_byte, kind="stable")[:worst]
    hardest = [[f"{per_byte[i]:.2f}", page.folded(table["text"][int(i)].as_py())] for i in order]
    return page.document(
        f"{title} – evaluation",
        [
            f"<h1>{title}</h1><p>{content['rows']:,} test documents, read from left to right.</p>",
            page.section(
                "Figures", page.card(page.table("On the test documents", ["figure", "value", level], measured))
            ),
            page.section(
                "Hardest documents",
                page.card(page.table("Most bits per byte first", ["bits per byte", "text"], hardest, stacked=True)),
            ),
        ],
    )
