"""Tells APScheduler when a schedule fires, with the same code that ``schedule show`` uses."""

from datetime import UTC, datetime

from apscheduler.triggers.base import BaseTrigger

from xlnet_pipeline.targets import cron


class CronTimes(BaseTrigger):
    """The times of a cron expression in a time zone.

    APScheduler's own cron trigger differs from cron: it calls Monday 0, and where both days are restricted, it fires
    only on days that match both.
    """

    def __init__(self, expression: str, zone: str) -> None:
        self.expression = expression
        self.zone = zone

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the first time after the last one, or after now if the schedule has not fired yet."""
        (found,) = cron.parse(self.expression).next_times(self.zone, 1, previous_fire_time or now)
        return found.astimezone(UTC)  # APScheduler compares wall clocks, which show an hour twice when summer time ends

    def __str__(self) -> str:
        return f"cron[{self.expression}, {self.zone}]"
