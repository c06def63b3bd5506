"""Rows out of files: CSV, TSV, JSON Lines, Parquet and plain text, streamed; every line is a row's or a reject.

What exactly holds, for any bytes:

- TSV, JSON Lines and plain text: each line that is not blank is one row or one reject; a header is neither.
- CSV: each line that is not blank belongs to one row (whose quoted fields may hold line ends) or is one reject.
- Parquet: each row of the file is a row or a reject, or the file is damaged, which is an error that names it.
- Compressed files: the same, or the file is damaged.
"""

import contextlib
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import IO, Any, NamedTuple

from xlnet.data import delimiter
from xlnet.data.columns import UNKNOWN, Columns, Reject, Row
from xlnet.data.csv_records import CsvRecords, Record
from xlnet.data.lines import Line, read_lines
from xlnet.data.storage import Source, open_binary
from xlnet.data.values import BadValue, check_label, check_text, shown
from xlnet.errors import RunError, UserError
from xlnet.recipe import Column, DataRecipe

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
FIRST_LINE = 1 << 20  # bytes of a .txt file's first line in which a tab is looked for
MOST_DIGITS = 4300  # of a whole number that int() reads


def silent(_: str) -> None:
    """Tell nobody."""


def read_rows(
    source: Source,
    recipe: DataRecipe,
    labelled: bool = True,
    tell: Callable[[str], None] = silent,
    optional: Mapping[str, Column] | None = None,
    file: IO[bytes] | None = None,
) -> Iterator[Row | Reject]:
    """All rows of a source in order.

    Args:
        source: where they are.
        recipe: format and columns.
        labelled: False for texts to predict: neither label nor id have to be there, labels are ``"?"``, and a blank
            line is a reject.
        tell: called with a line for each thing that was decided by looking at the rows, such as a header.
        optional: columns of texts to predict that are taken where a file has them: ``id``, ``text_pair``.
        file: the source, open at its beginning and uncompressed; None: it is opened.

    Raises:
        UserError: the format is unknown, a column is not there, the file is empty.
        RunError: the file is gone or damaged.
    """
    form = file_format(source, recipe)
    with _damage_said(source), file or open_binary(source) as opened:
        yield from _READERS[form](opened, source, recipe, Columns(source, recipe, labelled, tell, optional))


@contextlib.contextmanager
def _damage_said(source: Source) -> Iterator[None]:
    """Say in one line that a compressed file is damaged."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RunError(f"'{source.uri}' is damaged: {error}; replace the file") from None


def file_format(source: Source, recipe: DataRecipe) -> str:
    """The format asked for, or the one that the name's ending and the first line tell."""
    if recipe.format != "auto":
        return recipe.format
    for suffix, form in FORMATS.items():
        if source.name.endswith(suffix):
            return form
    if source.name.endswith(".txt"):
        with _damage_said(source), open_binary(source) as file:
            return "tsv" if b"\t" in file.readline(FIRST_LINE) else "text"
    raise UserError(f"'{source.uri}' has an unknown ending; set data.format to csv, tsv, jsonl, parquet or text")


class _Object(NamedTuple):
    """A record whose fields have names."""

    line: int
    fields: dict[Any, Any]
    reason: str = ""


def _csv_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    lines = read_lines(file, source, recipe, columns.tell, quoted=True)
    sign, lines = delimiter.find(lines, source, recipe, columns.tell)
    return columns.rows_of_fields(CsvRecords(lines, recipe.max_record_lines, recipe.max_record_bytes, sign))


def _tsv_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    return columns.rows_of_fields(_tsv_records(read_lines(file, source, recipe, columns.tell), columns.labelled))


def _tsv_records(lines: Iterator[Line], labelled: bool) -> Iterator[Record]:
    # Quotes mean nothing in TSV as data sets are published: a bare " is part of the text.
    begun = False
    for line in lines:
        text = line.text.rstrip("\r\n")
        if line.reason or text or (begun and not labelled):
            yield Record(line.number, text.split("\t") if text else [], line.reason)
            begun = True


def _json_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    return columns.rows_of_objects(_json_records(read_lines(file, source, recipe, columns.tell), columns))


def _json_records(lines: Iterator[Line], columns: Columns) -> Iterator[_Object]:
    for line in lines:
        if line.reason:
            yield _Object(line.number, {}, line.reason)
        elif not line.text.isspace():
            fields, reason = _json_object(line.text.strip(), {*columns.keys.values(), *columns.optional.values()})
            yield _Object(line.number, fields, reason)
        elif not columns.labelled:
            yield _Object(line.number, {}, "empty text")


class _Repeating(dict[str, Any]):
    """A JSON object with several fields of one name, of which it keeps the last.

    Attributes:
        names: those that are there more than once.
    """

    names: frozenset[str] = frozenset()


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeating = _Repeating(fields)
    counts = Counter(name for name, _ in pairs)
    repeating.names = frozenset(name for name, count in counts.items() if count > 1)
    return repeating


def _json_object(text: str, wanted: set[Any]) -> tuple[dict[str, Any], str]:
    """The object in a line, or why there is none."""
    try:
        check_text(text)
        fields = _JSON.decode(text)
    except BadValue as bad:
        return {}, bad.reason
    except ValueError as error:
        return {}, f"not JSON: {error}"
    except RecursionError:
        return {}, "not JSON: nested too deeply"
    if isinstance(fields, _Repeating) and (twice := fields.names & wanted):
        return {}, f"several fields of one name: {shown(min(twice))}"
    return (fields, "") if isinstance(fields, dict) else ({}, f"not a JSON object: {type(fields).__name__}")


def _whole_number(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < MOST_DIGITS else Decimal(digits)


def _parquet_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    from xlnet.data.parquet import ParquetRows

    found = ParquetRows(file, source)
    rows = found.rows(columns.named(found.names))
    return (columns.row(_Object(line, fields, reason)) for line, (fields, reason) in enumerate(rows, 1))


def _text_rows(file: IO[bytes], source: Source, recipe: DataRecipe, columns: Columns) -> Iterator[Row | Reject]:
    """One text a line. The label is the name of the file, or of the directory it lies in."""
    label = _label_of_name(source, recipe) if columns.labelled else UNKNOWN
    for line in read_lines(file, source, recipe, columns.tell):
        text = line.text.rstrip("\r\n")
        if columns.labelled and not line.reason and (not text or text.isspace()):
            continue
        try:
            yield (
                Reject(line.number, line.reason)
                if line.reason
                else Row(check_text(text), None, label, None, line.number)
            )
        except BadValue as bad:
            yield Reject(line.number, bad.reason)


def _label_of_name(source: Source, recipe: DataRecipe) -> str:
    parts = source.uri.rsplit("/", 2)
    file = parts[-1][:-3] if parts[-1].lower().endswith(".gz") else parts[-1]
    labels = {"file": file.rpartition(".")[0] or file, "directory": parts[-2] if len(parts) > 1 else ""}
    if recipe.label not in labels:
        raise UserError(
            f"'{source.uri}' is plain text, without columns; set data.label to 'file' or 'directory' (whose name is "
            "the label), or data.format to csv, tsv, jsonl or parquet"
        )
    try:
        return check_label(labels[str(recipe.label)], recipe.task)
    except BadValue as bad:
        raise UserError(f"the {recipe.label} of '{source.uri}' is no label: {bad.reason}") from None


_JSON = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=_fields)
_READERS: dict[str, Callable[[IO[bytes], Source, DataRecipe, Columns], Iterator[Row | Reject]]] = {
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "jsonl": _json_rows,
    "parquet": _parquet_rows,
    "text": _text_rows,
}
