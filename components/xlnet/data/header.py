"""Finds the record that names a file's columns, and explains why a wanted column is missing."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from xlnet.data.csv_records import Record
from xlnet.data.storage import Source
from xlnet.data.values import bare, shown
from xlnet.errors import UserError, nearest
from xlnet.recipe import Column, DataRecipe

MOST_TITLES = 10  # lines above the header
UNNAMED = ("", "Unnamed: 0", "index")  # what pandas calls an index that it wrote


def below_titles(
    first: Record, records: Iterator[Record], wanted: Sequence[str], source: Source, tell: Callable[[str], None]
) -> Record:
    """Return the first record that holds all wanted names, among the first few; if none does, the first record.

    Lines above the header are titles or remarks, so they must have fewer filled fields than it. Otherwise they could be
    rows, and the first record is returned. Some of the records below it are consumed.
    """
    if _holds(first, wanted):
        return first
    widest = _filled(first)
    for count, record in enumerate(islice(records, MOST_TITLES), 1):
        if record.reason:
            break
        if _holds(record, wanted) and widest < _filled(record):
            lines = f"the {count} lines above it are" if count > 1 else "the line above it is"
            tell(f"'{source.uri}' names its columns in line {record.line}; {lines} left out")
            return record
        widest = max(widest, _filled(record))
    return first


def _holds(record: Record, wanted: Sequence[str]) -> bool:
    return set(map(bare, wanted)) <= set(map(bare, record.fields))


def _filled(record: Record) -> int:
    return sum(1 for field in record.fields if field.strip())


def completed(header: Record, rows: Sequence[Record], source: Source, tell: Callable[[str], None]) -> Record:
    """Return the header with one more field, if each row has one more and the reason is clear.

    R writes row names in a column without a name. Other programs end each row, but not the header, with a delimiter.
    """
    usable = [row for row in rows if not row.reason]
    if not usable or {len(row.fields) for row in usable} != {len(header.fields) + 1}:
        return header
    if not any(row.fields[-1].strip() for row in usable):
        tell(f"the rows of '{source.uri}' end with a delimiter that its header lacks; the empty column is left out")
        return header._replace(fields=[*header.fields, ""])
    if _counts([row.fields[0] for row in usable]):
        tell(f"the first column of '{source.uri}' has no name: it counts the rows, as R and pandas do")
        return header._replace(fields=["", *header.fields])
    return header


def tell_of_index(header: Record, rows: Sequence[Record], source: Source, tell: Callable[[str], None]) -> None:
    """Report that column 0, which the recipe asks for, is an index that pandas wrote."""
    values = [row.fields[0] for row in rows if row.fields]
    if bare(header.fields[0]) in UNNAMED and _counts(values):
        some = ", ".join(map(shown, values[:3]))
        tell(f"column 0 of '{source.uri}' counts the rows ({some}), as pandas does: texts begin at column 1")


def _counts(values: Sequence[str]) -> bool:
    """Whether the values are consecutive whole numbers."""
    if len(values) < 2 or not all(value.strip().isdecimal() for value in values):
        return False
    start = int(values[0])
    return [int(value) for value in values] == list(range(start, start + len(values)))


def no_column(source: Source, recipe: DataRecipe, key: Column, names: Sequence[str]) -> UserError:
    """Return an error that lists the columns, with a hint why the wanted one may be missing."""
    if isinstance(key, int):
        return UserError(
            f"'{source.uri}' has {len(names)} column{'' if len(names) == 1 else 's'}, so none with index {key}; "
            f"allowed: {'0' if len(names) < 2 else f'0 to {len(names) - 1}'}{_delimiter_hint(names, recipe.delimiter)}"
        )
    listed = ", ".join(shown(name)[1:-1] for name in names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    hint = (
        _delimiter_hint(names, recipe.delimiter)
        or _quote_hint(key, names)
        or nearest(key, filter(str.isprintable, names[:1000]))
        or _no_header_hint(names)
    )
    return UserError(f"'{source.uri}' has no column {shown(key)}; it has: {listed}{more}{hint}")


def _delimiter_hint(names: Sequence[str], given: str) -> str:
    """Name the delimiter that would split a line of one column."""
    if len(names) != 1:
        return ""
    said = "" if given == "auto" else f"; data.delimiter is {shown(given)}, which gives one column"
    counts = {"\t": "a tab", ";": "';'", "|": "'|'", ",": "','", "^": "'^'", "~": "'~'", "\x01": r"'\u0001'"}
    found = [(names[0].count(one), word) for one, word in counts.items() if one in names[0] and one != given]
    return f"{said}; its columns seem to be separated by {max(found)[1]}" if found else said


def _quote_hint(key: str, names: Sequence[str]) -> str:
    """Say that the file has the name, but in quotes that were not taken off."""
    if all(name.strip("\"' ") != bare(key) for name in names):
        return ""
    return f"; {shown(key)} is there in quotes that belong to the name: take off the quotes, and spaces before them"


def _no_header_hint(names: Sequence[str]) -> str:
    """Say that the first line may be a row: it holds numbers or long texts."""
    if not any(is_number(name) or len(name.split()) > 3 for name in names):
        return ""
    return "; if that is a row and there is no header, give columns by index, from 0: data.text=0, data.label=1"


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
