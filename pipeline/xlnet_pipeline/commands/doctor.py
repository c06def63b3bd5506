"""``xlnet-pipeline doctor``: test which services and tools that a run may need can be reached from here."""

import argparse
import os
import sys
from pathlib import Path

from xlnet.errors import UserError
from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "doctor",
        diagnose,
        "test what can be reached from here, and say how to repair what cannot",
        "doctor",
        "doctor recipe.toml --machine v5e-8",
        "doctor --from-terraform outputs.json",
        details="Prints one line for each test: ok, bad, or - if it is not set up. Exit status 1 if something is bad.",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE.toml",
        help="recipe with [target] tables that name services (default: recipe.toml)",
    )
    parser.add_argument("--machine", metavar="NAME", help="test the project's quota for this machine")
    parser.add_argument(
        "--from-terraform", metavar="FILE", help="what terraform output -json printed; -: standard input"
    )


def diagnose(options: argparse.Namespace) -> int:
    """Print one line for each probe. Return 1 if a probe failed."""
    from xlnet_pipeline.placement import machines
    from xlnet_pipeline.planning import doctor
    from xlnet_pipeline.planning.diagnosis import BAD, Environment
    from xlnet_pipeline.targets import settings

    made = doctor.from_terraform(_read(options.from_terraform)) if options.from_terraform else None
    around = Environment(
        environment={**settings.variables(options.recipe), **os.environ, **(made or {})},
        exported=None if made is None else {name: made[name] for name in made if os.environ.get(name) != made[name]},
        machine=machines.machine(options.machine) if options.machine else None,
    )
    found = doctor.probe(around)
    print("\n".join(str(one) for one in found))
    return 1 if any(one.state == BAD for one in found) else 0


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{file}': {error}; write it with: terraform output -json > {file}") from None
