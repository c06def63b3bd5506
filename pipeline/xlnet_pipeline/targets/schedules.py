"""Schedules: what one is on every target, five-field cron, and what differs between two of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo, available_timezones

from xlnet.errors import UserError, nearest
from xlnet_pipeline.targets.submission import Submission

ACTIVE, PAUSED = "ACTIVE", "PAUSED"
FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")


@dataclass(frozen=True)
class Timing:
    """When a schedule fires."""

    cron: str  # five fields
    timezone: str = "UTC"
    max_concurrent: int = 1


@dataclass(frozen=True)
class Schedule:
    """One schedule as its target knows it. Times are ISO 8601."""

    name: str
    target: str
    id: str  # the target's own name for it
    timing: Timing
    state: str  # ACTIVE or PAUSED
    recipe: Mapping[str, Any]
    image: str = ""
    machine: str = ""
    next_run: str | None = None
    last_run: str | None = None
    history: tuple[str, ...] = field(default=())  # what changed, the oldest first, as far as the target keeps it


class Schedules(Protocol):
    """A target's schedules."""

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Make the schedule, or change the one of that name; also what was changed (``["created"]``, [] nothing)."""

    def all(self) -> list[Schedule]:
        """Every schedule, by name."""

    def pause(self, name: str) -> Schedule:
        """Let it fire no more until it is resumed."""

    def resume(self, name: str) -> Schedule:
        """Let it fire again, from now on: what was missed stays missed."""

    def delete(self, name: str) -> None:
        """Remove it; its runs stay."""


def timing(cron: str, timezone: str = "UTC", max_concurrent: int = 1) -> Timing:
    """Check what a user typed.

    Raises:
        UserError: the expression or the time zone is wrong.
    """
    fields = cron.split()
    if len(fields) != 5:
        hint = "; leave the seconds out" if len(fields) == 6 else ""
        raise UserError(f"cron '{cron}' has {len(fields)} fields; it needs five: {', '.join(FIELDS)}{hint}")
    zones = available_timezones()
    if timezone not in zones:
        raise UserError(f"timezone '{timezone}' is unknown; type one such as Europe/Berlin{nearest(timezone, zones)}")
    if fields[2] not in ("*", "?") and fields[4] not in ("*", "?"):
        raise UserError(
            f"cron '{cron}' names days of the month and of the week, which is read in two ways; make two schedules"
        )
    if max_concurrent < 1:
        raise UserError(f"--max-concurrent is {max_concurrent}; allowed: 1 or more")
    found = Timing(" ".join([*fields[:4], _days(fields[4])]), timezone, max_concurrent)
    if next_after(found) is None:
        raise UserError(f"cron '{cron}' never comes: there is no such date")
    return found


def check_name(name: str) -> None:
    """Do nothing if every target can use the name.

    Raises:
        UserError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"schedule name '{name}' is not allowed: lower-case letters, digits and '-', 52 at most")


def _days(text: str) -> str:
    """Days of the week by name: 0 is Sunday to cron and Monday to some of its readers."""
    return re.sub(r"(?<![/\d])[0-7](?!\d)", lambda match: DAYS[int(match.group())], text.lower())


def trigger(when: Timing) -> Any:
    """APScheduler's trigger of that timing.

    Raises:
        UserError: a field is wrong.
    """
    from apscheduler.triggers.cron import CronTrigger

    try:
        return CronTrigger.from_crontab(when.cron.replace("?", "*"), timezone=ZoneInfo(when.timezone))
    except ValueError as error:
        raise UserError(f"cron '{when.cron}': {error}; such as '0 3 * * mon' for Mondays at three") from None


def next_after(when: Timing, moment: datetime | None = None) -> str | None:
    """When a schedule fires next; None: never."""
    found = trigger(when).get_next_fire_time(None, moment or datetime.now(UTC))
    return found.isoformat() if found else None


def six_fields(when: Timing) -> str:
    """The expression as Kubeflow Pipelines reads it: seconds first, a time zone before it unless it is UTC."""
    zone = "" if when.timezone == "UTC" else f"TZ={when.timezone} "
    return f"{zone}0 {when.cron}"


def five_fields(when: Timing) -> str:
    """The expression as Vertex AI reads it."""
    return f"TZ={when.timezone} {when.cron}"


def read_cron(text: str, max_concurrent: int) -> Timing:
    """Undo :func:`six_fields` or :func:`five_fields`."""
    words = text.split()
    zone = words.pop(0).partition("=")[2] if words[0].startswith(("TZ=", "CRON_TZ=")) else "UTC"
    return Timing(" ".join(words[-5:]), zone, max_concurrent)


def differences(old: Schedule, new: Schedule) -> list[str]:
    """What differs, a line each: ``training.epochs: 3.0 → 5.0``."""
    before, after = _facts(old), _facts(new)
    return [
        f"{name}: {before.get(name, '-')} → {after.get(name, '-')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _facts(one: Schedule) -> dict[str, str]:
    facts = {"cron": one.timing.cron, "timezone": one.timing.timezone, "max-concurrent": str(one.timing.max_concurrent)}
    facts |= {"image": one.image, "machine": one.machine}
    for section, fields in json.loads(json.dumps(one.recipe)).items():
        facts |= {f"{section}.{key}": json.dumps(value) for key, value in fields.items()}
    return facts


def find(name: str, known: list[Schedule]) -> Schedule:
    """The schedule of that name.

    Raises:
        UserError: there is none.
    """
    for one in known:
        if one.name == name:
            return one
    names = [one.name for one in known]
    hint = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "; there are none yet")
    raise UserError(f"schedule '{name}' is unknown{hint}")


def image_and_machine(spec: Mapping[str, Any], platform: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The image and the machine in a compiled pipeline: what a schedule will run in, and on."""
    executors = spec["deploymentSpec"]["executors"]
    image = executors["exec-snapshot"]["container"]["image"]
    container = executors["exec-train"]["container"]
    arguments = container.get("args", [])
    if "--payload" in arguments:
        job = json.loads(arguments[arguments.index("--payload") + 1])["job_spec"]
        pools = job["worker_pool_specs"]
        words = [str(value) for value in pools[0]["machine_spec"].values()]
        words += [f"× {sum(int(pool['replica_count']) for pool in pools)}", job["scheduling"]["strategy"].lower()]
        return image, " ".join(words)
    wishes = (platform or {}).get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    labels = wishes.get("exec-train", {}).get("nodeSelector", {}).get("labels", {})
    return image, " ".join(labels.values()) or "cpu"
