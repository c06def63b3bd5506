"""Reads texts and labels from two parallel files: line N of one is the label of line N of the other."""

from collections.abc import Iterator
from itertools import zip_longest

from xlnet.data.columns import Reject, Row
from xlnet.data.lines import Line
from xlnet.data.storage import Source
from xlnet.data.values import BadValue, check_label, check_text
from xlnet.errors import UserError


def rows(texts: Iterator[Line], labels: Iterator[Line], source: Source, task: str) -> Iterator[Row | Reject]:
    """Yield a row or a reject for each line that is not blank in both files, ``source`` and ``source.labels``.

    Raises:
        UserError: one file has more lines than the other, and not only blank ones at its end.
    """
    last_text = last_label = 0  # lines up to the last that is not blank
    text: Line | None = None
    label: Line | None = None
    for text, label in zip_longest(texts, labels):
        last_text = text.number if text and _is_filled(text) else last_text
        last_label = label.number if label and _is_filled(label) else last_label
        if text and label and (_is_filled(text) or _is_filled(label)):
            yield _row(text, label, task)
    ends_together = text and label  # a blank line at the end of one file stands for an empty text or label
    if last_text != last_label and not ends_together and source.labels is not None:
        raise UserError(
            f"'{source.uri}' has {last_text:,} lines, but '{source.labels.uri}' has {last_label:,}; each text needs "
            "its label in the same line"
        )


def _row(text: Line, label: Line, task: str) -> Row | Reject:
    if reason := text.reason or label.reason:
        return Reject(text.number, reason)
    try:
        name = check_label(label.text, task)
        return Row(check_text(text.text.rstrip("\r\n")), None, name, None, text.number)
    except BadValue as bad:
        return Reject(text.number, bad.reason)


def _is_filled(line: Line) -> bool:
    return bool(line.reason or line.text.strip())
