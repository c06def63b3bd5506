"""Sends the changes of a run to open pages, as server-sent events."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from xlnet_pipeline.targets import Run, StepRun, record
from xlnet_pipeline.ui import curves, logs, pages
from xlnet_pipeline.ui.run import found, panel
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

POLL = 0.5  # seconds between two checks for changes
REMOTE_POLL = 10.0
TICK = 5  # seconds after which a running run is drawn again even if no file has changed
QUIET = 15.0  # seconds without an event after which an empty comment keeps the connection open

Signature = tuple[object, ...]
Found = TypeVar("Found")
_looks: dict[Signature, tuple[float, Any]] = {}


def shared(key: Signature, look: Callable[..., Found], *given: Any) -> Found:
    """Return ``look(*given)``, which reads the disk. All open tabs share the result for half of POLL."""
    kept = _looks.get(key)
    if kept is None or not _is_fresh(key):
        kept = (time.monotonic(), look(*given))
        if len(_looks) > 200:
            _looks.clear()
        _looks[key] = kept
    return kept[1]


async def shared_slow(key: Signature, look: Callable[..., Found], *given: Any) -> Found:
    """Do the same as :func:`shared`, but call ``look`` in a thread, because it may take long."""
    return shared(key, look, *given) if _is_fresh(key) else await run_in_threadpool(shared, key, look, *given)


def _is_fresh(key: Signature) -> bool:
    kept = _looks.get(key)
    return kept is not None and time.monotonic() - kept[0] <= POLL / 2


def event(name: str, data: str, number: str = "") -> str:
    """Format one event. The browser puts the data of an event without a name into the page."""
    head = (f"event: {name}\n" if name else "") + (f"id: {number}\n" if number else "")
    return head + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"


async def steps(request: Request) -> Response:
    """Send the steps' panel whenever something in it has changed."""
    site, run = site_of(request), await run_in_threadpool(found, request)

    async def events(run: Run) -> AsyncIterator[str]:
        seen: Signature = ()
        while run.status == record.RUNNING and not site.stopping:
            files = shared(("steps", run.id), _signature, site, run, "logs/progress", "logs/train.log")
            now = (*files, int(time.time()) // TICK)
            if now != seen:
                seen = now
                run, text = await shared_slow(("panel", run.id, now), _panel, site, run)
                yield text
            await asyncio.sleep(2 * POLL if run.target == LOCAL else REMOTE_POLL)
        yield event("", await run_in_threadpool(panel, site, run)) + event("ended", run.status)

    return _streamed(events(run))


async def log(request: Request) -> Response:
    """Send the lines that a step adds to its log after the offset in the address."""
    site, run = site_of(request), await run_in_threadpool(found, request)
    step = await run_in_threadpool(logs.chosen, run, request.query_params.get("step", ""))
    asked = request.query_params
    start = request.headers.get("last-event-id") or asked.get("from") or asked.get("start", "0")

    async def events(run: Run, offset: int) -> AsyncIterator[str]:
        while step is not None and not site.stopping:
            path, size = shared(("log", run.id, step.name), _log_file, site, run, step)
            if path and size != offset:
                text, offset = await shared_slow(("lines", path, offset, size), _added, path, offset)
                if text:
                    yield text
            run = await fresh(site, run)
            if next((one.status for one in run.steps if one.name == step.name), "") != record.RUNNING:
                break
            await asyncio.sleep(POLL)
        yield event("ended", run.status)

    return _streamed(events(run, int(start) if start.isdecimal() else 0))


_read: dict[str, tuple[Signature, float, Run]] = {}  # run → signature, time and record of the last reading


async def fresh(site: Site, run: Run) -> Run:
    """Return a run's record. Read it again if it has changed, or after TICK, because its process may have died."""
    now = shared(("record", run.id), _signature, site, run)
    kept = _read.get(run.id)
    if kept is None or kept[0] != now or time.monotonic() - kept[1] > TICK:
        if len(_read) > 20:
            _read.clear()
        _read[run.id] = (now, time.monotonic(), kept[2] if kept else run)  # other tabs use the old record meanwhile
        _read[run.id] = (now, time.monotonic(), await run_in_threadpool(site.run, run.id, run.target))
    return _read[run.id][2]


async def metrics(request: Request) -> Response:
    """Send an event whenever the curves have changed."""
    site, run = site_of(request), await run_in_threadpool(found, request)

    async def events(run: Run) -> AsyncIterator[str]:
        seen: Signature = ()
        while run.status == record.RUNNING and not site.stopping:
            now = shared(("metrics", run.id), _curve_files, site, run)
            if now != seen:
                seen = now
                yield event("changed", "curves")
            await asyncio.sleep(POLL)
            run = await fresh(site, run)
        yield event("changed", "curves") + event("ended", run.status)

    return _streamed(events(run))


async def runs(request: Request) -> Response:
    """Send an event whenever the list of runs has changed."""
    site = site_of(request)
    listed = functools.partial(shared_slow, ("runs", site), _list, site)

    async def events() -> AsyncIterator[str]:
        seen = await listed()
        yield ": open\n\n"
        quiet = time.monotonic()
        while not site.stopping:
            await asyncio.sleep(2 * POLL)
            if (now := await listed()) != seen:
                seen, quiet = now, time.monotonic()
                yield event("changed", "runs")
            elif time.monotonic() - quiet > QUIET:
                quiet = time.monotonic()
                yield ": open\n\n"

    return _streamed(events())


def _list(site: Site) -> Signature:
    """Return a value that changes with the list of runs."""
    rows = site.rows()
    newest = tuple((row.id, row.status, row.steps) for row in rows if row.running)
    return (len(rows), newest, hash(tuple((row.id, row.status) for row in rows)))


def _panel(site: Site, run: Run) -> tuple[Run, str]:
    now = site.run(run.id, run.target)
    return now, event("", panel(site, now))


def _log_file(site: Site, run: Run, step: StepRun) -> tuple[Path | None, int]:
    path = logs.place(site, run, step)
    return path, path.stat().st_size if path else 0


def _added(path: Path, offset: int) -> tuple[str, int]:
    """Return the event with the lines after an offset, and the offset of their end."""
    new = logs.added(path, offset)
    text = event("", pages.fragment("log_lines.html", lines=new.lines), str(new.end)) if new.lines else ""
    return text, new.end


def _curve_files(site: Site, run: Run) -> Signature:
    folder = curves.partial(site, run)
    return tuple(curves.stamp(folder / name) for name in (curves.HISTORY, curves.SPEED)) if folder else ()


def _signature(site: Site, run: Run, *names: str) -> Signature:
    folder = site.home / "runs" / run.id
    return tuple(curves.stamp(folder / name) for name in ("run.json", *names))


def _streamed(events: AsyncIterator[str]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


ROUTES = [
    Route("/live/runs", runs),
    Route("/live/{run}/steps", steps),
    Route("/live/{run}/log", log),
    Route("/live/{run}/metrics", metrics),
]
