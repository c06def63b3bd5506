"""The evaluation's page: one self-contained file that says how good the model is and where it fails."""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlnet.evaluation import charts
from xlnet.evaluation.charts import Line
from xlnet.recipe import Recipe

STYLE = Path(__file__).with_name("report.css")
SHOWN_CHARACTERS = 300  # of a text; the rest unfolds
SCATTER_POINTS = 2000
NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",
}


def render(
    content: dict[str, Any], card: dict[str, Any], recipe: Recipe, model: Path, table: pa.Table, worst: int
) -> str:
    """The page's HTML.

    Args:
        content: what ``metrics.json`` holds.
        card: the dataset's ``card.json``.
        recipe: all that made the evaluation.
        model: the model's directory, for its ``history.jsonl``.
        table: the predictions, one row per test row.
        worst: how many of the worst mistakes to show.
    """
    title = f"{recipe.model.pretrained or recipe.model.preset} model on {content['rows']:,} test rows"
    history = [json.loads(line) for line in (model / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    sections = [
        _headline(content),
        _curves(history),
        _confusion(content) if content["classes"] else _residuals(table),
        _worst(content, table, worst),
        _data(card),
        _facts(content, recipe),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<h1>{escape(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def _headline(content: dict[str, Any]) -> str:
    level = f"{content['confidence']:.0%} interval"
    cards = []
    for name, figure in content["metrics"].items():
        shown = f"{figure['value']:.4f}" if math.isfinite(figure["value"]) else "undefined"
        interval = (
            f"{level} {figure['low']:.4f} to {figure['high']:.4f}" if math.isfinite(figure["low"]) else "constant"
        )
        kind = "card main" if name == content["primary"] else "card"
        cards.append(f"<div class='{kind}'>{NAMES[name]}<b>{shown}</b><small>{interval}</small></div>")
    if most := content["majority_class"]:
        note = f"always answering '{escape(most['class'])}'"
        cards.append(f"<div class='card'>majority class<b>{most['accuracy']:.4f}</b><small>{note}</small></div>")
    lead = "<p class='lead'>What a guess would reach stands beside what the model reaches.</p>"
    return f"{lead}<div class='cards'>{''.join(cards)}</div>"


def _curves(history: list[dict[str, Any]]) -> str:
    def series(key: str, label: str, css: str, dots: bool = False) -> Line:
        found = [entry for entry in history if key in entry]
        return Line(label, [entry["step"] for entry in found], [entry[key] for entry in found], css, dots)

    loss = [series("loss", "training", "c0"), series("validation_loss", "validation", "c1", dots=True)]
    score = "validation_accuracy" if any("validation_accuracy" in entry for entry in history) else "validation_pearson"
    name = score.removeprefix("validation_")
    return (
        "<h2>Training</h2><div class='pair'>"
        + charts.lines("loss", "step", "loss", loss)
        + charts.lines(f"validation {name}", "step", name, [series(score, "validation", "c1", dots=True)])
        + "</div>"
    )


def _confusion(content: dict[str, Any]) -> str:
    classes, matrix = content["classes"], np.array(content["confusion"])
    names = [escape(name) for name in classes]
    most = max(1, int(matrix.max()))
    rows = []
    for i, name in enumerate(names):
        cells = (f"<td style='--heat:{0.75 * count / most:.3f}'>{count:,}</td>" for count in matrix[i].tolist())
        rows.append(f"<tr><th scope='row'>{name}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    table = (
        "<div class='scroll'><table class='matrix'><caption>rows: true class; columns: predicted class</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    right = _roc(content["roc"]) if content["roc"] else ""
    return f"<h2>Confusion</h2><div class='pair'><div>{table}{_per_class(names, matrix)}</div>{right}</div>"


def _per_class(names: list[str], matrix: np.ndarray) -> str:
    hits, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    rows = []
    for i, name in enumerate(names):
        precision, recall = hits[i] / max(1, predicted[i]), hits[i] / max(1, true[i])
        f1 = 2 * hits[i] / max(1, true[i] + predicted[i])
        cells = "".join(f"<td>{value:.3f}</td>" for value in (precision, recall, f1))
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}<td>{true[i]:,}</td></tr>")
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("precision", "recall", "F1", "rows"))
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


def _roc(roc: dict[str, Any]) -> str:
    step = max(1, len(roc["fpr"]) // 500)
    kept = sorted({*range(0, len(roc["fpr"]), step), len(roc["fpr"]) - 1})
    model = Line(f"area {roc['auc']:.4f}", [roc["fpr"][i] for i in kept], [roc["tpr"][i] for i in kept], "c0")
    guess = Line("guess", [0, 1], [0, 1], "faint")
    return charts.lines("ROC", "false positive rate", "true positive rate", [model, guess], unit_square=True)


def _residuals(table: pa.Table) -> str:
    labels, predictions = (np.array(table[name].to_pylist()) for name in ("label", "prediction"))
    kept = np.linspace(0, len(labels) - 1, min(len(labels), SCATTER_POINTS)).astype(int)
    counts, edges = np.histogram(predictions - labels, bins=15)
    middles = [f"{(a + b) / 2:.2g}" for a, b in zip(edges, edges[1:], strict=False)]
    return (
        "<h2>Predicted and true</h2><div class='pair'>"
        + charts.scatter("test rows", "true", "predicted", labels[kept].tolist(), predictions[kept].tolist())
        + charts.bars("residuals", "predicted - true", middles, counts.tolist())
        + "</div>"
    )


def _worst(content: dict[str, Any], table: pa.Table, worst: int) -> str:
    rows = table.sort_by([("loss", "descending")]).slice(0, worst * 10).to_pylist()
    wrong = [row for row in rows if not content["classes"] or row["label"] != row["prediction"]][:worst]
    if not wrong:
        return "<h2>Worst mistakes</h2><p class='note'>None.</p>"
    index = {name: i for i, name in enumerate(content["classes"])}
    body = []
    for row in wrong:
        shown = [row["label"], row["prediction"]] if index else [f"{row['label']:.4g}", f"{row['prediction']:.4g}"]
        sure = f"{row['probabilities'][index[row['prediction']]]:.3f}" if index else f"{row['loss']:.4g}"
        cells = "".join(f"<td class='left'>{escape(value)}</td>" for value in shown)
        texts = "<br>".join(_folded(row[name]) for name in ("text", "text_pair") if row[name])
        body.append(f"<tr>{cells}<td>{sure}</td><td class='text'>{texts}</td></tr>")
    measure = "probability" if index else "squared error"
    head = f"<tr><th class='left'>true</th><th class='left'>predicted</th><th>{measure}</th><th class='left'>text</th>"
    return (
        "<h2>Worst mistakes</h2><div class='scroll'><table><caption>the surest wrong answers first</caption>"
        f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _folded(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return escape(text)
    return f"<details><summary>{escape(text[:SHOWN_CHARACTERS])} …</summary>{escape(text[SHOWN_CHARACTERS:])}</details>"


def _data(card: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{name}</th><td>{part['rows']:,}</td><td>{part['tokens']:,}</td>"
        f"<td>{part['truncated']:,}</td><td class='left'>{_classes(part['classes'])}</td></tr>"
        for name, part in card["splits"].items()
    )
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("", "rows", "tokens", "truncated", "rows per class"))
    reasons = ", ".join(f"{escape(reason)} {count:,}" for reason, count in card["rejects"]["by_reason"].items())
    twice = card["duplicates"]
    lengths = card["splits"]["train"]["length_histogram"]
    return (
        "<h2>Data</h2><div class='pair'><div><div class='scroll'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p>{card['rejects']['total']:,} rows rejected{': ' + reasons if reasons else ''}. "
        f"Exact texts of train found again: {twice['train_test']:,} in test, {twice['train_validation']:,} in "
        f"validation, {twice['train']:,} in train itself.</p></div>"
        + charts.bars("train rows by length", "tokens, up to", [str(b) for b, _ in lengths], [n for _, n in lengths])
        + "</div>"
    )


def _classes(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{escape(name)}: {count:,}" for name, count in list(counts.items())[:8])
    return shown + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _facts(content: dict[str, Any], recipe: Recipe) -> str:
    digests = "".join(
        f"<dt>{name}</dt><dd><code>{escape(content[f'{name}_digest'])}</code></dd>"
        for name in ("dataset", "model", "test")
    )
    fields = json.loads(recipe.part("data", "model", "training", "evaluation"))
    items = "".join(
        f"<dt>{section}.{name}</dt><dd>{escape(json.dumps(value, ensure_ascii=False))}</dd>"
        for section, part in fields.items()
        for name, value in part.items()
    )
    return (
        f"<h2>Where it comes from</h2><dl>{digests}</dl>"
        f"<details><summary>The whole recipe</summary><dl>{items}</dl></details>"
    )
