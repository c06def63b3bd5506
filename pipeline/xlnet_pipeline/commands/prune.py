"""``xlnet-pipeline runs prune``: delete runs that nobody needs, and files that killed processes left behind."""

import argparse

from xlnet.errors import RunError
from xlnet_pipeline.commands.parser import Subparsers, age, command, count
from xlnet_pipeline.commands.run import local
from xlnet_pipeline.commands.tables import duration, print_table

DAYS = 30.0
KEEP = 5


def add(subparsers: Subparsers) -> None:
    """Declare the command below ``runs``."""
    parser = command(
        subparsers,
        "prune",
        prune,
        "remove old runs that nobody needs, and what killed processes left behind",
        "runs prune --dry-run",
        "runs prune --older-than 7d --keep 3 --versions",
        details="A run is kept while it is running, while a registered model has files in it, and while a kept run uses"
        "\none of its results. --versions also removes registered versions without an alias, with their runs; versions"
        "\nwith an alias and the previous champion are always kept. Half-written files are removed after a day."
        "\nCheckpoints of trainings that were not continued, and cache entries without files, are removed too.",
    )
    parser.add_argument(
        "--older-than", type=age, default=DAYS * 86400, metavar="AGE", help="such as 30d (default), 12h or 0"
    )
    parser.add_argument(
        "--keep", type=count, default=KEEP, metavar="N", help=f"the newest runs that stay in any case (default: {KEEP})"
    )
    parser.add_argument(
        "--versions", action="store_true", help="also registered versions that have no alias, with their runs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")


def prune(options: argparse.Namespace) -> None:
    """Remove what nobody needs, or with a dry run print what would be removed.

    Raises:
        RunError: a file or version could not be removed.
    """
    from xlnet.lineage.facts import size
    from xlnet_pipeline.targets.local import prune as pruning

    target = local(options)
    if not target.home.is_dir():
        print(f"nothing to remove: there is no state directory '{target.home}' yet")
        return
    problems: list[str] = []
    with pruning.alone(target.home):
        made = pruning.plan(target, older_than=options.older_than, keep=options.keep, versions=options.versions)
        if not options.dry_run:
            pruning.apply(target, made, problems.append)
    if made.remove:
        rows = [
            (item.kind, item.name, *((size(item.size), duration(item.age)) if item.path else (None, None)), item.why)
            for item in made.remove
        ]
        print_table(("WHAT", "NAME", "SIZE", "AGE", "WHY"), rows)
        print(f"{'would free' if options.dry_run else 'freed'} {size(made.size)}")
    else:
        print("nothing to remove")
    if made.kept:
        print("\nkept:")
        for run, reason in made.kept.items():
            print(f"  {run}  {reason}")
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RunError(f"{problems[0]}{more}; the rest was removed")
