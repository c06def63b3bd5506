"""The target for Vertex AI Pipelines.

We choose each job's id. After a submission whose answer was lost, we look for a job of that id before we submit again;
and the server refuses a second job of the same id.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from xlnet.errors import RunError, UserError
from xlnet.http import HttpError
from xlnet.recipe import Recipe
from xlnet.registry import Registry, open_registry
from xlnet.registry.vertex_api import VertexApi
from xlnet.steps import KEPT, STEPS, titled
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.placement.vertex import RESOURCES
from xlnet_pipeline.targets import record, remote
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure, StepRun
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import VertexSettings
from xlnet_pipeline.targets.submission import Say, Submission

STATES = {
    "PIPELINE_STATE_SUCCEEDED": record.SUCCEEDED,
    "PIPELINE_STATE_FAILED": record.FAILED,
    "PIPELINE_STATE_CANCELLED": record.CANCELLED,
}
TASK_STATES = {
    "PENDING": record.PENDING,
    "SUCCEEDED": record.SUCCEEDED,
    "SKIPPED": record.CACHED,
    "FAILED": record.FAILED,
    "CANCELLED": record.CANCELLED,
    "NOT_TRIGGERED": record.SKIPPED,
}
LISTED = "name,createTime,endTime,state,displayName,runtimeConfig.parameterValues,error"
ITERATION = re.compile(r"-\d+$")  # may end the name of a task in a loop
LABELS = {"created-by": "xlnet-pipeline"}
OURS = 'labels.created-by="xlnet-pipeline"'


class VertexTarget:
    """Runs on Vertex AI Pipelines. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "vertex"
    cannot = remote.HERE_ONLY

    def __init__(self, settings: VertexSettings) -> None:
        self.settings = settings
        self.api = VertexApi(settings.project, settings.location, settings.endpoint)
        self.jobs = f"{settings.parent}/pipelineJobs"

    def place(self, submission: Submission) -> Placement:
        """Return where the submission's steps will run: machine, image, registry, service account, output directory."""
        uri = self.settings.tracking_uri
        return remote.place(
            self.name,
            self.settings,
            submission,
            environment={"MLFLOW_TRACKING_URI": uri} if uri else {"XLNET_REGISTRY": self.settings.registry},
            service_account=self.settings.service_account,
            output_root=self.settings.pipeline_root,
        )

    def body(self, recipe: Recipe, where: Placement, name: str, cache: bool = True) -> dict[str, Any]:
        """Return the PipelineJob that a submission creates, or a schedule repeats."""
        from xlnet_pipeline import dag  # imports kfp, which takes most of a second; reading runs does not need it

        (spec,) = dag.documents(where, pretrains=recipe.pretrains, shards=recipe.shards)
        if not cache:
            dag.without_cache(spec)
        job = {
            "displayName": name,
            "pipelineSpec": spec,
            "labels": LABELS,
            "runtimeConfig": {
                "gcsOutputDirectory": self.settings.pipeline_root,
                "parameterValues": {"recipe": recipe.to_json()},
            },
        }
        return job | ({"serviceAccount": self.settings.service_account} if self.settings.service_account else {})

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """Return the request that a submission would send."""
        where = remote.checked(self, submission)
        url = f"{self.api.base}/v1/{self.jobs}?pipelineJobId={remote.PREFIX}RUN"
        body = self.body(submission.recipe, where, f"{remote.PREFIX}RUN", submission.cache)
        return [{"method": "POST", "url": url, "body": body}]

    def submit(self, submission: Submission, *, echo: Say | None = None, live: Say | None = None) -> Run:
        """Submit the recipe and return the record of the run that has begun; nothing is submitted twice."""
        where = remote.checked(self, submission)
        submission = dataclasses.replace(submission, recipe=remote.with_shards(submission.recipe))
        run = remote.new_run(submission.recipe.to_json(), self.name, record.new_id())
        name = f"{remote.PREFIX}{run.id}"
        path = f"{self.jobs}/{name}"
        try:
            body = self.body(submission.recipe, where, name, submission.cache)
            self.api.call("POST", self.jobs, body, query={"pipelineJobId": name}, recover=lambda: self.api.get(path))
        except HttpError as error:
            if error.status != 409:  # there already: the answer to the first attempt was lost
                raise UserError(
                    f"Vertex AI at {self.api.base} knows no '{self.settings.parent}': {error.message}; "
                    "check VERTEX_PROJECT_ID and VERTEX_LOCATION"
                ) from None
        if echo:
            place = f"locations/{self.settings.location}/runs/{name}?project={self.settings.project}"
            echo(f"run {run.id}")
            echo(f"page https://console.cloud.google.com/vertex-ai/pipelines/{place}")
        return run

    def runs(self, limit: int | None = None) -> list[Run]:
        """Return the runs that this tool submitted, or the newest of them. Read no logs and no artifacts."""
        return [self._record(job) for job in itertools.islice(self._listed(), limit)]

    def _listed(self) -> Iterator[dict[str, Any]]:
        query: dict[str, str | int] = {
            "filter": OURS,
            "orderBy": "create_time desc",
            "pageSize": remote.PAGE,
            "readMask": LISTED,
        }
        return self.api.pages(self.jobs, "pipelineJobs", query)

    def status(self, run: str) -> Run:
        """Return the current record of a run, with the facts that its artifacts hold."""
        job = self._get(run)
        shown = self._explained(job)
        places: dict[str, str] = {}
        for detail in _details(job):
            step = _step(detail)
            made = detail.get("outputs", {}).get(KEPT[step].output, {}) if step in KEPT else {}
            for artifact in made.get("artifacts", []):
                places[remote.numbered(step, places)] = artifact["uri"]
        shown = remote.with_artifacts(shown, places)
        for step_run in shown.steps:
            if step_run.status == record.CACHED and (place := places.get(step_run.name)):
                step_run.reason = f"same as in {_maker(place)}"
        return shown

    def progress(self, run: str) -> Run:
        """Return the current record of a run, without its artifacts."""
        return self._record(self._get(run))

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Yield the log lines of a run's jobs, from Cloud Logging."""
        job = self._get(run)
        return remote.log_lines(self._record(job), step, lambda one: self._log(job, one))

    def cancel(self, run: str) -> Run:
        """Ask Vertex AI to end a run, and wait until it has."""
        job = self._get(run)
        shown = self._record(job)
        if shown.status != record.RUNNING:
            raise UserError(f"run '{shown.id}' is {shown.status}; only a running one can be cancelled")
        self.api.call("POST", f"{job['name']}:cancel", {})
        return remote.until_ended(lambda: self._explained(self.api.call("GET", job["name"])))

    def artifacts(self, run: str) -> list[Artifact]:
        """List the artifacts of a run."""
        return self.status(run).artifacts

    def schedules(self) -> Schedules:
        """Return the project's schedules."""
        from xlnet_pipeline.targets.vertex.schedules import VertexSchedules

        return VertexSchedules(self)

    def models(self) -> Registry:
        """Open the registry that the settings name, else Vertex AI's own."""
        return open_registry(self.settings.registry)

    def _get(self, run: str) -> dict[str, Any]:
        """Return the job of the run with this id, or with an id of which this is a unique part."""
        if run and (job := self.api.get(f"{self.jobs}/{remote.PREFIX}{quote(run, safe='')}")):
            return job
        known = {_id(job): job["name"] for job in self._listed()}
        return self.api.call("GET", known[record.choose(run, list(known), f"on target '{self.name}'")])

    def _record(self, job: dict[str, Any]) -> Run:
        text = job.get("runtimeConfig", {}).get("parameterValues", {}).get("recipe", "{}")
        run = remote.new_run(text, self.name, _id(job))
        run.created, run.ended = str(remote.moment(job["createTime"])), remote.moment(job.get("endTime"))
        run.status = STATES.get(job.get("state", ""), record.RUNNING)
        for step in run.steps:
            details = _of_step(job, step.name)
            if details and STEPS[step.name].looped:
                _fill_iterations(step, details, run.status in remote.ENDED)
            elif details:
                _fill(step, details[0])
            elif run.status in remote.ENDED:
                step.status = record.SKIPPED
        return run

    def _explained(self, job: dict[str, Any]) -> Run:
        """Return the record of a run. If the run failed, read the reason from its log."""
        run = self._record(job)
        if run.status == record.FAILED:
            run.error = self._failure(job, run)
        return run

    def _failure(self, job: dict[str, Any], run: Run) -> RunFailure:
        failed = next((step for step in run.steps if step.status == record.FAILED), None)
        message = job.get("error", {}).get("message", "the run failed")
        if failed is None:
            return RunFailure(None, message, "run")
        try:
            lines = self._log(job, failed).splitlines()
        except (RunError, UserError, HttpError) as error:
            return RunFailure(failed.name, f"{message}; its log cannot be read: {error}", "run")
        if not lines:
            return RunFailure(failed.name, message, "run")
        return remote.failure(failed.name, lines, self.settings.pipeline_root)

    def _log(self, job: dict[str, Any], step: StepRun) -> str:
        """Return what a step's jobs wrote: the pipeline's container and, for a training, its custom job."""
        ids = [name.rpartition("/")[2] for detail in _of_step(job, step.name) for name in _jobs(detail)]
        if not ids:
            return ""
        among = " OR ".join(f'"{one}"' for one in ids)
        query: dict[str, Any] = {
            "resourceNames": [f"projects/{self.settings.project}"],
            "filter": f'resource.type="ml_job" AND resource.labels.job_id=({among})',
            "orderBy": "timestamp asc",
            "pageSize": 1000,
        }
        lines: list[str] = []
        while True:
            page = self.api.call("POST", f"{self.settings.logging_endpoint}/v2/entries:list", query)
            lines += [_text(entry) for entry in page.get("entries", [])]
            if not page.get("nextPageToken"):
                return "\n".join(lines)
            query["pageToken"] = page["nextPageToken"]


def _text(entry: dict[str, Any]) -> str:
    payload = entry.get("jsonPayload", {})
    return str(entry.get("textPayload") or payload.get("message") or "").rstrip("\n")


def _id(job: dict[str, Any]) -> str:
    return str(job["name"].rpartition("/")[2].removeprefix(remote.PREFIX))


def _details(job: dict[str, Any]) -> list[dict[str, Any]]:
    return job.get("jobDetail", {}).get("taskDetails", [])


def _step(detail: dict[str, Any]) -> str:
    name = ITERATION.sub("", str(detail.get("taskName", "")))
    return titled(name) or name


def _of_step(job: dict[str, Any], step: str) -> list[dict[str, Any]]:
    """Return the job's details of a step; of a looped step, one for each iteration, in the order of their start."""
    return sorted((one for one in _details(job) if _step(one) == step), key=lambda one: str(one.get("startTime", "~")))


def _maker(place: str) -> str:
    """Return the job in whose folder an artifact lies: ROOT/PROJECT_NUMBER/JOB/TASK/ARTIFACT."""
    job = next((part for part in place.split("/") if part.startswith(remote.PREFIX)), "")
    return f"run {job.removeprefix(remote.PREFIX)}" if job else f"'{place}'"


def _jobs(detail: dict[str, Any]) -> list[str]:
    """Return the resource names of the jobs in which a task ran, the newest attempt last."""
    container = detail.get("executorDetail", {}).get("containerDetail", {})
    found = [*container.get("failedMainJobs", []), container.get("mainJob", "")]
    metadata = detail.get("execution", {}).get("metadata", {})
    if resources := metadata.get(f"output:{RESOURCES}"):
        found += [one["resourceUri"] for one in json.loads(resources).get("resources", [])]
    return [name for name in dict.fromkeys(found) if name]


def _fill_iterations(step: StepRun, details: list[dict[str, Any]], ended: bool) -> None:
    for number, detail in enumerate(details):
        step.iterations.append(StepRun(f"{step.name}-{number}"))
        _fill(step.iterations[-1], detail)
    step.status = record.RUNNING
    step.started = min((one.started for one in step.iterations if one.started), default=None)
    step.ended = max((one.ended for one in step.iterations if one.ended), default=None)
    step.gather()
    if ended and step.status == record.RUNNING:
        step.status = record.CANCELLED


def _fill(step: StepRun, detail: dict[str, Any]) -> None:
    step.status = TASK_STATES.get(detail.get("state", ""), record.RUNNING)
    step.started, step.ended = remote.moment(detail.get("startTime")), remote.moment(detail.get("endTime"))
    step.seconds = remote.between(step.started, step.ended)
