"""The times of a schedule in UTC, the only zone of Kubeflow Pipelines (robfig/cron v1.2: six fields, seconds first).

A zone whose offset is fixed is translated. One that changes its clocks has a present offset alone; what is sent with
it is right until the next change, and is set right by ``xlnet-pipeline schedule sync``.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from xlnet.errors import UserError
from xlnet_pipeline.targets import cron
from xlnet_pipeline.targets.cron import Cron
from xlnet_pipeline.targets.schedules import Timing

YEAR = 400  # days in which a zone's next change of clocks is looked for
SYNC = "xlnet-pipeline schedule sync --target kfp"


@dataclass(frozen=True)
class UtcTimes:
    """A schedule's times as Kubeflow Pipelines gets them."""

    cron: Cron  # in UTC
    until: date | None  # the day on which the zone's clocks change; None: its offset is fixed
    change: int = 0  # minutes by which the clocks go forward that day (backward, where negative)

    def six_fields(self) -> str:
        """The expression as the server reads it."""
        return f"0 {self.cron}"


def in_utc(timing: Timing, moment: datetime | None = None) -> UtcTimes:
    """The UTC times of a schedule at the offset that its zone has at ``moment`` (now).

    Raises:
        UserError: no single UTC expression fires at those times.
    """
    now = moment or datetime.now(UTC)
    found = cron.parse(timing.cron)
    offset = _offset(timing.timezone, now)
    moved = cron.shifted(found, -offset)
    if moved is None:
        raise UserError(
            f"cron '{timing.cron}' in {timing.timezone} is not a single expression in UTC, all that Kubeflow Pipelines "
            f"fires in: the zone is {_hours(offset)} from UTC, where some of its times fall on another day; choose "
            "other hours, make two schedules, type --timezone UTC, or use --target vertex, which knows zones"
        )
    until = _change(timing.timezone, now)
    if until is None:
        return UtcTimes(moved, None)
    later = _offset(timing.timezone, now + timedelta(days=(until - now.date()).days + 1))
    if cron.shifted(found, -later) == moved:  # every hour, say: the same in UTC before and after
        return UtcTimes(moved, None)
    return UtcTimes(moved, until, later - offset)


def refusal(timing: Timing, times: UtcTimes) -> UserError:
    """Why a schedule in a zone with daylight saving is not sent unasked, and what works."""
    return UserError(
        f"Kubeflow Pipelines fires in UTC only, and {timing.timezone} changes its clocks on {times.until}; type "
        f"--current-offset to send the UTC time of now ('{times.cron}'), which a daily '{SYNC}' sets right after a "
        "change, --timezone UTC, or --target vertex, which knows zones"
    )


def warning(timing: Timing, times: UtcTimes) -> str:
    """What will happen to a schedule that was sent with its zone's present offset."""
    shift = f"{_hours(abs(times.change)).removeprefix('+')} {'late' if times.change > 0 else 'early'}"
    return (
        f"sent as '{times.cron}' UTC; from {times.until} on, when {timing.timezone} changes its clocks, it fires "
        f"{shift} until this is run: {SYNC}"
    )


def _offset(zone: str, moment: datetime) -> int:
    """Minutes by which a zone is ahead of UTC."""
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset() or timedelta()
    return round(offset.total_seconds() / 60)


def _change(zone: str, now: datetime) -> date | None:
    """The day, in the zone, on which its clocks change next; None: not within YEAR days."""
    present = _offset(zone, now)
    for day in range(1, YEAR):
        if _offset(zone, now + timedelta(days=day)) != present:
            hours = (now + timedelta(days=day - 1, hours=hour) for hour in range(25))
            return next(hour.astimezone(ZoneInfo(zone)).date() for hour in hours if _offset(zone, hour) != present)
    return None


def _hours(minutes: int) -> str:
    """Minutes as hours: ``+9 h``, ``-3:30 h``."""
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    return f"{sign}{hours}:{rest:02d} h" if rest else f"{sign}{hours} h"
