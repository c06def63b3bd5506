"""``xlnet-pipeline run``: one recipe through the whole pipeline."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xlnet
from xlnet import recipe as recipes
from xlnet.data.storage import DATA_SUFFIXES
from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet.training import DEVICES
from xlnet_pipeline.commands import outcome
from xlnet_pipeline.commands.parser import Parser, Subparsers, command, hours, seconds
from xlnet_pipeline.commands.tables import coloured, print_json
from xlnet_pipeline.targets import NAMES

if TYPE_CHECKING:
    from xlnet_pipeline.placement import Placement
    from xlnet_pipeline.targets.local.target import LocalTarget

DEMO = Path(xlnet.__file__).parent / "demo" / "uci_sentences"
DEMO_RECIPE = DEMO / "recipe.toml"
HERE = ("local", "docker")  # targets that are this machine
AUTO = "auto"  # the machine that plan chooses


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
            "xlnet-pipeline run recipe.toml --target kfp --machine l4 --spot --wait",
            "xlnet-pipeline run recipe.toml --target vertex --machine v5e-8 --dry-run",
        ],
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.toml", help="what to run; 'init' writes one")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field"
    )
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop the run after that long")
    add_placement(parser, (*HERE, *NAMES[1:]))
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="on local and docker: processes that train together (one per GPU, or 1)"
    )
    parser.add_argument("--device", choices=DEVICES, help="on local: where to train; default: what is there")
    parser.add_argument("--memory", metavar="SIZE", help="with --target docker: the most a step may use, such as 4g")
    parser.add_argument("--wait", action="store_true", help="on kfp and vertex: wait until the run has ended")
    parser.add_argument("--deadline", type=hours, metavar="TIME", help="for --machine auto: how long training may take")
    parser.add_argument("--no-check", action="store_true", help="on kfp and vertex: submit whatever the checks find")
    parser.add_argument("--dry-run", action="store_true", help="print the exact requests as JSON, and send nothing")


def add_placement(parser: Parser, targets: Sequence[str] = NAMES) -> None:
    """Declare where to run, and on what."""
    names = f"{', '.join(targets[1:-1])} or {targets[-1]}"
    parser.add_argument(
        "--target", choices=targets, default="local", metavar="TARGET", help=f"local (default), {names}"
    )
    parser.add_argument(
        "--machine", metavar="NAME", help="what to train on, such as l4, v5e-4 or auto, the cheapest (default: cpu)"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that train together (default: 1)")
    parser.add_argument("--spot", action="store_true", help="machines that can be preempted, for less money")
    parser.add_argument(
        "--flex-start", action="store_true", help="on vertex: wait up to a day for a GPU machine, for less money"
    )
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help="what the steps run in: REGISTRY/NAME@sha256:…, or :TAG, which is looked up ($XLNET_IMAGE)",
    )


def placed(options: argparse.Namespace, target: Any) -> "Placement":
    """The placement that the options and the target's settings name.

    Raises:
        UserError: the target does not offer the machine, or the image's tag has no digest.
    """
    from xlnet_pipeline.images import references
    from xlnet_pipeline.placement import placement
    from xlnet_pipeline.placement.machines import machine
    from xlnet_pipeline.targets.settings import image_of

    image = references.pinned(image_of(target.settings, options.image))
    found = placement(
        target.name,
        image,
        machine(options.machine or "cpu"),
        nodes=options.nodes,
        spot=options.spot,
        flex_start=options.flex_start,
    )
    return dataclasses.replace(found, **target.placing())


def run(options: argparse.Namespace) -> int:
    """Run the recipe and say what came of it; the run's own exit status."""
    recipe = load(options.recipe, options.settings)
    if options.target not in HERE:
        if options.nproc is not None:
            raise UserError("--nproc is for the targets local and docker; elsewhere --machine says how many there are")
        if options.device:
            raise UserError(f"--device is for the target local; on {options.target} --machine says what there is")
        return run_elsewhere(options, recipe)
    if options.device:
        ask_for(options.device, options.target)
    if options.nproc is not None:
        if options.nproc < 1:
            raise UserError(f"--nproc is {options.nproc}; allowed: 1 and more")
        os.environ["XLNET_NPROC"] = str(options.nproc)
    local_only(options, allowed=("image",) if options.target == "docker" else ())
    return run_here(options, recipe)


def ask_for(device: str, target: str) -> None:
    """Have the train step take this kind of device, if it is here.

    Raises:
        UserError: it is not.
    """
    if target != "local":
        raise UserError(f"--device is for the target local; on {target} the image says what there is")
    from xlnet.training.detect import choose

    os.environ["XLNET_DEVICE"] = choose(device)


def local_only(options: argparse.Namespace, allowed: Sequence[str] = ()) -> None:
    """Do nothing if no option, but for those allowed, asks for what only the remote targets have.

    Raises:
        UserError: one does.
    """
    asking = {"machine", "spot", "flex_start", "image", "dry_run"} - set(allowed)
    given = sorted(name for name in asking if getattr(options, name, None))
    if given or options.nodes != 1:
        name = (given or ["nodes"])[0].replace("_", "-")
        raise UserError(f"--{name} is for the targets kfp and vertex; the local target is this machine")


def run_elsewhere(options: argparse.Namespace, recipe: Recipe) -> int:
    """Submit the recipe to a remote target; with ``--wait`` or ``--timeout``, watch it to its end."""
    from xlnet_pipeline.targets import open_target, remote

    target = open_target(options.target, options.home, options.recipe)
    if options.machine == AUTO:
        options.machine = cheapest(options, recipe)
    if not options.no_check:
        check(options, recipe, target.settings)
    where, cache = placed(options, target), not options.no_cache
    if options.dry_run:
        print_json(target.preview(recipe, where, cache))
        return 0
    done = target.submit(recipe, where=where, cache=cache, echo=print)
    if not (options.wait or options.timeout):
        print(f"next: xlnet-pipeline runs show {done.id} --target {target.name}")
        return 0
    try:
        done = remote.wait(target, target.status(done.id), options.timeout, print)
    except KeyboardInterrupt:
        print(f"\nrun {done.id} goes on; to stop it: xlnet-pipeline runs cancel {done.id} --target {target.name}")
        raise
    print(f"run {done.id}: {done.status}")
    if done.status == "SUCCEEDED":
        print("\n".join(outcome.lines(done, f"--target {target.name}", coloured(sys.stdout))))
    elif done.error:
        print(f"error: {done.error.message}")
        print(f"its log: xlnet-pipeline runs logs {done.id} --target {target.name}")
    return done.exit_status


def cheapest(options: argparse.Namespace, recipe: Recipe) -> str:
    """The machine that ``--machine auto`` stands for, and a line that says why."""
    from xlnet_pipeline.planning.plan import plan
    from xlnet_pipeline.targets.local.target import LocalTarget

    made = plan(
        recipe,
        LocalTarget(options.home).home,
        target=options.target,
        machine=AUTO,
        nodes=options.nodes,
        spot=options.spot,
        deadline=options.deadline,
    )
    print(made.recommendation, file=sys.stderr)
    return made.chosen.machine.name


def check(options: argparse.Namespace, recipe: Recipe, settings: Any) -> None:
    """Run every check and print the warnings.

    Raises:
        UserError: the run would fail; each reason on a line.
    """
    from xlnet_pipeline.placement.machines import machine
    from xlnet_pipeline.planning.check import Submission, require
    from xlnet_pipeline.targets.settings import image_of

    given = Submission(
        recipe,
        options.target,
        machine(options.machine or "cpu"),
        options.nodes,
        options.spot,
        image_of(settings, options.image),
        flex_start=options.flex_start,
        pipeline_root=settings.pipeline_root,
    )
    for warning in require(given):
        print(f"warning: {warning}", file=sys.stderr)


def run_here(options: argparse.Namespace, recipe: Recipe) -> int:
    """Run the recipe on this machine, in the foreground."""
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
    from xlnet_pipeline.targets.local.target import LocalTarget

    if options.target == "docker":
        from xlnet_pipeline.targets.docker import DockerTarget

        return DockerTarget(options.home, image=options.image, memory=options.memory)
    if options.memory:
        raise UserError(f"--memory is for --target docker; target '{options.target}' runs no containers")
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
