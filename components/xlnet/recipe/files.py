"""Reads a recipe from a TOML file and from ``section.field=value`` settings."""

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xlnet.errors import UserError
from xlnet.recipe.fields import INPUTS, OWN_ROWS, Recipe, section_table, section_type
from xlnet.recipe.presets import from_changes


def load(path: str | Path | None = None, settings: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe and apply ``section.field=value`` settings over it.

    Paths in the file are relative to the file, paths in settings to the working directory.

    Raises:
        UserError: the file is missing or no TOML; a section, field or value is not allowed.
    """
    changes = _read_toml(Path(path)) if path is not None else {}
    for setting in settings:
        section, name, value = _parse_setting(setting)
        changes.setdefault(section, {})[name] = _anchor(section, name, value, Path.cwd())
    return from_changes(changes)


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    if path.exists() and not path.is_file() and not path.is_dir() and path.parent != Path("/dev/fd"):
        # Reading one could wait for ever.
        raise UserError(f"recipe '{path}' is a pipe, a socket or a device; name a .toml file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"recipe '{path}' does not exist; write one with: xlnet-pipeline init") from None
    except IsADirectoryError:
        raise UserError(f"recipe '{path}' is a directory; name the .toml file in it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe '{path}' is not TOML: {error}") from None
    table.pop("target", None)  # how targets are reached: no part of what a run is; xlnet_pipeline.targets reads it
    folder = path.resolve().parent
    return {
        section: {name: _anchor(section, name, value, folder) for name, value in section_table(section, fields).items()}
        for section, fields in table.items()
    }


def _anchor(section: str, name: str, value: Any, folder: Path) -> Any:
    """Make a relative local path absolute; leave URIs, hub names and the shipped names alone."""
    if (section == "data" and name in INPUTS) or (section, name) == ("pretraining", "corpus"):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            return value  # the type check says what is wrong with it
        names = (OWN_ROWS,) if section == "pretraining" else ()
        return [item if _is_uri(item) or item in names else str(folder / _own(item)) for item in items if item]
    is_path_or_name = (section, name) in {("data", "tokenizer"), ("model", "pretrained")}
    if is_path_or_name and isinstance(value, str) and value and os.path.isdir(folder / _own(value)):
        return str(folder / _own(value))
    return value


def _own(path: str) -> str:
    """Replace ``~`` by the home directory. Leave the path of an unknown user unchanged."""
    return os.path.expanduser(path)


def _is_uri(path: str) -> bool:
    return path.startswith("demo:") or "://" in path


def _parse_setting(setting: str) -> tuple[str, str, Any]:
    key, equals, raw = setting.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise UserError(f"--set {setting!r} is not section.field=value, such as training.steps=500")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # an unquoted string, as shells hand it over
    declared = section_type(section, key).__dataclass_fields__.get(name)
    if declared is not None and declared.type in (str, "str") and not isinstance(value, str):
        value = raw  # a name such as 2026 stays the string it was typed as
    return section, name, value
