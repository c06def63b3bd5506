"""The gate for language models: the challenger must need fewer bits per byte. The tokenizers may differ."""

import math
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq

from xlnet.data.dataset import open_dataset
from xlnet.data.tokenizer import load_tokenizer
from xlnet.errors import RunError, UserError
from xlnet.recipe import EvaluationRecipe
from xlnet.registry.challenger import Challenger
from xlnet.registry.decision import Decision, Incomparable, champion_files, kept_evaluation
from xlnet.registry.versions import ModelVersion

UNIFORM = 8.0  # bits per byte of a model that knows nothing


def judge(
    challenger: Challenger,
    champion: ModelVersion | None,
    recipe: EvaluationRecipe,
    unseen: Callable[[Challenger, ModelVersion, bool], np.ndarray | None],
) -> Decision:
    """Decide between two language models with a paired bootstrap over the challenger's test documents.

    Args:
        challenger: the model to judge.
        champion: the current champion; None if there is none.
        recipe: the margin, and the settings of the bootstrap.
        unseen: returns which documents neither model was trained on. Its last argument says whether the losses are
            from the champion's own evaluation.

    Raises:
        Incomparable: the two cannot be compared.
    """
    ours = challenger.score
    if ours is None or ours >= UNIFORM:
        return Decision(False, f"it is no better than guessing bytes: {ours} bits per byte of {UNIFORM:g}")
    from xlnet.evaluation.language import ratio

    if champion is None:
        return Decision(True, "no champion yet")
    losses, is_kept = _champion_losses(challenger, champion)
    table = pq.read_table(challenger.evaluation / "predictions.parquet", columns=["loss", "bytes"])
    fresh = unseen(challenger, champion, is_kept)
    rows = np.arange(table.num_rows) if fresh is None else np.flatnonzero(fresh)
    if not len(rows):
        raise Incomparable("every test document is among those that one of the two was trained on")
    mine, sizes = (table[name].to_numpy()[rows] for name in ("loss", "bytes"))
    gain = (losses[rows] - mine) / math.log(2)
    fewer = ratio(gain, sizes, recipe)
    difference, low, high = fewer.value, fewer.low, fewer.high
    wins = difference > recipe.margin and low > 0
    verb = "it beats the champion" if wins else "it does not beat the champion by more than the margin and chance allow"
    theirs = float(losses[rows].sum() / math.log(2) / sizes.sum())
    reason = (
        f"{verb}: bits per byte {theirs - difference:.4f} against {theirs:.4f}, {difference:+.4f} fewer "
        f"[{low:+.4f}, {high:+.4f}] (version {champion.version})"
    )
    return Decision(wins, reason, champion.version, difference, low, high)


def _champion_losses(challenger: Challenger, champion: ModelVersion) -> tuple[np.ndarray, bool]:
    """Return the champion's losses on the challenger's test documents, and whether its own evaluation stored them."""
    from xlnet.evaluation.language import document_losses
    from xlnet.model.weights import load_language_model

    if kept := kept_evaluation(champion, challenger.metrics["test_digest"]):
        return pq.read_table(kept / "predictions.parquet", columns=["loss"])["loss"].to_numpy(), True
    try:
        model = champion_files(champion)
        language_model, tokenizer = load_language_model(model), load_tokenizer(model)
    except (UserError, RunError) as error:
        raise Incomparable(str(error)) from None
    rows = open_dataset(challenger.dataset).split("test").table()
    encoded = tokenizer.encode_documents(rows["text"].to_pylist(), rows["text_pair"].to_pylist())
    documents = [np.array(ids, np.int64) for ids in encoded.input_ids]
    return document_losses(language_model, documents, model), False
