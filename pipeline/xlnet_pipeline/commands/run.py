"""``xlnet-pipeline run``: run one recipe through the whole pipeline."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xlnet
from xlnet import recipe as recipes
from xlnet import state
from xlnet.data.walking import DATA_SUFFIXES
from xlnet.errors import UserError
from xlnet.options import device
from xlnet.recipe import Recipe
from xlnet.registry import Registry
from xlnet.registry.locate import MLFLOW, RUNS, with_weights
from xlnet.training import DEVICES
from xlnet_pipeline.commands import outcome
from xlnet_pipeline.commands.parser import Parser, Subparsers, command, hours, seconds
from xlnet_pipeline.commands.tables import coloured, print_json
from xlnet_pipeline.targets import NAMES, Submission, Target, open_target
from xlnet_pipeline.targets.settings import needed
from xlnet_pipeline.targets.submission import refuse

if TYPE_CHECKING:
    from xlnet_pipeline.targets.local.target import LocalTarget

DEMO = Path(xlnet.__file__).parent / "demo" / "uci_sentences"
DEMO_RECIPE = DEMO / "recipe.toml"
HERE = ("local", "docker")  # targets on this machine
AUTO = "auto"  # plan chooses the machine


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "run",
        run,
        "train, evaluate and register a model",
        "run",
        "run recipe.toml --set training.epochs=5 --set model.preset=small",
        "run --set data.train=reviews.csv --set data.text=review --set data.label=stars",
        "run recipe.toml --target kfp --machine l4 --spot --wait",
        "run recipe.toml --target vertex --machine v5e-8 --dry-run",
        details="Without a recipe and without --set data.train=… it runs the demo: 2,838 labelled sentences that are"
        "\nshipped with the package. Steps whose data, settings and code have not changed are not run again.",
    )
    add_recipe(parser, "what to run; 'init' writes one")
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument("--force", action="store_true", help="make the model champion, whatever the gate says")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop the run after that long")
    add_placement(parser, NAMES)
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="on local and docker: processes that train together (one per GPU, or 1)"
    )
    text = "on local: device to train on (default: the best one)"
    parser.add_argument("--device", type=device, choices=DEVICES, help=text)
    parser.add_argument("--memory", metavar="SIZE", help="with --target docker: memory limit of a step, such as 4g")
    parser.add_argument("--wait", action="store_true", help="on kfp and vertex: wait until the run has ended")
    parser.add_argument("--deadline", type=hours, metavar="TIME", help="for --machine auto: how long training may take")
    parser.add_argument("--no-check", action="store_true", help="run even if the checks find an error")
    parser.add_argument("--dry-run", action="store_true", help="print the exact requests as JSON, and send nothing")


def local(options: argparse.Namespace) -> "LocalTarget":
    """Open the target on this machine, in the chosen state directory."""
    from xlnet_pipeline.targets.local.target import LocalTarget

    return LocalTarget(options.home)


def add_recipe(parser: Parser, text: str) -> None:
    """Declare the recipe and ``--set``."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.toml", help=text)
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field"
    )


def add_placement(parser: Parser, targets: Sequence[str] = ("local", "kfp", "vertex")) -> None:
    """Declare the options for target and machine."""
    names = f"{', '.join(targets[1:-1])} or {targets[-1]}"
    parser.add_argument(
        "--target", choices=targets, default="local", metavar="TARGET", help=f"local (default), {names}"
    )
    parser.add_argument(
        "--machine", metavar="NAME", help="machine to train on, such as l4, v5e-4, or auto: the cheapest (default: cpu)"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that train together (default: 1)")
    parser.add_argument("--spot", action="store_true", help="machines that can be preempted, for less money")
    parser.add_argument(
        "--flex-start", action="store_true", help="on vertex: wait up to a day for a GPU machine, for less money"
    )
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help="image of the steps: REGISTRY/NAME@sha256:…, or :TAG, whose digest is looked up (default: $XLNET_IMAGE)",
    )


def submission(options: argparse.Namespace, recipe: Recipe) -> Submission:
    """Return the submission that the options describe.

    Raises:
        UserError: a number is too small.
    """
    fields = {field.name for field in dataclasses.fields(Submission)}
    given = {name: value for name, value in vars(options).items() if name in fields and value is not None}
    return Submission(**{**given, "recipe": recipe, "cache": not getattr(options, "no_cache", False)})


def run(options: argparse.Namespace) -> int:
    """Run the recipe, print its outcome and return its exit status."""
    recipe = load(options.recipe, options.settings, options.home, options.target)
    if options.force:
        recipe = recipe.replace(registry={"force": True})
    asked = submission(options, recipe)
    needs = needed(options.target, image=bool(options.image), offline=options.dry_run)
    target = open_target(options.target, options.home, options.recipe, needs)
    refuse(asked, target.cannot)
    if options.dry_run and "preview" in target.cannot:
        raise UserError(target.cannot["preview"])
    return run_here(options, target, asked) if options.target in HERE else run_elsewhere(options, target, asked)


def run_elsewhere(options: argparse.Namespace, target: Target, asked: Submission) -> int:
    """Submit the run to a remote target. With ``--wait`` or ``--timeout``, watch it until it ends."""
    from xlnet_pipeline.targets import remote

    if asked.machine == AUTO:
        asked = dataclasses.replace(asked, machine=cheapest(options, asked.recipe))
    if not options.no_check:
        check(target, asked, offline=options.dry_run)
    if options.dry_run:
        print_json(target.preview(asked))
        return 0
    done = target.submit(asked, echo=print)
    if not (options.wait or options.timeout):
        print(f"next: xlnet-pipeline runs show {done.id} --target {target.name}")
        return 0
    try:
        done = remote.wait(target, done, options.timeout, print)
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
    """Return the machine that ``--machine auto`` chooses, and print the reason."""
    from xlnet_pipeline.planning.plan import plan

    made = plan(
        recipe,
        local(options).home,
        target=options.target,
        machine=AUTO,
        nodes=options.nodes,
        spot=options.spot,
        deadline=options.deadline,
    )
    print(made.recommendation, file=sys.stderr)
    return made.chosen.machine.name


def check(target: Target, asked: Submission, offline: bool = False) -> None:
    """Run all checks, or only those that need no network.

    Prints the warnings, except on this machine, where the steps print the same ones a moment later.

    Raises:
        UserError: the run would fail; the message has one line for each reason.
    """
    from xlnet_pipeline.placement.machines import machine
    from xlnet_pipeline.planning import check as checks
    from xlnet_pipeline.planning.planned_run import BEFORE_A_RUN, LOCAL, PlannedRun
    from xlnet_pipeline.targets.local.target import LocalTarget
    from xlnet_pipeline.targets.settings import image_of

    here = target.name in HERE
    given = PlannedRun(
        asked.recipe,
        LOCAL if here else target.name,
        machine(asked.machine or "cpu"),
        asked.nodes,
        asked.spot,
        "" if here else image_of(target.settings, asked.image),
        home=target.home if isinstance(target, LocalTarget) else state.home(),
        flex_start=asked.flex_start,
        pipeline_root=target.settings.pipeline_root,
        registry=target.settings.registry,
        whole=BEFORE_A_RUN,
    )
    for warning in checks.require(given, offline):
        if not here:
            print(f"warning: {warning}", file=sys.stderr)


def run_here(options: argparse.Namespace, target: Target, asked: Submission) -> int:
    """Run on this machine, in the foreground."""
    from xlnet_pipeline.targets.terminal import Terminal

    if not options.no_check:
        check(target, asked)
    terminal = Terminal(sys.stdout)
    live = terminal.live if sys.stdout.isatty() else None
    done = target.submit(asked, echo=terminal.line, live=live)
    if done.status == "SUCCEEDED":
        print("\n".join(outcome.lines(done, home_option(options.home), coloured(sys.stdout))))
    elif done.error and done.error.kind == "run":
        print(f"its log: xlnet-pipeline {home_option(options.home)}".rstrip() + f" runs logs {done.id}")
    return done.exit_status


def load(path: str | None, settings: list[str], home: str | None = None, target: str = "local") -> Recipe:
    """Return the recipe to run: from the file, the demo, or only from ``--set`` settings.

    If ``model.pretrained`` names a registered model or a run on ``target``, the address of its files replaces the name.

    Raises:
        UserError: the recipe is invalid, or names no training data.
    """
    if path and Path(path.removesuffix(".gz")).suffix in DATA_SUFFIXES:
        setting = shlex.quote(f"data.train={path}")
        raise UserError(f"'{path}' is not a recipe; to train on it type: xlnet-pipeline run --set {setting}")
    names_data = any(setting.partition("=")[0].strip() == "data.train" for setting in settings)
    recipe = recipes.load(path or (None if names_data else DEMO_RECIPE), settings)
    if not recipe.data.train:
        where = f"recipe '{path}'" if path else "the recipe"
        raise UserError(f"{where} names no data: write data.train under [data], or type --set data.train=FILE.csv")
    return located(recipe, target, home, path)


def located(recipe: Recipe, target: str, home: str | Path | None, file: str | Path | None) -> Recipe:
    """Replace a registered model or a run in ``model.pretrained`` by the address of its files; see :func:`load`.

    Args:
        recipe: the recipe.
        target: the target whose registry and runs are searched for the model.
        home: the state directory of the targets on this machine.
        file: the recipe's file, which may hold the target's settings.

    Raises:
        UserError: there is no such model, or the run has none.
    """
    if not recipe.model.pretrained.startswith((MLFLOW, RUNS)):
        return recipe
    from xlnet.registry import open_registry

    def registry() -> Registry:
        if recipe.registry.uri or target in HERE:
            return open_registry(recipe.registry.uri, home)
        return open_target(target, home, file).models()

    def model_of(run: str) -> str:
        found = open_target(target, home, file).status(run)
        made = found.step("train").outputs.get("model")
        if not made:
            raise UserError(f"run '{found.id}' is {found.status} and has no model; name another in model.pretrained")
        return str(made["uri"])

    return with_weights(recipe, registry, model_of)


def home_option(home: str | None) -> str:
    """Return the option to repeat in suggested commands: ``--home DIR`` if the user gave it, else an empty string."""
    return f"--home {shlex.quote(os.path.relpath(home))}" if home else ""
