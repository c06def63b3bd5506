"""A survey as an artifact: what one machine found in all rows, for the machines that tokenise and join them."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlnet.data.snapshot import Snapshot, SourceFile
from xlnet.data.storage import Source
from xlnet.data.survey import Survey
from xlnet.errors import CorruptArtifact, UserError
from xlnet.recipe import DataRecipe

WHOLE = 1.5  # sizes of a shard up to which a file is not cut
FILE, HASHES, ASSIGNED, REJECTS, VOCABULARY = "survey.json", "hashes.npy", "splits.npy", "rejects.jsonl", "tokenizer"


@dataclass(frozen=True)
class Piece:
    """Consecutive usable rows of one file: its index in the snapshot, the first row, and the row after the last."""

    file: int
    first: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the input."""

    key: str  # digest of everything that its tokens depend on, in hexadecimal digits. Empty shards have the same key.
    first: int  # index of its first row among all usable rows
    pieces: tuple[Piece, ...]  # where its rows lie

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return sum(piece.stop - piece.first for piece in self.pieces)


@dataclass(frozen=True)
class Surveyed:
    """What is read from the artifact."""

    survey: Survey  # files, hashes, classes and rejects; its rows cannot be read again
    splits: np.ndarray  # the split of each row: int8 [rows], -1 for a row that is left out
    shards: tuple[Shard, ...]  # the parts of the input, in reading order
    directory: Path  # the artifact, with the tokenizer and the list of rejects

    @property
    def vocabulary(self) -> Path:
        """The tokenizer's directory."""
        return self.directory / VOCABULARY

    def shard(self, key: str) -> Shard:
        """Return the first shard with this key.

        Raises:
            UserError: there is none.
        """
        for shard in self.shards:
            if shard.key == key:
                return shard
        known = ", ".join(shard.key for shard in self.shards[:3])
        raise UserError(f"shard '{key}' is not in the survey '{self.directory}'; it has {len(self.shards)}: {known}, …")


def divided(survey: Survey, shards: int) -> list[tuple[Piece, ...]]:
    """Divide the rows into shards of about the same number of bytes.

    A file that is not much larger than a shard stays whole. So a change in one file leaves most of the others' shards
    as they are.
    """
    files = [(number, survey.snapshot.files[number].size, rows) for number, rows in survey.rows_of_file.items()]
    total = sum(size for _, size, _ in files)
    cuts = [0, *(_cut(files, total, number, shards) for number in range(1, shards)), sum(one[2] for one in files)]
    return [tuple(_pieces(files, cuts[number], cuts[number + 1])) for number in range(shards)]


def _cut(files: list[tuple[int, int, int]], total: int, number: int, shards: int) -> int:
    """Return the index of the first row of a shard."""
    wanted, begin, before = total * number / shards, 0, 0
    for _, size, rows in files:
        if begin + size >= wanted:
            share = (wanted - begin) / max(1, size)
            return before + round(rows * (share if size > WHOLE * total / shards else round(share)))
        begin, before = begin + size, before + rows
    return before


def _pieces(files: list[tuple[int, int, int]], first: int, stop: int) -> list[Piece]:
    found, before = [], 0
    for number, _, rows in files:
        begin, end = max(first - before, 0), min(stop - before, rows)
        if begin < end:
            found.append(Piece(number, begin, end))
        before += rows
    return found


def save(directory: Path, survey: Survey, splits: np.ndarray, shards: list[Shard]) -> None:
    """Write a survey. The tokenizer and the list of rejects are there already."""
    np.save(directory / HASHES, np.asarray(survey.hashes))
    np.save(directory / ASSIGNED, splits)
    content = {
        "files": [asdict(file) for file in survey.snapshot.files],
        "names": list(survey.names),
        "rejects": dict(survey.rejects),
        "shards": [asdict(shard) for shard in shards],
    }
    (directory / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def load(directory: str | Path, recipe: DataRecipe) -> Surveyed:
    """Read a survey that :func:`save` has written. Arrays stay on disk until they are read.

    Raises:
        UserError: the directory is not a survey.
        CorruptArtifact: it cannot be read.
    """
    folder = Path(directory)
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        hashes = np.load(folder / HASHES, mmap_mode="r")
        splits = np.load(folder / ASSIGNED, mmap_mode="r")
        snapshot = Snapshot(tuple(_file(one) for one in content["files"]))
        survey = Survey(snapshot, recipe, kept=[], hashes=hashes)
        survey.names = {name: number for number, name in enumerate(content["names"])}
        survey.rejects = Counter(content["rejects"])
        return Surveyed(survey, splits, tuple(_shard(one) for one in content["shards"]), folder)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"'{directory}' is not a survey: it has no {FILE}; make one with: python -m xlnet survey"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"the survey '{directory}' is damaged ({error}); run it again") from None


def _file(given: dict[str, Any]) -> SourceFile:
    source = given["source"]
    labels = source.pop("labels")
    return SourceFile(given["split"], Source(**source, labels=Source(**labels) if labels else None))


def _shard(given: dict[str, Any]) -> Shard:
    return Shard(given["key"], given["first"], tuple(Piece(**one) for one in given["pieces"]))
