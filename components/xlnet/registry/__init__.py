"""The interface of model registries: versions of models with their metadata, and the champion."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from xlnet import state
from xlnet.registry.address import VERTEX, check_name, resolve
from xlnet.registry.versions import CHAMPION, ModelVersion

__all__ = ["CHAMPION", "ModelVersion", "Registry", "check_name", "open_registry", "resolve"]


class Registry(Protocol):
    """A store of model versions."""

    @property
    def shown_uri(self) -> str:
        """The registry's address, without credentials."""

    def ready(self, name: str) -> None:
        """Raise UserError or RunError if no version can be registered under this name now."""

    def names(self) -> list[str]:
        """List the registered models, sorted; empty if there are none."""

    def versions(self, name: str) -> list[ModelVersion]:
        """List a model's versions, newest first; raise UserError if there is no such model."""

    def find(self, reference: str) -> ModelVersion:
        """Find ``NAME:3``, ``NAME@alias`` or ``NAME`` (champion, else latest version); UserError if there is none."""

    def champion(self, name: str) -> ModelVersion | None:
        """Return the version with the alias ``champion``; None if there is none."""

    def add(
        self, name: str, description: str, tags: dict[str, str], parameters: dict[str, str], metrics: dict[str, float]
    ) -> ModelVersion:
        """Register a new version."""

    def describe(self, name: str, version: int, description: str, tags: dict[str, str]) -> None:
        """Change a version's description and add or change tags."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Move an alias to a version."""

    def delete(self, name: str, version: int) -> None:
        """Remove a version, and the model with its last version. The files stay where they are."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Exclude other registrations on this machine while the champion is decided."""


def open_registry(uri: str = "", home: str | Path | None = None) -> Registry:
    """Open the registry at an address; see :func:`xlnet.registry.address.resolve`."""
    found = resolve(uri, home)
    if found.startswith(VERTEX):
        from xlnet.registry.vertex_registry import VertexRegistry

        return VertexRegistry(found)
    from xlnet.registry.mlflow_registry import MlflowRegistry

    return MlflowRegistry(found, state.home(home))
