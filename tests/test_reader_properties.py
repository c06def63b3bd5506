"""For any rows, in any format, written by another library and damaged at random: nothing is lost without a reject.

Hypothesis makes the rows and the damage. READER_EXAMPLES=5000 looks longer, at other examples each time.
"""

import csv
import dataclasses
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import xlsxwriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlnet import recipe as recipes
from xlnet.data.readers import Reject, Row, read_rows
from xlnet.data.storage import list_sources
from xlnet.data.values import BadValue, check_text
from xlnet.errors import RunError, UserError

EXAMPLES = int(os.environ.get("READER_EXAMPLES", "0"))
LABELS = ("neg", "pos", "so so")
LINE_BY_LINE = ("unclosed quotation", "malformed CSV", "wrong number of columns")
LINE_END = re.compile("\r\n|\r|\n")

Written = tuple[str, str]  # text, label

# Characters that formats give a meaning, among all others; half of a surrogate pair cannot be written.
CHARACTERS = st.one_of(
    st.sampled_from(list(" ,;\t\"'\\\r\n\0\ufeff{}[]aé好😀")), st.characters(exclude_categories=["Cs"])
)
TEXTS = st.text(CHARACTERS, max_size=40)
ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(LABELS)), min_size=1, max_size=12)
LINE_ROWS = st.lists(
    st.tuples(TEXTS.map(lambda text: re.sub(r"[\t\r\n]", " ", text)), st.sampled_from(LABELS)), min_size=1
)

PLACE = st.floats(0, 1, exclude_max=True)  # of a file, as a share of its length
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
        st.tuples(
            st.just("insert"), PLACE, st.sampled_from([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\t", b'",', b"}"])
        ),
        st.tuples(st.just("cut"), PLACE, st.integers(1, 30)),
        st.tuples(st.just("end"), PLACE, st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: list, first: int = 0) -> bytes:
    """The content with bytes flipped, put in or cut out, or without its end; the first bytes stay whole."""
    for kind, share, what in damage:
        place = first + int(share * (len(content) - first))
        if kind == "flip" and place < len(content):
            content = content[:place] + bytes([content[place] ^ what]) + content[place + 1 :]
        elif kind == "insert":
            content = content[:place] + what + content[place:]
        elif kind == "cut":
            content = content[:place] + content[place + what :]
        elif kind == "end":
            content = content[:place]
    return content


def by_csv_module(rows: list[Written], ends: str = "\r\n") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=ends).writerow(("text", "label"))
    # This module leaves line ends other than its own outside quotes, unless it is told to quote all.
    writer = csv.writer(file, lineterminator=ends, quoting=csv.QUOTE_ALL if ends == "\r" else csv.QUOTE_MINIMAL)
    writer.writerows(rows)
    return file.getvalue().encode()


def by_arrow(rows: list[Written]) -> bytes:
    file = io.BytesIO()
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pa.csv.write_csv(pa.table(columns), file)
    return file.getvalue()


def by_json(rows: list[Written]) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


def by_json_in_utf8(rows: list[Written]) -> bytes:
    lines = (json.dumps({"id": 1, "label": label, "text": text}, ensure_ascii=False) + "\n" for text, label in rows)
    return "".join(lines).encode()


def as_tsv(rows: list[Written]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    writer.writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def quoted_tsv(rows: list[Written], **how: Any) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", lineterminator="\r\n", **how).writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def as_text(rows: list[Written]) -> bytes:
    return "".join(f"{text}\n" for text, _ in rows).encode()


def as_parquet(rows: list[Written]) -> bytes:
    file = io.BytesIO()
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pq.write_table(pa.table(columns), file, row_group_size=4)
    return file.getvalue()


def as_workbook(rows: list[Written]) -> bytes:
    file = io.BytesIO()
    with xlsxwriter.Workbook(file, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}) as book:
        sheet = book.add_worksheet()
        for number, row in enumerate([("text", "label"), *rows]):
            for column, value in enumerate(row):
                sheet.write_string(number, column, value)
    return file.getvalue()


QUOTED: dict[str, Callable[[list[Written]], bytes]] = {
    "csv": by_csv_module,
    "csv with LF": lambda rows: by_csv_module(rows, "\n"),
    "csv with CR": lambda rows: by_csv_module(rows, "\r"),
    "csv by Arrow": by_arrow,
    "tsv in quotes": quoted_tsv,
}
GIVEN = {"tsv in quotes": {"quoting": "doubled"}, "tsv": {"quoting": "none"}, "text": {"label": "file"}}
GIVEN["json"] = {"format": "jsonl"}
BACKSLASHED: dict[str, Any] = {"doublequote": False, "escapechar": "\\"}
LINES: dict[str, Callable[[list[Written]], bytes]] = {
    "tsv": as_tsv,
    "jsonl": by_json,
    "jsonl in UTF-8": by_json_in_utf8,
    "text": as_text,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read(folder: Path, form: str, content: bytes, compressed: bool = False) -> tuple[list[Row], list[Reject]]:
    """What the reader makes of a file."""
    given = GIVEN.get(form, {})
    form = form.split()[0]
    path = folder / (f"a.{form}" + (".gz" if compressed else ""))
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    (source,) = list_sources("data.train", (str(path),))
    found = list(read_rows(source, recipes.tiny().replace(data={"format": form, **given}).data))
    for one in found:
        assert one.line >= 1
        assert not isinstance(one, Reject) or one.reason.isprintable()
    return [one for one in found if isinstance(one, Row)], [one for one in found if isinstance(one, Reject)]


@contextmanager
def refusals() -> Iterator[None]:
    """A file may be refused as a whole, in one line that names it."""
    try:
        yield
    except (UserError, RunError) as error:
        if not str(error).isprintable() or "/a." not in str(error):
            raise AssertionError(str(error)) from error


def is_text(text: str) -> bool:
    try:
        return bool(check_text(text))
    except BadValue:
        return False


def looks_like_rows(text: str) -> bool:
    """Whether a line of a text is itself a row of the file: nobody can tell it from rows glued by a quotation."""
    return any(line.endswith(LABELS) for line in LINE_END.split(text)[:-1])


def lines_of(content: bytes, universal: bool) -> list[str]:
    text = io.TextIOWrapper(
        io.BytesIO(content), encoding="utf-8-sig", errors="surrogateescape", newline="" if universal else "\n"
    )
    return list(text)


def lines_of_text(content: bytes) -> list[str]:
    return lines_of(content if b"\n" in content else content.replace(b"\r", b"\n"), universal=False)


look = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("form", QUOTED)
@look
@given(ROWS, st.booleans())
def test_quoted_rows_come_back_as_they_were_written(
    folder: Path, form: str, rows: list[Written], compressed: bool
) -> None:
    rows = [row for row in rows if not looks_like_rows(row[0])]
    if not rows:
        return
    found, rejects = read(folder, form, QUOTED[form](rows), compressed)
    assert len(found) + len(rejects) == len(rows)
    stray = [] if form != "csv with LF" else [row for row in rows if "\r" in row[0]]  # outside quotes: rejects
    assert [(row.text, row.label) for row in found if (row.text, row.label) not in stray] == [
        row for row in rows if is_text(row[0]) and row not in stray
    ]


@look
@given(ROWS, st.sampled_from(["'", '"', "~"]), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.booleans())
def test_rows_in_any_quotes_come_back(folder: Path, rows: list[Written], quote: str, quoting: int, slash: bool) -> None:
    how = {"quotechar": quote, "quoting": quoting} | (BACKSLASHED if slash else {})
    rows = [(text.replace("\r", " "), label) for text, label in rows if not looks_like_rows(text)]
    if not rows:
        return
    (folder / "b.tsv").write_bytes(quoted_tsv(rows, **how))
    (source,) = list_sources("data.train", (str(folder / "b.tsv"),))
    given = {"quote": quote, "quoting": "backslash" if slash else "doubled"}
    found = list(read_rows(source, recipes.tiny().replace(data=given).data))
    assert [(one.text, one.label) for one in found if isinstance(one, Row)] == [row for row in rows if is_text(row[0])]
    assert len(found) == len(rows)


@pytest.mark.parametrize("write", [as_tsv, quoted_tsv])
@look
@given(LINE_ROWS)
def test_a_wrong_guess_of_quotes_is_said(folder: Path, write: Callable[..., bytes], rows: list[Written]) -> None:
    told: list[str] = []
    (folder / "c.tsv").write_bytes(write(rows))
    (source,) = list_sources("data.train", (str(folder / "c.tsv"),))
    found = list(read_rows(source, recipes.tiny().data, tell=told.append))
    assert len(found) == len(rows) or told
    texts = [one.text for one in found if isinstance(one, Row)]
    assert texts == [text for text, _ in rows if is_text(text)] or told or len(texts) < len(found)


@pytest.mark.parametrize("form", LINES)
@look
@given(LINE_ROWS, st.booleans())
def test_rows_of_lines_come_back_as_they_were_written(
    folder: Path, form: str, rows: list[Written], compressed: bool
) -> None:
    if form == "text":
        rows = [row for row in rows if row[0].strip()]
    if form.startswith("jsonl"):
        rows = [(text.replace(" ", "\n\t"), label) for text, label in rows]
    found, rejects = read(folder, form, LINES[form](rows), compressed)
    mark = "\ufeff" if form == "text" else None  # at the very beginning it is no character of the text
    wanted = [text for text, _ in rows if is_text(text)]
    assert [row.text.lstrip(mark or "") for row in found] == [text.lstrip(mark or "") for text in wanted]
    assert form == "text" or [row.label for row in found] == [label for text, label in rows if is_text(text)]
    assert len(found) + len(rejects) == len(rows)


@pytest.mark.parametrize("form", QUOTED)
@look
@given(ROWS, DAMAGE, st.booleans())
def test_every_line_of_a_damaged_quoted_file_is_a_rows_or_a_reject(
    folder: Path, form: str, rows: list[Written], damage: list, compressed: bool
) -> None:
    content = damaged(QUOTED[form](rows), damage, first=len('"text","label"\r\n'))
    with refusals():
        found, rejects = read(folder, form, content, compressed)
        ends = re.compile("\r\n|\r|\n") if "CR" in form else re.compile("\n")
        lines = lines_of(content, universal="CR" in form)
        starts = sorted(one.line for one in (*found, *rejects))
        covered = sorted({reject.line for reject in rejects if reject.reason.startswith(LINE_BY_LINE)})
        for reject in rejects:  # others are one row, of as many lines as there are before the next
            if not reject.reason.startswith(LINE_BY_LINE):
                covered += range(
                    reject.line, min((line for line in starts if line > reject.line), default=len(lines) + 1)
                )
        for row in found:
            held = sum(len(ends.findall(field)) for field in (row.text, row.written or row.label))
            covered += range(row.line, row.line + held + 1)
        assert len(covered) == len(set(covered)), "no line twice"
        missing = [line for number, line in enumerate(lines, 1) if number not in covered]
        assert [line for line in missing if line.strip("\r\n")] == lines[:1], "all but the header"


@pytest.mark.parametrize("form", LINES)
@look
@given(LINE_ROWS, DAMAGE, st.booleans())
def test_every_line_of_a_damaged_file_is_a_row_or_a_reject(
    folder: Path, form: str, rows: list[Written], damage: list, compressed: bool
) -> None:
    whole = LINES[form](rows)
    content = damaged(whole, damage, first=len("text\tlabel\n") if form == "tsv" else 0)
    with refusals():
        found, rejects = read(folder, form, content, compressed)
        if b"\n" not in content and b"\r" in content:
            content = content.replace(b"\r", b"\n")
        lines = lines_of(content, universal=False)
        numbers = [number for number, line in enumerate(lines, 1) if line.strip() and line.strip("\r\n")]
        if form == "tsv":
            numbers = [number for number, line in enumerate(lines, 1) if line.strip("\r\n")][1:]
        assert sorted(one.line for one in (*found, *rejects)) == numbers
        before = set(whole.split(b"\n"))
        same = [number for number in numbers if lines[number - 1].rstrip("\n").encode(errors="replace") in before]
        kept = {row.line for row in read(folder, form, whole)[0]}
        if lines_of(whole, universal=False)[: len(same)] == lines[: len(same)]:
            assert {number for number in same if number <= len(same) and number in kept} <= {row.line for row in found}


@look
@given(ROWS, DAMAGE)
def test_a_damaged_parquet_file_gives_every_row_or_one_line(folder: Path, rows: list[Written], damage: list) -> None:
    content = as_parquet(rows)
    found, rejects = read(folder, "parquet", content)
    assert [(row.text, row.label) for row in found] == [row for row in rows if is_text(row[0])]
    with refusals():
        found, rejects = read(folder, "parquet", damaged(content, damage))
        assert sorted(one.line for one in (*found, *rejects)) == list(range(1, len(rows) + 1))


@look
@given(LINE_ROWS, DAMAGE, st.booleans())
def test_parallel_files_give_every_line_or_one_line(
    folder: Path, rows: list[Written], damage: list, in_labels: bool
) -> None:
    texts, labels = as_text(rows), "".join(f"{label}\n" for _, label in rows).encode()
    contents = (texts, damaged(labels, damage)) if in_labels else (damaged(texts, damage), labels)
    for name, content in zip(("a.txt", "b.txt"), contents, strict=True):
        (folder / name).write_bytes(content)
    source, other = list_sources("data.train", (str(folder / "a.txt"), str(folder / "b.txt")))
    with refusals():
        found = list(read_rows(dataclasses.replace(source, labels=other), recipes.tiny().data))
        lines = list(map(lines_of_text, contents))
        filled = [any(line.strip() for line in pair) for pair in zip(*lines, strict=False)]
        assert [one.line for one in found] == [number for number, is_filled in enumerate(filled, 1) if is_filled]


@look
@given(LINE_ROWS, DAMAGE, st.sampled_from(["__label__", ""]))
def test_every_line_that_begins_with_its_label_is_a_row_or_a_reject(
    folder: Path, rows: list[Written], damage: list, mark: str
) -> None:
    (folder / "a.txt").write_bytes(damaged("".join(f"{mark}{b.split()[0]} {a}\n" for a, b in rows).encode(), damage))
    (source,) = list_sources("data.train", (str(folder / "a.txt"),))
    content = (folder / "a.txt").read_bytes()
    lines = lines_of_text(content)
    with refusals():
        found = list(read_rows(source, recipes.tiny().replace(data={"format": "label-first"}).data))
        assert [one.line for one in found] == [number for number, line in enumerate(lines, 1) if line.strip()]


@look
@given(ROWS, DAMAGE, st.sampled_from([None, 1]))
def test_a_damaged_json_array_gives_every_row_or_one_line(
    folder: Path, rows: list[Written], damage: list, indent: int | None
) -> None:
    content = json.dumps([{"text": text, "label": label} for text, label in rows], indent=indent).encode()
    found, rejects = read(folder, "json", content)
    assert [(row.text, row.label) for row in found] == [row for row in rows if is_text(row[0])]
    assert len(found) + len(rejects) == len(rows)
    with refusals():
        found, rejects = read(folder, "json", damaged(content, damage, first=1))


WORKBOOK_ROWS = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40), st.sampled_from(LABELS)), min_size=1
)


@look
@given(WORKBOOK_ROWS, DAMAGE)
def test_a_damaged_workbook_gives_every_row_or_one_line(folder: Path, rows: list[Written], damage: list) -> None:
    content = as_workbook(rows)
    found, rejects = read(folder, "xlsx", content)
    assert [(row.text, row.label) for row in found] == [row for row in rows if is_text(row[0])]
    assert sorted(one.line for one in (*found, *rejects)) == list(range(2, len(rows) + 2))
    with refusals():
        found, rejects = read(folder, "xlsx", damaged(content, damage))
        assert len(found) + len(rejects) == len(rows)


@look
@given(ROWS, DAMAGE, st.sampled_from(["csv", "jsonl"]))
def test_a_damaged_compressed_file_gives_every_row_or_one_line(
    folder: Path, rows: list[Written], damage: list, form: str
) -> None:
    content = gzip.compress((QUOTED | LINES)[form](rows))
    whole = read(folder, form, content)
    broken = damaged(content, damage, first=2)
    with refusals():
        assert read(folder, form, broken) == whole
