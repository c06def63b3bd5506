"""``xlnet-pipeline models``: the registered models, their versions, and who is champion."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from xlnet.errors import UserError, nearest
from xlnet_pipeline.commands.parser import Subparsers, command, group
from xlnet_pipeline.commands.run import home_option
from xlnet_pipeline.commands.runs import target
from xlnet_pipeline.commands.tables import local_time, print_json, print_table

if TYPE_CHECKING:
    from xlnet.registry import ModelVersion, Registry

HELP_MODEL = "NAME, NAME:VERSION or NAME@ALIAS; NAME alone: its champion, else its latest version"
CHAMPION = "champion"
LINKS = ("model_uri", "evaluation_uri", "registration_uri", "run")
DIGESTS = ("model_digest", "dataset_digest", "snapshot_digest", "test_digest", "git_sha")


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
        parser.add_argument("--uri", metavar="URI", help="MLflow tracking URI (default: the local registry's)")
    for parser in (listing, showing):
        parser.add_argument("--json", action="store_true", help="as JSON")


def open_registry(options: argparse.Namespace) -> "Registry":
    """The registry that ``--uri``, MLFLOW_TRACKING_URI or the state directory names."""
    from xlnet.registry import open_registry

    return open_registry(getattr(options, "uri", None) or "", target(options).home)


def find(options: argparse.Namespace) -> "ModelVersion":
    """The version that ``options.model`` names; UserError if there is none."""
    return open_registry(options).find(options.model)


def list_models(options: argparse.Namespace) -> None:
    """Print every version as a row."""
    registry = open_registry(options)
    names = registry.names()
    if options.name is not None and options.name not in names:
        raise UserError(
            f"model '{options.name}' is not registered; known: {', '.join(names) or 'none'}"
            f"{nearest(options.name, names)}"
        )
    versions = [version for name in names if options.name in (None, name) for version in registry.versions(name)]
    if options.json:
        print_json([dataclasses.asdict(version) for version in versions])
    elif versions:
        header = ("MODEL", "ALIASES", "CREATED", "METRIC", "RUN")
        print_table(header, [_row(version) for version in versions])
    else:
        print(f"no models yet; train one with: xlnet-pipeline {home_option(options.home)}".rstrip() + " run")


def show(options: argparse.Namespace) -> None:
    """Print one version."""
    version = find(options)
    if options.json:
        print_json(dataclasses.asdict(version))
        return
    name, aliases, created, metric, _ = _row(version)
    print(f"{name}  {aliases or ''}".rstrip())
    facts = {"created": created, "metric": metric, **version.tags}
    width = max(map(len, facts))
    print("\n".join(f"  {key:<{width}}  {value}" for key, value in facts.items() if value))


def promote(options: argparse.Namespace) -> None:
    """Give a version the alias champion."""
    registry = open_registry(options)
    version = registry.find(options.model)
    registry.set_alias(version.name, CHAMPION, version.version)
    print(f"{version.name}:{version.version} is now the champion")


def _row(version: "ModelVersion") -> tuple[Any, ...]:
    return (
        f"{version.name}:{version.version}",
        ", ".join(version.aliases),
        local_time(version.created),
        version.tags.get("metric"),
        version.tags.get("run"),
    )
