"""Selects and compares rows of an evaluation's predictions. These functions run in the helper process."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PAGE = 50  # rows per page
LONGEST = 2000  # maximum characters that a page shows of a text


def select(file: str, question: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the selected rows.

    Args:
        file: predictions.parquet.
        question: ``only`` (wrong, right, all), ``label``, ``prediction``, ``search``, ``low`` and ``high`` (bounds of
            the predicted class's probability), ``sort`` (loss, -loss, confidence, -confidence), ``page``.

    Returns:
        ``rows`` (dictionaries), ``found`` and ``total`` (counts), ``page``, ``last``. A language model's documents have
        ``bits_per_byte``, by which they are sorted instead of their loss, as long ones lose more.
    """
    table = pq.read_table(file)
    classification = "probabilities" in table.column_names
    if classification:
        best = [max(one) if one else None for one in table["probabilities"].to_pylist()]
        table = table.append_column("confidence", pa.array(best, pa.float64())).drop_columns(["probabilities"])
    if "bytes" in table.column_names:
        nats = pc.divide(table["loss"], pc.cast(pc.max_element_wise(table["bytes"], 1), pa.float64()))
        table = table.append_column("bits_per_byte", pc.divide(nats, math.log(2)))
    kept = table.filter(_wanted(table, question, classification))
    name = question.get("sort", "-loss").removeprefix("-")
    name = name if name in kept.column_names and name in ("confidence", "row") else "loss"
    name = "bits_per_byte" if name == "loss" and "bits_per_byte" in kept.column_names else name
    descending = question.get("sort", "-loss").startswith("-")
    order = pc.sort_indices(kept, [(name, "descending" if descending else "ascending")])
    last = max(1, -(-kept.num_rows // PAGE))
    number = question.get("page", "1")
    page = min(max(1, int(number) if number.isdecimal() and len(number) < 8 else 1), last)
    rows = kept.take(order[(page - 1) * PAGE : page * PAGE]).to_pylist()
    for row in rows:
        for column in ("text", "text_pair"):
            if row.get(column):
                row[column] = row[column][:LONGEST]
    return {"rows": rows, "found": kept.num_rows, "total": table.num_rows, "page": page, "last": last}


def _wanted(table: pa.Table, question: Mapping[str, str], classification: bool) -> Any:
    mask = pa.array([True] * table.num_rows)
    if classification:
        right = pc.equal(table["label"], table["prediction"])
        only = question.get("only", "wrong")
        if only in ("wrong", "right"):
            mask = pc.and_(mask, right if only == "right" else pc.invert(right))
        for column in ("label", "prediction"):
            if question.get(column):
                mask = pc.and_(mask, pc.equal(table[column], question[column]))
        for name, compare in (("low", pc.greater_equal), ("high", pc.less_equal)):
            if (bound := _number(question.get(name, ""))) is not None:
                mask = pc.and_(mask, compare(table["confidence"], bound))
    if search := question.get("search", ""):
        found = pc.match_substring(table["text"], search, ignore_case=True)
        mask = pc.and_(mask, pc.fill_null(found, False))
    return pc.fill_null(mask, False)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None


def changed(first: str, second: str, limit: int = 200) -> dict[str, Any]:
    """Return the examples that one of two models predicts correctly and the other does not.

    Args:
        first: predictions.parquet of one model.
        second: predictions.parquet of the other model.
        limit: maximum number of examples of each kind.

    Returns:
        ``better`` (only the second is right) and ``worse`` (only the first is right), each a list of rows with
        ``text``, ``label``, ``first`` and ``second``; ``better_count`` and ``worse_count``. Rows that only one file has
        are left out.
    """
    one, other = (pq.read_table(Path(file)).to_pylist() for file in (first, second))
    there = {(row["source"], row["line"], row["text"]): row for row in other}
    found: dict[str, list[dict[str, Any]]] = {"better": [], "worse": []}
    for row in one:
        match = there.get((row["source"], row["line"], row["text"]))
        if match is None or row.get("label") != match.get("label") or not isinstance(row.get("label"), str):
            continue
        was, now = row["prediction"] == row["label"], match["prediction"] == row["label"]
        if was != now:
            text = {"text": row["text"][:LONGEST], "label": row["label"]}
            found["better" if now else "worse"].append(
                text | {"first": row["prediction"], "second": match["prediction"]}
            )
    return {name: rows[:limit] for name, rows in found.items()} | {f"{name}_count": len(r) for name, r in found.items()}
