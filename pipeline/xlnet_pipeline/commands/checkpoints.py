"""``xlnet-pipeline checkpoints``: list and remove the checkpoints of unfinished trainings.

A run with the same recipe and data resumes from such a checkpoint.
"""

import argparse
import dataclasses

from xlnet.errors import RunError, UserError
from xlnet_pipeline.commands.parser import Subparsers, age, command, group
from xlnet_pipeline.commands.run import local
from xlnet_pipeline.commands.tables import duration, print_json, print_table


def add(subparsers: Subparsers) -> None:
    """Declare the command and its subcommands."""
    inner = group(
        subparsers,
        "checkpoints",
        "list or remove the checkpoints of trainings that have not ended",
        "checkpoints list",
        "checkpoints remove 4f2a90 --dry-run",
    )
    listing = command(
        inner,
        "list",
        list_checkpoints,
        "list the checkpoints of every training, the newest first",
        "checkpoints list",
        details="They are in the state directory, or where XLNET_CHECKPOINTS says. A training removes them at its end.",
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    removing = command(
        inner,
        "remove",
        remove,
        "remove checkpoints; an equal run then starts from the beginning",
        "checkpoints remove 4f2a90",
        "checkpoints remove --older-than 7d --dry-run",
    )
    removing.add_argument("names", nargs="*", metavar="NAME", help="a name that 'checkpoints list' shows")
    removing.add_argument("--older-than", type=age, metavar="AGE", help="all that are older than this: 7d, 12h or 0")
    removing.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")


def list_checkpoints(options: argparse.Namespace) -> None:
    """Print one row for each training that has checkpoints."""
    from xlnet.lineage.facts import size
    from xlnet_pipeline.targets.local import checkpoints

    home = local(options).home
    known = checkpoints.found(home)
    if options.json:
        print_json([{**dataclasses.asdict(one), "path": one.root} for one in known])
    elif known:
        rows = [
            (one.short, one.step, size(one.size), duration(one.age), "in use" if one.in_use else "", one.data)
            for one in known
        ]
        print_table(("NAME", "STEP", "SIZE", "AGE", "STATE", "DATA"), rows)
    else:
        print(f"no checkpoints in '{checkpoints.folder(home)}'")


def remove(options: argparse.Namespace) -> None:
    """Remove the checkpoints that the user named, or that are old enough, unless a training uses them.

    Raises:
        UserError: the user named no checkpoints, or these checkpoints do not exist.
        RunError: a training uses one of the named checkpoints.
    """
    from xlnet.lineage.facts import size
    from xlnet_pipeline.targets.local import checkpoints

    if bool(options.names) == (options.older_than is not None):
        raise UserError("name checkpoints to remove, or --older-than AGE; see: xlnet-pipeline checkpoints list")
    home = local(options).home
    known = checkpoints.found(home)
    if options.names:
        chosen = [checkpoints.choose(name, known) for name in dict.fromkeys(options.names)]
    else:
        chosen = [one for one in known if one.age >= options.older_than and not one.in_use]
    for one in chosen:
        if one.in_use:
            raise RunError(f"a training is using checkpoints '{one.short}'; wait until it has ended, or cancel its run")
    for one in chosen:
        problem = "" if options.dry_run else checkpoints.remove(one, home)
        if problem:
            raise RunError(f"checkpoints '{one.short}' cannot be removed: {problem}")
        print(f"{'would remove' if options.dry_run else 'removed'} {one.short}, step {one.step}, {size(one.size)}")
    if not chosen:
        print("nothing to remove")
