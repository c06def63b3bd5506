"""The evaluate step: measures a model on the test split, and writes predictions, metrics and a report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import Dataset, Split, open_dataset
from xlnet.errors import RunError, UserError
from xlnet.evaluation import baseline, language, metrics, report
from xlnet.evaluation.comparison import primary_metric
from xlnet.evaluation.predictor import probabilities
from xlnet.model.config import PRETRAIN
from xlnet.model.inference import predict_logits
from xlnet.model.weights import load_classifier
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import EvaluationRecipe, Recipe


def evaluate(recipe_json: str, dataset: str, model: str, out: str) -> dict[str, Any]:
    """Evaluate a model on a dataset's test split.

    Args:
        recipe_json: JSON of a recipe, or of its ``evaluation`` section.
        dataset: directory of the dataset artifact.
        model: directory of the model artifact.
        out: directory of the evaluation artifact to write.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the model and the dataset do not match.
        CorruptArtifact: the model or the dataset was changed after it was written.
        RunError: the model's weights or outputs are not finite, or the primary metric cannot be computed.
    """
    started = provenance.now()
    given = recipes.from_json(recipe_json).evaluation
    provenance.refuse_foreign(out, "evaluation")
    dataset_digest, model_digest = provenance.verify(dataset), provenance.verify(model)
    data = open_dataset(dataset)
    is_language_model = data.card["task"] == PRETRAIN
    table, figures = (language.judge if is_language_model else _judge)(model, data, given)
    made_of = recipes.of_artifact(model)
    whole = Recipe(made_of.data, made_of.model, made_of.training, given, pretraining=made_of.pretraining)
    test_digest = data.card["splits"]["test"]["digest"]
    content = {"test_digest": test_digest, "model_digest": model_digest, "dataset_digest": dataset_digest, **figures}
    content["remarks"] = [] if is_language_model else baseline.remarks(content, whole)
    with provenance.making(out, "evaluation", "evaluate", started) as made:
        pq.write_table(table, made.directory / "predictions.parquet")
        metrics_json = json.dumps(content, indent=1, ensure_ascii=False)
        (made.directory / "metrics.json").write_text(metrics_json + "\n", encoding="utf-8")
        if is_language_model:
            page = language.render(content, table, given.worst)
        else:
            page = report.render(content, data.card, whole, Path(model), table, given.worst)
        (made.directory / "report.html").write_text(page, encoding="utf-8")
        sections = ("data", "model", "training", "evaluation", "pretraining")
        (made.directory / "recipe.json").write_text(whole.part(*sections), encoding="utf-8")
        made.parameters, made.metadata = json.loads(whole.part("evaluation")), _facts(content)
        made.inputs = [provenance.read(dataset), provenance.read(model)]
    _say(content)
    return {**made.metadata, "evaluation_digest": made.digest}


def _with_baseline(
    table: pa.Table, logits: np.ndarray, data: Dataset, primary: str, recipe: EvaluationRecipe, seconds: float
) -> tuple[dict[str, Any] | None, pa.Table]:
    """Return the baseline's part of metrics.json (None without a baseline), and the table with its answers."""
    found = baseline.answers(recipe, data, seconds)
    if found is None:
        return None, table
    theirs, about = found
    ours = logits.argmax(1) if data.classes else logits[:, 0]
    names = np.array(data.classes, dtype=object)
    given = names[theirs].tolist() if data.classes else theirs.astype(np.float64)
    labels = data.split("test").labels
    figures = baseline.judge(ours, theirs, labels, len(data.classes), primary, recipe)
    return {**about, **figures}, table.append_column("baseline", pa.array(given))


def _seconds(model: str) -> float:
    """Return how long the model was trained; 0 if that is not recorded."""
    facts = provenance.read(model)["artifact"]["metadata"]
    return float(facts.get("tokens", 0)) / max(1.0, float(facts.get("tokens_per_second", 0)))


def _say(content: dict[str, Any]) -> None:
    primary = content["primary"]
    main, rows = content["metrics"][primary], content["rows"]
    always = f"; always '{m['class']}': {m['accuracy']:.4f}" if (m := content["majority_class"]) else ""
    print(f"{primary} {main['value']:.4f} [{main['low']:.4f}, {main['high']:.4f}] on {rows:,} rows{always}")
    if base := content["baseline"]:
        theirs = base["metrics"][primary]["value"]
        score = "unknown" if theirs is None else f"{theirs:.4f}"
        uses = f" ({base['uses']})" * bool(base["uses"])
        print(f"{base['name']}{uses}: {primary} {score}; {baseline.spell(base['difference'])}")
    for remark in content["remarks"]:
        print(f"note: {remark}")


def _judge(model: str, data: Dataset, recipe: EvaluationRecipe) -> tuple[pa.Table, dict[str, Any]]:
    """Return a classifier's predictions for the test split, and its metrics and those of the baseline."""
    classifier, split = load_classifier(model), data.split("test")
    refuse_mismatch(classifier, data, model)
    logits = predict_logits(classifier, split)
    refuse_not_finite(classifier, logits, model)
    table, figures = predictions_table(logits, split, data.classes), judge(logits, split.labels, data.classes, recipe)
    theirs, table = _with_baseline(table, logits, data, figures["primary"], recipe, _seconds(model))
    return table, {**figures, "baseline": theirs}


def refuse_mismatch(model: XLNetClassifier, data: Dataset, name: str) -> None:
    """Raise UserError if the model's classes or vocabulary differ from the dataset's."""
    config = model.config
    if config.task != data.card["task"] or list(config.classes) != data.classes:
        ours = ", ".join(data.classes[:10]) or "a number"
        theirs = ", ".join(config.classes[:10]) or "a number"
        raise UserError(
            f"model '{name}' predicts {theirs}, the dataset's labels are {ours}; "
            "evaluate it on a dataset with its labels"
        )
    language.refuse_vocabulary(config.vocab_size, data, name)


def refuse_not_finite(model: XLNetClassifier, logits: np.ndarray, name: str) -> None:
    """Raise RunError if a weight or a logit is nan or inf."""
    broken = [key for key, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if broken or not np.isfinite(logits).all():
        what = f"weights that are not numbers, such as {broken[0]}" if broken else "logits that are not numbers"
        raise RunError(f"model '{name}' has {what}; train it again with a lower training.learning_rate")


def judge(logits: np.ndarray, labels: np.ndarray, classes: list[str], recipe: EvaluationRecipe) -> dict[str, Any]:
    """Compute all metrics of a test split from its logits, float32 [rows, C], and class indices or values, [rows].

    The names of the classes stand in index order; there are none for a regression.

    Raises:
        UserError: the recipe's metric does not exist for this task.
        RunError: the recipe's metric cannot be computed.
    """
    task = "classification" if classes else "regression"
    primary = primary_metric(recipe, task)
    drawing = (recipe.confidence, recipe.resamples, recipe.seed)
    common = {
        "task": task,
        "rows": len(labels),
        "classes": classes,
        "primary": primary,
        "confidence": recipe.confidence,
    }
    if not classes:
        figures = metrics.regression_figures(labels, logits[:, 0], *drawing)
        if not np.isfinite(figures[primary].value):
            constant = "the test labels are" if np.ptp(labels) == 0 else "the model's predictions are"
            raise RunError(
                f"{primary} cannot be computed: {constant} the same for all {len(labels):,} rows; "
                + ("give other rows as data.test" if "labels" in constant else "train longer, or with another rate")
            )
        return {**common, "metrics": _plain(figures), "majority_class": None, "confusion": None, "roc": None}
    confusion = metrics.confusion_matrix(labels, logits.argmax(1), len(classes))
    most = int(confusion.sum(1).argmax())
    return {
        **common,
        "metrics": _plain(metrics.classification_figures(confusion, *drawing)),
        "majority_class": {"class": classes[most], "accuracy": float(confusion[most].sum() / confusion.sum())},
        "confusion": confusion.tolist(),
        "roc": _roc(logits, labels) if len(classes) == 2 else None,
    }


def _roc(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    fpr, tpr, thresholds, area = metrics.roc_curve(labels, probabilities(logits)[:, 1])
    if not np.isfinite(area):
        return None
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist(), "thresholds": thresholds.tolist(), "auc": area}


def _plain(figures: dict[str, metrics.Estimate]) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def predictions_table(logits: np.ndarray, split: Split, classes: list[str]) -> pa.Table:
    """Make a table with one row per test row: source and line, truth, prediction, loss, text."""
    rows = split.table()
    columns: dict[str, Any] = {name: rows[name] for name in ("row", "source", "line", "id")}
    if classes:
        shares = probabilities(logits)
        names = np.array(classes, dtype=object)
        columns["label"] = names[split.labels].tolist()
        columns["prediction"] = names[logits.argmax(1)].tolist()
        columns["probabilities"] = shares.tolist()
        columns["loss"] = -np.log(np.maximum(shares[np.arange(len(shares)), split.labels], 1e-300))
    else:
        columns["label"] = split.labels.astype(np.float64)
        columns["prediction"] = logits[:, 0].astype(np.float64)
        columns["loss"] = (columns["label"] - columns["prediction"]) ** 2
    columns |= {name: rows[name] for name in ("text", "text_pair")}
    return pa.table(columns)


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"primary_metric": content["primary"], "test_rows": content["rows"]}
    for name, figure in content["metrics"].items():
        facts |= {name: round(figure["value"], 6), f"{name}_low": round(figure["low"], 6)}
        facts[f"{name}_high"] = round(figure["high"], 6)
    if content["majority_class"]:
        facts["majority_class_accuracy"] = round(content["majority_class"]["accuracy"], 6)
    if base := content["baseline"]:
        theirs = base["metrics"][content["primary"]]["value"]
        known = {"baseline_score": theirs, "baseline_difference": base["difference"]["value"]}
        facts |= {name: round(value, 6) for name, value in known.items() if value is not None}
        facts |= {"baseline": base["kind"], "baseline_verdict": base["verdict"]}
    digests = {name: content[name] for name in ("test_digest", "model_digest", "dataset_digest")}
    return {**facts, **digests, **provenance.code_facts()}
