"""The evaluation's report: one HTML page that needs no other file, for desktop and phone.

It shows no time but that of the model's training, so that equal evaluations write equal pages.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlnet import provenance
from xlnet.evaluation import charts, page
from xlnet.evaluation.charts import Series
from xlnet.recipe import Recipe

CURVE_POINTS = 400
SCATTER_POINTS = 2000
RESIDUAL_BINS = 24
MATRIX_CLASSES = 100  # a larger confusion matrix would make the page many megabytes long
CONFUSED_PAIRS = 20
NAMES = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "mcc": "MCC", "pearson": "Pearson r", "spearman": "Spearman ρ"}
WORDS = {"better": "better", "level": "not shown to be better", "worse": "worse"}


def render(
    content: dict[str, Any], card: dict[str, Any], recipe: Recipe, model: Path, table: pa.Table, worst: int
) -> str:
    """Write the page from the content of metrics.json, the dataset's card, the whole recipe and all predictions.

    The model's directory has its history and lineage. As many mistakes as ``worst`` says are shown.
    """
    classes = content["classes"]
    judged = _classes(content) if classes else _values(table)
    title = f"{NAMES[content['primary']]} {page.figure(content['metrics'][content['primary']]['value'])}"
    made = provenance.read(model)
    sections = [_headline(title, content, _named(made, content, recipe)), *judged]
    sections.append(_training(model, made["artifact"]["metadata"]))
    sections += [_mistakes(table, card, bool(classes), worst), _data(card), _made_of(content, card, recipe)]
    return page.document(f"{title} – evaluation", sections)


def _named(made: dict[str, Any], content: dict[str, Any], recipe: Recipe) -> str:
    """Identify the model: its pretrained weights or preset, digest, training time, training data, and run."""
    facts, run = made["artifact"]["metadata"], str(made["execution"].get("run") or "")
    files = [str(one).rstrip("/").rpartition("/")[2] for one in recipe.data.train]
    data = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    steps = f"kept step {facts['best_step']:,} of {facts['global_step']:,}" if "best_step" in facts else ""
    rows = [
        ("Model", str(facts.get("base_model") or f"{recipe.model.preset}, from scratch")),
        ("Digest", str(content["model_digest"])[7:19]),
        ("Trained", str(made["execution"]["ended"])[:16].replace("T", " ") + " UTC" + (f", {steps}" if steps else "")),
        ("On", data),
        ("Run", run),
    ]
    return page.facts([(name, value) for name, value in rows if value])


def _headline(title: str, content: dict[str, Any], named: str) -> str:
    confidence = f"{100 * content['confidence']:.4g} %"
    tiles = []
    for name, one in content["metrics"].items():
        interval = (
            f"{page.figure(one['low'])} to {page.figure(one['high'])}" if _finite(one["value"]) else "no interval"
        )
        first = " first" if name == content["primary"] else ""
        tiles.append(_tile(NAMES[name], page.figure(one["value"]), interval, first))
    if majority := content["majority_class"]:
        always = f"accuracy of always “{majority['class']}”"
        tiles.append(_tile("Majority class", page.figure(majority["accuracy"]), always))
    if base := content["baseline"]:
        theirs, apart = base["metrics"][content["primary"]], base["difference"]
        note = f"{NAMES[content['primary']]} of {base['name']}" + (f" ({base['uses']})" if base["uses"] else "")
        tiles.append(_tile("Baseline", page.figure(theirs["value"]), note))
        ends = f"{page.figure(apart['low'])} to {page.figure(apart['high'])}: the model is {WORDS[base['verdict']]}"
        tiles.append(_tile("Model − baseline", page.figure(apart["value"]), ends))
    if content["roc"]:
        tiles.append(_tile("AUC", page.figure(content["roc"]["auc"]), "area under the ROC curve"))
    return (
        f'<header><h1>{page.escape(title)} <span class="soft">on {content["rows"]:,} test rows</span></h1>{named}'
        f'<p class="soft">Below each metric: its {confidence} bootstrap interval over the test rows.</p>'
        f'</header><div class="tiles">{"".join(tiles)}</div>{_notes(content)}'
    )


def _notes(content: dict[str, Any]) -> str:
    notes = [f"<p><strong>Note:</strong> {page.escape(remark)}</p>" for remark in content["remarks"]]
    return f'<div class="notes">{"".join(notes)}</div>' if notes else ""


def _tile(name: str, value: str, note: str, kind: str = "") -> str:
    return (
        f'<div class="card tile{kind}"><span class="soft">{page.escape(name)}</span><b>{value}</b>'
        f"<small>{page.escape(note)}</small></div>"
    )


def _classes(content: dict[str, Any]) -> list[str]:
    classes, confusion = content["classes"], np.array(content["confusion"])
    pairs = _confused(classes, confusion) if len(classes) > 5 else ""
    matrix = _matrix(classes, confusion) if len(classes) <= MATRIX_CLASSES else ""
    shown = [page.section("Confusion matrix", page.scrolling(matrix, "Confusion matrix"))] if matrix else []
    if pairs:
        shown.append(page.section("Confused classes", page.scrolling(pairs, "Most frequent confusions")))
    shown.append(page.section("Classes", page.scrolling(_per_class(classes, confusion), "Classes")))
    if roc := content["roc"]:
        keep = np.unique(np.linspace(0, len(roc["fpr"]) - 1, CURVE_POINTS).round().astype(int))
        points = [(roc["fpr"][i], roc["tpr"][i]) for i in keep]
        name = f"“{classes[1]}” against “{classes[0]}”, AUC {page.figure(roc['auc'])}"
        diagonal = Series("", [(0.0, 0.0), (1.0, 1.0)], "dash")
        curve = [diagonal, Series("", points)]
        drawn = charts.chart(name, "false positive rate", "true positive rate", curve, (0.0, 1.0), (0.0, 1.0))
        shown[0] = page.section("Confusion matrix and ROC curve", page.grid(matrix, drawn))
    return shown


def _matrix(classes: Sequence[str], confusion: np.ndarray) -> str:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    rows = []
    for true, name in enumerate(classes):
        cells = []
        for guess, count in enumerate(confusion[true]):
            kinds = ["deep"] * bool(shares[true, guess] > 0.5) + ["right"] * (true == guess)
            hint = f"{name} predicted as {classes[guess]}: {count:,} ({shares[true, guess]:.1%})"
            mark = f' class="{" ".join(kinds)}"' if kinds else ""
            shade = f' style="--share:{shares[true, guess]:.3f}" title="{page.escape(hint)}"' if count else ""
            cells.append(f"<td{mark}{shade}>{f'{count:,}' if count else '·'}</td>")
        rows.append(f'<tr><th scope="row">{page.escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{page.escape(name)}</th>' for name in classes)
    many = " many" if sum(map(len, classes)) > 60 else ""
    return (
        '<h3 id="confusion">Test rows: true class down, predicted class across; shaded by the share of the true class'
        f'</h3><table class="confusion{many}" aria-labelledby="confusion">'
        f'<thead><tr><th scope="col">true \\ predicted</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _confused(classes: Sequence[str], confusion: np.ndarray) -> str:
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong.ravel(), kind="stable")[:CONFUSED_PAIRS]
    rows = []
    for true, guess in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := int(wrong[true, guess]):
            names = page.escape(classes[true]), page.escape(classes[guess])
            rows.append((*names, f"{count:,}", page.share(count / confusion[true].sum())))
    head = ("true class", "predicted", "rows", "of the true class")
    return page.table("Most frequent confusions", head, rows, (2, 3)) if rows else ""


def _per_class(classes: Sequence[str], confusion: np.ndarray) -> str:
    hits, rows, guesses = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, f1 = hits / guesses, hits / rows, 2 * hits / (rows + guesses)
    lines = [
        (page.escape(name), f"{rows[i]:,}", f"{guesses[i]:,}", *(page.share(x[i]) for x in (precision, recall, f1)))
        for i, name in enumerate(classes)
    ]
    head = ("class", "rows", "predicted", "precision", "recall", "F1")
    return page.table("Precision, recall and F1 of each class", head, lines, (1, 2, 3, 4, 5))


def _values(table: pa.Table) -> list[str]:
    truth, guess = table["label"].to_numpy(), table["prediction"].to_numpy()
    known = np.isfinite(truth) & np.isfinite(guess)
    truth, guess = truth[known], guess[known]
    if not len(truth):
        return []
    keep = np.unique(np.linspace(0, len(truth) - 1, SCATTER_POINTS).round().astype(int))
    ends = [float(min(truth.min(), guess.min())), float(max(truth.max(), guess.max()))]
    points = [(float(truth[i]), float(guess[i])) for i in keep]
    series = [Series("", [(end, end) for end in ends], "dash"), Series("", points, "one faint", True, False)]
    scatter = charts.chart("Predicted against true", "true value", "predicted value", series)
    counts, edges = np.histogram(guess - truth, RESIDUAL_BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    heights = [(f"{middle:.2g}", float(count)) for middle, count in zip(middles, counts, strict=True)]
    residuals = charts.bars("Residuals", "predicted − true", "test rows", heights)
    return [page.section("Predictions", page.grid(scatter, residuals))]


def _training(model: Path, facts: dict[str, Any]) -> str:
    lines = (model / "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line]

    def points(name: str) -> list[tuple[float, float]]:
        return [(one["step"], one[name]) for one in records if name in one and _finite(one[name])]

    loss = charts.thinned(points("loss"), CURVE_POINTS)
    kept = charts.Mark(facts["best_step"], f"kept: step {facts['best_step']:,}") if "best_step" in facts else None
    series = [Series("training", loss), Series("validation", points("validation_loss"), "two", True)]
    drawn = [charts.chart("Loss", "step", "loss", series, mark=kept)]
    for name, word in (("validation_accuracy", "accuracy"), ("validation_pearson", "Pearson r")):
        series = [Series("validation", points(name), "two", True)]
        drawn.append(charts.chart(f"Validation {word}", "step", word, series, mark=kept))
    if not any(drawn):
        return page.section("Training", "<p>The training history is empty.</p>")
    return page.section("Training", page.grid(*drawn))


def _mistakes(table: pa.Table, card: dict[str, Any], classification: bool, worst: int) -> str:
    heading = "Worst mistakes" if classification else "Largest errors"
    loss = np.nan_to_num(table["loss"].to_numpy(), nan=np.inf)
    order = np.argsort(-loss, kind="stable")
    if classification:
        wrong = np.array(table["label"].to_pylist()) != np.array(table["prediction"].to_pylist())
        order = order[wrong[order]]
    if not worst:
        return ""
    if not len(order):
        return page.section(heading, "<p>The model predicts every test row correctly.</p>")
    rows = [_mistake(row, card) for row in table.take(order[:worst]).to_pylist()]
    head = ("text", "true", "predicted", *(["probability"] if classification else []), "loss", "from")
    numbers = (3, 4) if classification else (1, 2, 3)
    caption = f"{len(rows):,} of {len(order):,}, largest loss first; predictions.parquet has all rows"
    return page.section(heading, page.scrolling(page.table(caption, head, rows, numbers, stacked=True), heading))


def _mistake(row: dict[str, Any], card: dict[str, Any]) -> tuple[str, ...]:
    pair = f'<div class="text soft">{page.folded(row["text_pair"])}</div>' if row["text_pair"] else ""
    text = f'<div class="text">{page.folded(row["text"])}</div>{pair}'
    file = str(card["files"][row["source"]]["uri"]).rstrip("/").rpartition("/")[2]
    place = f"<small>{page.escape(file)}:{row['line']:,}</small>"
    if "probabilities" not in row:
        return text, f"{row['label']:.4g}", f"{row['prediction']:.4g}", f"{row['loss']:.4g}", place
    names = page.escape(row["label"]), page.escape(row["prediction"])
    return text, *names, page.share(max(row["probabilities"])), f"{row['loss']:.3f}", place


def _data(card: dict[str, Any]) -> str:
    splits = card["splits"]
    facts = [
        (
            name,
            *(f"{part[key]:,}" for key in ("rows", "tokens", "truncated")),
            f"{part['tokens'] / part['rows']:.1f}" if part["rows"] else "–",
        )
        for name, part in splits.items()
    ]
    head = ("split", "rows", "tokens", "truncated", "tokens per row")
    parts = [page.table(f"Splits; texts are cut at {card['max_length']:,} tokens", head, facts, (1, 2, 3, 4))]
    rejects = card["rejects"]
    reasons = [(page.escape(reason), f"{count:,}") for reason, count in rejects["by_reason"].items()]
    repeats = card["duplicates"]
    checks = [
        ("rows that could not be used", f"{rejects['total']:,}"),
        *((f"&nbsp;– {reason}", count) for reason, count in reasons),
        ("test rows whose text is also in train", f"{repeats['train_test']:,}"),
        ("validation rows whose text is also in train", f"{repeats['train_validation']:,}"),
        ("train rows that repeat an earlier one", f"{repeats['train']:,}"),
    ]
    parts.append(page.table("Checks", ("check", "rows"), checks, (1,)))
    lengths = [(f"≤{bound}", float(count)) for bound, count in splits["train"]["length_histogram"]]
    parts.append(charts.bars("Length of the training texts", "tokens", "rows", lengths))
    if card["classes"]:
        shares = [
            (page.escape(name), *(f"{part['classes'].get(name, 0):,}" for part in splits.values()))
            for name in card["classes"]
        ]
        columns = tuple(range(1, len(splits) + 1))
        counts = page.table("Rows of each class", ("class", *splits), shares, columns)
        parts.append(f'<div class="scroll" tabindex="0" role="region" aria-label="Rows of each class">{counts}</div>')
    return page.section("Data", page.grid(*parts))


def _made_of(content: dict[str, Any], card: dict[str, Any], recipe: Recipe) -> str:
    digests = [
        ("snapshot of the input", card["snapshot"]),
        ("dataset", content["dataset_digest"]),
        ("test rows", content["test_digest"]),
        ("model", content["model_digest"]),
    ]
    names = page.table("Digests", ("what", "digest"), [(name, f"<code>{page.escape(d)}</code>") for name, d in digests])
    settings = [
        (f"{section}.{name}", f"<code>{page.escape(json.dumps(value, ensure_ascii=False))}</code>")
        for section in ("data", "model", "training", "evaluation")
        for name, value in dataclasses.asdict(getattr(recipe, section)).items()
    ]
    table = page.table("Recipe", ("field", "value"), settings)
    return page.section(
        "Provenance", page.card(names), f"<details><summary>The recipe</summary>{page.card(table)}</details>"
    )


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
