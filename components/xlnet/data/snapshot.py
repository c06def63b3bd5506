"""The snapshot: which bytes a run starts from.

Caches key on strings, so the bytes behind a path must become one: the digest of the snapshot is a
parameter of every later step. It is taken anew in every run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.storage import Source, list_sources, local_source
from xlnet.errors import UserError
from xlnet.recipe import Recipe

SPLITS = ("train", "validation", "test")
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class SourceFile:
    """One input object and what it is for: a split, ``tokenizer`` or ``pretrained``."""

    split: str
    source: Source

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return self.source.size

    def facts(self) -> dict[str, Any]:
        """For the card, the lineage and the digest."""
        return {"split": self.split, **asdict(self.source)}


@dataclass(frozen=True)
class Snapshot:
    """All input of a run."""

    files: tuple[SourceFile, ...]

    @property
    def digest(self) -> str:
        """``sha256:`` of use, name, size and checksum of every object that the dataset is made of."""
        return provenance.digest_json([file.facts() for file in self.files if file.split != PRETRAINED])

    @property
    def pretrained(self) -> str:
        """``sha256:`` of a local directory of pretrained weights, which only training reads; empty: there is none."""
        weights = [file.facts() for file in self.files if file.split == PRETRAINED]
        return provenance.digest_json(weights) if weights else ""

    def split(self, name: str) -> list[Source]:
        """The objects of one split."""
        return [file.source for file in self.files if file.split == name]


def take(recipe: str) -> Snapshot:
    """List and checksum the input that a recipe names.

    Args:
        recipe: JSON of a recipe, or of its ``data`` section.

    Raises:
        UserError: the recipe names no input, or a path that matches nothing.
    """
    return of(recipes.from_json(recipe))


def of(recipe: Recipe) -> Snapshot:
    """The snapshot of a recipe; see :func:`take`."""
    data = recipe.data
    if not data.train:
        raise UserError(
            "data.train is not set; name your file: --set data.train=rows.csv (or run the demo, without a recipe)"
        )
    files = [
        SourceFile(split, source) for split in SPLITS for source in list_sources(f"data.{split}", getattr(data, split))
    ]
    _refuse_overlap(files)
    for use, path in (("tokenizer", data.tokenizer), (PRETRAINED, recipe.model.pretrained)):
        if path and Path(path).is_dir():
            files += [SourceFile(use, source) for source in _directory(path)]
    return Snapshot(tuple(files))


def _directory(path: str) -> list[Source]:
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    return [local_source(str(file.absolute()), file) for file in files]


def _refuse_overlap(files: list[SourceFile]) -> None:
    """A file in two splits would make the evaluation meaningless."""
    seen: dict[str, str] = {}
    for file in files:
        other = seen.setdefault(file.source.uri, file.split)
        if other != file.split:
            raise UserError(f"'{file.source.uri}' is in both data.{other} and data.{file.split}; a file belongs to one")
