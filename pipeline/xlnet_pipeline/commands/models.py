"""``xlnet-pipeline models``: show and change registered models, their versions and the champion."""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.redaction import visible
from xlnet.registry import CHAMPION, ModelVersion, Registry, champions
from xlnet.registry import open_registry as registry_at
from xlnet_pipeline.commands.parser import Parser, Subparsers, command, group
from xlnet_pipeline.commands.run import home_option, local
from xlnet_pipeline.commands.runs import add_target, chosen
from xlnet_pipeline.commands.tables import coloured, local_time, paint, print_json, print_table
from xlnet_pipeline.targets.settings import DEFAULT_FILE

HELP_MODEL = "NAME, NAME:VERSION or NAME@ALIAS; NAME alone: its champion, else its latest version"


def add(subparsers: Subparsers) -> None:
    """Declare the command and its subcommands."""
    inner = group(
        subparsers,
        "models",
        "list, show, promote, roll back or delete registered models",
        "models list",
        "models promote uci-sentences:2",
    )
    listing = command(inner, "list", list_models, "list every version of every model", "models list")
    listing.add_argument("name", nargs="?", metavar="NAME", help="the versions of this model only")
    showing = command(
        inner, "show", show, "show a model version: metrics, digests, where it is", "models show uci-sentences@champion"
    )
    showing.add_argument("model", metavar="MODEL", help=HELP_MODEL)
    promoting = command(
        inner,
        "promote",
        promote,
        "make a version the champion, whatever the gate said",
        "models promote uci-sentences:2",
    )
    promoting.add_argument("model", metavar="NAME:VERSION", help="the version to promote")
    returning = command(
        inner,
        "rollback",
        rollback,
        "make the previous champion the champion again",
        "models rollback uci-sentences",
        details="After that, the gate does not promote the version that was rolled back; only 'models promote' does.",
    )
    returning.add_argument("model", metavar="NAME", help="a registered model")
    deleting = command(
        inner,
        "delete",
        delete,
        "delete versions that have no alias, such as champion, from the registry",
        "models delete uci-sentences:2 --dry-run",
        details="The files stay in the state directory; 'runs prune' removes them once nothing needs them.",
    )
    deleting.add_argument("models", nargs="+", metavar="NAME:VERSION", help="the versions to delete")
    for parser in (returning, deleting):
        parser.add_argument("--dry-run", action="store_true", help="print what would change, and change nothing")
    for parser in (listing, showing, promoting, returning, deleting):
        add_uri(parser)
        add_target(parser)
    for parser in (listing, showing):
        parser.add_argument("--json", action="store_true", help="as JSON")


def add_uri(parser: Parser) -> None:
    """Declare ``--uri``."""
    text = "MLflow URI or vertex://PROJECT/LOCATION (default: the recipe's, $MLFLOW_TRACKING_URI, a file in --home)"
    parser.add_argument("--uri", metavar="URI", help=text)


def open_registry(options: argparse.Namespace) -> Registry:
    """Open the registry of ``--uri``, else of the recipe, the target's settings, the environment or ``--home``."""
    if given := options.uri or _of_recipe(getattr(options, "recipe", None)):
        return registry_at(given, local(options).home)
    elsewhere = getattr(options, "target", "local")
    return (local(options) if elsewhere == "local" else chosen(options)).models()


def _of_recipe(file: str | None) -> str:
    """Return the registry's address in a recipe file (default: the one in the working directory); empty if none."""
    try:
        return recipes.load(file or DEFAULT_FILE).registry.uri
    except UserError:
        if file is not None:
            raise
        return ""  # no recipe was named, and the working directory has none that can be used


def list_models(options: argparse.Namespace) -> None:
    """Print one row for each version."""
    registry = open_registry(options)
    names = registry.names() if options.name is None else [options.name]
    versions = [version for name in names for version in registry.versions(name)]
    if options.json:
        print_json([dataclasses.asdict(version) for version in versions])
    elif versions:
        print_table(("MODEL", "ALIASES", "CREATED", "METRIC", "RUN"), [_row(version) for version in versions])
    else:
        tool = f"xlnet-pipeline {home_option(options.home)}".rstrip()
        print(f"no models in '{registry.shown_uri}'; train one with: {tool} run")


def show(options: argparse.Namespace) -> None:
    """Print one version: the gate's decision, the metric, the digests and the location."""
    version = open_registry(options).find(options.model)
    if options.json:
        print_json(dataclasses.asdict(version))
        return
    name, aliases, created, *_ = _row(version)
    colour = coloured(sys.stdout)
    print(f"model {name}  {paint(aliases, aliases, colour)}".rstrip())
    facts = {"reason": version.description, "created": created, **version.tags}
    width = max(map(len, facts))
    print(visible("\n".join(f"  {key:<{width}}  {value}" for key, value in facts.items() if value)))


def promote(options: argparse.Namespace) -> None:
    """Make a version the champion, and print what was done."""
    print(promoted(open_registry(options), options.model))


def promoted(registry: Registry, reference: str) -> str:
    """Make a version the champion, record that a person decided so, and return what was done.

    Raises:
        UserError: the user named no version, or it does not exist.
    """
    if ":" not in reference and "@" not in reference:
        raise UserError(f"'{reference}' names no version; type for example {reference}:1")
    version = registry.find(reference)
    if CHAMPION in version.aliases:
        return f"{version.name}:{version.version} is the champion already"
    reason = f"promoted by hand; the gate had said: {version.description}"
    tags = {"decision": "promoted by hand", champions.ROLLED_BACK: "false"}
    registry.describe(version.name, version.version, reason, tags)
    champions.make_champion(registry, registry.find(f"{version.name}:{version.version}"))
    return f"{version.name}:{version.version} is now the champion"


def rollback(options: argparse.Namespace) -> None:
    """Make the previous champion the champion again, and print what was done."""
    print(rolled_back(open_registry(options), options.model, options.dry_run))


def rolled_back(registry: Registry, model: str, dry_run: bool = False) -> str:
    """Make the previous champion the champion again, and return what was done.

    Raises:
        UserError: the user named a version, there was no previous champion, or its files are gone.
    """
    if ":" in model or "@" in model:
        command = f"xlnet-pipeline models rollback {shlex.quote(re.split('[:@]', model)[0])}"
        raise UserError(f"'{model}' names a version; type: {command}, or promote that version")
    with registry.exclusive():
        champion, earlier = champions.rollback_pair(registry, model)
        was, again = (f"{one.name}:{one.version}" for one in (champion, earlier))
        if earlier.model_uri.startswith("/") and not Path(earlier.model_uri).is_dir():
            raise UserError(f"'{again}' was champion before '{was}', but its files in '{earlier.model_uri}' are gone")
        if dry_run:
            return f"would make {again} the champion instead of {was}"
        champions.roll_back(registry, champion, earlier)
    return f"{again} is the champion again, instead of {was}"


def delete(options: argparse.Namespace) -> None:
    """Delete the named versions from the registry, and print what was done."""
    print("\n".join(deleted(open_registry(options), options.models, options.dry_run)))


def deleted(registry: Registry, references: Sequence[str], dry_run: bool = False) -> list[str]:
    """Delete the named versions from the registry, either all of them or none, and return what was done.

    Raises:
        UserError: a version is not named by its number, does not exist, or has an alias.
    """
    found = {}
    for reference in references:
        if not re.fullmatch(r".+:\d+", reference):
            raise UserError(f"'{reference}' names no version by its number; type for example {reference}:1")
        version = registry.find(reference)
        if version.aliases:
            held = ", ".join(version.aliases)
            promote = f"xlnet-pipeline models promote {shlex.quote(version.name)}:VERSION"
            other = promote if CHAMPION in version.aliases else ""
            hint = f"; give that to another version first: {other}" if other else "; take the alias from it first"
            raise UserError(f"'{reference}' is {held}{hint}; nothing was deleted")
        found[version.name, version.version] = version
    lines = []
    for version in found.values():
        if not dry_run:
            registry.delete(version.name, version.version)
        lines.append(f"{'would delete' if dry_run else 'deleted'} {version.name}:{version.version}")
    where = sorted({version.model_uri for version in found.values() if version.model_uri})
    return [*lines, "the files stay until 'runs prune' removes them, or you do: " + ", ".join(where)]


def _row(version: ModelVersion) -> tuple[Any, ...]:
    return (
        f"{version.name}:{version.version}",
        ", ".join(version.aliases),
        local_time(version.created),
        version.tags.get("metric"),
        version.tags.get("run"),
    )
