"""The delimiter of a CSV file: the recipe's, or what its first lines show."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from xlnet.data.lines import Line
from xlnet.data.storage import Source
from xlnet.data.values import shown
from xlnet.recipe import DataRecipe

PROBED = 20  # lines
OTHERS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}


def find(
    lines: Iterator[Line], source: Source, recipe: DataRecipe, tell: Callable[[str], None]
) -> tuple[str, Iterator[Line]]:
    """The delimiter, and the lines again.

    A comma, unless the first lines have none outside quotes and fall into equally many columns at another one.
    """
    first = list(islice(lines, PROBED))
    if first and (named := re.fullmatch(r"\s*sep=(.)\s*", first[0].text, re.IGNORECASE)):  # as Excel takes it
        tell(f"'{source.uri}' is split at {shown(named[1])}, as its first line says")
        return named[1] if recipe.delimiter == "auto" else recipe.delimiter, chain(first[1:], lines)
    if recipe.delimiter != "auto":
        return recipe.delimiter, chain(first, lines)
    rest = chain(first, lines)
    texts = [line.text for line in first if line.text.strip()]
    if not texts:
        return ",", rest
    commas = _columns(texts, ",")
    if commas[0] > 1:
        _tell_of_others(texts, commas[0], source, tell)
        return ",", rest
    for delimiter, name in OTHERS.items():
        widths = _columns(texts, delimiter)
        if widths and widths[0] > 1 and 10 * widths.count(widths[0]) >= 9 * len(widths):
            tell(f"'{source.uri}' is split at {name}, for its first line holds no comma; data.delimiter says otherwise")
            return delimiter, rest
    return ",", rest


def _tell_of_others(texts: Sequence[str], columns: int, source: Source, tell: Callable[[str], None]) -> None:
    """Say where another delimiter splits every line, too, and into as many columns at least."""
    for delimiter, name in OTHERS.items():
        widths = _columns(texts, delimiter)
        if len(widths) > 2 and set(widths) == {widths[0]} and widths[0] >= columns:
            tell(f"'{source.uri}' is split at a comma, though {name} would do, too; data.delimiter says otherwise")


def _columns(texts: Sequence[str], delimiter: str) -> list[int]:
    """Columns of each record in these lines; the last one may go on below, and is left out."""
    lines = (text.replace("\r", "") for text in texts)  # outside quotes it is an error
    widths = [len(record) for record in csv.reader(lines, delimiter=delimiter) if record]
    return widths[:-1] or widths
