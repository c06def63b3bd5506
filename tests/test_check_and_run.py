"""``check`` and a run agree: over many bad inputs, what one refuses the other refuses, and nothing else."""

import csv
import gzip
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.errors import RunError, UserError
from xlnet.evaluation.evaluate import evaluate
from xlnet.recipe import Recipe
from xlnet.registry.register import register
from xlnet.training.launch import train
from xlnet_pipeline.planning.check import findings
from xlnet_pipeline.planning.planned_run import PlannedRun

Rows = list[dict[str, Any]]
FORMATS = ("csv", "tsv", "jsonl", "parquet")


def good(rows: int = 60) -> Rows:
    draw = random.Random(1)
    words = {"1": ("good", "lovely", "best"), "0": ("bad", "dull", "worst")}
    found: Rows = []
    for i in range(rows):
        label = str(i % 2)
        text = " ".join(draw.choice(words[label]) for _ in range(3)) + f" film number {i}"
        found.append({"id": str(i), "text": text, "label": label})
    return found


def encoded(rows: Rows, form: str) -> bytes:
    """The rows as a file of that format, written by its own library."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id", "text", "label"]
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), sink)
        return sink.getvalue()
    text = io.StringIO()
    if form == "csv":
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(rows)
    else:
        lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
        text.write("".join("\t".join(line) + "\n" for line in lines))
    return text.getvalue().encode()


def set_all(name: str, value: Callable[[int], Any], every: int = 1) -> Callable[[Rows], Rows]:
    return lambda rows: [row | ({name: value(i)} if i % every == 0 else {}) for i, row in enumerate(rows)]


def without(name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{key: value for key, value in row.items() if key != name} for row in rows]


# What is wrong with the rows; each is tried in every format.
IN_ROWS: dict[str, Callable[[Rows], Rows]] = {
    "nothing": lambda rows: rows,
    "no rows": lambda rows: [],
    "one row": lambda rows: rows[:1],
    "two rows": lambda rows: rows[:2],
    "five rows": lambda rows: rows[:5],
    "one class": set_all("label", lambda i: "1"),
    "one class but for one row": set_all("label", lambda i: "0" if i == 59 else "1"),
    "every label its own": set_all("label", lambda i: f"class {i}"),
    "labels are fractions": set_all("label", lambda i: f"{i / 7:.4f}"),
    "equal numbers written differently": set_all("label", lambda i: ("1", "1.0", "0")[i % 3]),
    "spellings": set_all("label", lambda i: ("Pos", "pos", "neg")[i % 3]),
    "no text column": without("text"),
    "no label column": without("label"),
    "blank texts": set_all("text", lambda i: "  "),
    "some blank texts": set_all("text", lambda i: "", 30),
    "many blank texts": set_all("text", lambda i: "", 5),
    "blank labels": set_all("label", lambda i: "", 5),
    "equal texts": set_all("text", lambda i: "the same"),
    "equal texts of a class": set_all("text", lambda i: f"text of {i % 2}"),
    "NUL in a text": set_all("text", lambda i: f"a\0b {i}", 4),
    "one long text": set_all("text", lambda i: "word " * 3000, 60),
}
# What is wrong with the bytes of a CSV.
IN_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header only": lambda data: data.split(b"\n")[0] + b"\n",
    "an open quotation": lambda data: data.replace(b"good", b'"good', 1),
    "an open quotation at the end": lambda data: data + b'61,"never closed,1\n',
    "latin-1": lambda data: data.replace(b"film", "fílm".encode("latin-1")),
    "some latin-1": lambda data: data.replace(b"number 7", "númber 7".encode("latin-1"), 1),
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "carriage returns": lambda data: data.replace(b"\r\n", b"\r"),
    "short lines": lambda data: data.replace(b",1\r\n", b"\r\n", 20),
    "long lines": lambda data: data.replace(b",1\r\n", b",1,2,3\r\n", 20),
    "the same header twice": lambda data: data.replace(b"id,text,label", b"text,text,label", 1),
    "no header": lambda data: data.partition(b"\n")[2],
    "semicolons": lambda data: data.replace(b",", b";"),
    "noise": lambda data: bytes(random.Random(3).randrange(256) for _ in range(4000)),
    "half a gzip": lambda data: gzip.compress(data)[:200],
}
# What is wrong with the recipe.
IN_RECIPE: dict[str, dict[str, dict[str, Any]]] = {
    "text by a wrong name": {"data": {"text": "review"}},
    "text by a wrong index": {"data": {"text": 9}},
    "label is the text": {"data": {"label": "text"}},
    "label is the id": {"data": {"label": "id"}},
    "a pair that is not there": {"data": {"text_pair": "other"}},
    "the pair is the text": {"data": {"text_pair": "text"}},
    "ids": {"data": {"id": "id"}},
    "ids that repeat": {"data": {"id": "label"}},
    "ids that are not there": {"data": {"id": "number"}},
    "a regression": {"data": {"task": "regression"}},
    "a regression on texts": {"data": {"task": "regression", "label": "text"}},
    "a metric of the other task": {"evaluation": {"metric": "pearson"}},
    "a metric of this task in a regression": {"data": {"task": "regression"}, "evaluation": {"metric": "macro_f1"}},
    "another format": {"data": {"format": "jsonl"}},
    "plain text": {"data": {"format": "text"}},
    "parquet it is not": {"data": {"format": "parquet"}},
    "no validation rows": {"data": {"validation_fraction": 0.0}},
    "no test rows": {"data": {"test_fraction": 0.0}},
    "little to train on": {"data": {"validation_fraction": 0.4, "test_fraction": 0.4}},
    "hardly any to train on": {"data": {"validation_fraction": 0.45, "test_fraction": 0.45}},
    "no rejects allowed": {"data": {"max_rejects": 0.0}},
    "a small length": {"data": {"max_length": 4}},
    "an update smaller than a text": {"training": {"batch_tokens": 4}, "data": {"max_length": 64}},
    "a vocabulary of one's own": {"data": {"tokenizer": "train"}},
    "a vocabulary that the text does not support": {"data": {"tokenizer": "train", "vocab_size": 30000}},
    "a tokenizer that is not there": {"data": {"tokenizer": "nowhere/"}},
    "weights that are not there": {"model": {"pretrained": "./nowhere"}},
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all cases: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


_names = itertools.count()


def run_refuses(recipe: Recipe, out: Path) -> str:
    """What the five steps say against the recipe; empty: they come to an end."""
    try:
        digest = take(recipe.part("data", "model")).digest
        preprocess(recipe.part("data"), digest, str(out / "dataset"))
        train(recipe.part("model", "training"), str(out / "dataset"), str(out / "model"))
        evaluate(recipe.part("evaluation"), str(out / "dataset"), str(out / "model"), str(out / "evaluation"))
        paths = [str(out / name) for name in ("dataset", "model", "evaluation", "registration")]
        register(recipe.part("evaluation", "registry"), *paths)
    except (UserError, RunError) as error:
        return str(error)
    return ""


def agree(recipe: Recipe, tmp_path: Path, registry: str) -> None:
    small = recipe.replace(
        model={"n_layer": 1, "d_model": 16, "n_head": 1, "d_head": 16, "d_inner": 16},
        training={"steps": 1},
        evaluation={"resamples": 100},
        registry={"name": f"case-{next(_names)}", "uri": registry},
    )
    refused = run_refuses(small, tmp_path / "out")
    found = [str(one) for one in findings(PlannedRun(small)) if one.fatal]
    assert bool(found) == bool(refused), f"a run says: {refused or 'nothing'}\ncheck says: {found or 'nothing'}"
    assert "Traceback" not in refused
    assert "\n" not in refused


def recipe_of(train_file: Path, **changes: dict[str, Any]) -> Recipe:
    return recipes.tiny().replace(data={"train": str(train_file), "max_length": 32}).replace(**changes)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", IN_ROWS)
def test_faults_in_rows(fault: str, form: str, tmp_path: Path, registry: str) -> None:
    file = tmp_path / f"rows.{form}"
    file.write_bytes(encoded(IN_ROWS[fault](good()), form))
    agree(recipe_of(file), tmp_path, registry)


@pytest.mark.parametrize("fault", IN_BYTES)
def test_faults_in_bytes(fault: str, tmp_path: Path, registry: str) -> None:
    file = tmp_path / ("rows.csv.gz" if "gzip" in fault else "rows.csv")
    file.write_bytes(IN_BYTES[fault](encoded(good(), "csv")))
    agree(recipe_of(file), tmp_path, registry)


@pytest.mark.parametrize("fault", IN_RECIPE)
def test_faults_in_the_recipe(fault: str, tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.csv"
    file.write_bytes(encoded(good(), "csv"))
    agree(recipe_of(file, **IN_RECIPE[fault]), tmp_path, registry)


@pytest.mark.parametrize(
    "test_rows",
    [
        lambda rows: rows,
        lambda rows: [],
        lambda rows: [row | {"text": f"{row['text']} again"} for row in rows],
        lambda rows: [row | {"label": "2", "text": f"{row['text']} again"} for row in rows[:10]],
        lambda rows: [{"text": f"x {i}", "label": "2" if i == 59 else row["label"]} for i, row in enumerate(rows)],
        lambda rows: [{"text": row["text"] + "!", "sentiment": row["label"]} for row in rows],
        lambda rows: [row | {"text": f"{i}", "label": row["label"] + ".0"} for i, row in enumerate(rows)],
    ],
    ids=["a copy", "empty", "good", "another class", "another class in the last row", "another column", "spellings"],
)
def test_faults_in_the_test_file(test_rows: Callable[[Rows], Rows], tmp_path: Path, registry: str) -> None:
    file, held_out = tmp_path / "rows.csv", tmp_path / "test.csv"
    file.write_bytes(encoded(good(), "csv"))
    held_out.write_bytes(encoded(test_rows(good()), "csv"))
    agree(recipe_of(file, data={"test": str(held_out)}), tmp_path, registry)


@pytest.mark.parametrize("given", ["nowhere.csv", ".", "*.parquet", "sub", "rows.unknown", "gs://", "demo:nothing"])
def test_faults_in_names(given: str, tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "rows.unknown").write_bytes(encoded(good(), "csv"))
    agree(recipes.tiny().replace(data={"train": given}), tmp_path, registry)


@pytest.mark.parametrize("uri", ["./mlruns", "foo://host", "file:///tmp/mlruns", "http://", "vertex://project"])
def test_faults_in_the_registry(uri: str, tmp_path: Path, registry: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(encoded(good(), "csv"))
    agree_at = recipe_of(file)
    found = [str(one) for one in findings(PlannedRun(agree_at.replace(registry={"uri": uri}))) if one.fatal]
    assert len(found) == 1, found
    assert uri.partition(":")[0] in found[0]
