"""``xlnet-pipeline runs``: list runs, show what happened in them, read their logs and cancel them."""

import argparse
import dataclasses
import sys

from xlnet.errors import RunError, UserError
from xlnet.redaction import visible
from xlnet.steps import STEPS
from xlnet_pipeline.commands import outcome, prune
from xlnet_pipeline.commands.parser import Parser, Subparsers, command, group, whole
from xlnet_pipeline.commands.run import HERE, home_option, local
from xlnet_pipeline.commands.tables import coloured, duration, local_time, paint, print_json, print_table
from xlnet_pipeline.targets import NAMES, Run, Target, following, open_target, progress, record

NEWEST = 20  # runs to list by default
HELP_RUN = "'latest', a run's id, a unique beginning of it, or its last characters"


def add(subparsers: Subparsers) -> None:
    """Declare the command and its subcommands."""
    inner = group(subparsers, "runs", "list, show, read, cancel or prune runs", "runs list", "runs show latest")
    listing = command(inner, "list", list_runs, "list the newest runs", "runs list")
    length = listing.add_mutually_exclusive_group()
    length.add_argument("--limit", type=whole, default=NEWEST, metavar="N", help=f"how many runs (default: {NEWEST})")
    length.add_argument("--all", action="store_true", help="every run")
    listing.add_argument("--json", action="store_true", help="the records as JSON")
    showing = command(inner, "show", show, "show a run's steps, metrics and error", "runs show 4f2a")
    showing.add_argument("run", metavar="RUN", help=HELP_RUN)
    showing.add_argument("--json", action="store_true", help="the record as JSON")
    reading = command(inner, "logs", logs, "print what a run's steps wrote", "runs logs 4f2a train")
    reading.add_argument("run", metavar="RUN", help=HELP_RUN)
    reading.add_argument("step", nargs="?", metavar="STEP", help=f"{', '.join(STEPS)} (default: all)")
    reading.add_argument(
        "-f", "--follow", action="store_true", help="keep printing until the run or the step has ended"
    )
    stopping = command(inner, "cancel", cancel, "stop a running run and wait until it has stopped", "runs cancel 4f2a")
    stopping.add_argument("run", metavar="RUN", help=HELP_RUN)
    prune.add(inner)
    for parser in (listing, showing, reading, stopping):
        add_target(parser)


def add_target(parser: Parser) -> None:
    """Declare ``--target``, and the option for the file with its settings."""
    text = "where the runs are: local (default), docker, kfp or vertex"
    parser.add_argument("--target", choices=NAMES, default="local", metavar="TARGET", help=text)
    text = "recipe file with [target.…] settings (default: recipe.toml, if there is one)"
    parser.add_argument("--recipe", metavar="FILE", help=text)


def chosen(options: argparse.Namespace) -> Target:
    """Open the target that ``--target`` names."""
    return open_target(options.target, options.home, options.recipe)


def tool_option(options: argparse.Namespace) -> str:
    """Return the options to repeat in suggested commands."""
    return home_option(options.home) if options.target in HERE else f"--target {options.target}"


def _to_type(options: argparse.Namespace, words: str) -> str:
    """Return a suggested command, with the home or the target that the user gave."""
    if options.target in HERE:
        return f"xlnet-pipeline {home_option(options.home)}".rstrip() + f" {words}"
    return f"xlnet-pipeline {words} {tool_option(options)}"


def list_runs(options: argparse.Namespace) -> None:
    """Print one row for each run."""
    here = chosen(options)
    limit = None if options.all else options.limit
    found = here.runs(limit)
    if options.json:
        print_json([dataclasses.asdict(run) for run in found])
    elif found:
        scheduled = any(run.schedule for run in found)
        header = ("RUN", "STATUS", "STARTED", "DURATION", "MODEL", "METRIC", *(["SCHEDULE"] if scheduled else []))
        rows = [
            (
                run.id,
                run.status,
                local_time(run.created),
                duration(run.seconds),
                outcome.version(run),
                outcome.primary(run),
                *([_scheduled(run)] if scheduled else []),
            )
            for run in found
        ]
        print_table(header, rows)
        for run in found:
            if run.status == record.DAMAGED and run.error:
                print(f"warning: {visible(run.error.message)}", file=sys.stderr)
        if len(found) == limit:
            print(f"the newest {limit}; all of them: {_to_type(options, 'runs list --all')}")
    else:
        place = f"in '{local(options).home}'" if here.name in HERE else f"on target '{here.name}'"
        print(f"no runs {place}; start one with: {_to_type(options, 'run')}")


def _scheduled(run: Run) -> str | None:
    """Return the schedule that started a run, and the time it was due."""
    return f"{run.schedule} {local_time(run.due) or ''}".rstrip() or None


def show(options: argparse.Namespace) -> None:
    """Print one run: its steps, its outcome and its error."""
    run = chosen(options).status(options.run)
    if options.json:
        print_json(dataclasses.asdict(run))
        return
    colour = coloured(sys.stdout)
    print(f"run {run.id}  {paint(run.status, run.status, colour)}  {local_time(run.created)}  {duration(run.seconds)}")
    if run.schedule:
        print(f"schedule {_scheduled(run)}")
    print(f"recipe {run.recipe_digest}\n")
    steps = [one for step in run.steps for one in (step, *step.told())]
    rows = [(step.name, step.status, duration(step.seconds), step.reason) for step in steps]
    print_table(("STEP", "STATUS", "TIME", "WHY"), rows)
    if far := _progress(options, run):
        print(f"\n{far}")
    artifacts = [(f"{one.step}/{one.name}", one.digest[:19], one.uri) for one in run.artifacts if one.digest]
    if artifacts:
        print()
        print_table(("ARTIFACT", "DIGEST", "PLACE"), artifacts)
    if run.error:
        print(f"\nerror in {run.error.step or 'the run'}: {run.error.message}")
        print("\n".join(f"  | {line}" for line in run.error.last_lines))
    print("\n".join(outcome.lines(run, tool_option(options), colour)).rstrip())
    for note in run.notes:
        print(f"note: {note}")


def _progress(options: argparse.Namespace, run: Run) -> str:
    """Return step, loss, speed and time left of a run that is training; empty if nothing is known."""
    running = [step.name for step in run.steps if step.status == record.RUNNING and STEPS[step.name].trains]
    if not running:
        return ""
    folder = local(options).home / "runs" / run.id / "logs" if options.target in HERE else None
    try:
        return progress.of(chosen(options).logs(run.id, running[0]), folder)
    except (UserError, RunError):  # there is no readable log yet; the steps are already printed
        return ""


def logs(options: argparse.Namespace) -> None:
    """Print the logs of a run's steps, or of one step; with ``--follow`` until it has ended."""
    here = chosen(options)
    lines = (
        following.follow(here, options.run, options.step) if options.follow else here.logs(options.run, options.step)
    )
    wrote = False
    for line in lines:
        wrote = True
        print(visible(line), flush=options.follow)
    if not wrote:
        see = f"xlnet-pipeline runs show {options.run} --target {here.name}"
        print(f"no step of run {options.run} has written anything; see: {see}", file=sys.stderr)


def cancel(options: argparse.Namespace) -> None:
    """Stop a run."""
    run = chosen(options).cancel(options.run)
    print("\n".join([f"run {run.id}: {run.status}", *run.notes]))
