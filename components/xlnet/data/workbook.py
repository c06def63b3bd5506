"""Reads the rows of one sheet of a workbook (.xlsx), each cell as text.

Memory stays flat, except for the workbook's table of shared texts, which is bounded.
"""

import datetime
import io
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any, cast

from xlnet.data.csv_records import Record
from xlnet.data.storage import Source
from xlnet.data.values import shown
from xlnet.data.zipped import DAMAGE, damaged
from xlnet.errors import RunError, UserError, nearest
from xlnet.recipe import DataRecipe

MOST_ROWS = 1 << 20  # of a sheet, in Excel and here
LARGEST_PART = 256 << 20  # bytes, uncompressed, of a part that is held in memory, such as the shared texts
BATCH = 500  # rows
PROBED = 100  # rows in which a sheet that is not empty has a cell
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # old Office documents, and new ones with a password
ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
REFUSED = {
    ".xls": "an old Excel workbook",
    ".xlsm": "a workbook with macros",
    ".xlsb": "a binary Excel workbook",
    ".ods": "an OpenDocument workbook",
    ".numbers": "a workbook of Numbers",
}
REMEDY = "save it as .xlsx, or the sheet as CSV"


def records(file: IO[bytes], source: Source, recipe: DataRecipe, tell: Callable[[str], None]) -> Iterator[Record]:
    """Yield the rows of the sheet that ``data.sheet`` names, or of the only one with rows; empty rows are left out.

    Numbers are written as in Excel's format General, dates and times as in ISO 8601, booleans as ``true`` or ``false``,
    and formulas as the values that were saved with them. Errors, and formulas without a saved value, become empty.

    Raises:
        UserError: this is no such workbook, or several of its sheets hold rows.
        RunError: it is damaged.
    """
    whole = _seekable(file)
    archive = _parts(whole, source)
    workbook = _guarded(lambda: _load(whole), source)
    try:
        sheet = _sheet(workbook, source, recipe, tell)
        _tell_of_cells(archive, sheet, source, tell)
        errors: list[str] = []
        width = 0
        rows = enumerate(sheet.iter_rows(), 1)
        while batch := _guarded(lambda: list(islice(rows, BATCH)), source):
            found = [(number, _fields(cells, number, errors)) for number, cells in batch]
            width = width or max(len(fields) for _, fields in found)  # of a sheet, not of its shortest row
            for number, fields in found:
                if fields:
                    yield Record(number, fields + [""] * (width - len(fields)))
            if batch[-1][0] > MOST_ROWS:
                raise RunError(f"'{source.uri}' is damaged: a row has a number above {MOST_ROWS:,}; replace the file")
        if errors:
            tell(f"'{source.uri}' has {len(errors):,} cells with errors, read as empty, such as {errors[0]}")
    finally:
        workbook.close()


def _seekable(file: IO[bytes]) -> IO[bytes]:
    """Return the file itself, or a temporary copy if seeking in it is slow: it is compressed, or in a bucket."""
    if isinstance(getattr(file, "raw", None), io.FileIO):
        return file
    copy = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115  # closed with the reader that holds it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _parts(file: IO[bytes], source: Source) -> zipfile.ZipFile:
    """Open the archive that a workbook is; UserError if it is another kind of file, or too large."""
    if file.read(len(OLE)) == OLE:
        has_password = ENCRYPTED in file.read(LARGEST_PART)
        what = "is protected with a password; save it without one" if has_password else f"is an old one; {REMEDY}"
        raise UserError(f"workbook '{source.uri}' {what}")
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGE as error:
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            raise damaged(source.uri, error) from None
        raise UserError(f"'{source.uri}' is not a workbook; set data.format to what it is") from None
    names = set(archive.namelist())
    for part, suffix in {"xl/vbaProject.bin": ".xlsm", "xl/workbook.bin": ".xlsb", "content.xml": ".ods"}.items():
        if part in names:
            raise UserError(f"'{source.uri}' is {REFUSED[suffix]}; {REMEDY}")
    if "[Content_Types].xml" not in names or not any(name.startswith("xl/") for name in names):
        raise UserError(f"'{source.uri}' is not a workbook; set data.format to what it is")
    for one in archive.infolist():
        if one.file_size > LARGEST_PART and not one.filename.startswith("xl/worksheets/"):
            size = f"{one.file_size >> 20:,} MiB, more than {LARGEST_PART >> 20} MiB"
            raise UserError(f"'{source.uri}' holds {size}, in '{one.filename}'; save the sheet as CSV")
    return archive


def _load(file: IO[bytes]) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            "reading workbooks takes openpyxl, which is not installed; type: pip install 'xlnet-pipeline[xlsx]'"
        ) from None
    return openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)


def _guarded(read: Callable[[], Any], source: Source) -> Any:
    """Call openpyxl; RunError if it raises anything, because damaged workbooks make it raise all kinds of errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except (UserError, MemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:100]
        what = "".join(one if one.isprintable() else "?" for one in words) or type(error).__name__
        raise RunError(f"workbook '{source.uri}' is damaged: {what}; replace the file") from None


def _sheet(workbook: Any, source: Source, recipe: DataRecipe, tell: Callable[[str], None]) -> Any:
    """Return the sheet to read."""
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}
    for sheet in sheets.values():
        sheet.reset_dimensions()  # which some programs write wrong
    if recipe.sheet:
        if recipe.sheet not in sheets:
            listed = ", ".join(map(shown, sheets))
            near = nearest(recipe.sheet, sheets)
            raise UserError(f"'{source.uri}' has no sheet {shown(recipe.sheet)}; data.sheet may be {listed}{near}")
        return sheets[recipe.sheet]
    filled: list[Any] = _guarded(lambda: list(filter(_has_values, sheets.values())), source)
    visible = [sheet for sheet in filled if sheet.sheet_state == "visible"]
    if len(visible) == 1 and len(filled) > 1:
        hidden = ", ".join(shown(sheet.title) for sheet in filled if sheet is not visible[0])
        tell(f"'{source.uri}' has hidden sheets, which are left out: {hidden}; data.sheet chooses another one")
        filled = visible
    if len(filled) > 1:
        listed = ", ".join(shown(sheet.title) for sheet in filled)
        raise UserError(f"'{source.uri}' has {len(filled)} sheets with rows: {listed}; name one as data.sheet")
    if not filled:
        raise UserError(f"'{source.uri}' is empty; give a file with rows")
    return filled[0]


def _has_values(sheet: Any) -> bool:
    rows = islice(sheet.iter_rows(values_only=True), PROBED)
    return any(value is not None for row in rows for value in row)


def _tell_of_cells(archive: zipfile.ZipFile, sheet: Any, source: Source, tell: Callable[[str], None]) -> None:
    """Report cells that look filled in a spreadsheet program but have no value: merged ones, unsaved formulas."""
    merged = formulas = 0
    example = ""
    with _guarded(lambda: archive.open(sheet._worksheet_path), source) as part:
        rest = b""
        while chunk := _guarded(lambda: part.read(1 << 20), source):
            text = rest + chunk
            for found in _SILENT.finditer(text):
                if found.end() > len(rest):
                    merged += found[1] is not None
                    formulas += found[1] is None
                    example = example or (found[1] or b"").decode("ascii", "replace")
            rest = text[-200:]
    if merged:
        tell(f"'{source.uri}' has {merged:,} merged ranges, such as {example}: only the first cell of each has a value")
    if formulas:
        tell(
            f"'{source.uri}' has {formulas:,} formulas without a saved value, read as empty; open it in a spreadsheet "
            "program and save it"
        )


_SILENT = re.compile(
    rb'<mergeCell [^>]*?ref="([A-Z0-9:]+)"|<f(?:>[^<]*</f>| [^>]*/>| [^>]*>[^<]*</f>)\s*(?:<v\s*/>|<v></v>)?\s*</c>'
)


def _fields(cells: tuple[Any, ...], row: int, errors: list[str]) -> list[str]:
    """Return the cells as text, without empty ones at the end."""
    fields = [_text(cell, row, errors) for cell in cells]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _text(cell: Any, row: int, errors: list[str]) -> str:
    """Return the value of a cell as text; an error becomes empty, and is added to ``errors``."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str):
        if cell.data_type == "e":
            errors.append(f"{shown(value)} in row {row:,}")
            return ""
        return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value) if "_x" in value else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time()
        return value.date().isoformat() if is_day else value.isoformat(" ")
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")  # how XML writes characters that it cannot hold
