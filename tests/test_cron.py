"""Cron means what it says: compared with croniter, and with how Kubeflow Pipelines reads what it is sent."""

import random
import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from servers.kfp_schedules import BadCron, robfig, times

from xlnet.errors import UserError
from xlnet_pipeline.targets import cron, schedules
from xlnet_pipeline.targets.kfp import clock

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Sao_Paulo", "Africa/Casablanca")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0 3 * * 1-5/2", "0 3 * * mon,wed,fri"),
        ("0 3 * * */2", "0 3 * * sun,tue,thu,sat"),
        ("0 3 * * 01", "0 3 * * mon"),
        ("0 3 * * 0-4", "0 3 * * sun-thu"),
        ("0 3 * * Sun-Thu", "0 3 * * sun-thu"),
        ("0 3 * * fri-sun", "0 3 * * sun,fri,sat"),
        ("0 3 * * 5-7/2", "0 3 * * sun,fri"),
        ("0 3 * * 7", "0 3 * * sun"),
        ("0 3 * * 0,7", "0 3 * * sun"),
        ("0 3 * * 0-7", "0 3 * * *"),
        ("0 3 * * sat,sun", "0 3 * * sun,sat"),
        ("*/20 00-06 1,15 jan-mar,DEC *", "0,20,40 0-6 1,15 1-3,12 *"),
        ("00 03 * * *", "0 3 * * *"),
        ("*/60 */24 * * */7", "0 0 * * sun"),
        ("5-59/15 * * * *", "5,20,35,50 * * * *"),
        ("5/15 * * * *", "5,20,35,50 * * * *"),
        ("0 3 * * mon/2", "0 3 * * mon,wed,fri"),
        ("0 3 1 * mon", "0 3 1 * mon"),
        ("0 3 1-31/2 * mon", "0 3 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 * mon"),
        ("0 3 1-31 * mon", "0 3 * * *"),  # either is enough, and one of them is every day
        ("0 3 1 * sun-sat", "0 3 * * *"),
        ("0 3 31 2 mon", "0 3 31 2 mon"),  # Mondays in February
        ("0 3 29 2 *", "0 3 29 2 *"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * sun"),
        ("@monthly", "0 0 1 * *"),
        ("@annually", "0 0 1 1 *"),
        ("@hourly", "0 * * * *"),
        ("  0   3  *  *  * ", "0 3 * * *"),
    ],
)
def test_an_expression_is_read_once(typed: str, meant: str) -> None:
    found = cron.parse(typed)
    assert str(found) == meant
    assert cron.parse(meant) == found, "what is written is read alike"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("0 3 * *", "has 4 fields; it needs five"),
        ("", "has 0 fields"),
        ("0 0 3 * * *", "leave the seconds"),
        ("0 3 * * mon#1", "no nth weekday in standard cron; type days of the month"),
        ("0 3 * * 5L", "no last day .* such as 28"),
        ("0 3 L * *", "no last day .* such as 28"),
        ("0 3 15W * *", "no nearest workday"),
        ("0 3 ? * *", "type \\* instead"),
        ("61 3 * * *", "minute '61' is not allowed; allowed: 0-59"),
        ("0 24 * * *", "hour '24'"),
        ("0 3 0 * *", "day of the month '0'"),
        ("0 3 * 13 *", "month '13' .* 1-12 or jan-dec"),
        ("0 3 * * 8", "0-7 or sun-sat"),
        ("0 3 * * monday", "did you mean 'mon'"),
        ("0 3 * * sat-mon", "runs backwards; type sat,sun-mon"),
        ("0 22-2 * * *", "type 22-23,0-2"),
        ("0 3 * nov-feb *", "type nov-dec,jan-feb"),
        ("*/0 * * * *", "a step is a number from 1 to 60"),
        ("*/90 * * * *", "a step is a number from 1 to 60"),
        ("*/x * * * *", "a step is a number"),
        ("0 3 */2 * mon", "read in two ways; type '1,3,5"),
        ("0 3 1 * */1", "read in two ways; type '\\*'"),
        ("0 3 1,,2 * *", "day of the month ''"),
        ("-1 * * * *", "minute '-1'"),
        ("１ 3 * * *", "minute '１'"),
        ("0 3 31 2 *", "never fires"),
        ("0 3 31 4,jun *", "never fires"),
        ("@reboot", "allowed: @yearly"),
        ("@every 5m", "type \\*/5"),
        ("@dayly", "did you mean '@daily'"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_to_type(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        schedules.timing(typed)
    assert "\n" not in str(refused.value)


def item(draw: random.Random, low: int, high: int) -> str:
    first, last = sorted((draw.randint(low, high), draw.randint(low, high)))
    if first == last or draw.random() < 0.4:  # croniter takes 7-7 for every day
        return str(first)
    return f"{first}-{last}" + (f"/{draw.randint(1, last - first)}" if draw.random() < 0.5 else "")


def a_field(draw: random.Random, low: int, high: int, star: float) -> str:
    if draw.random() < star:
        return "*"
    if draw.random() < 0.2:
        return f"*/{draw.randint(2, high - low)}"
    return ",".join(item(draw, low, high) for _ in range(draw.randint(1, 3)))


def expressions(draw: random.Random, count: int, star: float) -> "list[tuple[str, cron.Cron]]":
    found: list[tuple[str, cron.Cron]] = []
    while len(found) < count:
        fields = [(0, 59, 0.2), (0, 23, 0.4), (1, 31, star), (1, 12, star), (0, 7, star)]
        text = " ".join(a_field(draw, *field) for field in fields)
        try:
            found.append((text, cron.parse(text)))
        except UserError as error:
            if not re.search("read in two ways|never fires", str(error)):
                raise
    return found


def theirs(text: str, zone: str, start: datetime, count: int) -> list[datetime]:
    coming = croniter(text, start.astimezone(ZoneInfo(zone)), day_or=True)
    return [coming.get_next(datetime) for _ in range(count)]


def test_next_times_are_those_of_another_library() -> None:
    draw = random.Random(14)
    for text, found in expressions(draw, 1200, 0.4):
        zone = draw.choice(ZONES)
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(60 * 24 * 500))
        ours = [time.astimezone(UTC) for time in found.next_times(zone, 3, start)]
        other = [time for time in theirs(text, zone, start, 6) if not time.fold or found.hours == cron.HOUR.every]
        assert ours == [time.astimezone(UTC) for time in other[:3]], (text, zone, start)


def test_at_a_clock_change_every_hour_goes_on_and_other_times_come_once() -> None:
    """As the other library, but for the second of two equal hours, in which only what fires every hour fires."""
    draw = random.Random(16)
    eves = {"Europe/Berlin": ((3, 28), (10, 24)), "America/New_York": ((3, 7), (10, 31))}
    for text, found in expressions(draw, 600, 0.95):
        zone = draw.choice(list(eves))
        start = datetime(2026, *draw.choice(eves[zone]), draw.randrange(24), tzinfo=UTC)
        ours = [time.astimezone(UTC) for time in found.next_times(zone, 6, start)]
        other = [time for time in theirs(text, zone, start, 12) if not time.fold or found.hours == cron.HOUR.every]
        assert ours == [time.astimezone(UTC) for time in other[:6]], (text, zone, start)


@pytest.mark.parametrize(
    ("typed", "zone", "after", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["03-29 03:00 CEST", "03-30 02:30 CEST"]),
        ("10,40 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["03-29 03:00 CEST", "03-30 02:10 CEST"]),
        ("* 2 * * *", "Europe/Berlin", "2026-03-29T00:00Z", ["03-29 03:00 CEST", "03-30 02:00 CEST"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["10-25 02:30 CEST", "10-26 02:30 CET"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10Z", ["10-26 02:30 CET", "10-27 02:30 CET"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-25T00:00Z", ["10-25 02:00 CET", "10-25 03:00 CET"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-29T00:30Z", ["03-29 03:00 CEST", "03-29 04:00 CEST"]),
        ("30 1 * * *", "Europe/London", "2026-10-25T00:00Z", ["10-25 01:30 BST", "10-26 01:30 GMT"]),
        ("0 0 * * *", "America/Havana", "2026-03-07T12:00Z", ["03-08 01:00 CDT", "03-09 00:00 CDT"]),
    ],
)
def test_clock_changes(typed: str, zone: str, after: str, expected: list[str]) -> None:
    found = cron.parse(typed).next_times(zone, 2, datetime.fromisoformat(after))
    assert [time.strftime("%m-%d %H:%M %Z") for time in found] == expected


def test_kubeflow_pipelines_fires_what_it_is_sent_at_the_times_we_show() -> None:
    """In its own reading of the expression, day of the month or weekday included."""
    draw = random.Random(9)
    for _, found in expressions(draw, 300, 0.5):
        when = schedules.Timing(str(found))
        sent = clock.in_utc(when).six_fields()
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(60 * 24 * 365))
        expected = list(islice(times(sent, start, 9 * 366), 3))
        assert found.next_times("UTC", 3, start) == expected, sent


def test_the_server_that_stands_for_it_refuses_what_the_real_one_refused() -> None:
    for text, message in (
        ("TZ=Europe/Berlin 0 0 3 * * *", "Expected 5 to 6 fields, found 7: TZ=Europe/Berlin 0 0 3 * * *"),
        ("0 0 3 * * fri-sun", "Beginning of range (5) beyond end of range (0): fri-sun"),
    ):
        with pytest.raises(BadCron) as refused:
            robfig(text)
        assert str(refused.value) == message


@pytest.mark.parametrize(
    ("typed", "zone", "sent"),
    [
        ("0 3 * * *", "UTC", "0 0 3 * * *"),
        ("0 3 * * *", "Etc/GMT+5", "0 0 8 * * *"),
        ("30 3 * * *", "Asia/Tokyo", "0 30 18 * * *"),
        ("0 3 * * mon", "Asia/Tokyo", "0 0 18 * * sun"),
        ("0 22 * * sat", "America/Phoenix", "0 0 5 * * sun"),
        ("0 3 * * *", "Asia/Kolkata", "0 30 21 * * *"),
        ("0 12 1 jan *", "Asia/Tokyo", "0 0 3 1 1 *"),
        ("0 * * * *", "Europe/Berlin", "0 0 * * * *"),
        ("*/15 * * * *", "Asia/Kathmandu", "0 0,15,30,45 * * * *"),
        ("0 6,18 * * *", "Asia/Tokyo", "0 0 9,21 * * *"),
    ],
)
def test_zones_without_daylight_saving_are_translated(typed: str, zone: str, sent: str) -> None:
    found = clock.in_utc(schedules.timing(typed, zone))
    assert (found.six_fields(), found.until) == (sent, None)
    start = datetime(2026, 5, 1, tzinfo=UTC)
    ours = cron.parse(typed).next_times(zone, 5, start)
    assert found.cron.next_times("UTC", 5, start) == ours


@pytest.mark.parametrize(
    ("typed", "zone"),
    [
        ("0 3 1 * *", "Asia/Tokyo"),  # the last day of a month
        ("0 3 * jan *", "Asia/Tokyo"),
        ("0 3,12 * * mon", "Asia/Tokyo"),
        ("0,45 3 * * *", "Asia/Kolkata"),
    ],
)
def test_times_that_are_no_one_expression_in_utc_are_refused(typed: str, zone: str) -> None:
    with pytest.raises(UserError, match="not a single expression in UTC.*--target vertex"):
        clock.in_utc(schedules.timing(typed, zone))


@pytest.mark.parametrize(
    ("zone", "number", "message"),
    [
        ("Europe/Berln", 1, "did you mean 'Europe/Berlin'"),
        ("UTC", 0, "--max-concurrent is 0; allowed: 1 to 10"),
        ("UTC", 11, "--max-concurrent is 11; allowed: 1 to 10"),
    ],
)
def test_zones_and_numbers_are_checked(zone: str, number: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedules.timing("0 3 * * *", zone, number)
