"""A registered version, and how commands name one."""

from collections.abc import Callable
from dataclasses import dataclass, field

from xlnet.errors import UserError

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


def choose(reference: str, versions_of: Callable[[str], list[ModelVersion]]) -> ModelVersion:
    """Find ``NAME:3``, ``NAME@alias`` or ``NAME`` (champion, else latest) among a model's versions, newest first.

    Raises:
        UserError: there is no such model or version.
    """
    name, colon, number = reference.partition(":")
    name, at, alias = (name, "", "") if colon else reference.partition("@")
    versions = versions_of(name)
    by_number = {str(version.version): version for version in versions}
    by_alias = {alias: version for version in versions for alias in version.aliases}
    if colon and number not in by_number:
        raise UserError(f"model '{name}' has no version '{number}'; it has: {', '.join(reversed(by_number))}")
    if at and alias not in by_alias:
        raise UserError(f"model '{name}' has no alias '{alias}'; it has: {', '.join(by_alias) or 'none'}")
    if colon:
        return by_number[number]
    return by_alias[alias] if at else by_alias.get(CHAMPION, versions[0])
