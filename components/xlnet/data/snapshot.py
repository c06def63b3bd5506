"""Takes the snapshot: identifies the bytes that a run starts from.

Cache keys are made of strings, so a string must stand for the bytes behind a path: the snapshot's digest, a parameter
of every later step. Every run takes a new snapshot.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.remarks import counted
from xlnet.data.storage import Source, list_sources, local_source, same_object
from xlnet.data.walking import Skipped
from xlnet.errors import UserError, warn
from xlnet.recipe import INPUTS, OWN_ROWS, DataRecipe, Recipe

SPLITS = ("train", "validation", "test")
LABELS = "labels"
PRETRAINED, CORPUS = "pretrained", "corpus"


@dataclass(frozen=True)
class SourceFile:
    """One input object and its use: a split, ``labels``, ``tokenizer``, ``pretrained`` or ``corpus``."""

    split: str
    source: Source

    @property
    def size(self) -> int:
        """The bytes of all objects, as stored."""
        return self.source.size

    def facts(self) -> dict[str, Any]:
        """The facts for the dataset's card, the lineage and the digest."""
        facts = asdict(self.source)
        del facts["labels"]  # which are a file of their own here
        return {"split": self.split, **facts}


@dataclass(frozen=True)
class Snapshot:
    """All input objects of a run."""

    files: tuple[SourceFile, ...]
    remarks: tuple[str, ...] = ()  # files that were left out or that occur twice

    @property
    def digest(self) -> str:
        """``sha256:`` of use, name, size and checksum of every object that the dataset is made of."""
        return provenance.digest_json([file.facts() for file in self.files if file.split not in (PRETRAINED, CORPUS)])

    @property
    def pretrained(self) -> str:
        """``sha256:`` of what only training reads: local pretrained weights and a corpus. Empty if there are none."""
        weights = [file.facts() for file in self.files if file.split in (PRETRAINED, CORPUS)]
        return provenance.digest_json(weights) if weights else ""

    def summary(self) -> str:
        """``2 files, 1,024 bytes, sha256:…``."""
        size = sum(file.size for file in self.files)
        return f"{counted(len(self.files), 'file')}, {counted(size, 'byte')}, {self.digest}"

    def split(self, name: str) -> list[Source]:
        """Return the objects of one split."""
        return [file.source for file in self.files if file.split == name]


def take(recipe_json: str) -> Snapshot:
    """List and checksum the input that a recipe, or its ``data`` section, names; warn of what is left out.

    Raises:
        UserError: the recipe names no input, or a path that matches nothing.
    """
    found = of(recipes.from_json(recipe_json))
    for remark in found.remarks:
        warn(remark)
    return found


def of(recipe: Recipe) -> Snapshot:
    """Take the snapshot of a recipe; see :func:`take`."""
    data = recipe.data
    if not data.train:
        raise UserError(
            "data.train is not set; name your file: --set data.train=rows.csv (or run the demo, without a recipe)"
        )
    remarks: list[str] = []
    files = listed(data, remarks)
    _refuse_overlap(files)
    remarks += _copies(files)
    files += corpus_files(recipe, files, remarks)
    for use, path in (("tokenizer", data.tokenizer), (PRETRAINED, recipe.model.pretrained)):
        if path and Path(path).is_dir():
            files += [SourceFile(use, source) for source in directory(path)]
    return Snapshot(tuple(files), tuple(remarks))


def listed(data: DataRecipe, remarks: list[str]) -> list[SourceFile]:
    """List the files of rows, split after split, followed by the files of their labels.

    What is left out, and which labels go with which texts, is added to ``remarks``, one line each.

    Raises:
        UserError: a path names nothing, or there are not as many files of labels as files of texts.
    """
    files: list[SourceFile] = []
    for field in INPUTS:
        skipped = Skipped()
        files += [SourceFile(field, one) for one in list_sources(f"data.{field}", getattr(data, field), skipped)]
        remarks += skipped.lines(f"data.{field}")
    texts = [file for file in files if file.split != LABELS]
    labels = [file for file in files if file.split == LABELS]
    if not labels:
        return files
    if len(texts) != len(labels):
        counts = ", ".join(f"data.{field} {counted(len(list(group)), 'file')}" for field, group in _by_split(texts))
        raise UserError(
            f"data.labels names {counted(len(labels), 'file')}, but {counts}; give one for each, in this order"
        )
    if len(texts) > 1:
        pairs = zip(texts, labels, strict=True)
        remarks += [f"data.labels: '{two.source.uri}' has the labels of '{one.source.uri}'" for one, two in pairs]
    paired = zip(texts, labels, strict=True)
    return [replace(one, source=replace(one.source, labels=two.source)) for one, two in paired] + labels


def corpus_files(recipe: Recipe, others: list[SourceFile], remarks: list[str]) -> list[SourceFile]:
    """List the files of ``pretraining.corpus``; none for the training's own rows. Add what is left out to ``remarks``.

    Raises:
        UserError: a path names nothing, or one of the ``others``, the files of data, some of whose rows are tested on.
    """
    paths = recipe.pretraining.files
    skipped = Skipped()
    found = [SourceFile(CORPUS, source) for source in list_sources("pretraining.corpus", paths, skipped)]
    remarks += skipped.lines("pretraining.corpus")
    for file, other in itertools.product(found, others):
        if same_object(file.source) == same_object(other.source) or file.source.checksum == other.source.checksum:
            raise UserError(
                f"pretraining.corpus names '{file.source.uri}', which is data.{other.split}; "
                f'write corpus = "{OWN_ROWS}" for the rows that are trained on, without those of validation and test'
            )
    return found


def snapshot_node(snapshot: Snapshot, started: str) -> dict[str, Any]:
    """Return the snapshot's node of the lineage graph."""
    return provenance.node(
        type="snapshot",
        digest=snapshot.digest,
        step="snapshot",
        started=started,
        parameters={},
        metadata={"files": [file.facts() for file in snapshot.files]},
    )


def _by_split(files: list[SourceFile]) -> Iterator[tuple[str, Iterator[SourceFile]]]:
    return itertools.groupby(files, key=lambda file: file.split)


def directory(path: str) -> list[Source]:
    """List the files of a local directory of a tokenizer or of weights."""
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    return [local_source(str(file.absolute()), file) for file in files]


def _refuse_overlap(files: list[SourceFile]) -> None:
    """Raise UserError if two splits hold the same file, which would make the evaluation meaningless."""
    seen: dict[object, SourceFile] = {}
    for file in files:
        other = seen.setdefault(same_object(file.source), file)
        if other.split != file.split:
            named = "" if other.source.uri == file.source.uri else f", there as '{other.source.uri}'"
            raise UserError(
                f"'{file.source.uri}' is in both data.{other.split} and data.{file.split}{named}; a file belongs to one"
            )


def _copies(files: list[SourceFile]) -> list[str]:
    """Return warnings of files that hold the same bytes.

    Raises:
        UserError: a split holds nothing but copies of another's files.
    """
    kept: dict[tuple[str, str], SourceFile] = {}
    copies: dict[tuple[str, str], list[tuple[SourceFile, SourceFile]]] = {}
    for file in files:
        for split in SPLITS if file.size else ():
            if (other := kept.get((split, file.source.checksum))) is not None:
                copies.setdefault((split, file.split), []).append((file, other))
        kept.setdefault((file.split, file.source.checksum), file)
    remarks = []
    for (split, later), pairs in copies.items():
        file, other = pairs[0]
        what = f"'{file.source.uri}' holds the same bytes as '{other.source.uri}'"
        if split != later and len(pairs) == sum(one.split == later for one in files):
            raise UserError(f"data.{later} is a copy of data.{split}: {what}; a file belongs to one")
        more = f", and {len(pairs) - 1:,} more such" if len(pairs) > 1 else ""
        remarks.append(f"data.{later}: {what}{f' of data.{split}' if split != later else ''}{more}")
    return remarks
