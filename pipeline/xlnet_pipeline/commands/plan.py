"""``xlnet-pipeline plan``: show what a run would reuse, and its memory, time and cost on each machine."""

import argparse

from xlnet_pipeline.commands.parser import Parser, Subparsers, command, hours
from xlnet_pipeline.commands.run import add_recipe, load, local
from xlnet_pipeline.commands.tables import print_json


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "plan",
        show,
        "show what a run would reuse, need, take and cost",
        "plan recipe.toml",
        "plan recipe.toml --target vertex --machine auto --deadline 2h",
        "plan recipe.toml --target vertex --machine l4-8 --nodes 2 --spot",
        details="Nothing is started and nothing is spent. Without --target, this machine is compared with all machines"
        "\nof Vertex AI; --machine auto takes the cheapest that fits.",
    )
    add_recipe(parser, "the recipe to plan (default: the demo)")
    parser.add_argument("--target", choices=["local", "kfp", "vertex"], metavar="TARGET", help="local, kfp or vertex")
    add_machine(parser)
    parser.add_argument("--deadline", type=hours, metavar="TIME", help="how long training may take, such as 90m or 2h")
    parser.add_argument("--prices", metavar="FILE", help="your own prices, TOML or JSON: machine = USD per hour")
    parser.add_argument("--json", action="store_true", help="as JSON")


def add_machine(parser: Parser) -> None:
    """Declare ``--machine``, ``--nodes`` and ``--spot``."""
    parser.add_argument("--machine", metavar="NAME", help="such as l4, h100-8 or v5e-4; auto: the cheapest that fits")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    parser.add_argument("--spot", action="store_true", help="spot machines: cheaper, but they can be preempted")


def show(options: argparse.Namespace) -> int:
    """Print the plan. Return 1 if the run does not fit on the requested machine."""
    from xlnet_pipeline.placement import machines
    from xlnet_pipeline.planning.plan import plan

    made = plan(
        load(options.recipe, options.settings, options.home),
        local(options).home,
        target=options.target,
        machine=options.machine,
        nodes=options.nodes,
        spot=options.spot,
        deadline=options.deadline,
        prices=machines.read_prices(options.prices) if options.prices else None,
    )
    if options.json:
        print_json(made.to_dict())
    else:
        print(made.text())
    return 0 if made.chosen.fits else 1
