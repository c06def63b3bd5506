"""``xlnet-pipeline check``: find everything that would make a run fail, before the run starts."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from xlnet.errors import RunError, UserError
from xlnet_pipeline.commands.parser import Subparsers, command
from xlnet_pipeline.commands.plan import add_machine
from xlnet_pipeline.commands.run import add_recipe, load, local
from xlnet_pipeline.commands.tables import table

if TYPE_CHECKING:
    from xlnet_pipeline.planning.planned_run import PlannedRun

SHOWN_ROWS = 3


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "check",
        check,
        "check a recipe against its data, target and machine",
        "check recipe.toml",
        "check recipe.toml --target vertex --machine v5e-8 --image registry.example/xlnet@sha256:…",
        "check recipe.toml --cron '0 3 * * 1' --timezone Europe/Berlin",
        details="The recipe's columns are compared with the first rows of the data. Exit status 2: a run would fail.",
    )
    add_recipe(parser, "the recipe to check (default: the demo)")
    parser.add_argument(
        "--target", choices=["local", "kfp", "vertex"], default="local", metavar="TARGET", help="default: local"
    )
    add_machine(parser)
    parser.add_argument("--flex-start", action="store_true", help="on vertex: wait for a machine, for less money")
    parser.add_argument(
        "--image", metavar="IMAGE", help="image of the steps: REGISTRY/NAME@sha256:… or :TAG (default: $XLNET_IMAGE)"
    )
    parser.add_argument("--cron", metavar="EXPRESSION", help="a schedule of five fields")
    parser.add_argument("--timezone", metavar="NAME", help="the schedule's time zone, such as Europe/Berlin")


def check(options: argparse.Namespace) -> int:
    """Print the findings. Return 2 if a run would fail."""
    from xlnet_pipeline.placement import machines
    from xlnet_pipeline.planning import check as checks
    from xlnet_pipeline.planning.planned_run import PlannedRun
    from xlnet_pipeline.targets import settings

    known = {**settings.variables(options.recipe), **os.environ}
    planned = PlannedRun(
        recipe=load(options.recipe, options.settings, options.home),
        target=options.target,
        machine=machines.machine(options.machine or "cpu"),
        nodes=options.nodes,
        spot=options.spot,
        image=settings.in_registry(
            options.image or known.get("XLNET_IMAGE", ""), known.get("CONTAINER_IMAGE_REGISTRY", "")
        ),
        flex_start=options.flex_start,
        home=local(options).home,
        pipeline_root=known.get(f"{options.target.upper()}_PIPELINE_ROOT", ""),
        registry=settings.registry_of(options.target, known),
        cron=options.cron or "",
        timezone=options.timezone or "",
    )
    found = checks.findings(planned)
    for line in _first_rows(planned):
        print(line)
    for one in found:
        print(f"{'error' if one.fatal else 'warning'}: {one}", file=sys.stderr)
    errors = sum(one.fatal for one in found)
    names = len({one.name for one in checks.CHECKS})
    print(f"{names} checks: {errors} wrong, {len(found) - errors} to watch" if found else f"{names} checks: all well")
    return 2 if errors else 0


def _first_rows(planned: "PlannedRun") -> list[str]:
    """Format the first rows as the recipe reads them; they show a wrong column, delimiter or encoding."""
    from xlnet.data.values import shown  # late: numpy

    try:
        rows = planned.rows[:SHOWN_ROWS]
    except (UserError, RunError):
        return []
    if not rows:
        return []
    uses = [use for use in ("text", "text_pair", "label", "id") if getattr(planned.recipe.data, use) is not None]
    cells = [[shown(str(getattr(row, use) or ""))[1:-1] for use in uses] for row in rows]
    return [*table(uses, cells), ""]
