"""Keeps schedules on Kubeflow Pipelines as recurring runs.

The API cannot change a recurring run, and deleting one also deletes the workflow of its run in progress. So a schedule
is the newest recurring run of its name. An older one is retired: it is paused at once, and the next command that lists
schedules deletes it if its runs have ended. If a schedule is deleted while its run is in progress, a paused recurring
run marked as deleted stays until that run has ended.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

import kfp_server_api as api

from xlnet.errors import UserError
from xlnet.http import HttpError
from xlnet.recipe import Recipe
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets import record, remote, schedules
from xlnet_pipeline.targets.kfp import clock
from xlnet_pipeline.targets.kfp.api import KfpApi
from xlnet_pipeline.targets.record import Run
from xlnet_pipeline.targets.schedules import ACTIVE, PAUSED, Schedule, Timing
from xlnet_pipeline.targets.submission import Submission


class KfpSubmitter(Protocol):
    """The part of the target that schedules need."""

    name: str

    @property
    def api(self) -> KfpApi:
        """The installation's API."""

    def body(self, recipe: Recipe, where: Placement, name: str, experiment: str, cache: bool = True) -> dict[str, Any]:
        """Return the fields that create a run."""

    def place(self, submission: Submission) -> Placement:
        """Return where the submission's steps will run."""

    def listed(self) -> Iterator[Any]:
        """Yield the experiment's runs, newest first."""

    def status(self, run: str) -> Run:
        """Return the current record of a run."""


ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")  # states of a run in the API
SEARCHED = 200  # how many of the newest runs are searched for a schedule's last run


class KfpSchedules:
    """See :class:`xlnet_pipeline.targets.schedules.Schedules` for the methods."""

    def __init__(self, target: KfpSubmitter) -> None:
        self.target = target
        self.api = target.api

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Create the schedule, or replace the one of that name."""
        recipe, where = submission.recipe, self.target.place(submission)
        schedules.check_name(name)
        remote.check_data(recipe, self.target.name)
        times = clock.in_utc(timing)
        if times.until and not timing.current_offset:
            raise clock.refusal(timing, times)
        fields = self.target.body(remote.with_shards(recipe), where, name, self.api.experiment())
        wanted = {**fields, "max_concurrency": str(timing.max_concurrent), "no_catchup": True, "mode": "ENABLE"}
        wanted["trigger"] = {"cron_schedule": {"cron": times.six_fields()}}
        namesakes = self._listed().get(name, [])
        old = namesakes[0] if namesakes else None
        changed = ["created"]
        if old is not None:
            asked = {"cron": timing.cron, "timezone": timing.timezone}
            new = _schedule(_message({**wanted, "recurring_run_id": "", "description": json.dumps(asked)}))
            changed = schedules.differences(_schedule(old), new)
            if not changed and not _stale(old):
                return _schedule(old), []
        return _schedule(self._replace(namesakes, wanted, timing, changed or ["clock change"])), changed

    def all(self) -> list[Schedule]:
        """Return every schedule that holds a recipe, sorted by name, with its last run."""
        newest = {name: found[0] for name, found in self._listed().items()}
        of = {one.recurring_run_id: name for name, found in self._kept.items() for one in found}
        last: dict[str, str] = {}
        for number, run in enumerate(self.target.listed() if newest else ()):
            if number >= SEARCHED or len(last) == len(newest):
                break
            if name := of.get(run.recurring_run_id):
                last.setdefault(name, str(remote.moment(run.created_at)))
        return [_schedule(newest[name], last.get(name)) for name in sorted(newest)]

    def pause(self, name: str) -> Schedule:
        """Keep the schedule from firing until it is resumed."""
        return self._switch(name, self.api.recurring.recurring_run_service_disable_recurring_run)

    def resume(self, name: str) -> Schedule:
        """Let the schedule fire again from now on."""
        return self._switch(name, self.api.recurring.recurring_run_service_enable_recurring_run)

    def delete(self, name: str) -> list[str]:
        """Remove the schedule. Its runs are kept, and a run in progress goes on."""
        self._find(name)
        namesakes = self._kept[name]
        running = self._running(namesakes)
        if not running:
            for one in namesakes:
                self._delete(one)
            return []
        self._call(self.api.recurring.recurring_run_service_disable_recurring_run, namesakes[0].recurring_run_id)
        gone = {"mode": "DISABLE", "description": json.dumps({"deleted": True})}
        self._made({**_fields(namesakes[0]), **gone}, namesakes)
        runs = ", ".join(run for some in running.values() for run in some)
        return [f"its run {runs} goes on; Kubeflow Pipelines forgets the schedule after that, when: schedule list"]

    def sync(self, name: str | None = None) -> list[str]:
        """Correct the UTC times of one or all schedules after a change of clocks. Return one line for each schedule."""
        names = [name] if name else sorted(self._listed())
        lines = []
        for one in names:
            found = self._find(one)
            asked = _asked(found)
            if asked is None:
                lines.append(f"schedule {one}: in UTC, which never changes")
                continue
            sent = _sent(found)
            times = clock.in_utc(asked)
            if not _stale(found):
                lines.append(f"schedule {one}: unchanged, '{sent.cron}' UTC")
                continue
            change = f"clock change: {sent.cron} → {times.cron} UTC"
            wanted = {**_fields(found), "trigger": {"cron_schedule": {"cron": times.six_fields()}}}
            self._replace(self._kept[one], wanted, asked, [change])
            lines.append(f"schedule {one}: {change}")
        return lines

    def _replace(self, namesakes: list[Any], wanted: dict[str, Any], timing: Timing, changed: list[str]) -> Any:
        """Create a recurring run that replaces its namesakes and continues their history; retire the namesakes."""
        note = f"{datetime.now(UTC):%Y-%m-%d %H:%M} {'; '.join(changed)}"
        old = namesakes[0] if namesakes else None
        kept = {"history": [*(_history(old) if old else ()), note], "cron": timing.cron, "timezone": timing.timezone}
        wanted = {**wanted, "description": json.dumps(kept, ensure_ascii=False)}
        if old is None:
            return self._made(wanted, [])
        if not _active(old):
            made = self._made({**wanted, "mode": "DISABLE"}, namesakes)
            self._sweep(namesakes)
            return made
        # Pause the old one first, so that no time fires twice; resume it if the new one cannot be created.
        self._call(self.api.recurring.recurring_run_service_disable_recurring_run, old.recurring_run_id)
        try:
            made = self._made(wanted, namesakes)
        except BaseException:
            self._call(self.api.recurring.recurring_run_service_enable_recurring_run, old.recurring_run_id)
            raise
        self._sweep(namesakes)
        return made

    def _made(self, wanted: dict[str, Any], namesakes: Iterable[Any]) -> Any:
        known = {one.recurring_run_id for one in namesakes}
        name = wanted["display_name"]

        def recover() -> Any:
            namesakes = (one for one in self._all() if one.display_name == name)
            return next((one for one in namesakes if one.recurring_run_id not in known), None)

        create = self.api.recurring.recurring_run_service_create_recurring_run
        return self._call(create, _message(wanted), recover=recover)

    def _all(self) -> Iterable[Any]:
        experiment = self.api.known_experiment()
        if experiment is None:
            return ()
        function = self.api.recurring.recurring_run_service_list_recurring_runs
        return self.api.pages(function, "recurring_runs", experiment_id=experiment)

    def _listed(self) -> dict[str, list[Any]]:
        """Map each name to its recurring runs, newest first. Delete retired ones whose runs have ended."""
        found: dict[str, list[Any]] = defaultdict(list)
        for one in self._all():
            if _recipe(one):
                found[one.display_name].append(one)
        for some in found.values():
            some.sort(key=lambda one: (one.created_at, _active(one) or _deleted(one)), reverse=True)
            gone = some if _deleted(some[0]) else some[1:]
            if gone:
                self._sweep(gone)
        self._kept = {name: some for name, some in found.items() if not _deleted(some[0])}
        return self._kept

    def _sweep(self, retired: list[Any]) -> None:
        """Delete recurring runs that have no run in progress; the one that is marked as deleted goes last."""
        running = self._running(retired)
        for one in reversed(retired):
            last = not (_deleted(one) and running)
            if one.recurring_run_id not in running and last:
                self._delete(one)

    def _running(self, found: list[Any]) -> dict[str, list[str]]:
        """Map the id of each recurring run to the ids of its runs in progress."""
        known = {one.recurring_run_id for one in found}
        oldest = min(one.created_at for one in found)
        running: dict[str, list[str]] = defaultdict(list)
        for run in self.target.listed():
            if run.created_at < oldest:
                break
            if run.recurring_run_id in known and run.state not in ENDED and self._goes_on(run.run_id):
                running[run.recurring_run_id].append(run.run_id)
        return running

    def _goes_on(self, run_id: str) -> bool:
        """Whether a run is in progress. The API also says RUNNING if the run's workflow is gone."""
        return self.target.status(run_id).status == record.RUNNING

    def _find(self, name: str) -> Any:
        known = self._listed()
        schedules.find(name, [_schedule(some[0]) for some in known.values()])
        return known[name][0]

    def _switch(self, name: str, function: Any) -> Schedule:
        identity = self._find(name).recurring_run_id
        self._call(function, identity)
        return _schedule(self._call(self.api.recurring.recurring_run_service_get_recurring_run, identity))

    def _delete(self, one: Any) -> None:
        self._call(self.api.recurring.recurring_run_service_delete_recurring_run, one.recurring_run_id)

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return self.api.call(function, *arguments, **options)
        except HttpError as error:
            raise UserError(f"Kubeflow Pipelines refused ({error.status}): {error.message}") from None


def _message(fields: dict[str, Any]) -> Any:
    trigger = api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(**fields["trigger"]["cron_schedule"]))
    config = api.V2beta1RuntimeConfig(**fields["runtime_config"])
    return api.V2beta1RecurringRun(**{**fields, "trigger": trigger, "runtime_config": config})


def _fields(found: Any) -> dict[str, Any]:
    """Return the fields that create another recurring run like this one."""
    config = found.runtime_config
    fields = {
        "display_name": found.display_name,
        "experiment_id": found.experiment_id,
        "pipeline_spec": found.pipeline_spec,
        "runtime_config": {"parameters": config.parameters, "pipeline_root": config.pipeline_root},
        "max_concurrency": found.max_concurrency,
        "no_catchup": True,
        "mode": "ENABLE" if _active(found) else "DISABLE",
        "trigger": {"cron_schedule": {"cron": found.trigger.cron_schedule.cron}},
    }
    return fields | ({"service_account": found.service_account} if found.service_account else {})


def _recipe(found: Any) -> Any:
    parameters = (found.runtime_config.parameters if found.runtime_config else None) or {}
    return json.loads(parameters.get("recipe", "null"))


def _described(found: Any) -> dict[str, Any]:
    """Return what we stored in a recurring run's description; empty if somebody else wrote it."""
    try:
        content = json.loads(found.description or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _history(found: Any) -> tuple[str, ...]:
    return tuple(_described(found).get("history", []))


def _deleted(found: Any) -> bool:
    return bool(_described(found).get("deleted"))


def _active(found: Any) -> bool:
    return bool(found.status == "ENABLED" if found.status else found.mode == "ENABLE")


def _sent(found: Any) -> Timing:
    """Return the times at which the server fires it, in UTC."""
    return schedules.read_cron(found.trigger.cron_schedule.cron, int(found.max_concurrency or 1))


def _asked(found: Any) -> Timing | None:
    """Return the times that the user asked for; None if they are in UTC."""
    described = _described(found)
    zone = described.get("timezone", "UTC")
    return None if zone == "UTC" else Timing(described["cron"], zone, int(found.max_concurrency or 1), True)


def _stale(found: Any) -> bool:
    """Whether the clocks of its zone have changed since it was sent."""
    asked = _asked(found)
    return asked is not None and str(clock.in_utc(asked).cron) != _sent(found).cron


def _schedule(found: Any, last: str | None = None) -> Schedule:
    sent, asked = _sent(found), _asked(found)
    spec = found.pipeline_spec
    image, machine = schedules.image_and_machine(spec.get("pipeline_spec", spec), spec.get("platform_spec"))
    coming = tuple(sent.coming()) if _active(found) else ()
    notes = []
    if asked and _stale(found):
        notes.append(f"{asked.timezone} has changed its clocks since this was sent; to set it right: {clock.SYNC}")
    elif asked and (times := clock.in_utc(asked)).until:
        notes.append(clock.warning(asked, times))
    return Schedule(
        name=found.display_name,
        target="kfp",
        id=found.recurring_run_id,
        timing=asked or sent,
        state=ACTIVE if _active(found) else PAUSED,
        recipe=_recipe(found),
        image=image,
        machine=machine,
        next_run=next(iter(coming), None),
        coming=coming,
        last_run=last,
        history=_history(found),
        notes=tuple(notes),
    )
