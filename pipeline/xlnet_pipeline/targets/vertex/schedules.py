"""Schedules on Vertex AI: a Schedule resource with the pipeline job to create, changed in place."""

import json
from typing import Any, Protocol

from xlnet.errors import UserError
from xlnet.http import HttpError
from xlnet.recipe import Recipe
from xlnet.registry.vertex_api import VertexApi
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets import remote, schedules
from xlnet_pipeline.targets.schedules import ACTIVE, PAUSED, Schedule, Timing
from xlnet_pipeline.targets.settings import VertexSettings
from xlnet_pipeline.targets.submission import Submission

CHANGED = "cron,maxConcurrentRunCount,createPipelineJobRequest"


class VertexSubmitter(Protocol):
    """The part of the target that schedules need."""

    name: str
    api: VertexApi
    settings: VertexSettings

    def body(self, recipe: Recipe, where: Placement, name: str, cache: bool = True) -> dict[str, Any]:
        """Return the PipelineJob that a schedule repeats."""

    def place(self, submission: Submission) -> Placement:
        """Return where the submission's steps will run."""


class VertexSchedules:
    """See :class:`xlnet_pipeline.targets.schedules.Schedules` for the methods."""

    def __init__(self, target: VertexSubmitter) -> None:
        self.target = target
        self.api = target.api
        self.path = f"{target.settings.parent}/schedules"

    def body(self, name: str, timing: Timing, recipe: Recipe, where: Placement) -> dict[str, Any]:
        """Return the Schedule resource."""
        return {
            "displayName": name,
            "cron": f"TZ={timing.timezone} {timing.cron}",
            "maxConcurrentRunCount": str(timing.max_concurrent),
            "createPipelineJobRequest": {
                "parent": self.target.settings.parent,
                "pipelineJob": self.target.body(remote.with_shards(recipe), where, name),
            },
        }

    def create(self, name: str, timing: Timing, submission: Submission) -> tuple[Schedule, list[str]]:
        """Create the schedule, or change the one with that name."""
        recipe, where = submission.recipe, self.target.place(submission)
        schedules.check_name(name)
        remote.check_data(recipe, self.target.name)
        wanted = self.body(name, timing, recipe, where)
        old = self._named(name)
        if old is None:
            made = self._call("POST", self.path, wanted, recover=lambda: self._named(name))
            return _schedule(made), ["created"]
        changed = schedules.differences(_schedule(old), _schedule({**wanted, "name": "", "state": "ACTIVE"}))
        if not changed:
            return _schedule(old), []
        return _schedule(self._call("PATCH", old["name"], wanted, query={"updateMask": CHANGED})), changed

    def all(self) -> list[Schedule]:
        """Return every schedule that holds a recipe, sorted by name."""
        found = self.api.pages(self.path, "schedules", {"pageSize": remote.PAGE})
        return sorted((_schedule(one) for one in found if _parameters(one)), key=lambda one: one.name)

    def pause(self, name: str) -> Schedule:
        """Keep the schedule from firing until it is resumed."""
        return self._switch(name, "pause", {})

    def resume(self, name: str) -> Schedule:
        """Let the schedule fire again from now on. Missed times are not caught up."""
        return self._switch(name, "resume", {"catchUp": False})

    def sync(self, name: str | None = None) -> list[str]:
        """Do nothing: Vertex AI keeps the schedule's time zone, so daylight saving changes nothing."""
        names = [schedules.find(name, self.all()).name] if name else [one.name for one in self.all()]
        return [f"schedule {one}: unchanged, its times follow its zone" for one in names]

    def delete(self, name: str) -> list[str]:
        """Remove the schedule, but keep its runs."""
        found = schedules.find(name, self.all())
        self.api.finished(self._call("DELETE", found.id))
        return []

    def _switch(self, name: str, verb: str, body: dict[str, Any]) -> Schedule:
        found = schedules.find(name, self.all())
        self._call("POST", f"{found.id}:{verb}", body)
        return _schedule(self._call("GET", found.id))

    def _call(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        try:
            return self.api.call(method, path, body, **options)
        except HttpError as error:
            raise UserError(f"Vertex AI refused ({error.status}): {error.message}") from None

    def _named(self, name: str) -> dict[str, Any] | None:
        found = self.api.pages(self.path, "schedules", {"filter": f'display_name="{name}"', "pageSize": remote.PAGE})
        return next(iter(found), None)


def _parameters(found: dict[str, Any]) -> dict[str, Any]:
    job = found.get("createPipelineJobRequest", {}).get("pipelineJob", {})
    parameters: dict[str, Any] = job.get("runtimeConfig", {}).get("parameterValues", {})
    return parameters if "recipe" in parameters else {}


def _schedule(found: dict[str, Any]) -> Schedule:
    timing = schedules.read_cron(found["cron"], int(found.get("maxConcurrentRunCount", 1)))
    image, machine = schedules.image_and_machine(found["createPipelineJobRequest"]["pipelineJob"]["pipelineSpec"])
    active = found.get("state", "ACTIVE") == "ACTIVE"
    last = found.get("lastScheduledRunResponse", {}).get("scheduledRunTime")
    coming = timing.coming() if active else []
    return Schedule(
        name=found["displayName"],
        target="vertex",
        id=found["name"],
        timing=timing,
        state=ACTIVE if active else PAUSED,
        recipe=json.loads(_parameters(found)["recipe"]),
        image=image,
        machine=machine,
        next_run=(remote.moment(found.get("nextRunTime")) or next(iter(coming), None)) if active else None,
        coming=tuple(coming),
        last_run=remote.moment(last),
    )
