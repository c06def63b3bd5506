"""The interface and the values of schedules on all targets. See ``cron`` for the times at which they fire."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import available_timezones

from xlnet.errors import UserError, nearest
from xlnet_pipeline.targets import cron, record
from xlnet_pipeline.targets.submission import Submission

ACTIVE, PAUSED = "ACTIVE", "PAUSED"
DAMAGED = "DAMAGED"  # its file cannot be read
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
MOST_CONCURRENT = 10  # runs of one schedule at a time, which Kubeflow Pipelines sets
SHOWN = 3  # number of coming times to compute


@dataclass(frozen=True)
class Timing:
    """When a schedule fires."""

    cron: str  # five fields, as :class:`xlnet_pipeline.targets.cron.Cron` writes them
    timezone: str = "UTC"
    max_concurrent: int = 1
    current_offset: bool = field(default=False, compare=False)  # translate to UTC with the zone's current offset

    def coming(self, count: int = SHOWN, moment: datetime | None = None) -> list[str]:
        """Return the next times after ``moment`` (now), ISO 8601 in the schedule's zone; [] if cron is foreign."""
        try:
            found = cron.parse(self.cron)
        except UserError:  # another tool made this schedule
            return []
        return [time.isoformat() for time in found.next_times(self.timezone, count, moment)]


@dataclass(frozen=True)
class Schedule:
    """One schedule as its target knows it. Times are ISO 8601."""

    name: str
    target: str
    id: str  # the target's identifier
    timing: Timing
    state: str  # ACTIVE, PAUSED or DAMAGED
    recipe: Mapping[str, Any]
    image: str = ""
    machine: str = ""
    next_run: str | None = None
    coming: tuple[str, ...] = field(default=())  # the next times, that one included
    last_run: str | None = None
    history: tuple[str, ...] = field(default=())  # past changes, the oldest first, as far as the target keeps them
    notes: tuple[str, ...] = field(default=())  # remarks for the user, one line each


class Schedules(Protocol):
    """A target's schedules."""

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Create or change the schedule of that name. Also return the changes (``["created"]``; [] if none)."""

    def all(self) -> list[Schedule]:
        """List all schedules by name."""

    def pause(self, name: str) -> Schedule:
        """Keep the schedule from firing until it is resumed."""

    def resume(self, name: str) -> Schedule:
        """Let the schedule fire again from now on. Missed times are not caught up."""

    def delete(self, name: str) -> list[str]:
        """Remove the schedule but keep its runs. Return remarks for the user, one line each."""

    def sync(self, name: str | None = None) -> list[str]:
        """Correct one or all schedules after a daylight-saving change. Return one line for each schedule."""


def timing(text: str, timezone: str = "UTC", max_concurrent: int = 1, *, current_offset: bool = False) -> Timing:
    """Check the timing that a user typed.

    Raises:
        UserError: the expression, the time zone or the number is invalid.
    """
    found = cron.parse(text)
    zones = available_timezones()
    if timezone not in zones:
        raise UserError(f"timezone '{timezone}' is unknown; type one such as Europe/Berlin{nearest(timezone, zones)}")
    if not 1 <= max_concurrent <= MOST_CONCURRENT:
        raise UserError(f"--max-concurrent is {max_concurrent}; allowed: 1 to {MOST_CONCURRENT}")
    return Timing(str(found), timezone, max_concurrent, current_offset)


def check_name(name: str) -> None:
    """Check a schedule's name.

    Raises:
        UserError: some target could not use the name.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"schedule name '{name}' is not allowed: lower-case letters, digits and '-', 52 at most")


def read_cron(text: str, max_concurrent: int) -> Timing:
    """Parse a target's cron expression: five or six fields (seconds first), optionally after a time zone."""
    words = text.split()
    zone = words.pop(0).partition("=")[2] if words and words[0].startswith(("TZ=", "CRON_TZ=")) else "UTC"
    fields = " ".join(words[-5:])
    try:
        fields = str(cron.parse(fields))
    except UserError:  # another tool made this schedule: shown as it is
        fields = " ".join(words)
    return Timing(fields, zone, max_concurrent)


def differences(old: Schedule, new: Schedule) -> list[str]:
    """Return the differences, one line each: ``training.epochs: 3.0 → 5.0``."""
    changed = record.differing([_facts(old), _facts(new)])
    return [f"{name}: {before or '-'} → {after or '-'}" for name, (before, after) in changed.items()]


def _facts(one: Schedule) -> dict[str, str]:
    facts = {"cron": one.timing.cron, "timezone": one.timing.timezone, "max-concurrent": str(one.timing.max_concurrent)}
    facts |= {"image": one.image, "machine": one.machine}
    return facts | {name: json.dumps(value) for name, value in record.flat(one.recipe).items()}


def find(name: str, known: list[Schedule]) -> Schedule:
    """Return the schedule of that name.

    Raises:
        UserError: there is no such schedule.
    """
    for one in known:
        if one.name == name:
            return one
    names = [one.name for one in known]
    hint = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "; there are none yet")
    raise UserError(f"schedule '{name}' is unknown{hint}")


def image_and_machine(spec: Mapping[str, Any], platform: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Read from a compiled pipeline the image and the machine that a schedule will use."""
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
    if jobset := _jobset(container):
        devices = " ".join(f"{count} {name}" for name, count in sorted(jobset["resources"].get("limits", {}).items()))
        words = [*_selected(jobset["node_selector"]), devices, f"× {jobset['hosts']}"]
        return image, " ".join(word for word in words if word)
    wishes = (platform or {}).get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    labels = wishes.get("exec-train", {}).get("nodeSelector", {}).get("labels", {})
    device = container.get("resources", {}).get("accelerator", {})
    count = device.get("resourceCount") or device.get("count")
    return image, " ".join([*_selected(labels), *([f"× {count}"] if count else [])]) or "cpu"


def _selected(labels: Mapping[str, str]) -> list[str]:
    """Return what node labels stand for: a label's value, or its name if the value is only "true"."""
    return [key.rpartition("-")[2] if value == "true" else value for key, value in labels.items()]


def _jobset(container: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the pods' requirements from a train step that creates a JobSet: JSON in a variable or an argument."""
    texts = [*(one.get("value", "") for one in container.get("env", [])), *container.get("args", [])]
    for text in texts:
        if text.startswith("{") and '"node_selector"' in text:
            return json.loads(text)
    return None
