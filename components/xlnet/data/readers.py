"""Rows out of files: CSV, TSV, JSON Lines, Parquet and plain text, streamed; every row is a row or a reject."""

import csv
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

from xlnet.data.storage import Source, open_binary
from xlnet.errors import RunError, UserError, nearest
from xlnet.recipe import Column, DataRecipe

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
MAX_LINE = 64 << 20  # bytes; a longer line is rejected and skipped, so that memory stays flat
LIKELY_HEADERS = {"label", "labels", "class", "sentiment", "target", "score", "y", "category", "stars", "rating"}
UNKNOWN = "?"  # label of a text to predict
HEADER_PROBE = 200  # rows looked at to tell a forgotten header

csv.field_size_limit(sys.maxsize)


class Row(NamedTuple):
    """One example as it stands in a file."""

    text: str
    text_pair: str | None
    label: str
    id: str | None
    line: int


class Reject(NamedTuple):
    """One row that cannot be used."""

    line: int
    reason: str


class _Record(NamedTuple):
    """One record's fields, before columns are chosen."""

    line: int
    fields: Any  # list of str, or dict by name
    reason: str = ""


def read_rows(source: Source, recipe: DataRecipe, labelled: bool = True) -> Iterator[Row | Reject]:
    """All rows of a source in order.

    Args:
        source: where they are.
        recipe: format and columns.
        labelled: False for texts to predict: neither label nor id are looked for, and labels are ``"?"``.

    Raises:
        UserError: the format is unknown, a column is not there, the file is empty.
        RunError: the file is gone or damaged.
    """
    form = file_format(source, recipe)
    try:
        with open_binary(source) as file:
            if form == "text":
                yield from _text_rows(source, file, recipe, labelled)
                return
            records = _RECORDS[form](file, source, recipe, labelled)
            columns = _Columns(source, recipe, form, records, labelled)
            for record in columns.records():
                yield Reject(record.line, record.reason) if record.reason else columns.row(record)
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
        with open_binary(source) as file:
            return "tsv" if b"\t" in file.readline(MAX_LINE) else "text"
    raise UserError(f"'{source.uri}' has an unknown ending; set data.format to csv, tsv, jsonl, parquet or text")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str | None, str]]:
    """Line number from 1, the text, and a reason if it cannot be used. Ends with LF, CRLF or, alone, CR."""
    head = cast(io.BufferedReader, file).peek(1 << 16) if hasattr(file, "peek") else b""
    if b"\r" in head and b"\n" not in head:
        file = io.BytesIO(file.read().replace(b"\r", b"\n"))
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None, f"line longer than {MAX_LINE >> 20} MiB"
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.rstrip(b"\r\n")
        try:
            yield number, line.decode(), ""
        except UnicodeDecodeError as error:
            yield number, None, f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}"


def _tsv_records(file: IO[bytes], source: Source, recipe: DataRecipe, labelled: bool) -> Iterator[_Record]:
    # Quotes mean nothing in TSV as data sets are published: a bare " is part of the text.
    for number, text, reason in _lines(file):
        if reason or text:
            yield _Record(number, None if text is None else text.split("\t"), reason)


def _csv_records(file: IO[bytes], source: Source, recipe: DataRecipe, labelled: bool) -> Iterator[_Record]:
    # surrogateescape keeps undecodable bytes visible, so that only their row is rejected.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Record(line, None, f"malformed CSV: {error}")
            continue
        if fields:
            yield _Record(line, fields, _undecodable(fields))


def _undecodable(fields: list[str]) -> str:
    for field in fields:
        try:
            field.encode()
        except UnicodeEncodeError as error:
            return f"not UTF-8: byte {ord(field[error.start]) - 0xDC00:#04x} at column {error.start + 1}"
    return ""


def _json_records(file: IO[bytes], source: Source, recipe: DataRecipe, labelled: bool) -> Iterator[_Record]:
    for number, text, reason in _lines(file):
        if text is None:
            yield _Record(number, None, reason)
        elif text.strip():
            try:
                fields = json.loads(text)
            except ValueError as error:
                yield _Record(number, None, f"not JSON: {error}")
            except RecursionError:
                yield _Record(number, None, "not JSON: nested too deeply")
            else:
                yield _Record(number, fields, "" if isinstance(fields, dict) else "not a JSON object")


def _parquet_records(file: IO[bytes], source: Source, recipe: DataRecipe, labelled: bool) -> Iterator[_Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"'{source.uri}' is no Parquet file: {str(error).splitlines()[0]}") from None
    names = table.schema_arrow.names
    wanted = [recipe.text, recipe.text_pair, *((recipe.label, recipe.id) if labelled else ())]
    chosen = [
        names[name] if isinstance(name, int) and name < len(names) else name for name in wanted if name is not None
    ]
    for missing in (name for name in chosen if name not in names):
        raise _no_column(source, missing, names)
    line = 0
    for batch in table.iter_batches(batch_size=4096, columns=list(dict.fromkeys(chosen))):
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        for i in range(batch.num_rows):
            line += 1
            by_name = {name: values[i] for name, values in columns.items()}
            yield _Record(line, by_name | {names.index(name): value for name, value in by_name.items()})


_RECORDS = {"csv": _csv_records, "tsv": _tsv_records, "jsonl": _json_records, "parquet": _parquet_records}


def _text_rows(source: Source, file: IO[bytes], recipe: DataRecipe, labelled: bool) -> Iterator[Row | Reject]:
    """One text a line. The label is the name of the file, or of the directory it lies in."""
    parts = source.uri.rsplit("/", 2)
    labels = {"file": source.name.rpartition(".")[0] or source.name, "directory": parts[-2] if len(parts) > 1 else ""}
    if labelled and recipe.label not in labels:
        raise UserError(
            f"'{source.uri}' is plain text, without columns; set data.label to 'file' or 'directory' (whose name is "
            "the label), or data.format to csv, tsv, jsonl or parquet"
        )
    for number, text, reason in _lines(file):
        if text is None:
            yield Reject(number, reason)
        elif text.strip():
            yield _checked(number, text, None, labels[str(recipe.label)] if labelled else UNKNOWN, None)


@dataclass
class _Columns:
    """Which fields of a record are the text, its pair, the label and the id."""

    source: Source
    recipe: DataRecipe
    form: str
    stream: Iterator[_Record]
    labelled: bool

    def records(self) -> Iterator[_Record]:
        """The records without the header; columns are resolved on the way."""
        recipe = self.recipe
        keys = {"text": recipe.text, "text_pair": recipe.text_pair}
        if self.labelled:
            keys |= {"label": recipe.label, "id": recipe.id}
        self.keys: dict[str, Any] = {use: key for use, key in keys.items() if key is not None}
        if self.form in ("csv", "tsv"):
            yield from self._with_header()
        else:
            if (
                self.form == "jsonl"
                and (index := next((k for k in self.keys.values() if isinstance(k, int)), None)) is not None
            ):
                raise UserError(f"'{self.source.uri}' is JSON Lines, whose columns have names; {index} is an index")
            yield from self.stream

    def _with_header(self) -> Iterator[_Record]:
        by_name = [key for key in self.keys.values() if isinstance(key, str)]
        first = next(self.stream, None)
        if first is None:
            raise UserError(f"'{self.source.uri}' is empty; give a file with rows")
        if by_name and self.recipe.header == "no":
            raise UserError(f"data.header is 'no', but '{by_name[0]}' is a name; give columns by index, from 0")
        has_header = bool(by_name) or self.recipe.header == "yes"
        names = first.fields or []
        if has_header:
            self.keys = {use: self._index(key, names) for use, key in self.keys.items()}
            self.width = len(names)
            yield from self.stream
            return
        self.width = len(names)
        for key in self.keys.values():
            if key >= len(names):
                raise _no_column(self.source, key, names)
        probing = self.labelled and self.recipe.header == "auto"
        yield from self._probed(first) if probing else itertools.chain([first], self.stream)

    def _probed(self, first: _Record) -> Iterator[_Record]:
        """Refuse a forgotten header: a first label that no other row has and that is the column's likely name."""
        probe = [first, *itertools.islice(self.stream, HEADER_PROBE)]
        label = self.keys["label"]
        found = [record.fields[label].strip() for record in probe if record.fields and len(record.fields) > label]
        if len(found) > 2 and found[0] not in found[1:] and found[0].lower() in LIKELY_HEADERS:
            raise UserError(
                f"the first row of '{self.source.uri}' looks like a header ('{found[0]}'); "
                "set data.header to 'yes' or 'no'"
            )
        yield from probe
        yield from self.stream

    def _index(self, key: Column, names: list[str]) -> int:
        if isinstance(key, int):
            if key >= len(names):
                raise _no_column(self.source, key, names)
            return key
        stripped = [name.strip() for name in names]
        if key not in stripped:
            raise _no_column(self.source, key, stripped)
        return stripped.index(key)

    def row(self, record: _Record) -> Row | Reject:
        """The example in a record, or why there is none."""
        fields, keys = record.fields, self.keys
        if self.form in ("csv", "tsv") and len(fields) != self.width:
            return Reject(record.line, f"{len(fields)} columns instead of {self.width}")
        try:
            text, label = fields[keys["text"]], fields[keys["label"]] if self.labelled else UNKNOWN
            pair = fields[keys["text_pair"]] if "text_pair" in keys else None
            ident = fields[keys["id"]] if "id" in keys else None
        except KeyError as missing:
            return Reject(record.line, f"no field {missing.args[0]!r}")
        if text is None or ("text_pair" in keys and pair is None):
            return Reject(record.line, "empty text")
        for use, value in (("text", text), ("text_pair", pair)):
            if not isinstance(value, str | None):
                return Reject(record.line, f"{use} is {type(value).__name__}, not a string")
        return _checked(record.line, text, pair, _label(label), None if ident is None else str(ident))


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _checked(line: int, text: str, pair: str | None, label: str, ident: str | None) -> Row | Reject:
    if not text or text.isspace() or (pair is not None and not pair.strip()):
        return Reject(line, "empty text")
    if "\0" in text or (pair is not None and "\0" in pair) or "\0" in label:
        return Reject(line, "NUL byte")
    if not label:
        return Reject(line, "no label")
    return Row(text, pair, label, ident, line)


def _no_column(source: Source, key: Column, names: list[str]) -> UserError:
    shown = [name if len(name) <= 30 else name[:27] + "…" for name in names[:20]]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    if isinstance(key, int):
        return UserError(
            f"'{source.uri}' has {len(names)} columns, so none with index {key}; allowed: 0 to {len(names) - 1}"
        )
    return UserError(
        f"'{source.uri}' has no column '{key}'; it has: {', '.join(shown)}{more}{nearest(key, names[:1000])}"
    )
