"""The list of runs. Its address holds search, filters and order, so that a bookmark shows the same list."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet.errors import Missing
from xlnet_pipeline.targets import record
from xlnet_pipeline.ui import pages
from xlnet_pipeline.ui.row import RunRow
from xlnet_pipeline.ui.site import Site, site_of

PAGE = 100  # rows per page
COLUMNS = {
    "metric": "Metric",
    "baseline": "Baseline",
    "name": "Name",
    "data": "Data",
    "model": "Model",
    "created": "Started",
    "duration": "Duration",
    "machine": "Machine",
    "by": "Started by",
    "target": "Target",
}
SHOWN = [name for name in COLUMNS if name not in ("machine", "target")]
STATUSES = (record.RUNNING, record.SUCCEEDED, record.FAILED, record.CANCELLED, record.LOST, record.DAMAGED)
_KEYS: dict[str, Callable[[RunRow], Any]] = {
    "created": lambda row: (row.created, row.id),
    "duration": lambda row: row.lasted or 0.0,
    "metric": lambda row: row.value if row.value is not None else float("-inf"),
    "baseline": lambda row: row.baseline if row.baseline is not None else float("-inf"),
    "name": lambda row: row.name.casefold(),
    "data": lambda row: row.data.casefold(),
    "model": lambda row: row.model.casefold(),
    "machine": lambda row: row.machine,
    "by": lambda row: row.started_by,
    "target": lambda row: row.target,
    "status": lambda row: row.status,
}


@dataclass(frozen=True)
class Query:
    """Which runs the list shows, and how."""

    search: str = ""
    status: str = ""
    target: str = ""
    sort: str = "-created"
    columns: tuple[str, ...] = tuple(SHOWN)
    page: int = 1

    @classmethod
    def of(cls, request: Request) -> "Query":
        """Read a query from the address; values that are not allowed become defaults."""
        given = request.query_params
        columns = tuple(name for name in COLUMNS if name in given.getlist("column")) or tuple(SHOWN)
        sort = given.get("sort", "-created")
        number = given.get("page", "1")
        return cls(
            given.get("search", "").strip(),
            given.get("status", ""),
            given.get("target", ""),
            sort if sort.removeprefix("-") in _KEYS else "-created",
            columns,
            max(1, int(number)) if number.isdecimal() and len(number) < 6 else 1,
        )

    def of_rows(self, rows: list[RunRow]) -> list[RunRow]:
        """Return the rows that the query asks for, sorted."""
        wanted = self.search.casefold().split()
        found = [
            row
            for row in rows
            if (not self.status or row.status == self.status)
            and (not self.target or row.target == self.target)
            and all(word in row.text for word in wanted)
        ]
        key = _KEYS[self.sort.removeprefix("-")]
        return sorted(found, key=key, reverse=self.sort.startswith("-"))


def listing(request: Request) -> Response:
    """Show the runs."""
    site, query = site_of(request), Query.of(request)
    rows = site.rows()
    found = query.of_rows(rows)
    last = max(1, -(-len(found) // PAGE))
    number = min(query.page, last)
    return pages.page(
        request,
        "runs.html",
        title="Runs",
        query=query,
        rows=found[(number - 1) * PAGE : number * PAGE],
        found=len(found),
        total=len(rows),
        counts=Counter(row.status for row in rows),
        statuses=STATUSES,
        columns=COLUMNS,
        number=number,
        last=last,
        running=any(row.running for row in rows),
        problems=site.problems(),
    )


def latest(request: Request) -> Response:
    """Send the browser to the newest run."""
    row = newest(site_of(request))
    tab = request.path_params.get("tab", "")
    return pages.redirect(pages.run_path(row, tab))


def newest(site: Site) -> RunRow:
    """Return the newest run; raise Missing if there are no runs."""
    rows = [row for row in site.rows() if row.status != record.DAMAGED]
    if not rows:
        raise Missing("there are no runs yet; start one in a terminal: xlnet-pipeline run")
    return rows[0]


ROUTES = [
    Route("/runs", listing),
    Route("/runs/latest", latest),
    Route("/runs/latest/{tab}", latest),
]
