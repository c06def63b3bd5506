"""``xlnet-pipeline schedule``: retrain at fixed times, on any target."""

import argparse
import dataclasses
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from xlnet.errors import UserError
from xlnet.redaction import visible
from xlnet_pipeline.commands.parser import Subparsers, command, group
from xlnet_pipeline.commands.run import add_placement, add_recipe, check, load, local, submission
from xlnet_pipeline.commands.runs import add_target, chosen
from xlnet_pipeline.commands.tables import local_time, print_json, print_table
from xlnet_pipeline.targets import Target
from xlnet_pipeline.targets.submission import refuse

if TYPE_CHECKING:
    from xlnet_pipeline.targets.schedules import Schedule

DEFAULT_RECIPE = Path("recipe.toml")


def add(subparsers: Subparsers) -> None:
    """Declare the command and its subcommands."""
    inner = group(
        subparsers,
        "schedule",
        "retrain at fixed times",
        "schedule create nightly recipe.toml --cron '0 3 * * *' --timezone Europe/Berlin",
        "schedule serve",
    )
    _add_create(inner)
    listing = command(
        inner,
        "list",
        list_schedules,
        "list schedules: next and last run, state, drift from the current recipe and image",
        "schedule list --target vertex",
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.add_argument("--image", metavar="IMAGE", help="the current image, to compare with (default: $XLNET_IMAGE)")
    add_target(listing)
    for name, handler, summary in (
        ("show", show, "show a schedule: its times, what it runs, and what changed"),
        ("pause", pause, "pause a schedule until it is resumed"),
        ("resume", resume, "resume a paused schedule, from now on"),
        ("delete", delete, "remove a schedule; its runs stay"),
    ):
        parser = command(inner, name, handler, summary, f"schedule {name} nightly --target kfp")
        parser.add_argument("name", metavar="NAME", help="the schedule's name")
        add_target(parser)
    syncing = command(
        inner,
        "sync",
        sync,
        "correct schedules after daylight saving time begins or ends",
        "schedule sync --target kfp",
        details="Kubeflow Pipelines fires in UTC only. A schedule in a zone with daylight saving is sent with the"
        "\nzone's current UTC offset (schedule create --current-offset). Run this command daily, by cron or CI: it"
        "\nchanges only schedules whose offset has changed. On other targets there is nothing to correct.",
    )
    syncing.add_argument("name", nargs="?", metavar="NAME", help="one schedule (default: all)")
    add_target(syncing)
    command(
        inner,
        "serve",
        serve,
        "start the runs of local schedules until you stop this command",
        "schedule serve",
        details="Times that pass while this command does not run are skipped.",
    )


def _add_create(inner: Subparsers) -> None:
    parser = command(
        inner,
        "create",
        create,
        "create a schedule, or change the one with that name",
        "schedule create nightly recipe.toml --cron '0 3 * * *' --timezone Europe/Berlin",
        "schedule create weekly recipe.toml --cron '0 3 * * mon' --target vertex --machine v5e-8",
        details="Prints what changed; if nothing did, nothing is sent. A run with unchanged data, settings and code"
        "\ntakes all its steps from the cache.",
    )
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and '-'")
    add_recipe(parser, "what to run")
    parser.add_argument("--cron", required=True, metavar="CRON", help="minute, hour, day, month, day of the week")
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="such as Europe/Berlin (default: UTC)")
    parser.add_argument(
        "--current-offset",
        action="store_true",
        help="on kfp, with daylight saving: use the zone's current UTC offset; see sync",
    )
    parser.add_argument(
        "--max-concurrent", type=int, default=1, metavar="N", help="runs at the same time, 1 to 10 (default: 1)"
    )
    add_placement(parser)


def create(options: argparse.Namespace) -> None:
    """Create or change a schedule, and print what changed."""
    from xlnet_pipeline.targets import schedules

    schedules.check_name(options.name)
    timing = schedules.timing(
        options.cron, options.timezone, options.max_concurrent, current_offset=options.current_offset
    )
    asked = submission(options, load(options.recipe, options.settings, options.home))
    target = chosen(options)
    refuse(asked, target.cannot)
    if target.name != "local":
        check(target, asked)
    made, changed = target.schedules().create(options.name, timing, asked)
    if not changed:
        print(f"schedule {made.name}: unchanged")
    elif changed == ["created"]:
        print(f"schedule {made.name}: created")
    else:
        print(f"schedule {made.name}: updated")
        print("\n".join(f"  {line}" for line in changed))
    print(f"next run {_next(made) or '-'}" + (" (paused)" if made.state == "PAUSED" else ""))
    for note in made.notes:
        print(f"warning: {note}", file=sys.stderr)
    if target.name == "local":
        print("it fires while this runs: xlnet-pipeline schedule serve")


def list_schedules(options: argparse.Namespace) -> None:
    """Print one row for each schedule."""
    from xlnet_pipeline.targets import schedules

    target = chosen(options)
    found = target.schedules().all()
    if options.json:
        print_json([dataclasses.asdict(one) for one in found])
    elif found:
        header = ("SCHEDULE", "STATE", "CRON", "TIMEZONE", "NEXT", "LAST", "MACHINE", "DRIFT")
        rows = [
            (
                one.name,
                one.state,
                one.timing.cron,
                one.timing.timezone,
                _next(one),
                local_time(one.last_run),
                one.machine or None,
                _short(drift_of(options, target, one)),
            )
            for one in found
        ]
        print_table(header, rows)
        for one in found:
            if one.state == schedules.DAMAGED:
                print(visible(f"warning: {one.notes[0]}"), file=sys.stderr)
    else:
        print(f"no schedules on target '{options.target}'; make one with: xlnet-pipeline schedule create")


def drift_of(options: argparse.Namespace, target: Target, scheduled: "Schedule") -> list[str] | None:
    """Return how a schedule differs from the current recipe and image. None if there is no recipe to compare."""
    from xlnet import recipe as recipes
    from xlnet_pipeline.targets import schedules

    path = Path(options.recipe) if options.recipe else DEFAULT_RECIPE
    if not path.is_file() or scheduled.state == schedules.DAMAGED:
        return None
    image = scheduled.image
    if target.name != "local":
        given = getattr(options, "image", None) or target.settings.image
        image = schedules_image(target, given) if given else image
    present = dataclasses.replace(scheduled, recipe=json.loads(recipes.load(path).to_json()), image=image)
    return schedules.differences(scheduled, present)


def schedules_image(target: Target, given: str) -> str:
    """Return the image as a submission would name it now, with a tag replaced by its current digest if available."""
    from xlnet_pipeline.images import references
    from xlnet_pipeline.targets.settings import image_of

    name = image_of(target.settings, given)
    try:
        return references.pinned(name)
    except UserError:
        return name


def _short(drift: list[str] | None) -> str | None:
    if drift is None:
        return None
    return "none" if not drift else drift[0].partition(":")[0] + (f" and {len(drift) - 1} more" if drift[1:] else "")


def show(options: argparse.Namespace) -> None:
    """Print one schedule."""
    from xlnet_pipeline.targets import schedules

    target = chosen(options)
    one = schedules.find(options.name, target.schedules().all())
    facts = {
        "state": one.state,
        "cron": f"{one.timing.cron} ({one.timing.timezone})",
        "next runs": ", ".join(_zoned(time, one.timing.timezone) for time in one.coming),
        "last run": local_time(one.last_run),
        "image": one.image,
        "machine": one.machine,
        "id": one.id,
    }
    print(f"schedule {one.name}")
    print("\n".join(f"  {key:<10} {value}" for key, value in facts.items() if value))
    for note in one.notes:
        print(f"  note: {note}")
    for title, lines in (("history", one.history), ("drift", drift_of(options, target, one) or [])):
        if lines:
            print(f"{title}:\n" + "\n".join(f"  {line}" for line in lines))


def _next(one: "Schedule") -> str | None:
    return _zoned(one.next_run, one.timing.timezone) if one.next_run else None


def _zoned(moment: str, zone: str) -> str:
    """Convert an ISO 8601 time to the schedule's time zone."""
    return datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)).strftime("%a %Y-%m-%d %H:%M %Z")


def pause(options: argparse.Namespace) -> None:
    """Pause a schedule."""
    print(f"schedule {chosen(options).schedules().pause(options.name).name}: PAUSED")


def resume(options: argparse.Namespace) -> None:
    """Resume a schedule."""
    one = chosen(options).schedules().resume(options.name)
    print(f"schedule {one.name}: ACTIVE, next run {_next(one)}")


def delete(options: argparse.Namespace) -> None:
    """Remove a schedule."""
    notes = chosen(options).schedules().delete(options.name)
    print("\n".join([f"schedule {options.name}: deleted", *notes]))


def sync(options: argparse.Namespace) -> None:
    """Correct schedules after a daylight-saving change."""
    print("\n".join(chosen(options).schedules().sync(options.name)) or f"no schedules on target '{options.target}'")


def serve(options: argparse.Namespace) -> None:
    """Start the runs of local schedules until the user stops the command."""
    local(options).schedules().serve(lambda text: print(text, flush=True))
