"""Parses cron expressions into the minutes, hours, days, months and weekdays on which they fire.

This is standard five-field cron: numbers, three-letter names, lists, ranges, steps over ``*`` or a range, Sunday as 0
and 7, and names such as ``@daily``. If both the day of the month and the day of the week are restricted, one of them is
enough. Expressions that cron programs read differently are refused with what to type instead, so that all targets fire
at the same times.

When the clocks change, an expression that fires in every hour counts elapsed time: every ten minutes stays every ten
minutes. Any other expression fires as often as on other days: a time that spring skips fires right after the gap, and a
time that autumn repeats fires at its first occurrence.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, product
from zoneinfo import ZoneInfo

from xlnet.errors import UserError, nearest

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_MONTH = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}  # 31 for the others
NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXAMPLE = "such as '0 3 * * mon' for Mondays at three"


@dataclass(frozen=True)
class _Field:
    """The allowed values of one of the five fields."""

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()  # of the values from ``first`` on

    @property
    def every(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.last + 1))


MINUTE, HOUR = _Field("minute", 0, 59), _Field("hour", 0, 23)
DAY, MONTH = _Field("day of the month", 1, 31), _Field("month", 1, 12, MONTHS)
WEEKDAY = _Field("day of the week", 0, 6, DAYS)
FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


@dataclass(frozen=True)
class Cron:
    """A parsed expression: the sorted values of each field. Sunday is weekday 0.

    If ``days`` and ``weekdays`` are both restricted, the expression fires on days that match either.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]

    def __str__(self) -> str:
        """Return five fields that all cron programs read alike: numbers, ranges, lists, ``*``, and weekdays by name."""
        return " ".join(self.fields())

    def fields(self) -> tuple[str, str, str, str, str]:
        """The five fields of :meth:`__str__`."""
        days, weekdays = _written(DAY, self.days), _written(WEEKDAY, self.weekdays)
        hours = _written(HOUR, self.hours)
        minutes = _written(MINUTE, self.minutes)
        return minutes, hours, days, _written(MONTH, self.months), weekdays

    @property
    def every_day(self) -> bool:
        """Whether no field restricts the date."""
        return (self.days, self.months, self.weekdays) == (DAY.every, MONTH.every, WEEKDAY.every)

    def next_times(self, zone: str, count: int = 1, moment: datetime | None = None) -> list[datetime]:
        """Return the next ``count`` times the expression fires in a time zone, after ``moment`` (default: now)."""
        from cronsim import CronSim

        start = (moment or datetime.now(UTC)).astimezone(UTC if zone == "UTC" else ZoneInfo(zone))
        minutes, *rest = self.fields()
        if minutes == "*" and self.hours != HOUR.every:
            minutes = "0-59"  # a star would tell that library to go by elapsed time
        coming = CronSim(" ".join((minutes, *rest)), start)
        found: list[datetime] = []
        # Moments are compared in UTC, where an hour that comes twice is two. Times in a gap come out as one moment.
        while len(found) < count:
            due = next(coming)
            if due.astimezone(UTC) > (found[-1] if found else start).astimezone(UTC):
                found.append(due)
        return found


def parse(text: str) -> Cron:
    """Read an expression.

    Raises:
        UserError: the text is not standard cron, is ambiguous, or never fires; the message says what to type.
    """
    typed = " ".join(text.split())
    fields = NAMED.get(typed.lower(), typed).split()
    if typed.startswith("@") and len(fields) != 5:
        hint = "; type */5 in the minutes for every five minutes" if typed.lower().startswith("@every") else ""
        raise UserError(f"cron '{typed}' is unknown; allowed: {', '.join(NAMED)}{hint or nearest(typed, NAMED)}")
    if len(fields) != 5:
        hint = "; leave the seconds (or the year) out" if len(fields) in (6, 7) else f"; {EXAMPLE}"
        names = ", ".join(field.name for field in FIELDS)
        raise UserError(f"cron '{typed}' has {len(fields)} fields; it needs five: {names}{hint}")
    sets = [_values(typed, field, part.lower()) for field, part in zip(FIELDS, fields, strict=True)]
    days, weekdays = _dates(typed, fields[2], fields[4], sets[2], sets[4])
    found = Cron(sets[0], sets[1], days, sets[3], weekdays)
    if weekdays == WEEKDAY.every and days[0] > max(LONGEST_MONTH.get(month, 31) for month in found.months):
        raise UserError(f"cron '{typed}' never fires: none of its months has a day {days[0]}")
    return found


def _dates(
    typed: str, day: str, weekday: str, days: tuple[int, ...], weekdays: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the days and weekdays. Both are unrestricted if one of the two fields covers every day."""
    if "*" in (day, weekday):
        return days, weekdays
    for field, part, values in ((DAY, day, days), (WEEKDAY, weekday, weekdays)):
        if "*" in part:
            # Vixie's cron asks for both where a field begins with a star, others ask for either.
            plain = "*" if values == field.every else _written(field, values)
            raise UserError(
                f"cron '{typed}': {field.name} '{part}' beside another restricted day is read in two ways; "
                f"type '{plain}'" + (" for a day that is in either" if plain != "*" else "")
            )
    if days == DAY.every or weekdays == WEEKDAY.every:
        return DAY.every, WEEKDAY.every
    return days, weekdays


def _values(typed: str, field: _Field, text: str) -> tuple[int, ...]:
    """Return the sorted values that one field names."""
    found: set[int] = set()
    for part in text.split(","):
        base, slash, step_text = part.partition("/")
        start, end = _range(typed, field, base, bool(slash))
        step = 1
        if slash:
            step = int(step_text) if re.fullmatch("[0-9]{1,3}", step_text) else 0
            if not 1 <= step <= end - start + 1:  # */90 minutes would mean every hour
                raise _wrong(typed, field, part, f"a step is a number from 1 to {end - start + 1} here")
        found |= set(range(start, end + 1, step))
    return tuple(sorted({value % 7 for value in found} if field is WEEKDAY else found))


def _range(typed: str, field: _Field, text: str, stepped: bool) -> tuple[int, int]:
    if text == "*":
        return field.first, field.last
    low, dash, high = text.partition("-")
    start = _value(typed, field, low, text)
    if not dash:
        return start, (max(start, field.last) if stepped else start)  # 5/15 counts from 5 on
    end = _value(typed, field, high, text)
    if field is WEEKDAY and end == 0 < start:
        end = 7  # a range that ends on Sunday: fri-sun
    if start > end:
        turned = f"{_run(field, start, field.last)},{_run(field, field.first, end)}"
        raise _wrong(typed, field, text, f"the range runs backwards; type {turned} if it goes over the end")
    return start, end


def _value(typed: str, field: _Field, text: str, part: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.first
    last = 7 if field is WEEKDAY else field.last
    if re.fullmatch("[0-9]{1,3}", text) and field.first <= int(text) <= last:
        return int(text)
    raise _wrong(typed, field, part, _remedy(field, text, last))


def _remedy(field: _Field, text: str, last: int) -> str:
    if "?" in text:
        return "type * instead"
    if "#" in text:
        return "no nth weekday in standard cron; type days of the month (1-7 for the first week) or a weekday"
    if re.fullmatch("l|lw|l-.*|[0-9]*w|[0-9a-z]+l", text):
        return "no last day and no nearest workday in standard cron; type a day that every month has, such as 28"
    names = f" or {field.names[0]}-{field.names[-1]}" if field.names else ""
    hint = nearest(text[:3], field.names) if field.names and text.isalpha() else ""
    return f"allowed: {field.first}-{last}{names}, *, lists, ranges and steps{hint}"


def _wrong(typed: str, field: _Field, part: str, remedy: str) -> UserError:
    return UserError(f"cron '{typed}': {field.name} '{part}' is not allowed; {remedy}")


def _run(field: _Field, first: int, last: int) -> str:
    ends = (_shown(field, first), _shown(field, last))
    return ends[0] if first == last else "-".join(ends)


def _shown(field: _Field, value: int) -> str:
    return field.names[value - field.first] if field.names else str(value)


def _written(field: _Field, values: tuple[int, ...]) -> str:
    """Write values as a list of numbers and ranges, and weekdays by name, because some programs call Monday 0."""
    if values == field.every:
        return "*"
    breaks = [at for at, (one, other) in enumerate(pairwise(values), 1) if other != one + 1]
    runs = [values[start:end] for start, end in zip([0, *breaks], [*breaks, len(values)], strict=True)]
    named = field if field is WEEKDAY else _Field(field.name, field.first, field.last)
    parts = []
    for run in runs:
        parts += [_run(named, run[0], run[-1])] if len(run) > 2 else [_shown(named, value) for value in run]
    return ",".join(parts)


def shifted(cron: Cron, minutes: int) -> Cron | None:
    """Return the expression that fires ``minutes`` later, or earlier if negative. None if no single expression does.

    A time near midnight moves to another day. Days of the week move with it; days of the month cannot.
    """
    pairs = {divmod(hour * 60 + minute + minutes, 1440) for hour, minute in product(cron.hours, cron.minutes)}
    hours = tuple(sorted({minute // 60 for _, minute in pairs}))
    new = tuple(sorted({minute % 60 for _, minute in pairs}))
    carries = {day for day, _ in pairs}
    if len(hours) * len(new) != len({minute for _, minute in pairs}):
        return None
    if cron.every_day or carries == {0}:
        return Cron(new, hours, cron.days, cron.months, cron.weekdays)
    if len(carries) > 1 or (cron.days, cron.months) != (DAY.every, MONTH.every):
        return None
    days = tuple(sorted({(day + carries.copy().pop()) % 7 for day in cron.weekdays}))
    return Cron(new, hours, cron.days, cron.months, days)
