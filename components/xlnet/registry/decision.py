"""The gate's decision."""

from dataclasses import dataclass
from pathlib import Path

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import RunError, UserError
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


def kept_evaluation(champion: ModelVersion, test_digest: str) -> Path | None:
    """Return the directory of the champion's own evaluation if it has these test rows and can be read, else None."""
    if champion.tags.get("test_digest") != test_digest or not champion.evaluation_uri:
        return None
    try:
        kept = objects.local_directory(champion.evaluation_uri)
        provenance.verify(kept)
    except (UserError, RunError):
        return None
    return kept


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
