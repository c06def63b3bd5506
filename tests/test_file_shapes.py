"""Files as people have them, on the command line: check shows the rows and says each guess, preprocess loses none."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import openpyxl
import pytest
from test_readers import read, texts

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import zipped
from xlnet.data.preprocess import preprocess
from xlnet.data.tokenizer import train_tokenizer
from xlnet.errors import RunError, UserError
from xlnet_pipeline.cli import main

WORDS = ("Müde", "schlecht"), ("Schöne", "gut")
ROWS = [(f"{WORDS[i % 2][0]} Grüße, Nummer {i}; „na ja“", WORDS[i % 2][1]) for i in range(40)]


def table(delimiter=",", header=True, rows=ROWS, **how):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, **how).writerows([*([("text", "label")] if header else []), *rows])
    return file.getvalue().encode()


def lines(values):
    return "".join(f"{value}\n" for value in values).encode()


def in_zip(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def workbook(rows=ROWS, titles=()):
    book = openpyxl.Workbook()
    for row in [*titles, ("text", "label"), *rows]:
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


DICTS = [{"text": text, "label": label} for text, label in ROWS]
BY_INDEX = {"text": 0, "label": 1}

# What is in the files, the recipe beside their names, and what must be said.
SHAPES = {
    "utf-16": ({"a.csv": table().decode().encode("utf-16")}, {}, "is read as UTF-16, as its first bytes say"),
    "cp1252": ({"a.csv": table().decode().encode("cp1252")}, {}, "is not UTF-8 and is read as cp1252, a guess from"),
    "cp1252, named": ({"a.csv": table().decode().encode("cp1252")}, {"encoding": "cp1252"}, ""),
    "tab in .csv": ({"a.csv": table("\t")}, {}, "is split at a tab, for its first line holds no comma"),
    "semicolons": ({"a.csv": table(";")}, {}, "is split at a semicolon"),
    "tabs, named": ({"a.csv": table("\t")}, {"delimiter": "\t"}, ""),
    "quoted tsv": ({"a.tsv": table("\t", quoting=csv.QUOTE_ALL)}, {}, 'has fields in " quotes, such as'),
    "quoted tsv, named": ({"a.tsv": table("\t", quoting=csv.QUOTE_ALL)}, {"quoting": "doubled"}, ""),
    "other quotes": ({"a.csv": table(quotechar="'")}, {}, "has fields in ' quotes, such as"),
    "header in one file": (
        {"a.csv": table(rows=ROWS[:30]), "b.csv": table(header=False, rows=ROWS[30:])},
        BY_INDEX,
        "the first line of '{0}/a.csv' ('text', 'label') is taken for a header",
    ),
    "other columns in each file": (
        {
            "a.csv": table(rows=ROWS[:30]),
            "b.csv": b"label,id,text\n" + table(header=False, rows=[(label, 1, text) for text, label in ROWS[30:]]),
        },
        {},
        "",
    ),
    "json array": ({"a.json": json.dumps(DICTS, indent=1).encode()}, {}, ""),
    "fasttext": ({"a.txt": lines(f"__label__{label} {text}" for text, label in ROWS)}, {}, ""),
    "label first": ({"a.txt": lines(f"{label} {text}" for text, label in ROWS)}, {"format": "label-first"}, ""),
    "parallel": (
        {"a.txt": lines(text for text, _ in ROWS), "labels.txt": lines(label for _, label in ROWS)},
        {"labels": "labels.txt"},
        "",
    ),
    "workbook": ({"a.xlsx": workbook()}, {}, ""),
    "workbook with a title": ({"a.xlsx": workbook(titles=[("Grüße 2024",), ()])}, {}, "names its columns in line 3"),
    "zip": ({"a.zip": in_zip({"rows/deep/a.csv": table(), "__MACOSX/rows/deep/._a.csv": b"x"})}, {}, ""),
    "gzip": ({"a.csv.gz": gzip.compress(table())}, {}, ""),
    "title lines": (
        {"a.csv": "Grüße 2024\r\n\r\nStand: Mai\r\n".encode() + table()},
        {},
        "names its columns in line 4; the 2 lines above it are left out",
    ),
    "an index of pandas": (
        {"a.csv": b",text,label\r\n" + table(header=False, rows=[(i, *row) for i, row in enumerate(ROWS)])},
        {},
        "",
    ),
    "an index of R": (
        {"a.csv": table(rows=[(i, *row) for i, row in enumerate(ROWS, 1)], quoting=csv.QUOTE_NONNUMERIC)},
        {},
        "has no name: it counts the rows, as R and pandas do",
    ),
    "delimiters at the end": (
        {"a.csv": table(rows=[(*row, "") for row in ROWS])},
        {},
        "end with a delimiter that its header lacks; the empty column is left out",
    ),
    "spaces before quotes": (
        {"a.csv": b"label, text\n" + lines(f'{label}, "{text}"' for text, label in ROWS)},
        {},
        "has spaces before its quotes",
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A small vocabulary, which is loaded sooner than the shipped one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text for text, _ in ROWS], 0, folder).save(folder)
    return str(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_check_shows_a_file_and_preprocess_reads_all_of_it(tmp_path, monkeypatch, capsys, shape, tokenizer):
    monkeypatch.setattr(provenance, "code_fingerprint", lambda *_: "sha256:0")
    files, data, says = SHAPES[shape]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    train = [name for name in files if name != data.get("labels")]
    fields = {"train": train, **data, "max_length": 128, "tokenizer": tokenizer}
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    Path("recipe.toml").write_text(f"[data]\n{toml}")
    assert main(["check", "recipe.toml"]) == 0
    said = capsys.readouterr()
    header, *shown = [line.split("  ") for line in said.out.splitlines()[:4]]
    assert header[0] == "text"
    assert [line[0] for line in shown] == [row[0] for row in ROWS[:3]]
    guesses = [line for line in said.err.splitlines() if ": vocabulary: " not in line]
    assert says.format(tmp_path) in said.err
    assert bool(says) == bool(guesses), guesses
    recipe = recipes.load("recipe.toml")
    preprocess(recipe.part("data"), "", "out")
    assert says.format(tmp_path) in capsys.readouterr().err
    card = json.loads(Path("out/card.json").read_text())
    assert sum(split["rows"] for split in card["splits"].values()) == len(ROWS)
    assert card["rejects"]["total"] == 0
    assert set(card["classes"]) == {"gut", "schlecht"}


def encrypted(content):
    """A ZIP archive whose flags say that its file is encrypted."""
    held = bytearray(content)
    held[6] |= 1
    held[held.index(b"PK\x01\x02") + 8] |= 1
    return bytes(held)


LATIN = table().decode().encode("cp1252")
ZEROS = in_zip({"a.csv": bytes(3 << 20)})


@pytest.mark.parametrize(
    ("name", "content", "data", "says"),
    [
        ("a.csv", LATIN, {"encoding": "utf-8"}, "is in another one: 40 of its first 40 lines with characters beyond"),
        ("a.csv", table(), {"encoding": "ascii"}, "data.encoding is 'ascii', but .* be decoded, such as line 2;"),
        ("a.csv", table(), {"encoding": "utf-16"}, "is in another one: it holds no byte that is 0; set it to 'auto'"),
        ("a.csv", b"\xff\xfe" + LATIN, {"encoding": "cp1252"}, "its first bytes say UTF-16; set it to 'auto'"),
        ("a.csv", table().decode().encode("utf-16"), {"encoding": "utf-16-be"}, "its first bytes say UTF-16"),
        ("a.csv", table(), {"delimiter": ";"}, "data.delimiter is ';', which gives one column; its columns seem to be"),
        ("a.csv", table(), {"delimiter": "^", **BY_INDEX}, r"data.delimiter is '\^', which gives one column"),
        ("a.tsv", table(";"), {}, "its columns seem to be separated by ';'"),
        ("a.csv", table("~"), {}, "its columns seem to be separated by '~'"),
        ("a.csv", b"| text | label |\n|------|:----:|\n| a | 1 |\n", {}, "is a table in Markdown; save it as CSV"),
        ("a.csv", b"a;b\n" * 9, {"delimiter": ";", **BY_INDEX, "label": 2}, "has 2 columns, so none with index 2"),
        ("a.csv", b"text,text2,label\nx,1\n\ntext,label\na,1\n", {"text": "txt"}, "no column 'txt'; it has: text,"),
        ("a.zip", in_zip({"a.csv": b"", "b/c.csv": b""}), {}, "of 2 files, not one: 'a.csv', 'b/c.csv'"),
        ("a.zip", in_zip({}), {}, "is a ZIP archive without a file"),
        ("a.zip", in_zip({"b.zip": in_zip({"a.csv": table()})}), {}, "holds another archive, 'b.zip'; unpack it"),
        ("a.zip", encrypted(in_zip({"a.csv": table()})), {}, "is protected with a password; unpack it"),
        ("a.zip", ZEROS, {}, "would unpack to 3 MiB, .* times its size"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, name, content, data, says):
    monkeypatch.setattr(zipped, "FREE", 1 << 20)
    with pytest.raises((UserError, RunError), match=says) as caught:
        read(tmp_path / name, content, **data)
    assert str(caught.value).isprintable()


def test_bytes_that_a_named_encoding_lacks_name_it(tmp_path):
    content = b"text,label\n" + b"\x81\x20,1\n" + "良い,0\n".encode("cp932")
    rows, rejects = read(tmp_path / "a.csv", content, encoding="cp932")
    assert texts(rows) == [("良い", "0")]
    assert rejects[0].reason.startswith("not cp932: byte 0x81 at column 1")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_a_mark_is_no_character_of_the_text(tmp_path, encoding):
    marked = ("\ufeff" if encoding in ("utf-8", "utf-16-le") else "") + "text,1\nother,0\n"
    rows, _ = read(tmp_path / "a.csv", marked.encode(encoding), encoding=encoding, header="no", **BY_INDEX)
    assert texts(rows) == [("text", "1"), ("other", "0")]


def test_an_index_column_in_place_of_the_texts_is_said(tmp_path):
    told = []
    content = b",text,label\n" + table(header=False, rows=[(i, *row) for i, row in enumerate(ROWS)])
    for header in ("yes", "auto"):
        read(tmp_path / "a.csv", content, tell=told.append, text=0, label=2, header=header)
        assert "column 0 of " in told[-1]
        assert "counts the rows ('0', '1', '2'), as pandas does: texts begin at column 1" in told[-1]


def test_rows_above_a_second_header_are_no_title(tmp_path):
    """Joined files whose first has no header: leaving out its rows would lose them."""
    content = table(header=False, rows=ROWS[:3]) + table(rows=ROWS[3:])
    with pytest.raises(UserError, match="has no column 'text'"):
        read(tmp_path / "a.csv", content)
    rows, _ = read(tmp_path / "a.csv", content, header="no", **BY_INDEX)
    assert len(rows) == len(ROWS) + 1


def test_thousands_of_columns(tmp_path):
    names = [f"column {i}" for i in range(5000)]
    content = table(header=False, rows=[names, *([str(i)] * 5000 for i in range(5))])
    rows, rejects = read(tmp_path / "a.csv", content, text="column 4000", label="column 4999")
    assert (texts(rows), rejects) == ([(str(i), str(i)) for i in range(5)], [])
    with pytest.raises(UserError, match="it has: column 0, .* column 19 and 4980 more; did you mean") as caught:
        read(tmp_path / "a.csv", content, text="colum 40")
    assert len(str(caught.value)) < 500
