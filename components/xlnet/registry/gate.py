"""The gate: decides whether a challenger becomes champion, and says why.

The challenger must beat the most frequent answer, and the current champion, by the rule of
:mod:`xlnet.evaluation.comparison`, on test rows that neither model was trained on. It must not be significantly worse
than the baseline of its evaluation, TF-IDF with a linear model.
"""

import math
import shlex
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from xlnet.data import seen
from xlnet.data.dataset import open_dataset
from xlnet.errors import RunError, UserError
from xlnet.evaluation.comparison import RowPredictions, compare
from xlnet.evaluation.predictor import Predictor
from xlnet.model.config import PRETRAIN
from xlnet.recipe import EvaluationRecipe
from xlnet.registry import language_gate
from xlnet.registry.challenger import Challenger
from xlnet.registry.decision import Decision, Incomparable, champion_files, kept_evaluation
from xlnet.registry.versions import ModelVersion

FEWEST_ROWS = 30  # minimum number of rows for a comparison, after removing rows that a model was trained on
TRY = "train on more rows or for more epochs (training.epochs), or begin with pretrained weights (model.pretrained)"


@dataclass(frozen=True)
class NamedPredictions:
    """A model's predictions for the test rows: class names or values, [rows]."""

    truth: list[Any]
    given: list[Any]


def gate(
    challenger: Challenger, champion: ModelVersion | None, recipe: EvaluationRecipe, force: bool = False
) -> Decision:
    """Decide whether the challenger becomes champion, by the recipe's metric, margin and bootstrap.

    ``force`` promotes the challenger whatever the comparison says; the decision still gives the reason.
    """
    if champion and champion.tags.get("model_digest") == challenger.model_digest:
        return Decision(True, f"the champion is this very model, version {champion.version}", champion.version)
    found = _judge(challenger, champion, recipe)
    if force and not found.promote:
        return replace(found, promote=True, reason=f"by registry.force, although {found.reason}")
    return found


def _judge(challenger: Challenger, champion: ModelVersion | None, recipe: EvaluationRecipe) -> Decision:
    number = champion.version if champion else None
    if challenger.metrics.get("task") == PRETRAIN:
        try:
            return language_gate.judge(challenger, champion, recipe, _unseen)
        except Incomparable as why:
            return _by_hand(champion, why)
    ours = read_predictions(challenger.evaluation)
    if useless := _no_better_than_a_constant(challenger, ours, recipe):
        by_hand = f"xlnet-pipeline models promote {shlex.quote(champion.name) if champion else 'NAME'}:VERSION"
        return Decision(False, f"{useless}; {TRY}; to promote it all the same: run --force, or {by_hand}", number)
    if worse := _worse_than_the_baseline(challenger):
        return Decision(False, f"{worse}; to promote it all the same: run --force", number)
    if champion is None:
        return Decision(True, "no champion yet")
    try:
        return _against(challenger, champion, ours, recipe)
    except Incomparable as why:
        return _by_hand(champion, why)


def _by_hand(champion: ModelVersion | None, why: Incomparable) -> Decision:
    """Return the decision that two models cannot be compared."""
    assert champion is not None
    by_hand = f"xlnet-pipeline models promote {shlex.quote(champion.name)}:VERSION"
    reason = f"it cannot be compared with champion {champion.version}: {why}; to decide by hand: {by_hand}"
    return Decision(False, reason, champion.version)


def _no_better_than_a_constant(challenger: Challenger, ours: NamedPredictions, recipe: EvaluationRecipe) -> str:
    """Return why the model is useless; empty if it beats giving the same answer for all rows."""
    metric = challenger.metrics["primary"]
    if not challenger.classes:
        figure = challenger.metrics["metrics"][metric]
        if challenger.score is None:
            return f"{metric} cannot be computed: the model's answers, or the test labels, are all the same"
        known = [figure.get(end) for end in ("value", "low", "high")]
        if figure.get("low") is None or not figure["low"] > 0:
            value, low, high = (f"{one:+.4f}" if one is not None else "unknown" for one in known)
            return f"it is no better than always giving one value: {metric} {value} [{low}, {high}]"
        return ""
    ((commonest, _),) = Counter(ours.truth).most_common(1)
    constant = NamedPredictions(ours.truth, [commonest] * len(ours.truth))
    found = compare(*paired(ours, constant, challenger.classes), metric, replace(recipe, margin=0.0))
    if found.low > 0:
        return ""
    return f"it is no better than always answering '{commonest}': {found.figures}"


def _worse_than_the_baseline(challenger: Challenger) -> str:
    """Return why the model does not replace its far cheaper baseline; empty if it is not significantly worse."""
    base = challenger.metrics.get("baseline")
    if not base or base["verdict"] != "worse":
        return ""
    found = base["difference"]
    interval = f"[{found['low']:+.4f}, {found['high']:+.4f}]"
    return f"it is worse than {base['name']} on the same rows: {found['metric']} {found['value']:+.4f} {interval}"


def _against(
    challenger: Challenger, champion: ModelVersion, ours: NamedPredictions, recipe: EvaluationRecipe
) -> Decision:
    """Compare with the champion. Raises Incomparable if the two cannot be compared."""
    theirs, kept = _champion_answers(challenger, champion)
    fresh = _unseen(challenger, champion, kept)
    rows = len(ours.truth)
    if fresh is None:
        left, where = np.ones(rows, bool), ""
    else:
        left, where = fresh, f" on the {int(fresh.sum()):,} of {rows:,} test rows that neither was trained on"
    if left.sum() < min(FEWEST_ROWS, rows / 2):
        raise Incomparable(
            f"{rows - int(left.sum()):,} of {rows:,} test rows are among those that one of the two was trained on, and "
            f"{int(left.sum()):,} are too few to decide; give rows of their own in data.test"
        )
    if left.all():
        where = ""
    ours, theirs = _rows(ours, left), _rows(theirs, left)
    found = compare(*paired(ours, theirs, challenger.classes), challenger.metrics["primary"], recipe)
    others = sorted({*theirs.given} - {*challenger.classes}) if challenger.classes else []
    also = f"; it also answers '{others[0]}', a class that the challenger does not know" if others else ""
    reason = f"{found.reason}{where} (version {champion.version}{also})"
    figures = (None if math.isnan(one) else one for one in (found.difference, found.low, found.high))
    return Decision(found.wins, reason, champion.version, *figures)


def _champion_answers(challenger: Challenger, champion: ModelVersion) -> tuple[NamedPredictions, bool]:
    """Return the champion's predictions for the challenger's test rows, and whether its own evaluation made them."""
    if kept := kept_evaluation(champion, challenger.metrics["test_digest"]):
        return read_predictions(kept), True
    try:
        predictor = Predictor(champion_files(champion))
        known = list(predictor.model.config.classes)
    except (UserError, RunError) as error:
        raise Incomparable(str(error)) from None
    if bool(known) != bool(challenger.classes):
        raise Incomparable(f"it predicts {'classes' if known else 'values'}")
    split = open_dataset(challenger.dataset).split("test")
    rows = split.table()
    logits, _ = predictor.logits(rows["text"].to_pylist(), rows["text_pair"].to_pylist())
    if not challenger.classes:
        return NamedPredictions(split.labels.tolist(), logits[:, 0].tolist()), False
    truth = [challenger.classes[label] for label in split.labels]
    return NamedPredictions(truth, [known[index] for index in logits.argmax(1)]), False


def _unseen(challenger: Challenger, champion: ModelVersion, kept: bool) -> np.ndarray | None:
    """Return which test rows neither model was trained on: bool [rows]; None means all rows.

    A champion of an older release does not record its training rows, but it was not trained on its own test rows.

    Raises:
        Incomparable: the training rows are unknown, and the answers are not those of the champion's own evaluation.
    """
    keys = challenger.test_keys()
    known = [seen.read(challenger.model), seen.read(champion.model_uri)]
    if keys is None or None in known:
        if kept:
            return None
        raise Incomparable("it is not known which rows the two were trained on")
    return ~np.any([one.among(keys) for one in known if one is not None], axis=0)


def read_predictions(evaluation: Path) -> NamedPredictions:
    """Read the true classes or values of the test rows, and the predicted ones."""
    table = pq.read_table(evaluation / "predictions.parquet", columns=["label", "prediction"])
    return NamedPredictions(table["label"].to_pylist(), table["prediction"].to_pylist())


def _rows(answers: NamedPredictions, chosen: np.ndarray) -> NamedPredictions:
    numbers = np.flatnonzero(chosen)
    return NamedPredictions([answers.truth[i] for i in numbers], [answers.given[i] for i in numbers])


def paired(one: NamedPredictions, other: NamedPredictions, classes: list[str]) -> tuple[RowPredictions, RowPredictions]:
    """Convert both to numbers, over the union of their classes."""
    if not classes:
        first, second = (RowPredictions(np.array(two.truth), np.array(two.given), 0) for two in (one, other))
        return first, second
    names = sorted({*classes, *one.truth, *one.given, *other.truth, *other.given})
    index = {name: number for number, name in enumerate(names)}
    first, second = (
        RowPredictions(_indices(two.truth, index), _indices(two.given, index), len(names)) for two in (one, other)
    )
    return first, second


def _indices(values: list[str], index: dict[str, int]) -> np.ndarray:
    return np.fromiter((index[value] for value in values), np.int64, len(values))
