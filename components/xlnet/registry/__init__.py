"""The model registry behind one small interface: versions of models, what is known of each, and the champion."""

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
        """Where it is, without credentials."""

    def ready(self, name: str) -> None:
        """Raise UserError or RunError if a version of a model of this name cannot be registered now."""

    def names(self) -> list[str]:
        """Registered models, sorted; empty where nothing has been registered yet."""

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version of a model, the newest first; UserError if there is no such model."""

    def find(self, reference: str) -> ModelVersion:
        """``NAME:3``, ``NAME@alias``, or ``NAME`` (champion, else latest version); UserError if there is none."""

    def champion(self, name: str) -> ModelVersion | None:
        """The version with the alias ``champion``, if there is one."""

    def add(
        self, name: str, description: str, tags: dict[str, str], parameters: dict[str, str], metrics: dict[str, float]
    ) -> ModelVersion:
        """Register a new version."""

    def describe(self, name: str, version: int, description: str, tags: dict[str, str]) -> None:
        """Change a version's description and add or change tags."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Give a version an alias, taking it from the one that had it."""

    def delete(self, name: str, version: int) -> None:
        """Remove a version's entry, and the model's with its last version; the files stay where they are."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other registrations on this machine out while a champion is being decided."""


def open_registry(uri: str = "", home: str | Path | None = None) -> Registry:
    """The registry at an address; see :func:`xlnet.registry.address.resolve`."""
    found = resolve(uri, home)
    if found.startswith(VERTEX):
        from xlnet.registry.vertex_registry import VertexRegistry

        return VertexRegistry(found)
    from xlnet.registry.mlflow_registry import MlflowRegistry

    return MlflowRegistry(found, state.home(home))
