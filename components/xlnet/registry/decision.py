"""The gate's decision."""

from dataclasses import dataclass
from pathlib import Path

from xlnet import provenance
from xlnet.data import objects
from xlnet.registry.versions import ModelVersion


@dataclass(frozen=True)
class Decision:
    """The gate's decision, with its figures (None if nothing was compared)."""

    promote: bool
    reason: str
    champion_version: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Incomparable(Exception):
    """Two models cannot be compared; the message says why."""


def champion_files(champion: ModelVersion) -> Path:
    """Return the directory of the champion's model, fetched and verified.

    Raises:
        Incomparable: the files are gone.
        UserError, RunError: they cannot be fetched, or are not those that were registered.
    """
    model = objects.local_directory(champion.model_uri)
    if not model.is_dir():
        raise Incomparable(f"its files in '{champion.model_uri}' are gone")
    provenance.verify(model)
    return model
