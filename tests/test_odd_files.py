"""Files as pandas, Hugging Face, Kaggle and spreadsheets export them: each is read, or refused with what to do."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_file_shapes import BY_INDEX, DICTS, ROWS, in_zip, lines, table, workbook
from test_readers import read, texts

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import classes
from xlnet.data.preprocess import preprocess
from xlnet.data.tokenizer import train_tokenizer
from xlnet.data.values import BadValue, check_label
from xlnet.errors import UserError
from xlnet_pipeline.cli import main

TEXTS, LABELS = [text for text, _ in ROWS], [label for _, label in ROWS]
COLUMNS = {"text": dict(enumerate(TEXTS)), "label": dict(enumerate(LABELS))}
ALONE = "holds its rows as a list, 'data'; write that list alone, or one object a line"
RECORDS = "write one object a line, in pandas with to_json"


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"data": DICTS}, ALONE),
        ({"version": "1.0", "data": DICTS, "count": 40}, ALONE),
        ({"schema": {"fields": []}, "data": DICTS}, ALONE),
        ({"results": {"rows": 3}, "rows": DICTS[:1]}, "as a list, 'rows'"),
        (COLUMNS, f"is one JSON object of columns, not of rows; {RECORDS}"),
        ({"text": TEXTS, "label": LABELS}, "of columns, not of rows"),
        ({"columns": ["text", "label"], "index": [0], "data": [["a", "b"]]}, "of columns, not of rows"),
        ({f"id{i}": one for i, one in enumerate(DICTS)}, f"that names its rows, such as 'id0'; {RECORDS}"),
    ],
    ids=str,
)
def test_a_json_object_around_the_rows_is_one_line(tmp_path, content, indent, says):
    for name in ("a.json", "a.jsonl"):
        with pytest.raises(UserError, match=says) as caught:
            read(tmp_path / name, json.dumps(content, indent=indent).encode())
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content", [{"text": "a film", "label": "b"}, {"text": "a", "label": 1, "data": DICTS}, {"text": "a", "label": {}}]
)
def test_a_file_of_one_row_is_no_table(tmp_path, content):
    rows, rejects = read(tmp_path / "a.json", json.dumps(content).encode())
    assert len(rows) + len(rejects) == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_arrays_has_no_names(tmp_path, indent):
    rows, rejects = read(tmp_path / "a.json", json.dumps([list(row) for row in ROWS], indent=indent).encode())
    assert not rows
    assert [one.reason for one in rejects] == ["not a JSON object: list"] * len(ROWS)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.tar.gz", "is an archive, by its ending; unpack it"),
        ("a.tgz", "is an archive"),
        ("a.pkl", "is a pickle of Python, by its ending; save the table as Parquet or CSV"),
        ("data-00000-of-00001.arrow", "is an Arrow file, by its ending; save it as Parquet, in"),
        ("a.sqlite", "is a database, by its ending; export"),
        ("a.docx", "is a document, by its ending; save its text"),
        ("a.yaml", "has an unknown ending; set data.format to csv, tsv"),
    ],
)
def test_endings_of_other_programs_say_what_to_do(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path / name, b"x")


@pytest.mark.parametrize("mark", ["", "__label__"])
@pytest.mark.parametrize("space", [" ", "\t", "   ", " \t"])
def test_any_space_ends_a_label_at_the_front(tmp_path, mark, space):
    content = lines(f"{mark}{label}{space}{text}" for text, label in ROWS)
    rows, rejects = read(tmp_path / "a.txt", content, format="label-first")
    assert [(text.lstrip(), label) for text, label in texts(rows)] == ROWS
    assert not rejects


def test_classes_that_end_with_a_delimiter_are_said():
    (warning,) = classes.warnings({"good,": 3, "bad,": 4}, {})
    assert warning == "every class ends with ',', such as 'good,': does it separate fields?"
    assert not classes.warnings({"good,": 3, "bad": 4}, {})
    assert not classes.warnings({"1.": 3, "2.": 4}, {})


@pytest.mark.parametrize(("label", "reason"), [("3,5", "a decimal comma"), ("-0,25", "a decimal comma"), ("a,b", "no")])
def test_a_decimal_comma_is_said(label, reason):
    with pytest.raises(BadValue, match="label has a decimal comma" if reason != "no" else "is not a number"):
        check_label(label, "regression")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A small vocabulary, which is loaded sooner than the shipped one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 0, folder).save(folder)
    return str(folder)


UNUSED = "is not used: it is for {}, and the files are read as {}"
CSV = {"a.csv": table()}
# What is in the file, the recipe beside its name, and each thing that must be said.
FILES = {
    "no sheet": (CSV, {"sheet": "Sheet1"}, ["data.sheet is 'Sheet1', but " + UNUSED.format("xlsx", "csv")]),
    "one workbook": ({**CSV, "b.xlsx": workbook()}, {"sheet": "Sheet"}, []),
    "json has no delimiter": (
        {"a.json": json.dumps(DICTS).encode()},
        {"delimiter": ";", "quoting": "none", "header": "yes"},
        [f"data.{name}" for name in ("delimiter", "quoting", "header")],
    ),
    "parquet has no encoding": (
        {"a.parquet": parquet({"text": TEXTS, "label": LABELS})},
        {"encoding": "cp1252"},
        [UNUSED.format("csv, tsv, jsonl, text, label-first", "parquet")],
    ),
    "pandas' categories": (
        {"a.parquet": parquet({"text": pa.array(TEXTS), "label": pa.array(LABELS).dictionary_encode()})},
        {},
        [],
    ),
    "kaggle's archive": ({"archive.zip": in_zip({"reviews.csv": table()})}, {}, []),
    "old mac": ({"a.csv": table(lineterminator="\r")}, {}, []),
    "excel's mark": ({"a.csv": b"\xef\xbb\xbf" + table()}, {}, []),
    "empty columns": (
        {"a.csv": table(header=False, rows=[("text", "label", "", ""), *((*row, "", "") for row in ROWS)])},
        {},
        [],
    ),
    "label first": (
        {"a.csv": table(header=False, rows=[row[::-1] for row in ROWS])},
        {"text": 1, "label": 0},
        ["is split at a comma, though a semicolon would do, too"],
    ),
    "tabs in .txt": ({"a.txt": table("\t")}, BY_INDEX, ["is taken for a header"]),
}  # fmt: skip


@pytest.mark.parametrize("shape", FILES)
def test_check_shows_the_first_rows_and_every_doubt(tmp_path, monkeypatch, capsys, shape, tokenizer):
    monkeypatch.setattr(provenance, "code_fingerprint", lambda *_: "sha256:0")
    monkeypatch.chdir(tmp_path)
    files, data, says = FILES[shape]
    for name, content in files.items():
        Path(name).write_bytes(content)
    fields = {"train": list(files), "max_length": 128, "tokenizer": tokenizer, **data}
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    Path("recipe.toml").write_text(f"[data]\n{toml}")
    assert main(["check", "recipe.toml"]) == 0
    said = capsys.readouterr()
    header, *shown = [line.split("  ")[0] for line in said.out.splitlines()[:4]]
    assert [header, *shown] == ["text", *TEXTS[:3]]
    preprocess(recipes.load("recipe.toml").part("data"), "", "out")
    printed = capsys.readouterr().err
    for one in says:
        assert one in said.err
        assert one in printed
    assert len([line for line in said.err.splitlines() if line.startswith("warning: rows: ")]) == len(says)


def test_check_shows_pairs_and_their_numbers(tmp_path, monkeypatch, capsys, tokenizer):
    monkeypatch.chdir(tmp_path)
    scores = [i / 8 for i in range(len(ROWS))]
    Path("a.parquet").write_bytes(parquet({"s1": TEXTS, "s2": TEXTS[::-1], "score": scores}))
    given = {"train": "a.parquet", "text": "s1", "text_pair": "s2", "label": "score", "task": "regression"}
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {**given, "tokenizer": tokenizer}.items())
    Path("recipe.toml").write_text(f"[data]\n{toml}")
    assert main(["check", "recipe.toml"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["text", "text_pair", "label"]
    assert [one.strip() for one in first.split("  ") if one.strip()] == [TEXTS[0], TEXTS[-1], "0.0"]
