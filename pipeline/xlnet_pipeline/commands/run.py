"""``xlnet-pipeline run``: one recipe through the whole pipeline."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import xlnet
from xlnet import recipe as recipes
from xlnet.data.storage import DATA_SUFFIXES
from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.commands import outcome
from xlnet_pipeline.commands.parser import Subparsers, command, seconds
from xlnet_pipeline.commands.tables import coloured

if TYPE_CHECKING:
    from xlnet_pipeline.targets.local import LocalTarget

DEMO = Path(xlnet.__file__).parent / "demo" / "uci_sentences"
DEMO_RECIPE = DEMO / "recipe.toml"


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "run",
        run,
        summary="train, evaluate and register a model",
        details="Without a recipe and without --set data.train=… it runs the demo: 2,838 labelled sentences that are"
        "\nshipped with the package. Steps whose data, settings and code have not changed are not run again.",
        examples=[
            "xlnet-pipeline run",
            "xlnet-pipeline run recipe.toml --set training.epochs=5 --set model.preset=small",
            "xlnet-pipeline run --set data.train=reviews.csv --set data.text=review --set data.label=stars",
        ],
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.toml", help="what to run; 'init' writes one")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field"
    )
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop the run after that long")
    parser.add_argument(
        "--target",
        choices=["local", "docker"],
        default="local",
        metavar="TARGET",
        help="where to run: local (the default), or docker: each step in a container of the image that build made",
    )
    parser.add_argument("--image", metavar="IMAGE", help="with --target docker: another image that Docker has")
    parser.add_argument("--memory", metavar="SIZE", help="with --target docker: the most a step may use, such as 4g")


def run(options: argparse.Namespace) -> int:
    """Run the recipe and say what came of it; the run's own exit status."""
    recipe = load(options.recipe, options.settings)
    from xlnet_pipeline.targets.terminal import Terminal

    terminal = Terminal(sys.stdout)
    live = terminal.live if sys.stdout.isatty() else None
    done = _target(options).submit(
        recipe, cache=not options.no_cache, timeout=options.timeout, echo=terminal.line, live=live
    )
    if done.status == "SUCCEEDED":
        print("\n".join(outcome.lines(done, home_option(options.home), coloured(sys.stdout))))
    elif done.error and done.error.kind == "run":
        print(f"its log: xlnet-pipeline {home_option(options.home)}".rstrip() + f" runs logs {done.id}")
    return done.exit_status


def _target(options: argparse.Namespace) -> "LocalTarget":
    from xlnet_pipeline.targets.local import LocalTarget

    if options.target == "docker":
        from xlnet_pipeline.targets.docker import DockerTarget

        return DockerTarget(options.home, image=options.image, memory=options.memory)
    for option in ("image", "memory"):
        if getattr(options, option):
            raise UserError(f"--{option} is for --target docker; target '{options.target}' runs no containers")
    return LocalTarget(options.home)


def load(path: str | None, settings: list[str]) -> Recipe:
    """The recipe to run: the file's, the demo's, or one made of settings alone.

    Raises:
        UserError: the recipe is wrong, or names no data to train on.
    """
    if path and Path(path.removesuffix(".gz")).suffix in DATA_SUFFIXES:
        raise UserError(f"'{path}' is no recipe; to train on it type: xlnet-pipeline run --set data.train={path}")
    names_data = any(setting.partition("=")[0].strip() == "data.train" for setting in settings)
    recipe = recipes.load(path or (None if names_data else DEMO_RECIPE), settings)
    if not recipe.data.train:
        where = f"recipe '{path}'" if path else "the recipe"
        raise UserError(f"{where} names no data: write data.train under [data], or type --set data.train=FILE.csv")
    return recipe


def home_option(home: str | None) -> str:
    """What to repeat in commands that are suggested: ``--home DIR`` if it was given; else nothing."""
    return f"--home {shlex.quote(os.path.relpath(home))}" if home else ""
