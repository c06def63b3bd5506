"""The recurring runs of the Kubeflow Pipelines server, as recorded from the real one (schedule-*.jsonl).

Cron is read as robfig/cron v1.2 reads it: five or six fields, seconds first, no zone, weekdays 0 to 6. Deleting a
recurring run takes the workflows of its runs away: one in progress is shown RUNNING for ever.
"""

import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from servers.web import Refused, Request

BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NAMES = {
    4: {name: at for at, name in enumerate(MONTHS, 1)},
    5: {name: at for at, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))},
}
PREFIX = "Failed to create a recurring run due to conversion error: Invalid input error: "


class BadCron(ValueError):
    """What robfig/cron says of an expression."""


def robfig(text: str) -> list[tuple[set[int], bool]]:
    """Each field's values, and whether a star named them."""
    fields = text.split()
    if len(fields) not in (5, 6):
        raise BadCron(f"Expected 5 to 6 fields, found {len(fields)}: {text}")
    return [_field(field, at) for at, field in enumerate([*fields, *["*"] * (6 - len(fields))])]


def _field(text: str, at: int) -> tuple[set[int], bool]:
    found, star = set(), False
    for part in filter(None, text.split(",")):
        base, _, step = part.partition("/")
        low, dash, high = base.partition("-")
        first, last = BOUNDS[at]
        if low in ("*", "?"):
            star, start, end = True, first, last
        else:
            start = _number(low, at)
            end = _number(high, at) if dash else last if step else start
        if start < first:
            raise BadCron(f"Beginning of range ({start}) below minimum ({first}): {part}")
        if end > last:
            raise BadCron(f"End of range ({end}) above maximum ({last}): {part}")
        if start > end:
            raise BadCron(f"Beginning of range ({start}) beyond end of range ({end}): {part}")
        found |= set(range(start, end + 1, int(step or 1)))
    return found, star


def _number(text: str, at: int) -> int:
    try:
        return NAMES.get(at, {}).get(text.lower()) or (0 if text.lower() == "sun" and at == 5 else int(text))
    except ValueError:
        raise BadCron(f"Failed to parse int from {text}") from None


def times(text: str, start: datetime, days: int) -> Iterator[datetime]:
    """When the real server would start a run in the days from a moment (in UTC) on."""
    (seconds, _), (minutes, _), (hours, _), (dates, any_date), (months, _), (weekdays, any_weekday) = robfig(text)
    for number in range(days):
        day = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=number)
        in_dates, in_week = day.day in dates, day.isoweekday() % 7 in weekdays
        both = any_date or any_weekday  # what a star leaves open, the other field decides
        if day.month in months and ((in_dates and in_week) if both else (in_dates or in_week)):
            for time in product(sorted(hours), sorted(minutes), sorted(seconds)):
                moment = day.replace(hour=time[0], minute=time[1], second=time[2])
                if moment > start:
                    yield moment


class RecurringRuns:
    """State and routes of recurring runs.

    Args:
        server: the server that has the routes, and starts and ends runs.
        check: raises Refused for a body that the API's message does not know.
    """

    def __init__(self, server: Any, prefix: str, check: Callable[[str, Any], Any]) -> None:
        self.server = server
        self.check = check
        self.store: dict[str, dict[str, Any]] = {}
        one = prefix + "/recurringruns/(?P<id>[^/:]+)"
        for method, path, work in (
            ("GET", prefix + "/recurringruns", self.list),
            ("POST", prefix + "/recurringruns", self.create),
            ("GET", one, self.one),
            ("DELETE", one, self.delete),
            ("POST", one + ":enable", lambda request: self.switch(request, "ENABLE")),
            ("POST", one + ":disable", lambda request: self.switch(request, "DISABLE")),
        ):
            server.route(method, path, work)

    def one(self, request: Request) -> dict[str, Any]:
        identity = request.part("id")
        if identity not in self.store:
            raise Refused(404, f"Failed to get a recurring run: ResourceNotFoundError: Job {identity} not found.")
        return self.store[identity]

    def list(self, request: Request) -> Any:
        return self.server.page(request, "recurringRuns", list(self.store.values()))

    def create(self, request: Request) -> Any:
        body = self.check("V2beta1RecurringRun", request.body)
        concurrency = int(body.get("max_concurrency", 1))
        if not 1 <= concurrency <= 10:
            raise Refused(
                400,
                PREFIX + "Max concurrency of a recurring run must be at least 1 and at most 10. "
                f"Received {concurrency}",
            )
        try:
            robfig(body["trigger"]["cron_schedule"]["cron"])
        except BadCron as error:
            place = "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: "
            raise Refused(400, f"{PREFIX}{place}{error}") from None
        now = self.now()
        made = {
            "recurring_run_id": str(uuid.uuid4()),
            "service_account": "pipeline-runner",
            **body,
            "created_at": now,
            "updated_at": now,
            "status": "ENABLED" if body.get("mode") == "ENABLE" else "DISABLED",
            "namespace": "kubeflow",
        }
        self.store[made["recurring_run_id"]] = made
        return made

    def delete(self, request: Request) -> Any:
        identity = self.one(request)["recurring_run_id"]
        del self.store[identity]
        self.server.collect_garbage(identity)
        return {}

    def switch(self, request: Request, mode: str) -> Any:
        self.one(request).update(mode=mode, status=f"{mode}D", updated_at=self.now())
        return {}

    @staticmethod
    def now() -> str:
        """Seconds, as the real server; ours makes two in one second, and their order must show."""
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def due(self, identity: str, number: int) -> dict[str, Any]:
        """The run that the real server starts when a schedule's time has come."""
        found = self.store[identity]
        kept = ("experiment_id", "pipeline_spec", "runtime_config", "service_account")
        hashed = random.Random(f"{identity}{number}").randrange(10**8, 10**9)
        return {
            **{key: found[key] for key in kept},
            "display_name": f"{found['display_name'].replace('-', '')}{identity[:5]}-{number}-{hashed}",
            "recurring_run_id": identity,
            "scheduled_at": (datetime.now(UTC) - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
