"""A registered version, as every registry describes it."""

from dataclasses import dataclass, field

CHAMPION = "champion"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Tags describe its origin: ``model_uri``, ``model_digest``, ``dataset_digest``, ``snapshot_digest``,
    ``test_digest``, ``evaluation_uri``, ``registration_uri``, ``run``, ``git_sha``, ``metric``, ``decision``.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    created: str
    description: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def model_uri(self) -> str:
        """Address of the model's directory."""
        return self.tags.get("model_uri", "")

    @property
    def evaluation_uri(self) -> str:
        """Address of the evaluation's directory."""
        return self.tags.get("evaluation_uri", "")

    @property
    def registration_uri(self) -> str:
        """Address of the registration's directory, which has the whole lineage."""
        return self.tags.get("registration_uri", "")
