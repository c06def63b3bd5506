"""Finds the text, its pair, the label and the id among the fields of a record."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xlnet.data import header as headers
from xlnet.data.csv_records import CsvRecords, Record, wrong_width
from xlnet.data.storage import Source
from xlnet.data.values import BadValue, bare, check_id, check_label, check_pair, check_text, shown
from xlnet.errors import UserError
from xlnet.recipe import Column, DataRecipe

UNKNOWN = "?"  # label of a text to predict
PROBED = 200  # rows that are read to recognise a header
MOST_LABELS = 1000  # labels that are kept, to recognise rows that a wrong quotation has joined
LABEL_NAMES = {"label", "labels", "class", "sentiment", "target", "score", "y", "category", "stars", "rating"}
TEXT_NAMES = {"text", "sentence", "sentence1", "review", "comment", "content", "message", "question", "tweet", "body"}
_NAME = re.compile(r"[^\W\d][\w .-]*")


class Row(NamedTuple):
    """One example, as the file gives it."""

    text: str
    text_pair: str | None
    label: str
    id: str | None
    line: int
    written: str | None = None  # the label in the file, if spaces or marks around it were removed


class Reject(NamedTuple):
    """A line or row that cannot be used. The reason has the form ``kind`` or ``kind: what was found``."""

    line: int
    reason: str


class Columns:
    """Turns the records of one file into rows.

    Args:
        source: the file, for messages.
        recipe: names or indices of the columns.
        labelled: whether the file has labels and ids. If not, its texts are to be predicted: every line gets an
            answer, so a blank line is a reject.
        tell: called with each guess that was made from the rows.
        optional: columns that a file of texts to predict may have, by use: ``id``, ``text_pair``.
    """

    def __init__(
        self,
        source: Source,
        recipe: DataRecipe,
        labelled: bool,
        tell: Callable[[str], None],
        optional: Mapping[str, Column] | None = None,
    ) -> None:
        self.source, self.recipe, self.labelled, self.tell = source, recipe, labelled, tell
        keys = {"text": recipe.text, "text_pair": recipe.text_pair}
        if labelled:
            keys |= {"label": recipe.label, "id": recipe.id}
        self.keys: dict[str, Any] = {use: key for use, key in keys.items() if key is not None}
        self.optional: dict[str, Any] = dict(optional or {})
        self.width: int | None = None  # columns that each record has to have; None: names, not positions
        self.header: list[str] | None = None  # if the file has labels; a repeated header means that files were joined
        self.seen: set[str] = set()

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the names of the wanted columns; UserError if the file lacks one, or has two of that name."""
        found = {use: names[self._index(key, names, "rename one")] for use, key in self.keys.items()}
        for name in found.values():
            self._index(name, names, "rename one")
        self.keys = found
        self.optional = {use: names[key] for use, key in self._positions(names).items()}
        return [*found.values(), *self.optional.values()]

    def rows_of_objects(self, records: Iterator[Any]) -> Iterator[Row | Reject]:
        """Rows of JSON objects.

        Raises:
            UserError: the recipe names a column by its index.
        """
        for index in (key for key in self.keys.values() if isinstance(key, int)):
            raise UserError(f"'{self.source.uri}' is JSON Lines, whose columns have names; {index} is an index")
        return map(self.row, records)

    def rows_of_fields(self, records: Iterator[Record]) -> Iterator[Row | Reject]:
        """Yield rows of records whose columns have positions; only a header gives them names.

        Raises:
            UserError: there is no record, or no such column.
        """
        skipped: list[Record] = []
        first = _next_usable(records, skipped)
        if first is None and not skipped:
            raise UserError(f"'{self.source.uri}' is empty; give a file with rows")
        by_name = [key for key in self.keys.values() if isinstance(key, str)]
        if by_name and self.recipe.header == "no":
            raise UserError(f"data.header is 'no', but {shown(by_name[0])} is a name; give columns by index, from 0")
        if skipped and (by_name or self.recipe.header == "yes"):
            line, _, reason = skipped[0]
            raise UserError(f"line {line} of '{self.source.uri}' should name the columns, but cannot be used: {reason}")
        if first is None:
            return map(self.row, skipped)
        has_header = bool(by_name) or self.recipe.header == "yes"
        first, ahead, records = self._header(first, records, by_name) if has_header else (first, [], records)
        self.keys = {use: self._index(key, first.fields) for use, key in self.keys.items()}
        self.width = len(first.fields)
        if has_header and 0 in self.keys.values() and not by_name:
            headers.tell_of_index(first, ahead, self.source, self.tell)
        if isinstance(records, CsvRecords):
            if not has_header:
                records.take_back()
            self._know_labels(records)
            if not has_header and (first := _next_usable(records, skipped)) is None:
                return map(self.row, skipped)
        following: list[Record] = []
        rest = self._noted(records)
        if not has_header and self.recipe.header == "auto":
            following = list(itertools.islice(rest, PROBED))
            has_header = self._looks_like_header(first, following)
            if has_header and 0 in self.keys.values():
                headers.tell_of_index(first, following, self.source, self.tell)
        self.optional = self._positions(first.fields if has_header else [""] * self.width)
        self.header = first.fields if has_header and self.labelled else None
        return map(self.row, itertools.chain(skipped, [] if has_header else [first], following, rest))

    def _header(
        self, first: Record, records: Iterator[Record], names: Sequence[str]
    ) -> tuple[Record, list[Record], Iterator[Record]]:
        """Return the record that names the columns, the first records below it, and an iterator over all below it."""
        first = headers.below_titles(first, records, names, self.source, self.tell)
        if isinstance(records, CsvRecords):
            ahead = records.ahead()
        else:
            ahead = list(itertools.islice(records, PROBED))
            records = itertools.chain(ahead, records)
        return headers.completed(first, ahead, self.source, self.tell), ahead, records

    def row(self, record: Any) -> Row | Reject:
        """Turn a record into an example, or into a reject that says why it cannot be used."""
        fields, keys, line = record.fields, self.keys, record.line
        if record.reason:
            return Reject(line, record.reason)
        width, header = self.width, self.header
        if width is not None and len(fields) != width:
            is_blank = not fields and not self.labelled
            return Reject(line, "empty text" if is_blank else wrong_width(len(fields), width))
        if header and fields[-1] == header[-1] and list(map(bare, fields)) == list(map(bare, header)):
            return Reject(line, "the header again")
        try:
            text = check_text(fields[keys["text"]])
            pair = check_pair(fields[keys["text_pair"]]) if "text_pair" in keys else None
            if not self.labelled:
                return Row(text, pair or self._pair_of(fields), UNKNOWN, self._id_of(fields), line)
            given = fields[keys["label"]]
            label = check_label(given, self.recipe.task)
            ident = check_id(fields[keys["id"]]) if "id" in keys else None
        except KeyError as missing:
            return Reject(line, f"field is missing: {shown(missing.args[0])}")
        except BadValue as bad:
            return Reject(line, bad.reason)
        written = given if isinstance(given, str) and given != label else None
        return Row(text, pair, label, ident, line, written)

    def _positions(self, names: Sequence[str]) -> dict[str, int]:
        """Return the positions of those optional columns that the file has exactly once."""
        stripped = list(map(bare, names))
        found = {
            use: key if isinstance(key, int) else stripped.index(bare(key))
            for use, key in self.optional.items()
            if isinstance(key, int) or stripped.count(bare(key)) == 1
        }
        return {use: position for use, position in found.items() if position < len(names)}

    def _given(self, fields: Any, use: str) -> Any:
        """Return the value of an optional column; None if the file lacks it."""
        key = self.optional.get(use)
        return None if key is None else fields.get(key) if isinstance(fields, dict) else fields[key]

    def _pair_of(self, fields: Any) -> str | None:
        given = self._given(fields, "text_pair")
        return None if given in (None, "") else check_pair(given)

    def _id_of(self, fields: Any) -> str | None:
        try:
            return check_id(self._given(fields, "id"))
        except BadValue:  # a column of that name with something else in it
            return None

    def _noted(self, records: Iterator[Record]) -> Iterator[Record]:
        """Yield the records, and remember their labels."""
        label = self.keys.get("label", 0)
        for record in records:
            if len(record.fields) == self.width and len(self.seen) < MOST_LABELS:
                self.seen.add(record.fields[label].strip())
            yield record

    def _know_labels(self, records: CsvRecords) -> None:
        """Give the CSV parser the labels that occur, so that it detects rows that a wrong quotation has joined."""
        for _ in self._noted(one for one in records.ahead() if len(one.fields) == self.width):
            pass
        records.width, records.is_row = self.width, self._is_row
        records.blank_rows = not self.labelled

    def _is_row(self, fields: list[str]) -> bool:
        """Whether one line, split without regard to quotes, is a row whose label occurs in other rows."""
        if not self.labelled or len(fields) != self.width:
            return False
        label = fields[self.keys["label"]].strip().strip('"')
        if self.recipe.task == "classification":
            return label in self.seen
        return headers.is_number(label)

    def _looks_like_header(self, first: Record, others: list[Record]) -> bool:
        """Whether the first row names the columns: its label looks like a name, and no other row has it."""
        found = self._header_by_label(first, others) if self.labelled else self._header_by_text(first, others)
        if found:
            names = ", ".join(shown(name) for name in first.fields[:5])
            self.tell(
                f"the first line of '{self.source.uri}' ({names}) is taken for a header; "
                "if it is a row, set data.header to 'no'"
            )
        return found

    def _header_by_text(self, first: Record, others: list[Record]) -> bool:
        return _plain(first.fields[self.keys["text"]]) in TEXT_NAMES and self._alone("text", first, others)

    def _header_by_label(self, first: Record, others: list[Record]) -> bool:
        label = _plain(first.fields[self.keys["label"]])
        rest = [one.fields[self.keys["label"]] for one in others if len(one.fields) == self.width]
        if len(rest) < 2 or not _NAME.fullmatch(label) or not self._alone("label", first, others):
            return False
        named = label in LABEL_NAMES or _plain(first.fields[self.keys["text"]]) in TEXT_NAMES
        if named or label in {"none", "null", "na"}:
            return named
        return all(map(headers.is_number, rest)) and not headers.is_number(label)

    def _alone(self, use: str, first: Record, others: list[Record]) -> bool:
        key = self.keys[use]
        value = first.fields[key]
        return all(one.fields[key] != value for one in others if len(one.fields) == self.width)

    def _index(self, key: Column, names: Sequence[str], remedy: str = "give the index of one") -> int:
        if isinstance(key, int):
            if key >= len(names):
                raise headers.no_column(self.source, self.recipe, key, names)
            return key
        places = [index for index, name in enumerate(names) if bare(name) == bare(key)]
        if not places:
            raise headers.no_column(self.source, self.recipe, key, list(map(bare, names)))
        if len(places) > 1:
            both = " and ".join(map(str, places[:5]))
            raise UserError(f"'{self.source.uri}' has {len(places)} columns named {shown(key)}, {both}; {remedy}")
        return places[0]


def _next_usable(records: Iterator[Record], skipped: list[Record]) -> Record | None:
    """Return the next usable record. Unusable ones before it are added to ``skipped``."""
    for record in records:
        if not record.reason:
            return record
        skipped.append(record)
    return None


def _plain(value: str) -> str:
    return value.strip().strip("\"'").lower()
