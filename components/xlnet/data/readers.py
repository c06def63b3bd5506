"""Reads rows from CSV, TSV, JSON, Parquet, workbooks and plain text, as a stream.

For any bytes, nothing disappears:

- A JSON array, or objects that span several lines: each object is one row or one reject. Text that is not JSON is
  an error that names its line, because nobody can know where the next object begins.
- TSV, JSON Lines and plain text: each line that is not blank is one row or one reject; a header is neither.
- CSV: each line that is not blank belongs to one row (whose quoted fields may hold line ends) or is one reject.
- Workbooks: each row of the sheet that holds a value is a row or a reject; a header is neither.
- Parquet: each row of the file is a row or a reject, or the file is damaged, which is an error that names it.
- Compressed files: the same, or the file is damaged.
"""

import codecs
import contextlib
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

from xlnet.data import dialect, json_records, parallel, workbook
from xlnet.data.columns import UNKNOWN, Columns, Reject, Row
from xlnet.data.csv_records import CsvRecords, Record
from xlnet.data.lines import Line, read_lines
from xlnet.data.storage import Source, inner_name, open_binary
from xlnet.data.values import BadValue, check_label, check_text, shown
from xlnet.data.zipped import damaged
from xlnet.errors import RunError, UserError
from xlnet.recipe import Column, DataRecipe

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
FORMATS[".xlsx"] = "xlsx"
REFUSED = {
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar"), ("an archive", "unpack it and name the files in it")),
    **dict.fromkeys((".pkl", ".pickle"), ("a pickle of Python", "save the table as Parquet or CSV")),
    **dict.fromkeys((".arrow", ".feather"), ("an Arrow file", "save it as Parquet, in datasets with to_parquet")),
    **dict.fromkeys((".db", ".sqlite", ".h5", ".hdf5"), ("a database", "export the table as CSV or Parquet")),
    **dict.fromkeys((".doc", ".docx", ".pdf", ".rtf"), ("a document", "save its text as .txt, or its table as CSV")),
}
DELIMITED = ("csv", "tsv")
USED_BY = {  # the formats that a setting of data is for; encoding is for all but two
    "sheet": ("xlsx",),
    "delimiter": DELIMITED,
    "quoting": DELIMITED,
    "quote": DELIMITED,
    "header": (*DELIMITED, "xlsx"),
    "encoding": (*DELIMITED, "jsonl", "text", "label-first"),
}
NOT_UTF_8 = "not UTF-8"
LABEL_MARK = "__label__"  # of fastText
FIRST_LINE = 1 << 20  # bytes of a .txt file's first line in which a tab is looked for


def silent(_: str) -> None:
    """Ignore the message."""


def read_rows(
    source: Source,
    recipe: DataRecipe,
    labelled: bool = True,
    tell: Callable[[str], None] = silent,
    optional: Mapping[str, Column] | None = None,
    file: IO[bytes] | None = None,
) -> Iterator[Row | Reject]:
    """Yield all rows and rejects of a source, in order.

    Args:
        source: the file to read.
        recipe: the format and the columns.
        labelled: False for texts to predict, which need neither labels nor ids. Their labels are ``"?"``, and a blank
            line is a reject.
        tell: called with a line for each guess that was made from the rows, such as a header.
        optional: columns of texts to predict that are taken where a file has them: ``id``, ``text_pair``.
        file: the source's bytes, uncompressed and from the beginning. None: open the source.

    Raises:
        UserError: the format is unknown, a column is not there, the file is empty.
        RunError: the file is gone or damaged.
    """
    form = file_format(source, recipe)
    with _damage_said(source), file or open_binary(source) as opened:
        rows = _READERS[form](opened, source, recipe, Columns(source, recipe, labelled, tell, optional))
        yield from rows if recipe.encoding in ("auto", "utf-8") else _naming(rows, recipe.encoding)


def _naming(rows: Iterator[Row | Reject], encoding: str) -> Iterator[Row | Reject]:
    """Yield the rows. Name the recipe's encoding instead of UTF-8 in rejects for undecodable bytes."""
    for row in rows:
        if isinstance(row, Reject) and row.reason.startswith(NOT_UTF_8):
            row = Reject(row.line, f"not {encoding}{row.reason.removeprefix(NOT_UTF_8)}")
        yield row


@contextlib.contextmanager
def _damage_said(source: Source) -> Iterator[None]:
    """Raise the errors of a damaged file or disk again as RunError, whose message is one line."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:
            raise RunError(f"'{source.uri}' cannot be read: {error.strerror}") from None
        raise damaged(source.uri, error) from None


def file_format(source: Source, recipe: DataRecipe) -> str:
    """Return the recipe's format, or the one that the file's extension and first line show."""
    if recipe.format != "auto":
        return recipe.format
    if source.labels is not None:
        return "text"
    name = inner_name(source) if source.name.endswith(".zip") else source.name
    for suffix, form in FORMATS.items():
        if name.endswith(suffix):
            return form
    if name.endswith(".txt"):
        with _damage_said(source), open_binary(source) as file:
            first = file.readline(FIRST_LINE)
        plain = first.replace(b"\0", b"")  # in UTF-16, too
        if plain.lstrip(codecs.BOM_UTF8 + codecs.BOM_UTF16).startswith(LABEL_MARK.encode()):
            return "label-first"
        return "tsv" if b"\t" in first else "text"
    for suffix, what in workbook.REFUSED.items():
        if name.endswith(suffix):
            raise UserError(f"'{source.uri}' is {what}, by its ending; {workbook.REMEDY}, or set data.format")
    for suffix, (what, remedy) in REFUSED.items():
        if name.endswith(suffix):
            raise UserError(f"'{source.uri}' is {what}, by its ending; {remedy}")
    raise UserError(f"'{source.uri}' has an unknown ending; set data.format to {', '.join(_READERS)}")


def unused_settings(sources: Iterable[Source], recipe: DataRecipe) -> list[str]:
    """Return a warning for each setting that no file is read with, such as ``data.sheet`` without a workbook."""
    given = [name for name in USED_BY if getattr(recipe, name) != getattr(DataRecipe, name)]
    forms = sorted({file_format(source, recipe) for source in sources}) if given else []
    return [
        f"data.{name} is {getattr(recipe, name)!r}, but is not used: it is for {', '.join(USED_BY[name])}, and the "
        f"files are read as {', '.join(forms)}"
        for name in given
        if forms and not set(forms) & set(USED_BY[name])
    ]


def _csv_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    lines = read_lines(file, source, recipe, columns.tell, quoted=recipe.quoting != "none")
    return _delimited_rows(lines, source, recipe, columns, "csv")


def _tsv_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    return _delimited_rows(read_lines(file, source, recipe, columns.tell), source, recipe, columns, "tsv")


def _delimited_rows(
    lines: Iterator[Line], source: Source, recipe: DataRecipe, columns: Columns, form: str
) -> Iterator[Row | Reject]:
    found, lines = dialect.find(lines, source, recipe, form, columns.tell)
    if found.quote is not None:
        return columns.rows_of_fields(CsvRecords(lines, recipe.max_record_lines, recipe.max_record_bytes, found))
    quotes = dialect.LateQuotes(source, columns.tell if recipe.quoting == "auto" else silent)
    return columns.rows_of_fields(_plain_records(lines, found.delimiter, columns.labelled, quotes))


def _plain_records(
    lines: Iterator[Line], delimiter: str, labelled: bool, quotes: dialect.LateQuotes
) -> Iterator[Record]:
    """Split lines in which quotes are part of the text."""
    begun = False
    for line in lines:
        text = line.text.rstrip("\r\n")
        if line.reason or text or (begun and not labelled):
            yield Record(line.number, text.split(delimiter) if text else [], line.reason)
            begun = True
            if '""' in text:
                quotes.note(line)
    quotes.say()


def _workbook_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    return columns.rows_of_fields(workbook.records(file, source, recipe, columns.tell))


def _json_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    wanted = {*columns.keys.values(), *columns.optional.values()}
    if json_records.is_many_lines(file, source, recipe):
        objects = json_records.of_array(file, source, recipe, wanted, columns.tell)
    else:
        lines = read_lines(file, source, recipe, columns.tell)
        objects = json_records.of_lines(lines, wanted, not columns.labelled)
    return columns.rows_of_objects(json_records.rows_alone(objects, list(columns.keys.values()), source))


def _parquet_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    from xlnet.data.parquet import ParquetRows

    found = ParquetRows(file, source)
    rows = found.rows(columns.named(found.names))
    return (columns.row(json_records.Object(line, fields, reason)) for line, (fields, reason) in enumerate(rows, 1))


def _text_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    """Read one text per line. The label is the name of the file or directory, or a line of another file."""
    if recipe.text_pair is not None and columns.labelled:
        raise UserError(f"'{source.uri}' is plain text, without columns, so there is no data.text_pair; leave it out")
    if source.labels is not None and columns.labelled:
        with _damage_said(source.labels), open_binary(source.labels) as other:
            labels = read_lines(other, source.labels, recipe, columns.tell)
            yield from parallel.rows(read_lines(file, source, recipe, columns.tell), labels, source, recipe.task)
        return
    label = _label_of_name(source, recipe) if columns.labelled else UNKNOWN
    lines = read_lines(file, source, recipe, columns.tell)
    yield from _rows_of_lines(lines, columns, lambda text: (check_text(text), label))


def _label_first_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    """Read lines that begin with their label. Texts to predict have no label, or one with fastText's mark."""

    def parts(text: str) -> tuple[str, str]:
        word, rest = (*re.split(r"\s", text.lstrip(), maxsplit=1), "")[:2]
        if rest.lstrip().startswith(LABEL_MARK):
            raise BadValue(f"several labels: {shown(word)} and {shown(rest.split()[0])}")
        if not columns.labelled:
            return check_text(rest if word.startswith(LABEL_MARK) else text), UNKNOWN
        label = check_label(word.removeprefix(LABEL_MARK), recipe.task)
        return check_text(rest), label

    return _rows_of_lines(read_lines(file, source, recipe, columns.tell), columns, parts)


def _rows_of_lines(
    lines: Iterator[Line], columns: Columns, parts: Callable[[str], tuple[str, str]]
) -> Iterator[Row | Reject]:
    """Yield a row for each line: its ``parts``, text and label. Without labels, blank lines are rejects."""
    for line in lines:
        text = line.text.rstrip("\r\n")
        try:
            if line.reason:
                yield Reject(line.number, line.reason)
            elif text.strip() or not columns.labelled:
                checked, label = parts(text)
                yield Row(checked, None, label, None, line.number)
        except BadValue as bad:
            yield Reject(line.number, bad.reason)


def _label_of_name(source: Source, recipe: DataRecipe) -> str:
    parts = source.uri.rsplit("/", 2)
    file = parts[-1][:-3] if parts[-1].lower().endswith(".gz") else parts[-1]
    labels = {"file": file.rpartition(".")[0] or file, "directory": parts[-2] if len(parts) > 1 else ""}
    if recipe.label not in labels:
        raise UserError(
            f"'{source.uri}' is plain text, without columns; set data.label to 'file' or 'directory' (whose name is "
            "the label), or data.format to csv, tsv, jsonl, parquet or label-first"
        )
    try:
        return check_label(labels[str(recipe.label)], recipe.task)
    except BadValue as bad:
        raise UserError(f"the {recipe.label} of '{source.uri}' is not a label: {bad.reason}") from None


_READERS: dict[str, Callable[[IO[bytes], Source, DataRecipe, Columns], Iterator[Row | Reject]]] = {
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "jsonl": _json_rows,
    "parquet": _parquet_rows,
    "xlsx": _workbook_rows,
    "text": _text_rows,
    "label-first": _label_first_rows,
}
