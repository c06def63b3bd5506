"""Workbooks (.xlsx): every row of a sheet is a row or a reject, every cell is text, what cannot be read is one line."""

import datetime
import gc
import gzip
import io
import re
import tracemalloc
import zipfile

import openpyxl
import pytest
from test_readers import read, texts

from xlnet.data import workbook as workbooks
from xlnet.errors import RunError, UserError

SHEET = "xl/worksheets/sheet1.xml"
ROWS = [("text", "label"), ("a fine film", "pos"), ("dull", "neg"), ('says "hi",\nand goes\t', "pos")]


def workbook(sheets, finish=lambda book: None):
    """The bytes of a workbook of these sheets."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    finish(book)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def changed(content, parts):
    """The archive with parts added or replaced: by bytes, or by what a function makes of their bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        names = [*old.namelist(), *(name for name in parts if name not in old.namelist())]
        for name in names:
            part = parts.get(name, old.read(name) if name in old.namelist() else b"")
            new.writestr(name, part(old.read(name)) if callable(part) else part)
    return file.getvalue()


BOOK = workbook({"Sheet": ROWS})


@pytest.mark.parametrize("name", ["a.xlsx", "A.XLSX", "a.xlsx.gz", "a.zip"])
def test_the_rows_of_the_only_sheet_with_rows_are_read(tmp_path, name):
    content = workbook({"Rows": ROWS, "Sheet2": [], "Sheet3": [(None, None)]})
    if name.endswith("gz"):
        content = gzip.compress(content)
    if name.endswith("zip"):
        content = changed(BOOK, {})
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("rows/book.xlsx", content)
        content = file.getvalue()
    told = []
    rows, rejects = read(tmp_path / name, content, tell=told.append)
    assert (texts(rows), rejects, told) == (ROWS[1:], [], [])
    assert [row.line for row in rows] == [2, 3, 4]


def test_several_sheets_are_named_and_one_is_chosen(tmp_path):
    content = workbook({"Train": ROWS, "Test": ROWS[:2]})
    with pytest.raises(UserError, match=r"has 2 sheets with rows: 'Train', 'Test'; name one as data.sheet"):
        read(tmp_path / "a.xlsx", content)
    rows, _ = read(tmp_path / "a.xlsx", content, sheet="Test")
    assert texts(rows) == ROWS[1:2]
    with pytest.raises(UserError, match="has no sheet 'Tests'; data.sheet may be 'Train', 'Test'; did you mean 'Test'"):
        read(tmp_path / "a.xlsx", content, sheet="Tests")


def test_hidden_sheets_are_left_out_and_said(tmp_path):
    def hide(book):
        book["lists"].sheet_state = "hidden"

    told = []
    content = workbook({"lists": [("pos",)], "Rows": ROWS}, hide)
    rows, _ = read(tmp_path / "a.xlsx", content, tell=told.append)
    assert texts(rows) == ROWS[1:]
    assert "has hidden sheets, which are left out: 'lists'; data.sheet chooses another one" in told[0]


DAY = datetime.datetime(2024, 5, 1)
CELLS = [
    (3, "3"),
    (3.0, "3"),
    (0.1, "0.1"),
    (1e300, "1e+300"),
    (True, "true"),
    (DAY, "2024-05-01"),
    (DAY.replace(hour=13, minute=30), "2024-05-01 13:30:00"),
    (datetime.time(7, 5), "07:05:00"),
    ("0012", "0012"),
    ("_x000D_", "\r"),
    ("=1+1", ""),
    ("#N/A", ""),
    (None, ""),
]


@pytest.mark.parametrize(("value", "text"), CELLS)
@pytest.mark.parametrize("use", ["text", "label"])
def test_cells_are_text(tmp_path, value, text, use):
    told = []
    row = (value, "x") if use == "text" else ("x", value)
    rows, rejects = read(tmp_path / "a.xlsx", workbook({"S": [*ROWS[:2], row]}), tell=told.append)
    found = [getattr(one, use) for one in rows[1:]]
    assert found == ([text] if text.strip() else [])
    reason = "empty text" if use == "text" else "no label"
    assert [(one.line, one.reason) for one in rejects] == ([] if found else [(3, reason)])
    if value == "=1+1":
        assert "has 1 formulas without a saved value, read as empty" in told[0]
    if value == "#N/A":
        assert "has 1 cells with errors, read as empty, such as '#N/A' in row 3" in told[0]


def test_formulas_stand_for_the_values_saved_with_them(tmp_path):
    content = workbook({"S": [*ROWS[:2], ("=CONCAT(A2)", "neg")]})
    cell = re.compile(rb'<c r="A3"[^>]*>(<f>.*?</f>)<v.*?</c>')
    value = rb'<c r="A3" t="str">\1<v>fine</v></c>'
    saved = changed(content, {SHEET: lambda xml: cell.sub(value, xml)})
    rows, rejects = read(tmp_path / "a.xlsx", saved)
    assert (texts(rows)[1:], rejects) == ([("fine", "neg")], [])


def test_merged_cells_blank_rows_and_gaps(tmp_path):
    def merge(book):
        book["S"].merge_cells("B2:B3")

    told = []
    rows = [ROWS[0], ("a", "pos"), ("b", None), (), (None, None), ("c", "neg"), ("d", "neg", None, "a note")]
    found, rejects = read(tmp_path / "a.xlsx", workbook({"S": rows}, merge), tell=told.append)
    assert [(row.line, row.text) for row in found] == [(2, "a"), (6, "c"), (7, "d")]
    assert [(one.line, one.reason) for one in rejects] == [(3, "no label")]
    assert "has 1 merged ranges, such as B2:B3: only the first cell of each has a value" in told[0]


def test_columns_by_index_and_rows_to_predict(tmp_path):
    rows, _ = read(tmp_path / "a.xlsx", workbook({"S": ROWS[1:]}), text=0, label=1)
    assert texts(rows) == ROWS[1:]


UNSHARED = (
    b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row r="1">'
    b'<c r="A1" t="s"><v>99</v></c></row></sheetData></worksheet>'
)
ENCRYPTED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")
MIDDLE = len(BOOK) // 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xlsx", ENCRYPTED, "is protected with a password; save it without one"),
        ("a.xlsx", ENCRYPTED[:600], "is an old one; save it as .xlsx, or the sheet as CSV"),
        ("a.xlsx", changed(BOOK, {"xl/vbaProject.bin": b"x"}), "is a workbook with macros; save it as .xlsx"),
        ("a.xlsx", changed(BOOK, {"content.xml": b"x"}), "is an OpenDocument workbook; save it as .xlsx"),
        ("a.xlsx", b"text,label\na,1\n", "is not a workbook; set data.format to what it is"),
        ("a.xlsx", changed(b"PK\x05\x06" + bytes(18), {"[Content_Types].xml": b"x"}), "is not a workbook"),
        ("a.xlsx", BOOK[:MIDDLE], "is damaged: .*; replace the file"),
        ("a.xlsx", BOOK[:MIDDLE] + b"damaged" * 9 + BOOK[MIDDLE + 63 :], "is damaged: .*; replace the file"),
        ("a.xlsx", changed(BOOK, {SHEET: b"<worksheet><sheetData><row"}), "is damaged"),
        ("a.xlsx", changed(BOOK, {SHEET: UNSHARED}), "is damaged"),
        ("a.xlsx", workbook({"S": []}), "is empty; give a file with rows"),
        ("a.xlsx", workbook({"S": [("texts", "label"), ("a", 1)]}), "has no column 'text'; it has: texts, label"),
        ("a.xls", b"", "is an old Excel workbook, by its ending; save it as .xlsx, or the sheet as CSV, or set data."),
        ("a.ods", b"", "is an OpenDocument workbook, by its ending"),
        ("a.xlsm", b"", "is a workbook with macros, by its ending"),
        ("a.csv", BOOK, "is a workbook or a document; if it is a workbook, set data.format to 'xlsx'"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, says):
    with pytest.raises((UserError, RunError), match=says) as caught:
        read(tmp_path / name, content)
    assert str(caught.value).isprintable()


def test_a_part_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workbooks, "LARGEST_PART", 1 << 20)
    content = changed(BOOK, {"xl/sharedStrings.xml": b"<sst>" + b" " * (2 << 20)})
    with pytest.raises(UserError, match="holds 2 MiB, more than 1 MiB, in 'xl/sharedStrings.xml'; save the sheet"):
        read(tmp_path / "a.xlsx", content)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for rows in (300, 1500):
        path = tmp_path / f"{rows}.xlsx"
        path.write_bytes(workbook({"S": [ROWS[0], *(("the same text", i % 2) for i in range(rows))]}))
        gc.collect()  # so that garbage of earlier tests does not decide when the collector runs
        tracemalloc.start()
        found, _ = read(path)
        peaks.append(tracemalloc.get_traced_memory()[1] - 150 * rows)
        tracemalloc.stop()
        assert len(found) == rows
    assert peaks[1] < 2 * peaks[0]
