"""The delimiter of a CSV file: the recipe's, or what its first lines show."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from xlnet.data.lines import Line
from xlnet.data.storage import Source
from xlnet.recipe import DataRecipe

PROBED = 20  # lines
OTHERS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}


def find(
    lines: Iterator[Line], source: Source, recipe: DataRecipe, tell: Callable[[str], None]
) -> tuple[str, Iterator[Line]]:
    """The delimiter, and the lines again.

    A comma, unless the first lines have none outside quotes and fall into equally many columns at another one.
    """
    if recipe.delimiter != "auto":
        return recipe.delimiter, lines
    first = list(islice(lines, PROBED))
    rest = chain(first, lines)
    texts = [line.text for line in first if line.text.strip()]
    if not texts or _columns(texts, ",")[:1] != [1]:
        return ",", rest
    for delimiter, name in OTHERS.items():
        widths = _columns(texts, delimiter)
        if widths and widths[0] > 1 and 10 * widths.count(widths[0]) >= 9 * len(widths):
            tell(f"'{source.uri}' is split at {name}, for its first line holds no comma; data.delimiter says otherwise")
            return delimiter, rest
    return ",", rest


def _columns(texts: Sequence[str], delimiter: str) -> list[int]:
    """Columns of each record in these lines; the last one may go on below, and is left out."""
    lines = (text.replace("\r", "") for text in texts)  # outside quotes it is an error
    widths = [len(record) for record in csv.reader(lines, delimiter=delimiter) if record]
    return widths[:-1] or widths
