"""Reads all rows once for their classes, rejects and hashes, and assigns each row to a split.

A row takes 13 bytes of memory, 21 if rows have ids, and at most 30 while splits are assigned, however long its text is.
"""

import contextlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xlnet.data import classes, objects, seen
from xlnet.data.documents import rows_of
from xlnet.data.readers import Reject, Row, unused_settings
from xlnet.data.remarks import counted
from xlnet.data.snapshot import SPLITS, Snapshot
from xlnet.data.storage import Source
from xlnet.data.values import shown
from xlnet.errors import UserError, warn
from xlnet.recipe import DataRecipe

MAX_CLASSES = 1000
MANY_CLASSES = 0.5  # with more classes per row, the label column holds something else
SHOWN_REJECTS = 3
# Reason of rejects → the setting that may be wrong.
REMEDIES = {
    "not UTF-8": "set data.encoding (such as cp1252), ",
    "not a JSON object": 'write each row as an object, such as {"text": "a film", "label": "good"}, ',
    "malformed CSV": "set data.quoting ('backslash', or 'none' if quotes are part of the text), ",
}
ROWS_AT_ONCE = 1 << 18  # of all rows, when they are sorted by their hashes
KEPT_SPELLINGS = 100  # labels that lost spaces or marks
KEPT_CHARACTERS = 32_000_000  # of text held between the survey and tokenisation
TRAIN, VALIDATION, TEST = range(3)


@dataclass
class Survey:
    """What the input holds. Arrays of rows are in reading order: split after split, file after file."""

    snapshot: Snapshot
    recipe: DataRecipe
    kept: list[tuple[Row, int]] | None = field(default_factory=list)  # None: too many for memory
    characters: int = 0
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    given: "array[int]" = field(default_factory=lambda: array("b"))  # split whose files hold the row
    labels: "array[int]" = field(default_factory=lambda: array("i"))  # in order of appearance
    names: dict[str, int] = field(default_factory=dict)
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)  # a label as written → its class, where they differ
    rows_of_file: dict[int, int] = field(default_factory=dict)  # index of the file → its usable rows

    def rows(self) -> Iterator[tuple[Row, int]]:
        """Yield every usable row with the index of its file. Small inputs are in memory; others are read again."""
        if self.kept is not None:
            yield from self.kept
            return
        for _, number, source in inputs(self.snapshot):
            for row in rows_of(source, self.recipe):
                if isinstance(row, Row):
                    yield row, number

    @property
    def classes(self) -> list[str]:
        """Class names in index order: numbers by value, others by name."""
        return classes.ordered(self.names)

    def class_warnings(self) -> list[str]:
        """Return warnings of classes whose names may be a mistake."""
        counts = np.bincount(np.asarray(self.labels), minlength=len(self.names)).tolist()
        return classes.warnings(dict(zip(self.names, counts, strict=True)), self.written)


@contextlib.contextmanager
def rejects_kept(rejects: Path, out: str) -> Iterator[None]:
    """If the rows cannot be used, keep the list of rejects beside the dataset's path, and name it in the error."""
    kept = Path(f"{out.rstrip('/')}.rejects.jsonl")
    kept.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        if not rejects.is_file() or not rejects.stat().st_size:
            raise
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rejects, kept)
        raise UserError(f"{error}; every reject is listed in {objects.address(str(kept))}") from None


def inputs(snapshot: Snapshot) -> Iterator[tuple[int, int, Source]]:
    """(split, index of the file, file) in reading order."""
    for number, file in enumerate(snapshot.files):
        if file.split in SPLITS:
            yield SPLITS.index(file.split), number, file.source


def look(
    snapshot: Snapshot, recipe: DataRecipe, rejects: Path, tell: Callable[[str], None] = warn
) -> tuple[Survey, np.ndarray]:
    """Read every row once. Write a line of JSON for each unusable row: file, line, reason; tell each warning.

    Returns:
        The survey, and the split of each row: int8 [rows], -1 for a duplicate id.

    Raises:
        UserError: no usable row, too many rejects, or classes that cannot be trained on.
    """
    survey = Survey(snapshot, recipe)
    for remark in unused_settings((source for _, _, source in inputs(snapshot)), recipe):
        tell(remark)
    with rejects.open("w", encoding="utf-8") as log:

        def reject(source: Source, line: int, reason: str) -> None:
            log.write(json.dumps({"file": source.uri, "line": line, "reason": reason}, ensure_ascii=False) + "\n")
            survey.rejects[reason.partition(": ")[0]] += 1
            if len(survey.first_rejects) < SHOWN_REJECTS:
                survey.first_rejects.append(f"{source.uri}:{line}: {reason}")

        for split, number, source in inputs(snapshot):
            usable, before = len(survey.given), len(survey.given) + survey.rejects.total()
            for row in rows_of(source, recipe, tell):
                if isinstance(row, Reject):
                    reject(source, row.line, row.reason)
                else:
                    _note(survey, row, split, number)
            if len(survey.given) + survey.rejects.total() == before:
                raise UserError(f"'{source.uri}' has no rows; give a file with rows")
            survey.rows_of_file[number] = len(survey.given) - usable
        dropped = _duplicate_ids(survey) if recipe.id is not None else np.zeros(len(survey.given), bool)
        for (row, number), is_dropped in zip(survey.rows(), dropped, strict=True) if dropped.any() else ():
            if is_dropped:
                reject(snapshot.files[number].source, row.line, "duplicate id")
    _refuse_many_rejects(survey, recipe)
    if recipe.task == "classification":
        for remark in survey.class_warnings():
            tell(remark)
        _refuse_classes(survey)
    splits = assign(survey, snapshot, recipe, dropped)
    _refuse_splits(survey, splits)
    return survey, splits


def _note(survey: Survey, row: Row, split: int, number: int) -> None:
    """Add a row."""
    label = 0
    if survey.recipe.task == "classification":
        label = survey.names.setdefault(row.label, len(survey.names))
        if row.written is not None and len(survey.written) < KEPT_SPELLINGS:
            survey.written[row.written] = row.label
    if survey.recipe.id is not None:  # two splits may use the same ids, and rows without an id are no duplicates
        survey.ids.append(seen.key(f"{split} {row.id}" if row.id else f"no id {len(survey.given)}", None))
    survey.labels.append(label)
    survey.given.append(split)
    survey.hashes.append(seen.key(row.text, row.text_pair))
    survey.characters += len(row.text) + len(row.text_pair or "")
    if survey.kept is not None:
        survey.kept.append((row, number))
        if survey.characters > KEPT_CHARACTERS:
            survey.kept = None


def _duplicate_ids(survey: Survey) -> np.ndarray:
    dropped = np.ones(len(survey.given), bool)
    for rows, starts in alike(survey.ids):
        dropped[rows[starts]] = False
    return dropped


def _refuse_many_rejects(survey: Survey, recipe: DataRecipe) -> None:
    rejected = survey.rejects.total()
    total = rejected + len(survey.given) - survey.rejects["duplicate id"]
    if total and rejected / total > recipe.max_rejects:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in survey.rejects.most_common(3))
        known = REMEDIES | {f"not {recipe.encoding}": "set data.encoding to 'auto' or another one, "}
        remedies = "".join(remedy for reason, remedy in known.items() if reason in survey.rejects)
        raise UserError(
            f"{rejected:,} of {counted(total, 'row')} cannot be used: {reasons}; "
            f"first: {'; '.join(survey.first_rejects)}. Correct them, {remedies}or raise data.max_rejects"
        )


def _refuse_classes(survey: Survey) -> None:
    names = survey.classes
    if len(names) == 1:
        raise UserError(f"data.label has one class only, {shown(names[0])}; training needs two or more")
    numbers = [name for name in names if classes.number(name) is not None]
    fractions = [name for name in numbers if (value := classes.number(name)) and value != value.to_integral_value()]
    if len(names) > 20 and len(numbers) == len(names) and fractions:
        raise UserError(
            f"data.label has {len(names):,} classes, all numbers, such as '{fractions[0]}'; "
            "set data.task to 'regression'"
        )
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"data.label has {len(names):,} classes, such as {shown(names[0])}; allowed: {MAX_CLASSES:,}. "
            "Is it the right column?"
        )
    if equal := classes.equal_numbers(names):
        one, other = map(shown, equal)
        raise UserError(f"data.label has both {one} and {other} as classes; write equal numbers equally")


def assign(survey: Survey, snapshot: Snapshot, recipe: DataRecipe, dropped: np.ndarray) -> np.ndarray:
    """Assign a split to every row: its file's, or for rows of data.train a seeded, stratified share.

    The share is decided by a hash of the row's content, so that it depends on neither order nor
    sharding, and equal texts stay together. Every class keeps rows to train on.
    """
    splits, labels = np.array(survey.given, np.int8), np.asarray(survey.labels)
    of_test = 0.0 if snapshot.split("test") else recipe.test_fraction
    of_validation = 0.0 if snapshot.split("validation") else recipe.validation_fraction
    keys, is_open = _mix(survey.hashes, recipe.split_seed), (splits == TRAIN) & ~dropped
    count = int(labels.max()) + 1 if len(labels) else 0

    def groups() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, the size and the label of each group of equal texts, and the rows of each label."""
        for rows, starts in alike(keys, is_open):
            sizes, group_labels = np.diff(starts, append=len(rows)), labels[rows[starts]]
            yield rows, sizes, group_labels, np.bincount(group_labels, sizes, count).astype(np.int64)

    total, before = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for *_, found in groups():
        total += found
    for_test = np.rint(of_test * total)
    for_both = np.rint(for_test + of_validation * total)
    for rows, sizes, group_labels, found in groups():
        order = np.argsort(group_labels, kind="stable")
        ordered = group_labels[order]
        ends = np.cumsum(sizes[order]) + (before - np.cumsum(found) + found)[ordered]  # counted within each label
        chosen = np.where(ends <= for_test[ordered], TEST, np.where(ends <= for_both[ordered], VALIDATION, TRAIN))
        chosen[ends == total[ordered]] = TRAIN
        splits[rows] = np.repeat(chosen[np.argsort(order)], sizes)
        before += found
    splits[dropped] = -1
    return splits


def alike(
    hashes: "array[int] | np.ndarray", chosen: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all rows in the order of their hashes, so that rows with equal hashes are neighbours.

    They come in parts of about ROWS_AT_ONCE rows, so that sorting takes no more memory for more rows.

    Args:
        hashes: of each row, 64 bits.
        chosen: the rows to look at: bool [rows]; None: all.

    Yields:
        a part's rows, as indices: int64 [rows]; and where each group of equal hashes begins among them: int64 [groups].
    """
    values = np.asarray(hashes).view("<u8")  # little-endian: the last byte is the highest
    bits = min(8, (len(values) // ROWS_AT_ONCE).bit_length())
    parts = values.view(np.uint8)[7::8] >> np.uint8(8 - bits) if bits else np.zeros(len(values), np.uint8)
    for part in range(1 << bits):
        rows = np.flatnonzero(parts == part if chosen is None else chosen & (parts == part))
        if len(rows):
            rows = rows[np.argsort(values[rows], kind="stable")]
            found = values[rows]
            yield rows, np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1])))


def _mix(hashes: "array[int] | np.ndarray", seed: int) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): other hashes, one for one, in an order that depends on the seed."""
    mixed = np.array(hashes, np.int64).view(np.uint64)
    mixed += np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & (2**64 - 1))
    for some in np.array_split(mixed, max(1, len(mixed) // ROWS_AT_ONCE)):  # views: a part at a time saves memory
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            some ^= some >> np.uint64(shift)
            some *= np.uint64(factor)
    return mixed


def _refuse_splits(survey: Survey, splits: np.ndarray) -> None:
    names = list(survey.names)
    labels = np.asarray(survey.labels)
    classes_of = [set(np.flatnonzero(np.bincount(labels[splits == split])).tolist()) for split in range(len(SPLITS))]
    for split in (VALIDATION, TEST):
        if not classes_of[split]:
            name = SPLITS[split]
            if len(names) > 20 and len(names) > MANY_CLASSES * len(labels):
                raise UserError(
                    f"data.label has {len(names):,} different values in {counted(len(labels), 'row')}, too few of each "
                    f"for a {name} split; set data.label to the column of classes, or data.task = 'regression'"
                )
            raise UserError(
                f"the {name} split has no rows; raise data.{name}_fraction, give data.{name}, or give more rows"
            )
        missing = classes_of[split] - classes_of[TRAIN]
        if survey.recipe.task == "classification" and missing:
            listed = ", ".join(shown(names[label]) for label in sorted(missing)[:5])
            raise UserError(f"{SPLITS[split]} has classes that train lacks: {listed}; add such rows to data.train")
    if not classes_of[TRAIN]:
        raise UserError("the train split has no rows; give more rows")


def duplicates(survey: Survey, splits: np.ndarray) -> dict[str, int]:
    """Count the rows whose exact text is also in train: rows of test, of validation, and repeated ones of train."""
    found = dict.fromkeys(("train_test", "train_validation", "train"), 0)
    for rows, starts in alike(survey.hashes):
        given = splits[rows]
        train, validation, test = (np.add.reduceat(given == split, starts, dtype=np.int64) for split in range(3))
        found["train_test"] += int(test[train > 0].sum())
        found["train_validation"] += int(validation[train > 0].sum())
        found["train"] += int((train[train > 0] - 1).sum())
    return found
