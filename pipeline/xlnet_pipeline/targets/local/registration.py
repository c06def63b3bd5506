"""Asks the registry for what the cache of the register step depends on: the champion, and the registered version."""

import json
from pathlib import Path
from typing import Any

from xlnet import recipe as recipes
from xlnet import state
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet.redaction import redacted
from xlnet.registry import check_name, open_registry, resolve
from xlnet.registry.address import sqlite_file
from xlnet_pipeline.targets.local.cache import Damaged


def ready(recipe: Recipe, home: Path, ask: bool = True) -> None:
    """Raise UserError or RunError if the recipe's model could not be registered in the end.

    Args:
        recipe: the recipe that is about to run.
        home: the state directory.
        ask: whether to ask the registry itself; if False, only its address and the name are checked.
    """
    given = recipe.registry
    address = resolve(given.uri, home)
    check_name(address, given.name)
    if ask:
        open_registry(given.uri, home).ready(given.name)


def standing(recipe_json: str, home: Path) -> str:
    """Return the registry's address and current champion, because the gate's decision depends on the champion.

    Args:
        recipe_json: JSON of the register step's part of the recipe.
        home: the state directory.
    """
    given = recipes.from_json(recipe_json).registry
    address = resolve(given.uri, home)
    file = sqlite_file(address)
    shown = state.relative(str(file), home) if file else redacted(address)
    try:
        champion = open_registry(given.uri, home).champion(given.name)
    except (UserError, RunError):
        return f"{shown}, which does not answer"
    if champion is None:
        return f"{shown} without a champion"
    return f"{shown} with champion {champion.version} ({champion.tags.get('model_digest', '')[:19]})"


def check(outputs: dict[str, Any], recipe_json: str, home: Path) -> None:
    """Raise Damaged if the registry no longer has the version that a cached registration names."""
    given = recipes.from_json(recipe_json).registry
    kept = json.loads(Path(outputs["registration"]["uri"], "registration.json").read_text(encoding="utf-8"))
    reference = f"{kept['name']}:{kept['version']}"
    try:
        found = open_registry(given.uri, home).find(reference)
    except (UserError, RunError):
        raise Damaged(f"'{reference}' is not in the registry any more") from None
    if found.tags.get("model_digest") != kept["model_digest"]:
        raise Damaged(f"'{reference}' is another model in the registry now")
