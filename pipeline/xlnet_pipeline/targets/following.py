"""Follows the logs of a run's steps until the run or the step has ended."""

import time
from collections.abc import Iterator

from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.record import Run, StepRun
from xlnet_pipeline.targets.target import Target

POLL = 2.0  # seconds between two polls
BUSY = 5  # the pause is at least this many times the poll's duration, so that long logs are read less often
ENDED = (record.SUCCEEDED, record.FAILED, record.CANCELLED, record.LOST, record.DAMAGED)
OVER = (*ENDED, record.CACHED, record.SKIPPED)


def follow(target: Target, run: str, step: str | None = None) -> Iterator[str]:
    """Yield new log lines of all steps, or of one step, and a line for what a step is waiting for.

    Args:
        target: target of the run.
        run: its id.
        step: step to follow; None: all steps, one after another.
    """
    shown: dict[str, list[str]] = {}
    said: set[str] = set()
    while True:
        began = time.monotonic()
        state: Run = target.progress(run)
        for one in state.steps:
            if step not in (None, one.name):
                continue
            yield from _new(target, state.id, one, shown)
            if one.status == record.PENDING and one.reason and one.reason not in said:
                said.add(one.reason)
                yield f"({one.name}: {one.reason})"
        wanted = [one for one in state.steps if step in (None, one.name)]
        if state.status in ENDED or all(one.status in OVER for one in wanted):
            return
        time.sleep(max(POLL, BUSY * (time.monotonic() - began)))


def _new(target: Target, run: str, step: StepRun, shown: dict[str, list[str]]) -> Iterator[str]:
    """Yield the lines of a step's log that were not yet shown. A last line that has grown is shown again."""
    if step.status in (record.PENDING, record.SKIPPED) or shown.get(f"{step.name} has ended"):
        return
    lines = list(target.logs(run, step.name))
    before = shown.get(step.name, [])
    body = lines[1:]  # after the heading, which holds the state
    same = len(before)
    if before and body[same - 1 : same] != before[-1:]:
        same -= 1
    if step.name not in shown and lines:
        yield lines[0]
    yield from body[same:]
    shown[step.name] = body
    if step.status in OVER:
        shown[f"{step.name} has ended"] = [step.status]
