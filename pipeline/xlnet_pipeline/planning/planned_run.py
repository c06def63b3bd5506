"""The object that checks examine: a recipe, its target and machine, and the rows of its input."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from xlnet.data import snapshot as snapshots
from xlnet.data import survey as surveys
from xlnet.data.readers import Reject, Row
from xlnet.data.storage import Source
from xlnet.data.survey import Survey
from xlnet.recipe import Recipe
from xlnet_pipeline.placement.machines import MACHINES, Machine
from xlnet_pipeline.planning import workload

WHOLE = 256 << 20  # bytes up to which a check reads the whole input; of a larger one it reads the first rows
BEFORE_A_RUN = 32 << 20  # the same for checks before a run, whose preprocess step reads everything anyway
FIRST_ROWS = 200  # of each file
FIRST_FILES = 20  # of each split
LOCAL = "local"


@dataclass(frozen=True)
class PlannedRun:
    """A run to check. Empty fields are not checked."""

    recipe: Recipe
    target: str = LOCAL
    machine: Machine = field(default_factory=lambda: MACHINES["cpu"])
    nodes: int = 1
    spot: bool = False
    image: str = ""
    home: Path = Path(".xlnet-pipeline")
    flex_start: bool = False
    pipeline_root: str = ""  # where a remote target keeps its artifacts
    registry: str = ""  # address of the target's registry, used if the recipe names none
    cron: str = ""
    timezone: str = ""
    whole: int = WHOLE  # bytes of input up to which every row is read

    @cached_property
    def snapshot(self) -> snapshots.Snapshot:
        """The input files. Raises UserError if there are none, or if a file is in two splits."""
        return snapshots.of(self.recipe)

    @property
    def sources(self) -> list[tuple[str, Source]]:
        """The split and the address of each input file."""
        return [(file.split, file.source) for file in self.snapshot.files if file.split in snapshots.SPLITS]

    @cached_property
    def survey(self) -> tuple[Survey, np.ndarray, list[str]] | None:
        """The survey of all rows, each row's split, and the warnings, as the preprocess step will find them.

        None if the input is too large to read. Raises the errors that the preprocess step would raise.
        """
        if sum(source.size for _, source in self.sources) > self.whole:
            return None
        warnings: list[str] = []
        found, splits = surveys.look(self.snapshot, self.recipe.data, Path(os.devnull), warnings.append)
        return found, splits, warnings

    @cached_property
    def first(self) -> list[tuple[Source, list[Row | Reject]]]:
        """The first rows of the first objects. Raises UserError if a column is missing."""
        seen: dict[str, int] = {}
        found = []
        for split, source in self.sources:
            seen[split] = seen.get(split, 0) + 1
            if seen[split] <= FIRST_FILES:
                found.append((source, workload.first_rows(source, self.recipe.data, FIRST_ROWS)))
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """The usable rows among the first rows."""
        return [row for _, rows in self.first for row in rows if isinstance(row, Row)]

    @cached_property
    def lengths(self) -> tuple[list[int], int]:
        """Token counts of some of these rows, and the size of the vocabulary."""
        return workload.token_lengths(self.rows, self.recipe.data)

    @property
    def chips(self) -> int:
        """Number of accelerators that train together."""
        return self.machine.chips * self.nodes

    @property
    def remote(self) -> bool:
        """Whether the run is on a remote target."""
        return self.target != LOCAL
