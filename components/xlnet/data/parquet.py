"""Reads Parquet files in batches. A damaged file is an error of one line; an unreadable cell rejects its row."""

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from xlnet.data.storage import Source
from xlnet.errors import RunError, UserError

BATCH = 4096  # rows


class ParquetRows:
    """A Parquet file, whose columns are read by name.

    Raises:
        UserError: the file is not a Parquet file.
    """

    def __init__(self, file: IO[bytes], source: Source) -> None:
        self._source = source
        try:
            self._file = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of the columns' names
            raise UserError(f"'{source.uri}' is not a Parquet file: {_line(error)}") from None
        self.names: list[str] = self._file.schema_arrow.names

    def rows(self, names: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the values of these columns, row by row, each with the reason why the row cannot be read, or "".

        Raises:
            RunError: the file is damaged.
        """
        columns = list(dict.fromkeys(names))
        count = 0
        try:
            for batch in self._file.iter_batches(batch_size=BATCH, columns=columns):
                count += batch.num_rows
                values = [_values(batch.column(name)) for name in columns]
                for row in zip(*values, strict=True):
                    reasons = [value.reason for value in row if isinstance(value, _Unreadable)]
                    yield dict(zip(columns, row, strict=True)), reasons[0] if reasons else ""
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"'{self._source.uri}' is damaged: {_line(error)}; replace the file") from None
        if count != self._file.metadata.num_rows:
            rows = f"{count} of {self._file.metadata.num_rows} rows"
            raise RunError(f"'{self._source.uri}' is damaged: it holds {rows}; replace the file")


class _Unreadable:
    """Stands for a cell that Python cannot hold."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # of one cell; UnicodeDecodeError is a ValueError
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        return _Unreadable(f"not UTF-8: byte {wrong:#04x} at column {error.start + 1}")
    except (ValueError, OverflowError) as error:
        return _Unreadable(f"unreadable value: {_line(error)}")


def _line(error: Exception) -> str:
    """Return an error's first line without characters that cannot be printed."""
    first = (str(error).splitlines() or [""])[0]
    return "".join(one if one.isprintable() else "?" for one in first)[:200]
