"""When APScheduler fires a schedule of ours: at the times that ``schedule show`` tells, by the same library."""

from datetime import UTC, datetime

from apscheduler.triggers.base import BaseTrigger

from xlnet_pipeline.targets import cron


class CronTimes(BaseTrigger):
    """The times of an expression in a zone. Its own cron trigger calls Monday 0, and asks for both of two days."""

    def __init__(self, expression: str, zone: str) -> None:
        self.expression = expression
        self.zone = zone

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The first time after the last one, or after now if it has not fired yet."""
        (found,) = cron.parse(self.expression).next_times(self.zone, 1, previous_fire_time or now)
        return found.astimezone(UTC)  # APScheduler adds and compares by wall clock, which an autumn night has twice

    def __str__(self) -> str:
        return f"cron[{self.expression}, {self.zone}]"
