"""Schedules on Kubeflow Pipelines: recurring runs.

The API cannot change a recurring run. A changed schedule is made anew and the old one is deleted after that; its runs
stay, and the new one's description keeps what changed.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

import kfp_server_api as api

from xlnet.calls import Trouble
from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets import remote, schedules
from xlnet_pipeline.targets.kfp.api import KfpApi, equals
from xlnet_pipeline.targets.schedules import ACTIVE, PAUSED, Schedule, Timing
from xlnet_pipeline.targets.submission import Submission


class Submitter(Protocol):
    """What schedules need of the target."""

    name: str
    api: KfpApi

    def body(self, recipe: Recipe, where: Placement, name: str, experiment: str, cache: bool = True) -> dict[str, Any]:
        """What creates a run."""

    def place(self, submission: Submission) -> Placement:
        """Where the submission's steps are to run."""

    def listed(self) -> Iterator[Any]:
        """The experiment's runs, the newest first."""


class KfpSchedules:
    """See :class:`xlnet_pipeline.targets.schedules.Schedules` for the methods."""

    def __init__(self, target: Submitter) -> None:
        self.target = target
        self.api = target.api

    def body(self, name: str, timing: Timing, recipe: Recipe, where: Placement, history: list[str]) -> dict[str, Any]:
        """What creates a recurring run; times that were missed are not caught up with."""
        fields = self.target.body(recipe, where, name, self.api.experiment())
        trigger = {"cron_schedule": {"cron": schedules.six_fields(timing)}}
        more = {"max_concurrency": str(timing.max_concurrent), "no_catchup": True, "mode": "ENABLE", "trigger": trigger}
        return {**fields, **more, "description": json.dumps({"history": history})}

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Make the schedule, or the one of that name anew."""
        recipe, where = submission.recipe, self.target.place(submission)
        schedules.check_name(name)
        remote.check_data(recipe, self.target.name)
        old = self._named(name)
        history = [f"{datetime.now(UTC):%Y-%m-%d %H:%M} created"]
        changed = ["created"]
        wanted = self.body(name, timing, recipe, where, history)
        if old is not None:
            before = _schedule(old)
            changed = schedules.differences(before, _schedule(_message({**wanted, "recurring_run_id": ""})))
            if not changed:
                return before, []
            history = [*before.history, f"{datetime.now(UTC):%Y-%m-%d %H:%M} {'; '.join(changed)}"]
            wanted["description"] = json.dumps({"history": history}, ensure_ascii=False)
            if before.state == PAUSED:
                wanted["mode"] = "DISABLE"
        known = {one.recurring_run_id for one in self._namesakes(name)}
        create = self.api.recurring.recurring_run_service_create_recurring_run

        def recover() -> Any:
            return next((one for one in self._namesakes(name) if one.recurring_run_id not in known), None)

        made = self._call(create, _message(wanted), recover=recover)
        for identity in known:
            self._call(self.api.recurring.recurring_run_service_delete_recurring_run, identity)
        return _schedule(made), changed

    def all(self) -> list[Schedule]:
        """Every schedule that holds a recipe, by name, with its last run."""
        listed = self.api.pages(
            self.api.recurring.recurring_run_service_list_recurring_runs,
            "recurring_runs",
            experiment_id=self.api.experiment(),
        )
        last: dict[str, str] = {}
        for run in self.target.listed():
            if run.recurring_run_id:
                last.setdefault(run.recurring_run_id, str(remote.moment(run.created_at)))
        found = [_schedule(one, last.get(one.recurring_run_id)) for one in listed if _recipe(one)]
        return sorted(found, key=lambda one: one.name)

    def pause(self, name: str) -> Schedule:
        """Let it fire no more until it is resumed."""
        return self._switch(name, self.api.recurring.recurring_run_service_disable_recurring_run)

    def resume(self, name: str) -> Schedule:
        """Let it fire again, from now on."""
        return self._switch(name, self.api.recurring.recurring_run_service_enable_recurring_run)

    def delete(self, name: str) -> None:
        """Remove it; its runs stay."""
        schedules.find(name, self.all())
        for one in self._namesakes(name):
            self._call(self.api.recurring.recurring_run_service_delete_recurring_run, one.recurring_run_id)

    def _switch(self, name: str, function: Any) -> Schedule:
        self._call(function, schedules.find(name, self.all()).id)
        return _schedule(self._named(name))

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return self.api.call(function, *arguments, **options)
        except Trouble as trouble:
            raise UserError(f"Kubeflow Pipelines refused ({trouble.status}): {trouble.message}") from None

    def _named(self, name: str) -> Any:
        return next(iter(self._namesakes(name)), None)

    def _namesakes(self, name: str) -> list[Any]:
        function = self.api.recurring.recurring_run_service_list_recurring_runs
        return list(self.api.pages(function, "recurring_runs", filter=equals(name)))


def _message(fields: dict[str, Any]) -> Any:
    trigger = api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(**fields["trigger"]["cron_schedule"]))
    config = api.V2beta1RuntimeConfig(**fields["runtime_config"])
    return api.V2beta1RecurringRun(**{**fields, "trigger": trigger, "runtime_config": config})


def _recipe(found: Any) -> Any:
    parameters = (found.runtime_config.parameters if found.runtime_config else None) or {}
    return json.loads(parameters.get("recipe", "null"))


def _schedule(found: Any, last: str | None = None) -> Schedule:
    timing = schedules.read_cron(found.trigger.cron_schedule.cron, int(found.max_concurrency or 1))
    spec = found.pipeline_spec
    image, machine = schedules.image_and_machine(spec.get("pipeline_spec", spec), spec.get("platform_spec"))
    active = found.status == "ENABLED" if found.status else found.mode == "ENABLE"
    return Schedule(
        name=found.display_name,
        target="kfp",
        id=found.recurring_run_id,
        timing=timing,
        state=ACTIVE if active else PAUSED,
        recipe=_recipe(found),
        image=image,
        machine=machine,
        next_run=schedules.next_after(timing) if active else None,
        last_run=last,
        history=_history(found.description),
    )


def _history(description: str | None) -> tuple[str, ...]:
    try:
        return tuple(json.loads(description or "{}").get("history", []))
    except (ValueError, AttributeError):  # somebody wrote a description of their own
        return ()
