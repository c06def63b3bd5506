"""Translates a schedule's times to UTC, because Kubeflow Pipelines knows no time zones.

The server parses expressions with robfig/cron v1.2: six fields, seconds first. A zone with a fixed offset can be
translated for good. For a zone with daylight saving, the UTC times are right until its clocks change; after that,
``xlnet-pipeline schedule sync`` corrects them.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from xlnet.errors import UserError
from xlnet_pipeline.targets import cron
from xlnet_pipeline.targets.cron import Cron
from xlnet_pipeline.targets.schedules import Timing

YEAR = 400  # how many days ahead to look for a zone's next change of clocks
SYNC = "xlnet-pipeline schedule sync --target kfp"


@dataclass(frozen=True)
class UtcTimes:
    """A schedule's times as they are sent to Kubeflow Pipelines."""

    cron: Cron  # in UTC
    until: date | None  # the day on which the zone's clocks change; None: its offset is fixed
    change: int = 0  # minutes by which the clocks go forward on that day; negative if they go back

    def six_fields(self) -> str:
        """Return the expression in the server's format."""
        return f"0 {self.cron}"


def in_utc(timing: Timing, moment: datetime | None = None) -> UtcTimes:
    """Translate a schedule's times with the offset that its zone has at ``moment`` (default: now).

    Raises:
        UserError: no single UTC expression fires at those times.
    """
    now = moment or datetime.now(UTC)
    found = cron.parse(timing.cron)
    offset = _offset(timing.timezone, now)
    moved = cron.shifted(found, -offset)
    if moved is None:
        raise UserError(
            f"cron '{timing.cron}' in {timing.timezone} is not a single expression in UTC, and Kubeflow Pipelines "
            f"fires in UTC only: the zone is {_hours(offset)} from UTC, where some times fall on another day; choose "
            "other hours, make two schedules, type --timezone UTC, or use --target vertex, which knows zones"
        )
    until = _change(timing.timezone, now)
    if until is None:
        return UtcTimes(moved, None)
    later = _offset(timing.timezone, now + timedelta(days=(until - now.date()).days + 1))
    if cron.shifted(found, -later) == moved:  # for example every hour, which is the same in UTC before and after
        return UtcTimes(moved, None)
    return UtcTimes(moved, until, later - offset)


def refusal(timing: Timing, times: UtcTimes) -> UserError:
    """Return the error for a zone with daylight saving: why nothing is sent, and what the user can do instead."""
    return UserError(
        f"Kubeflow Pipelines fires in UTC only, and {timing.timezone} changes its clocks on {times.until}; type "
        f"--current-offset to send the UTC time of now ('{times.cron}'), which a daily '{SYNC}' sets right after a "
        "change, --timezone UTC, or --target vertex, which knows zones"
    )


def warning(timing: Timing, times: UtcTimes) -> str:
    """Return the warning for a schedule that is sent with its zone's current offset."""
    shift = f"{_hours(abs(times.change)).removeprefix('+')} {'late' if times.change > 0 else 'early'}"
    return (
        f"sent as '{times.cron}' UTC; from {times.until} on, when {timing.timezone} changes its clocks, it fires "
        f"{shift} until this is run: {SYNC}"
    )


def _offset(zone: str, moment: datetime) -> int:
    """Return by how many minutes a zone is ahead of UTC."""
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset() or timedelta()
    return round(offset.total_seconds() / 60)


def _change(zone: str, now: datetime) -> date | None:
    """Return the next day, in the zone, on which its clocks change; None if they do not within YEAR days."""
    present = _offset(zone, now)
    for day in range(1, YEAR):
        if _offset(zone, now + timedelta(days=day)) != present:
            hours = (now + timedelta(days=day - 1, hours=hour) for hour in range(25))
            return next(hour.astimezone(ZoneInfo(zone)).date() for hour in hours if _offset(zone, hour) != present)
    return None


def _hours(minutes: int) -> str:
    """Format minutes as hours: ``+9 h``, ``-3:30 h``."""
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    return f"{sign}{hours}:{rest:02d} h" if rest else f"{sign}{hours} h"
