"""For any file with any settings: rows as they were written, rejects, or one printable line; never a traceback.

Where test_reader_properties damages files of usual settings, this draws delimiters, encodings, archives, names of
columns and types of values. READER_EXAMPLES=5000 looks longer, at other examples each time.
"""

import codecs
import csv
import dataclasses
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reader_properties import DAMAGE, PLACE, Written, as_parquet, as_workbook, damaged, folder, is_text, look

from xlnet import recipe as recipes
from xlnet.data.readers import Reject, Row, read_rows
from xlnet.data.storage import list_sources
from xlnet.errors import RunError, UserError

__all__ = ["folder"]

NAMES = ["text", "label", " text", "label ", "", "\ufefftext", "a.b", "a\nb", "a,b", "0", "好", "Text", "x" * 50]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "gb18030", "cp037"]
WORDS = st.text(st.sampled_from(list("ab é,;|\t'\"\\{}:#1")), max_size=12)
TABLE = st.lists(st.tuples(WORDS, st.sampled_from(["neg", "pos"])), min_size=3, max_size=8)
KEYS = st.one_of(st.sampled_from(NAMES), st.integers(0, 3))
VALUES = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.lists(WORDS, max_size=2),
    st.dictionaries(WORDS, WORDS, max_size=2),
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "text": KEYS, "label": KEYS, "text_pair": KEYS, "id": KEYS, "sheet": st.sampled_from(["S", "Sheet1", "\n"]),
        "format": st.sampled_from(["csv", "tsv", "jsonl", "parquet", "xlsx", "text", "label-first"]),
        "encoding": st.sampled_from([*ENCODINGS, "utf-7", "hz", "idna", "punycode"]),
        "delimiter": st.sampled_from([",", ";", "\t", "\x01", " "]), "quote": st.sampled_from(["'", '"', "~"]),
        "quoting": st.sampled_from(["doubled", "backslash", "none"]), "header": st.sampled_from(["yes", "no"]),
        "task": st.sampled_from(["regression", "pretrain"]), "max_record_lines": st.integers(1, 5),
    },
)  # fmt: skip


def read(path: Path, content: bytes, labelled: bool = True, labels: bytes | None = None, **data: Any) -> list:
    """What the reader makes of a file; a refusal is one line that can be printed."""
    path.write_bytes(content)
    (source,) = list_sources("data.train", (str(path),))
    if labels is not None:
        path.with_name("labels.txt").write_bytes(labels)
        (other,) = list_sources("data.labels", (str(path.with_name("labels.txt")),))
        source = dataclasses.replace(source, labels=other)
    found = list(read_rows(source, recipes.tiny().replace(data=data).data, labelled, optional={"id": "id"}))
    assert all(one.reason.isprintable() if isinstance(one, Reject) else one.text for one in found)
    return found


@contextmanager
def refusals() -> Iterator[None]:
    """A file or its settings may be refused in one line."""
    try:
        yield
    except (UserError, RunError) as error:
        if not str(error).isprintable():
            raise AssertionError(ascii(str(error))) from error


def pairs(found: list) -> list[Written]:
    return [(one.text, one.label) for one in found if isinstance(one, Row)]


def delimited(rows: list[Written], names: list[str], delimiter: str, quote: str = '"') -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quotechar=quote, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([names, *rows])
    return file.getvalue()


def in_members(content: bytes, place: float) -> bytes:
    """Two gzip streams, one after the other."""
    cut = int(place * len(content))
    return gzip.compress(content[:cut], 1) + gzip.compress(content[cut:], 1)


def in_archive(content: bytes, names: list[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


@look
@given(TABLE, st.sampled_from(",;\t|^~:"), st.sampled_from("'\"~"), st.sampled_from(NAMES), st.data())
def test_any_delimiter_encoding_and_names_give_the_rows(
    folder: Path, rows: list[Written], delimiter: str, quote: str, name: str, data: st.DataObject
) -> None:
    if quote == delimiter or not name.strip() or name.strip("\ufeff ") == "label":
        return
    encoding = data.draw(st.sampled_from(ENCODINGS))
    try:
        content = delimited(rows, [name, "label"], delimiter, quote).encode(encoding)
    except UnicodeEncodeError:
        return
    if encoding == "utf-16-le":
        content = codecs.BOM_UTF16_LE + content
    content = in_members(content, data.draw(PLACE))
    settings = {"delimiter": delimiter, "quote": quote, "quoting": "doubled", "encoding": encoding, "text": name}
    found = read(folder / "a.csv.gz", content, **settings)
    assert pairs(found) == [row for row in rows if is_text(row[0])]
    assert len(found) == len(rows)


def column(kind: str, rows: list[Written]) -> pa.Array:
    texts = [text for text, _ in rows]
    return {
        "dictionary": lambda: pa.array(texts).dictionary_encode(),
        "large": lambda: pa.array(texts, pa.large_string()),
        "view": lambda: pa.array(texts, pa.string_view()),
        "list": lambda: pa.array([[text] for text in texts]),
        "map": lambda: pa.array([[("a", text)] for text in texts], pa.map_(pa.string(), pa.string())),
        "struct": lambda: pa.array([{"a": text} for text in texts]),
        "bytes": lambda: pa.array([text.encode() for text in texts]),
        "null": lambda: pa.nulls(len(rows)),
        "time": lambda: pa.array([2**62] * len(rows), pa.timestamp("ms")),
        "zone": lambda: pa.array([0] * len(rows), pa.timestamp("s", tz="Nowhere/City")),
    }[kind]()


STRINGS = ("dictionary", "large", "view")


@pytest.mark.parametrize("name", [" text", "text.part", "\ufefftext", ""])
@pytest.mark.parametrize("kind", [*STRINGS, "list", "map", "struct", "bytes", "null", "time", "zone"])
def test_a_parquet_column_of_any_type_and_name_gives_a_row_or_a_reject_each(
    tmp_path: Path, kind: str, name: str
) -> None:
    rows = [("a film", "pos"), ("b", "neg"), ("", "pos")]
    file = io.BytesIO()
    pq.write_table(pa.table([column(kind, rows), pa.array([label for _, label in rows])], names=[name, "label"]), file)
    found = read(tmp_path / "a.parquet", file.getvalue(), text=name)
    assert pairs(found) == (rows[:2] if kind in STRINGS else [])
    assert len(found) == len(rows)


@look
@given(st.lists(st.dictionaries(st.sampled_from(["text", "label", "x", "a\nb"]), VALUES), min_size=2), st.booleans())
def test_json_with_any_values_gives_a_row_or_a_reject_each(folder: Path, objects: list, is_array: bool) -> None:
    lines = [json.dumps(one) for one in objects]
    content = f"[{','.join(lines)}]" if is_array else "\n".join(lines)
    assert len(read(folder / "a.json", content.encode())) == len(objects)


@look
@given(TABLE, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_labels_beside_the_texts_may_be_in_another_encoding(
    folder: Path, rows: list[Written], encoding: str, end: str, is_regression: bool
) -> None:
    values = ["1.5" if is_regression else label for _, label in rows]
    texts, labels = "".join(f"{text}\n" for text, _ in rows), "".join(label + end for label in values)
    task = "regression" if is_regression else "classification"
    found = read(folder / "a.txt", texts.encode(), labels=labels.encode(encoding), task=task)
    assert len(found) == len(rows)
    assert pairs(found) == [(text, label) for (text, _), label in zip(rows, values, strict=True) if is_text(text)]


FILES = {
    "csv": lambda rows: delimited(rows, ["text", "label"], ",").encode(),
    "tsv": lambda rows: delimited(rows, ["text", "label"], "\t").encode("utf-16"),
    "jsonl": lambda rows: "".join(
        json.dumps(dict(zip(("text", "label"), row, strict=True))) + "\n" for row in rows
    ).encode(),
    "txt": lambda rows: "".join(f"__label__{label} {text}\n" for text, label in rows).encode("cp1252"),
    "parquet": as_parquet,
    "xlsx": as_workbook,
    "zip": lambda rows: in_archive(delimited(rows, NAMES[:2], ";").encode(), ["a.csv"]),
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("kind", FILES)
@look
@given(TABLE, SETTINGS, DAMAGE | st.just([]), st.booleans())
def test_any_settings_give_rows_or_rejects_or_one_line(
    folder: Path, kind: str, rows: list[Written], settings: dict[str, Any], damage: list, labelled: bool
) -> None:
    with refusals():
        read(folder / f"a.{kind}", damaged(FILES[kind](rows), damage), labelled, **settings)


@pytest.mark.parametrize("names", [[], ["a.csv", "b.csv"], ["folder/"], ["__MACOSX/._a.csv"]])
@look
@given(DAMAGE)
def test_a_damaged_archive_is_one_line(folder: Path, names: list[str], damage: list) -> None:
    content = in_archive(FILES["csv"]([("a film", "pos")]), names)
    with refusals():
        read(folder / "a.zip", damaged(content, damage, first=4))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf_16_without_a_mark_says_what_to_set(tmp_path: Path, encoding: str) -> None:
    content = delimited([("a film", "pos")], ["text", "label"], ",").encode(f"{encoding}-be")
    with pytest.raises(UserError, match=f"has no mark; set it to '{encoding}-le' or '{encoding}-be'"):
        read(tmp_path / "a.csv", content, encoding=encoding)
    assert pairs(read(tmp_path / "a.csv", content, encoding=f"{encoding}-be")) == [("a film", "pos")]


@pytest.mark.parametrize("encoding", ["idna", "punycode", "undefined", "rot13", "base64", "nothing"])
def test_a_codec_that_is_for_no_file_is_refused(encoding: str) -> None:
    with pytest.raises(UserError, match="data.encoding is .*; allowed: auto, or an encoding that Python knows"):
        recipes.tiny().replace(data={"encoding": encoding})


@pytest.mark.parametrize("method", [9, 93, 98])
def test_an_archive_that_python_cannot_unpack_is_not_called_damaged(tmp_path: Path, method: int) -> None:
    content = in_archive(b"text,label\na,b\n", ["a.csv"])
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(signature) + place
        content = content[:at] + bytes([method, 0]) + content[at + 2 :]
    with pytest.raises(UserError, match="compressed in a way that Python cannot read; unpack it"):
        read(tmp_path / "a.zip", content)
