"""Documents of a corpus for pretraining: any file that rows can be read from, and plain text; no labels.

In plain text a blank line ends a document. In a file without blank lines each line is a document. Elsewhere each row
is one.
"""

import itertools
from collections.abc import Callable, Iterator

from xlnet.data.columns import Reject, Row
from xlnet.data.readers import file_format, read_rows, silent
from xlnet.data.storage import Source
from xlnet.recipe import DataRecipe

PROBED = 1000  # lines in which a blank one is looked for
BLANK = "empty text"


def rows_of(source: Source, recipe: DataRecipe, tell: Callable[[str], None] = silent) -> Iterator[Row | Reject]:
    """Read a source as the recipe's task needs it: labelled rows, or the documents of a corpus.

    Raises:
        UserError, RunError: see :func:`xlnet.data.readers.read_rows`.
    """
    if recipe.task != "pretrain":
        return read_rows(source, recipe, tell=tell)
    rows = read_rows(source, recipe, labelled=False, tell=tell)
    if file_format(source, recipe) != "text":
        return (row for row in rows if not _is_blank(row))
    first = list(itertools.islice(rows, PROBED))
    kinds = [_is_blank(row) for row in first]
    ends = len(kinds) - kinds[::-1].index(False) if False in kinds else 0
    rows = itertools.chain(first, rows)
    return _paragraphs(rows) if True in kinds[:ends] else (row for row in rows if not _is_blank(row))


def _is_blank(row: Row | Reject) -> bool:
    return isinstance(row, Reject) and row.reason.startswith(BLANK)


def _paragraphs(rows: Iterator[Row | Reject]) -> Iterator[Row | Reject]:
    lines: list[Row] = []
    for row in rows:
        if isinstance(row, Row):
            lines.append(row)
            continue
        yield from _joined(lines)
        lines = []
        if not _is_blank(row):
            yield row
    yield from _joined(lines)


def _joined(lines: list[Row]) -> Iterator[Row]:
    if lines:
        yield lines[0]._replace(text=" ".join(line.text.strip() for line in lines))
