"""``xlnet-pipeline models``: the registered models, their versions, and who is champion."""

import argparse
import dataclasses
import sys
from typing import Any

from xlnet.errors import UserError
from xlnet.registry import CHAMPION, ModelVersion, Registry
from xlnet.registry import open_registry as registry_at
from xlnet_pipeline.commands.parser import Parser, Subparsers, command, group
from xlnet_pipeline.commands.run import home_option
from xlnet_pipeline.commands.runs import add_target, chosen, target
from xlnet_pipeline.commands.tables import coloured, local_time, paint, print_json, print_table

HELP_MODEL = "NAME, NAME:VERSION or NAME@ALIAS; NAME alone: its champion, else its latest version"


def add(subparsers: Subparsers) -> None:
    """Declare the command and its commands."""
    inner = group(
        subparsers,
        "models",
        summary="list, show or promote registered models",
        examples=["xlnet-pipeline models list", "xlnet-pipeline models promote uci-sentences:2"],
    )
    listing = command(
        inner, "list", list_models, summary="list every version of every model", examples=["xlnet-pipeline models list"]
    )
    listing.add_argument("name", nargs="?", metavar="NAME", help="the versions of this model only")
    showing = command(
        inner,
        "show",
        show,
        summary="show a model version: metrics, digests, where it is",
        examples=["xlnet-pipeline models show uci-sentences@champion"],
    )
    showing.add_argument("model", metavar="MODEL", help=HELP_MODEL)
    promoting = command(
        inner,
        "promote",
        promote,
        summary="make a version the champion, whatever the gate said",
        examples=["xlnet-pipeline models promote uci-sentences:2"],
    )
    promoting.add_argument("model", metavar="NAME:VERSION", help="the version to promote")
    for parser in (listing, showing, promoting):
        add_uri(parser)
        add_target(parser)
    for parser in (listing, showing):
        parser.add_argument("--json", action="store_true", help="as JSON")


def add_uri(parser: Parser) -> None:
    """Declare ``--uri``."""
    text = "MLflow URI or vertex://PROJECT/LOCATION (default: $MLFLOW_TRACKING_URI, else the state directory's)"
    parser.add_argument("--uri", metavar="URI", help=text)


def open_registry(options: argparse.Namespace) -> Registry:
    """The registry that ``--uri``, ``--target``, MLFLOW_TRACKING_URI or the state directory names."""
    if options.uri:
        return registry_at(options.uri, target(options).home)
    elsewhere = getattr(options, "target", "local")
    return (target(options) if elsewhere == "local" else chosen(options)).models()


def find(options: argparse.Namespace) -> ModelVersion:
    """The version that ``options.model`` names; UserError if there is none."""
    return open_registry(options).find(options.model)


def list_models(options: argparse.Namespace) -> None:
    """Print every version as a row."""
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
    """Print one version: what the gate said, its metric, its digests and where it is."""
    version = find(options)
    if options.json:
        print_json(dataclasses.asdict(version))
        return
    name, aliases, created, *_ = _row(version)
    colour = coloured(sys.stdout)
    print(f"model {name}  {paint(aliases, aliases, colour)}".rstrip())
    facts = {"reason": version.description, "created": created, **version.tags}
    width = max(map(len, facts))
    print("\n".join(f"  {key:<{width}}  {value}" for key, value in facts.items() if value))


def promote(options: argparse.Namespace) -> None:
    """Make a version the champion, and write that a person did.

    Raises:
        UserError: no version is named, or there is no such one.
    """
    if ":" not in options.model and "@" not in options.model:
        raise UserError(f"'{options.model}' names no version; type for example {options.model}:1")
    registry = open_registry(options)
    version = registry.find(options.model)
    if CHAMPION in version.aliases:
        print(f"{version.name}:{version.version} is the champion already")
        return
    reason = f"promoted by hand; the gate had said: {version.description}"
    registry.describe(version.name, version.version, reason, {"decision": "promoted by hand"})
    registry.set_alias(version.name, CHAMPION, version.version)
    print(f"{version.name}:{version.version} is now the champion")


def _row(version: ModelVersion) -> tuple[Any, ...]:
    return (
        f"{version.name}:{version.version}",
        ", ".join(version.aliases),
        local_time(version.created),
        version.tags.get("metric"),
        version.tags.get("run"),
    )
