"""``xlnet-pipeline runs``: the runs there are, what happened in them, and stopping one."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from xlnet_pipeline.commands import outcome
from xlnet_pipeline.commands.parser import Subparsers, command, group
from xlnet_pipeline.commands.run import home_option
from xlnet_pipeline.commands.tables import coloured, duration, local_time, paint, print_json, print_table

if TYPE_CHECKING:
    from xlnet_pipeline.targets.local import LocalTarget

HELP_RUN = "a run's id, a unique beginning of it, or its last characters"


def add(subparsers: Subparsers) -> None:
    """Declare the command and its commands."""
    inner = group(
        subparsers,
        "runs",
        summary="list, show, read or cancel runs",
        examples=["xlnet-pipeline runs list", "xlnet-pipeline runs show 4f2a"],
    )
    listing = command(
        inner, "list", list_runs, summary="list every run, the newest first", examples=["xlnet-pipeline runs list"]
    )
    listing.add_argument("--json", action="store_true", help="the records as JSON")
    showing = command(
        inner,
        "show",
        show,
        summary="show a run's steps, metrics and error",
        examples=["xlnet-pipeline runs show 4f2a"],
    )
    showing.add_argument("run", metavar="RUN", help=HELP_RUN)
    showing.add_argument("--json", action="store_true", help="the record as JSON")
    reading = command(
        inner, "logs", logs, summary="print what a run's steps wrote", examples=["xlnet-pipeline runs logs 4f2a train"]
    )
    reading.add_argument("run", metavar="RUN", help=HELP_RUN)
    reading.add_argument(
        "step", nargs="?", metavar="STEP", help="snapshot, preprocess, train, evaluate or register (default: all)"
    )
    stopping = command(
        inner,
        "cancel",
        cancel,
        summary="stop a running run and wait until it has stopped",
        examples=["xlnet-pipeline runs cancel 4f2a"],
    )
    stopping.add_argument("run", metavar="RUN", help=HELP_RUN)


def target(options: argparse.Namespace) -> "LocalTarget":
    """The local target over the state directory that was chosen."""
    from xlnet_pipeline.targets.local import LocalTarget

    return LocalTarget(options.home)


def list_runs(options: argparse.Namespace) -> None:
    """Print every run as a row."""
    here = target(options)
    found = here.runs()
    if options.json:
        print_json([dataclasses.asdict(run) for run in found])
    elif found:
        header = ("RUN", "STATUS", "STARTED", "DURATION", "MODEL", "METRIC")
        rows = [
            (
                run.id,
                run.status,
                local_time(run.created),
                duration(run.seconds),
                outcome.version(run),
                outcome.primary(run),
            )
            for run in found
        ]
        print_table(header, rows)
    else:
        print(f"no runs in '{here.home}'; start one with: xlnet-pipeline {home_option(options.home)}".rstrip() + " run")


def show(options: argparse.Namespace) -> None:
    """Print one run: its steps, what came of it, and its error."""
    run = target(options).status(options.run)
    if options.json:
        print_json(dataclasses.asdict(run))
        return
    colour = coloured(sys.stdout)
    print(f"run {run.id}  {paint(run.status, run.status, colour)}  {local_time(run.created)}  {duration(run.seconds)}")
    print(f"recipe {run.recipe_digest}\n")
    rows = [(step.name, step.status, duration(step.seconds), step.reason) for step in run.steps]
    print_table(("STEP", "STATUS", "TIME", "WHY"), rows)
    artifacts = [
        (f"{step.name}/{name}", str(value["digest"])[:19], value["uri"])
        for step in run.steps
        for name, value in step.outputs.items()
        if isinstance(value, dict) and value.get("digest")
    ]
    if artifacts:
        print()
        print_table(("ARTIFACT", "DIGEST", "PLACE"), artifacts)
    if run.error:
        print(f"\nerror in {run.error.step or 'the run'}: {run.error.message}")
        print("\n".join(f"  | {line}" for line in run.error.last_lines))
    print("\n".join(outcome.lines(run, home_option(options.home), colour)).rstrip())


def logs(options: argparse.Namespace) -> None:
    """Print the lines of a run's logs."""
    for line in target(options).logs(options.run, options.step):
        print(line)


def cancel(options: argparse.Namespace) -> None:
    """Stop a run."""
    run = target(options).cancel(options.run)
    print(f"run {run.id}: {run.status}")
