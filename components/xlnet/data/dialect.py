"""Finds how lines are split into fields: the delimiter, the quote character, and how a quote is escaped.

What the recipe leaves open is guessed from the first lines. Each guess is reported, so that a user sees a wrong one.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

from xlnet.data.lines import Line
from xlnet.data.storage import Source
from xlnet.data.values import shown
from xlnet.errors import UserError
from xlnet.recipe import DataRecipe

PROBED, PROBED_CHARACTERS = 200, 1 << 20  # lines that a guess is made from
MOST_TITLES = 5  # lines above the rows, such as a table's title, that may lack the delimiter
CUT_SHORT = 20  # lines: a record that is not closed within the probed lines may be this long
COMMON = ",;\t|"
NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


_MARKDOWN = re.compile(r"\|?(\s*:?-{3,}:?\s*\|)+(\s*:?-{3,}:?\s*)?")  # the line below the names


class Dialect(NamedTuple):
    """How lines are split into fields."""

    delimiter: str = ","  # the character between fields
    quote: str | None = '"'  # around a field that may hold delimiters and line ends; None: quotes are part of the text
    backslash: bool = False  # whether a backslash stands before a quote inside a field; otherwise it is doubled
    spaces: bool = False  # whether spaces after a delimiter do not belong to the field

    def reader(self, lines: Iterable[str]) -> Any:
        """Return a strict reader of the csv module over these lines."""
        if self.quote is None:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(
            map(self._escaped, lines) if self.backslash else lines,
            strict=True,
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar="\\" if self.backslash else None,
            skipinitialspace=self.spaces,
        )

    def _escaped(self, line: str) -> str:
        """Double the backslashes that escape nothing, because the csv module would drop them."""
        kept = re.escape(f"\\{self.quote}{self.delimiter}")
        return re.sub(rf"\\([{kept}])|\\", lambda found: found[0] if found[1] else r"\\", line)


def find(
    lines: Iterator[Line], source: Source, recipe: DataRecipe, form: str, tell: Callable[[str], None]
) -> tuple[Dialect, Iterator[Line]]:
    """Return the dialect of a file and an iterator over its lines, without a first line such as ``sep=;``.

    The recipe's settings win over the guesses, which are told. In a file of form ``"csv"`` the delimiter is a comma
    unless the first lines show another one.

    Raises:
        UserError: it is a table in Markdown.
    """
    first: list[Line] = []
    size = 0
    while len(first) < PROBED and size < PROBED_CHARACTERS and (line := next(lines, None)):
        first.append(line)
        size += len(line.text)
    sign = recipe.delimiter
    if first and (named := re.fullmatch(r"\s*sep=(.)\s*", first[0].text, re.IGNORECASE)):  # as Excel takes it
        if sign == "auto":
            tell(f"'{source.uri}' is split at {shown(named[1])}, as its first line says")
            sign = named[1]
        del first[0]
    texts = [line.text for line in first if line.text.strip()]
    if len(texts) > 1 and _MARKDOWN.fullmatch(texts[1].strip()):
        raise UserError(f"'{source.uri}' is a table in Markdown; save it as CSV")
    if sign == "auto":
        sign = "\t" if form == "tsv" else _delimiter(texts, source, tell)
    ended = len(first) < PROBED and size < PROBED_CHARACTERS
    return _Quotes(texts, ended, source, tell).dialect(sign, recipe), chain(first, lines)


def _delimiter(texts: Sequence[str], source: Source, tell: Callable[[str], None]) -> str:
    """Return a comma, unless only another delimiter splits the first lines into equally many columns."""
    commas = _columns(texts, ",")
    if commas[:1] > [1]:
        _tell_of_others(texts, commas[0], source, tell)
        return ","
    quotes = '"' if any(text.startswith('"') for text in texts) else "\"'"
    for delimiter, quote in product(COMMON[1:], quotes):
        widths = _columns(texts, delimiter, quote)
        if widths and widths[0] > 1 and 10 * widths.count(widths[0]) >= 9 * len(widths):
            says = "for its first line holds no comma; data.delimiter says otherwise"
            tell(f"'{source.uri}' is split at {NAMES[delimiter]}, {says}")
            return delimiter
    for delimiter in COMMON:
        widths = _columns(texts, delimiter)
        titles = next((number for number, width in enumerate(widths) if width > 1), len(widths))
        below = widths[titles:]
        if 0 < titles <= MOST_TITLES and len(below) > titles and set(below) == {below[0]}:
            if delimiter != ",":
                says = f"for all lines but the first {titles} are; data.delimiter says otherwise"
                tell(f"'{source.uri}' is split at {NAMES[delimiter]}, {says}")
            return delimiter
    return ","


def _tell_of_others(texts: Sequence[str], columns: int, source: Source, tell: Callable[[str], None]) -> None:
    """Report another delimiter that also splits every line, into at least as many columns."""
    for delimiter in COMMON[1:]:
        widths = _columns(texts, delimiter)
        if len(widths) > 2 and set(widths) == {widths[0]} and widths[0] >= columns:
            name = NAMES[delimiter]
            tell(f"'{source.uri}' is split at a comma, though {name} would do, too; data.delimiter says otherwise")


def _columns(texts: Sequence[str], delimiter: str, quote: str = '"') -> list[int]:
    """Return the number of columns of each record, without the last one, which may be incomplete."""
    lines = (text.replace("\r", "") for text in texts)  # outside quotes it is an error
    widths = [len(record) for record in csv.reader(lines, delimiter=delimiter, quotechar=quote) if record]
    return widths[:-1] or widths


class _Found(NamedTuple):
    """What the first lines show about one quote character."""

    whole: bool  # whether all lines parse into records with equally many fields
    needed: bool  # whether some fields hold delimiters or line ends, so that the lines only parse with these quotes
    columns: bool  # whether some column is quoted in every record
    quoted: int  # number of fields that are enclosed in quotes
    escaped: int  # number of those that hold an escaped quote
    bare: int  # number of other fields that hold a quote
    example: str  # a quoted field, with an escaped quote if possible; else a line that holds the quote

    @property
    def is_certain(self) -> bool:
        """Whether a program must have written the quotes around fields, so that they are not part of the text."""
        if self.whole:
            return self.needed or ((self.columns or bool(self.escaped)) and not self.bare)
        return self.escaped > 2 and 5 * self.bare < self.escaped  # a few damaged lines


class _Quotes:
    """Finds out from a file's first lines whether quotes enclose fields or belong to the text."""

    def __init__(self, texts: Sequence[str], ended: bool, source: Source, tell: Callable[[str], None]) -> None:
        self._texts = [text.rstrip("\r\n") + "\n" for text in texts]
        self._ended, self._uri, self._tell = ended, source.uri, tell

    def dialect(self, delimiter: str, recipe: DataRecipe) -> Dialect:
        """Return the dialect that the recipe gives, completed from the lines."""
        if recipe.quoting == "none":
            return Dialect(delimiter, None)
        usual = '"' if recipe.quote == "auto" else recipe.quote
        if recipe.quoting != "auto":
            return self._with_spaces(Dialect(delimiter, usual, recipe.quoting == "backslash"))
        for quote in "\"'" if recipe.quote == "auto" else usual:
            for backslash in (False, True):
                found = Dialect(delimiter, quote, backslash)
                if self._is_shown(found):
                    return self._with_spaces(self._told(found))
        if delimiter == "\t" and recipe.quote == "auto":
            # In published tab-separated data sets, quotes are part of the text.
            self._say_kept(delimiter)
            return Dialect(delimiter, None)
        return self._with_spaces(Dialect(delimiter, usual))

    def _is_shown(self, dialect: Dialect) -> bool:
        quote = dialect.quote or ""
        if not any(quote in text for text in self._texts):
            return False
        if dialect.backslash and not any("\\" + quote in text for text in self._texts):
            return False
        return self._look(dialect).is_certain

    def _told(self, dialect: Dialect) -> Dialect:
        if dialect.quote != '"' or dialect.backslash or dialect.delimiter == "\t":
            how = ", in which a backslash escapes a quote" if dialect.backslash else ""
            self._tell(
                f"'{self._uri}' has fields in {dialect.quote} quotes{how}, such as "
                f"{shown(self._look(dialect).example)}: the quotes are taken off; data.quoting = 'none' keeps them"
            )
        return dialect

    def _say_kept(self, delimiter: str) -> None:
        found = self._look(Dialect(delimiter))
        if found.quoted and (found.escaped or not found.bare):
            self._tell(
                f"'{self._uri}' has {found.quoted:,} fields in quotes in its first lines, such as "
                f"{shown(found.example)}, whose quotes are kept; data.quoting = 'doubled' takes them off"
            )

    def _with_spaces(self, dialect: Dialect) -> Dialect:
        """Return the dialect, told to skip spaces before quotes if the lines only parse that way."""
        marks, wider = f"{dialect.delimiter} {dialect.quote}", dialect._replace(spaces=True)
        if dialect.delimiter == " " or not any(marks in text for text in self._texts):
            return dialect
        fields = chain.from_iterable(self._records(dialect)[0])
        if not any(field[:1] == " " and field.lstrip(" ").startswith(marks[-1]) for field in fields):
            return dialect
        records, closed = self._records(wider)
        if not closed or len(set(map(len, records))) != 1:
            return dialect
        self._tell(f"'{self._uri}' has spaces before its quotes; spaces after a delimiter are left out")
        return wider

    def _records(self, dialect: Dialect) -> tuple[list[list[str]], bool]:
        """Return the records of the lines, and whether every quotation is closed, except perhaps the last."""
        records, begun = [], 0
        reader = dialect.reader(self._texts)
        try:
            for record in reader:
                begun = reader.line_num
                records.append(record)
        except csv.Error as error:
            cut = not self._ended and str(error) == "unexpected end of data"
            return records, cut and len(self._texts) - begun < CUT_SHORT
        return records, True

    def _look(self, dialect: Dialect) -> _Found:
        quote, delimiter = re.escape(dialect.quote or ""), re.escape(dialect.delimiter)
        inside = rf"(?:\\.|[^{quote}\\])" if dialect.backslash else rf"(?:[^{quote}]|{quote}{quote})"
        escape = rf"\\{quote}" if dialect.backslash else quote + quote
        quotation, escaped = re.compile(f"{quote}{inside}*{quote}"), re.compile(escape)
        quoted, bare, fields, columns = [], 0, [], None
        for text in self._texts:
            fields = re.split(delimiter, text.rstrip("\n"))
            whole = {number for number, field in enumerate(fields) if quotation.fullmatch(field)}
            quoted += [fields[number] for number in whole]
            bare += sum(dialect.quote in field for number, field in enumerate(fields) if number not in whole)
            columns = whole if columns is None else columns & whole
        with_escapes = [field for field in quoted if escaped.search(field[1:-1])]
        others = (text.strip() for text in self._texts if (dialect.quote or "") in text)
        records, closed = self._records(dialect)
        widths = set(map(len, records))
        plain = {len(re.split(delimiter, text)) for text in self._texts}
        return _Found(
            whole=closed and len(widths) == 1 and len(records) > 1,
            needed=plain != widths,
            columns=bool(columns) and len(self._texts) > 1,
            quoted=len(quoted),
            escaped=len(with_escapes),
            bare=bare,
            example=next(chain(with_escapes, quoted, others), ""),
        )


class LateQuotes:
    """Warns of a wrong guess that quotes are part of the text: counts lines below the probed ones that look quoted."""

    def __init__(self, source: Source, tell: Callable[[str], None]) -> None:
        self._uri, self._tell, self._found = source.uri, tell, 0

    def note(self, line: Line) -> None:
        """Take a line that holds two quotes, one after the other."""
        self._found += line.number > PROBED and _ESCAPED.search(line.text) is not None

    def say(self) -> None:
        """Report what was found, at the end of the file."""
        if self._found:
            self._tell(
                f"'{self._uri}' has {self._found:,} fields in quotes below its first lines, whose quotes are kept; "
                "data.quoting = 'doubled' takes them off"
            )


_ESCAPED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*[^"\t](?:"")+(?:[^"\t]|"")*"(?:\t|\r?\n?$)')
