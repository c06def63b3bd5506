"""Derives the state of a run and of its steps from the API's description of the run and of its workflow's nodes."""

import itertools
import re
from datetime import datetime
from typing import Any

from xlnet import recipe as recipes
from xlnet.steps import STEPS
from xlnet_pipeline.targets import record, remote
from xlnet_pipeline.targets.kfp.nodes import DRIVER, EXECUTOR, ITERATION, LOOP, ArgoNode, Nodes
from xlnet_pipeline.targets.record import Run, StepRun

OURS = re.compile(r"xlnet-(\d{8}-\d{6}-[0-9a-f]{4})")  # a display name with an id of ours
STATES = {
    "SUCCEEDED": record.SUCCEEDED,
    "SKIPPED": record.SUCCEEDED,
    "FAILED": record.FAILED,
    "CANCELED": record.CANCELLED,
}
ROOT = "root"
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"


def run_of(found: Any, target: str, namespace: str = "kubeflow") -> tuple[Run, Nodes]:
    """Return the record of a run, without reasons and artifacts, and the nodes of its workflow."""
    text = (found.runtime_config.parameters or {}).get("recipe", "{}") if found.runtime_config else "{}"
    run = remote.new_run(text, target, run_id(found))
    run.created, run.ended = str(remote.moment(found.created_at)), _ended(found.finished_at)
    run.status = STATES.get(found.state or "", record.RUNNING)
    asked = cancel_asked(found)
    if run.status == record.FAILED and asked:
        run.status = record.CANCELLED
    nodes = Nodes((found.run_details.task_details if found.run_details else None) or [])
    for step in run.steps:
        if STEPS[step.name].looped:
            _fill_iterations(step, nodes, recipes.from_json(text).shards)
        else:
            _fill(step, nodes, ROOT, step.name)
        for one in (*step.iterations, step):
            if run.status in remote.ENDED:
                _close(one, run.status, asked)
        if step.iterations and step.started:
            step.gather()
    if run.status == record.RUNNING and asked:
        run.notes.append(f"somebody asked for its end at {asked:%H:%M:%S} UTC; it has not ended yet")
    elif run.status == record.RUNNING:
        _say_what_waits(run, nodes, namespace)
    return run, nodes


def run_id(found: Any) -> str:
    """Return the id that we gave a run; the server's id if another tool submitted it."""
    match = OURS.fullmatch(found.display_name or "")
    return match.group(1) if match else str(found.run_id)


def cancel_asked(found: Any) -> datetime | None:
    """Return when somebody cancelled a run; None if nobody did, or if the run was restarted after that."""
    asked = None
    for one in found.state_history or []:
        if one.state == "CANCELING":
            asked = one.update_time
        elif one.state in ("PENDING", "RUNNING"):
            asked = None
    return asked


def failed_driver(nodes: Nodes) -> tuple[str | None, ArgoNode] | None:
    """Return the step whose driver failed (None for the whole run's driver) and the driver's last attempt."""
    places: list[tuple[str | None, ArgoNode | None]] = [(None, nodes.last("root-driver"))]
    places += [(step, nodes.last(ROOT, f"{step}{DRIVER}")) for step in STEPS]
    loops = [one.name for one in STEPS.values() if one.looped]
    names = {f"{name}{DRIVER}" for name in ("iteration", "iteration-item", *loops)}
    places += [(loops[0], node) for node in nodes if f".{LOOP}" in node.path and node.name in names]
    return next(((step, node) for step, node in places if node and node.state in ("FAILED", "ERROR")), None)


def places(step: str, nodes: Nodes, failed: bool = False) -> list[tuple[str, ...]]:
    """Return the names on the paths to a step's nodes: one, or one for each iteration that there is.

    With ``failed``, return only the first iteration that has failed, if one has.
    """
    if not STEPS[step].looped:
        return [(ROOT, step)]
    numbers = itertools.takewhile(lambda number: nodes.last(*iteration(step, number)[:-2]), itertools.count())
    found = [iteration(step, number) for number in numbers]
    bad = [place for place in found if (node := nodes.last(*place)) and node.state == "FAILED"] if failed else []
    return bad[:1] or found


def iteration(step: str, number: int) -> tuple[str, ...]:
    """Return the names on the path to the node of a looped step's iteration."""
    return (ROOT, LOOP, *(name.format(number) for name in ITERATION), step)


def running_pods(nodes: Nodes) -> list[ArgoNode]:
    """Return the live nodes that have no live node below them: these should be pods."""
    live = [node for node in nodes if node.live]
    return [one for one in live if not any(other.path.startswith((f"{one.path}.", f"{one.path}(")) for other in live)]


def lose(run: Run) -> None:
    """Mark a run as LOST because its workflow is gone, together with the steps that were running."""
    run.status = record.LOST
    for step in run.steps:
        if step.status == record.RUNNING or (step.status == record.PENDING and step.started):
            step.status, step.reason = record.LOST, None
        elif step.status == record.PENDING:
            step.status = record.SKIPPED


def _fill_iterations(step: StepRun, nodes: Nodes, count: int) -> None:
    step.iterations = [StepRun(f"{step.name}-{number}") for number in range(count)]
    for number, one in enumerate(step.iterations):
        _fill(one, nodes, *iteration(step.name, number))
    step.started = min((one.started for one in step.iterations if one.started), default=None)
    step.ended = max((one.ended for one in step.iterations if one.ended), default=None)
    if any(one.status != record.PENDING for one in step.iterations):
        step.status = record.RUNNING


def _fill(step: StepRun, nodes: Nodes, *place: str) -> None:
    task, pod = nodes.last(*place), nodes.last(*place, EXECUTOR)
    driver = nodes.last(*place[:-1], f"{place[-1]}{DRIVER}")
    if task is None or not task.state:
        if driver and driver.state in ("FAILED", "ERROR"):
            step.status = record.FAILED
        elif task and task.ended:  # Argo lists a node that it leaves out with equal times and no state
            step.status = record.SKIPPED
        elif driver and driver.waiting:
            step.started = remote.moment(driver.started)
        return
    step.status = STATES.get(task.state, record.RUNNING)
    step.started, step.log = remote.moment(task.started), pod.id if pod else None
    if pod and pod.state == "SKIPPED":
        step.status = record.CACHED
    elif pod and pod.waiting and step.status == record.RUNNING:
        step.status, step.started = record.PENDING, remote.moment(pod.started)
    elif step.status != record.RUNNING:
        step.ended = remote.moment((pod.ended if pod else None) or task.ended)
        step.seconds = remote.between(step.started, step.ended)


def _close(step: StepRun, status: str, asked: datetime | None) -> None:
    """Set the final state of a step whose run has ended."""
    if step.status == record.PENDING and step.started is None:
        step.status = record.SKIPPED
    elif step.status in (record.PENDING, record.RUNNING):
        step.status = record.CANCELLED if status == record.CANCELLED else record.FAILED
    elif step.status == record.FAILED and asked and (step.ended is None or _at(step.ended) >= asked):
        step.status = record.CANCELLED


def _say_what_waits(run: Run, nodes: Nodes, namespace: str) -> None:
    """Set the waiting time and the reason of a step whose pod has not started."""
    see = f"kubectl -n {namespace} describe pods -l {WORKFLOW_LABEL}={nodes.workflow}"
    for step in run.steps:
        if step.status == record.PENDING and step.started:
            step.reason = f"its pod has waited since {_clock(step.started)} to be started; see: {see}"
    first = run.steps[0]
    if first.status != record.PENDING or first.started:
        return
    driver = nodes.last("root-driver")
    if not nodes.workflow:
        first.started = run.created
        first.reason = (
            f"the run has waited since {_clock(run.created)} for the workflow controller; see: "
            f"kubectl -n {namespace} get workflows"
        )
    elif driver and driver.waiting:
        first.started = remote.moment(driver.started)
        first.reason = f"the run's first pod has waited since {_clock(str(first.started))} to be started; see: {see}"


def _clock(moment: str) -> str:
    return f"{_at(moment):%H:%M:%S} UTC"


def _at(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


def _ended(moment: Any) -> str | None:
    """Return when a run ended; the API says 1970 if it has not."""
    return remote.moment(moment) if moment and moment.year > 1970 else None
