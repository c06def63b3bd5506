"""A Vertex AI REST server that runs what is submitted: pipeline jobs, custom jobs, schedules, models; and its logs.

Every body is checked against the message classes of google-cloud-aiplatform, which know no field that the service does
not have, and every answer is made by them.
"""

import itertools
import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format

from servers.execution import Backend, Execution, Task, every_task
from servers.kfp_server import checked_spec
from servers.web import Refused, Request, WebServer

STATES = {
    "PENDING": "PIPELINE_STATE_PENDING",
    "RUNNING": "PIPELINE_STATE_RUNNING",
    "SUCCEEDED": "PIPELINE_STATE_SUCCEEDED",
    "FAILED": "PIPELINE_STATE_FAILED",
    "CANCELLED": "PIPELINE_STATE_CANCELLED",
}
PARENT = r"/v1/(?P<parent>projects/[^/]+/locations/[^/]+)"
CRON = re.compile(r"(TZ=\S+ )?\S+ \S+ \S+ \S+ \S+")


def named(task: Task) -> str:
    """A name for a task's job."""
    return task.name if task.index is None else f"{task.name}-{task.index}"


def stamp(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if moment else None


def checked(kind: Any, body: Any) -> dict[str, Any]:
    """The body as the message class writes it; 400 for anything it does not know."""
    try:
        message = json_format.ParseDict(body, kind.pb(kind()))
    except json_format.ParseError as error:
        raise Refused(400, f"invalid {kind.__name__}: {error}") from None
    found: dict[str, Any] = json_format.MessageToDict(message)
    return found


def masked(job: dict[str, Any], mask: str | None) -> dict[str, Any]:
    """The fields that a read mask names."""
    wanted = {field.partition(".")[0] for field in mask.split(",")} if mask else set(job)
    return {key: value for key, value in job.items() if key in wanted}


class VertexServer(WebServer):
    """State: pipeline jobs, custom jobs, schedules, models by id with their versions."""

    def __init__(self, root: Path, project: str = "demo", location: str = "us-central1") -> None:
        super().__init__()
        self.backend = Backend(root)
        self.backend.custom_job = self.custom_job
        self.parent = f"projects/{project}/locations/{location}"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.executions: dict[str, Execution] = {}
        self.custom_jobs: dict[str, dict[str, Any]] = {}
        self.custom_job_of: dict[str, str] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.models: dict[str, list[dict[str, Any]]] = {}
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.numbers = itertools.count(1000)
        for method, path, work in (
            ("POST", "/pipelineJobs", self.create_job),
            ("GET", "/pipelineJobs", self.list_jobs),
            ("GET", "/pipelineJobs/(?P<id>[^/:]+)", lambda request: self.show(self.job(request))),
            ("POST", "/pipelineJobs/(?P<id>[^/:]+):cancel", self.cancel),
            ("GET", "/customJobs/(?P<id>[^/:]+)", lambda request: self.custom_jobs[request.path.removeprefix("/v1/")]),
            ("POST", "/schedules", self.create_schedule),
            ("GET", "/schedules", self.list_schedules),
            ("GET", "/schedules/(?P<id>[^/:]+)", lambda request: self.schedule(request)),
            ("PATCH", "/schedules/(?P<id>[^/:]+)", self.patch_schedule),
            ("DELETE", "/schedules/(?P<id>[^/:]+)", self.delete_schedule),
            ("POST", "/schedules/(?P<id>[^/:]+):(?P<verb>pause|resume)", self.pause_or_resume),
            ("POST", "/models:upload", self.upload_model),
            ("GET", "/models", self.list_models),
            ("GET", "/models/(?P<id>[^/:@]+)(@(?P<version>[^/:]+))?", lambda request: self.version(request)),
            ("PATCH", "/models/(?P<id>[^/:@]+)@(?P<version>[^/:]+)", self.patch_model),
            ("DELETE", "/models/(?P<id>[^/:@]+)", self.delete_model),
            ("DELETE", "/models/(?P<id>[^/:@]+)@(?P<version>[^/:]+):deleteVersion", self.delete_version),
            ("GET", "/models/(?P<id>[^/:@]+):listVersions", self.list_versions),
            ("POST", "/models/(?P<id>[^/:@]+)@(?P<version>[^/:]+):mergeVersionAliases", self.merge_aliases),
            ("POST", "/models/(?P<id>[^/:@]+)@(?P<version>[^/:]+)/evaluations:import", self.import_evaluation),
            ("GET", "/operations/(?P<id>[^/:]+)", self.operation),
        ):
            self.route(method, PARENT + path, work)
        self.route("POST", "/v2/entries:list", self.entries)

    def __exit__(self, *why: object) -> None:
        for execution in list(self.executions.values()):
            execution.stop()
        super().__exit__(*why)

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        if request.path.startswith("/v1/") and not request.path.startswith(f"/v1/{self.parent}/"):
            return 404, {"error": {"code": 404, "message": f"{request.path} not found"}}, {}
        return super().answer(request)

    def job(self, request: Request) -> dict[str, Any]:
        name = f"{self.parent}/pipelineJobs/{request.part('id')}"
        if name not in self.jobs:
            raise Refused(404, f"The PipelineJob {name} does not exist.")
        return self.jobs[name]

    def create_job(self, request: Request) -> Any:
        return self.start(request.body, request.query.get("pipelineJobId") or f"job-{next(self.numbers)}")

    def start(self, body: dict[str, Any], job_id: str) -> dict[str, Any]:
        job = checked(v1.PipelineJob, body)
        if not re.fullmatch(r"[a-z][-a-z0-9]{0,127}", job_id):
            raise Refused(400, f"invalid pipelineJobId {job_id}")
        name = f"{self.parent}/pipelineJobs/{job_id}"
        if name in self.jobs:
            raise Refused(409, f"PipelineJob {name} already exists.")
        spec = checked_spec_of_vertex(job["pipelineSpec"])
        config = job["runtimeConfig"]
        placeholders = {
            "pipeline_google_cloud_project_id": self.parent.split("/")[1],
            "pipeline_google_cloud_location": self.parent.split("/")[3],
            "pipeline_job_name": job_id,
        }
        execution = Execution(
            self.backend,
            spec,
            config["parameterValues"],
            run=job_id,
            root=config["gcsOutputDirectory"],
            placeholders=placeholders,
        )
        self.jobs[name] = {**job, "name": name, "createTime": stamp(datetime.now(UTC))}
        self.executions[name] = execution
        execution.start()
        return self.show(self.jobs[name])

    def show(self, job: dict[str, Any], mask: str | None = None) -> dict[str, Any]:
        execution = self.executions[job["name"]]
        shown = {**job, "state": STATES[execution.state]}
        if mask is None or "jobDetail" in mask:
            shown["jobDetail"] = {"taskDetails": self.details(job, execution)}
        if execution.ended:
            shown["endTime"] = stamp(execution.ended)
        if execution.state == "FAILED":
            shown["error"] = {"code": 9, "message": "The DAG failed because some tasks failed."}
        return checked(v1.PipelineJob, masked(shown, mask))

    def details(self, job: dict[str, Any], execution: Execution) -> list[dict[str, Any]]:
        found = []
        tasks = [(task, one) for task in execution.tasks.values() for one in (task, *task.iterations)]
        ids = {id(task): str(number) for number, (_, task) in enumerate(tasks, 1)}
        for above, task in tasks:
            state = "SKIPPED" if task.state == "CACHED" else task.state
            detail: dict[str, Any] = {"taskId": ids[id(task)], "taskName": task.name, "state": state}
            if task is not above:
                detail["parentTaskId"] = ids[id(above)]
            if task.started and not task.iterations:
                main = f"{self.parent}/customJobs/{job['name'].rpartition('/')[2]}-{named(task)}"
                detail["startTime"] = stamp(task.started)
                detail["executorDetail"] = {"containerDetail": {"mainJob": main}}
            if task.ended:
                detail["endTime"] = stamp(task.ended)
            if task.error:
                detail["error"] = {"code": 9, "message": task.error}
            if "gcp_resources" in task.parameters:
                detail["execution"] = {"metadata": {"output:gcp_resources": task.parameters["gcp_resources"]}}
            detail["outputs"] = {
                name: {
                    "artifacts": [
                        {
                            "name": f"{self.parent}/metadataStores/default/artifacts/{one['id']}",
                            "uri": one["uri"],
                            "schemaTitle": one["type"]["schemaTitle"],
                            "metadata": one["metadata"],
                        }
                        for one in (made if isinstance(made, list) else [made])
                    ]
                }
                for name, made in task.artifacts.items()
            }
            found.append(detail)
        return found

    def page(self, request: Request, key: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        wanted = request.query.get("filter", "")
        if match := re.fullmatch(r'labels\.([a-z-]+)="(.*)"', wanted):
            items = [one for one in items if one.get("labels", {}).get(match.group(1)) == match.group(2)]
        elif match := re.fullmatch(r'display_name="(.*)"', wanted):
            items = [one for one in items if one["displayName"] == match.group(1)]
        elif wanted:
            raise Refused(400, f"invalid filter {wanted}")
        if request.query.get("orderBy") == "create_time desc":
            items = sorted(items, key=lambda one: one["createTime"], reverse=True)
        size = min(int(request.query.get("pageSize") or 10), 100)
        start = int(request.query.get("pageToken") or 0)
        more = {"nextPageToken": str(start + size)} if start + size < len(items) else {}
        return {key: items[start : start + size], **more}

    def list_jobs(self, request: Request) -> Any:
        found = self.page(request, "pipelineJobs", list(self.jobs.values()))
        found["pipelineJobs"] = [self.show(job, request.query.get("readMask")) for job in found["pipelineJobs"]]
        return found

    def cancel(self, request: Request) -> Any:
        self.executions[self.job(request)["name"]].cancel()
        return {}

    def custom_job(self, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What the launcher's container does: create a custom job."""
        job = checked(v1.CustomJob, payload)
        for pool in job["jobSpec"]["workerPoolSpecs"]:
            if pool["machineSpec"].get("acceleratorCount", 0) and not pool["machineSpec"].get("acceleratorType"):
                raise Refused(400, "accelerators without a type")
        name = f"{self.parent}/customJobs/{next(self.numbers)}"
        self.custom_jobs[name] = {**job, "name": name, "state": "JOB_STATE_RUNNING"}
        spec: dict[str, Any] = payload["job_spec"]
        return name, spec

    def entries(self, request: Request) -> Any:
        ids = re.findall(r'"([^"]+)"', request.body["filter"].partition("job_id=")[2])
        lines: list[str] = []
        for name, execution in self.executions.items():
            for task in every_task(execution.tasks):
                main = f"{name.rpartition('/')[2]}-{named(task)}"
                resources = json.loads(task.parameters.get("gcp_resources", '{"resources": []}'))["resources"]
                known = {main, *(one["resourceUri"].rpartition("/")[2] for one in resources)}
                if known & set(ids):
                    lines += task.log.splitlines()
        start = int(request.body.get("pageToken") or 0)
        more = {"nextPageToken": str(start + 50)} if start + 50 < len(lines) else {}
        return {"entries": [{"textPayload": line} for line in lines[start : start + 50]], **more}

    def schedule(self, request: Request) -> dict[str, Any]:
        name = f"{self.parent}/schedules/{request.part('id')}"
        if name not in self.schedules:
            raise Refused(404, f"The Schedule {name} does not exist.")
        return self.schedules[name]

    def create_schedule(self, request: Request) -> Any:
        schedule = checked(v1.Schedule, request.body)
        self.check_schedule(schedule)
        name = f"{self.parent}/schedules/{next(self.numbers)}"
        now = stamp(datetime.now(UTC))
        made = {**schedule, "name": name, "state": "ACTIVE", "createTime": now, "updateTime": now}
        self.schedules[name] = made
        return made

    def check_schedule(self, schedule: dict[str, Any]) -> None:
        if not CRON.fullmatch(schedule["cron"]):
            raise Refused(400, f"invalid cron {schedule['cron']}")
        if int(schedule.get("maxConcurrentRunCount", 0)) < 1:
            raise Refused(400, "maxConcurrentRunCount is required")
        create = schedule["createPipelineJobRequest"]
        if create["parent"] != self.parent:
            raise Refused(400, "createPipelineJobRequest.parent differs from the schedule's")
        checked_spec_of_vertex(create["pipelineJob"]["pipelineSpec"])

    def list_schedules(self, request: Request) -> Any:
        return self.page(request, "schedules", list(self.schedules.values()))

    def patch_schedule(self, request: Request) -> Any:
        known, body = self.schedule(request), checked(v1.Schedule, request.body)
        for field in request.query["updateMask"].split(","):
            if field not in v1.Schedule.pb(v1.Schedule()).DESCRIPTOR.fields_by_camelcase_name:
                raise Refused(400, f"unknown field {field} in updateMask")
            known[field] = body[field]
        self.check_schedule(known)
        known["updateTime"] = stamp(datetime.now(UTC))
        return known

    def delete_schedule(self, request: Request) -> Any:
        del self.schedules[self.schedule(request)["name"]]
        return self.done({})

    def pause_or_resume(self, request: Request) -> Any:
        self.schedule(request)["state"] = "PAUSED" if request.part("verb") == "pause" else "ACTIVE"
        return {}

    def fire(self, name: str) -> dict[str, Any]:
        """What the real service does when a schedule's time has come."""
        job = self.schedules[name]["createPipelineJobRequest"]["pipelineJob"]
        with self.lock:
            made = self.start(job, f"schedule-{uuid.uuid4().hex[:8]}")
        self.schedules[name]["lastScheduledRunResponse"] = {"scheduledRunTime": stamp(datetime.now(UTC))}
        return made

    def done(self, response: dict[str, Any]) -> dict[str, Any]:
        """A long-running operation that is not done at the first look."""
        name = f"{self.parent}/operations/{next(self.numbers)}"
        self.operations[name] = {"name": name, "done": True, "response": response}
        return {"name": name}

    def operation(self, request: Request) -> Any:
        return self.operations[request.path.removeprefix("/v1/")]

    def upload_model(self, request: Request) -> Any:
        body = dict(request.body)
        model = checked(v1.Model, body.pop("model"))
        if set(body) - {"parentModel", "modelId"}:
            raise Refused(400, f"unknown field in UploadModelRequest: {sorted(body)}")
        if not model.get("containerSpec", {}).get("imageUri"):
            raise Refused(400, "containerSpec.imageUri is required")
        for key, value in model.get("labels", {}).items():
            if not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
                raise Refused(400, f"invalid label {key}={value}")
        model_id = body["parentModel"].rpartition("/")[2] if "parentModel" in body else body["modelId"]
        versions = self.models.setdefault(model_id, [])
        if "modelId" in body and versions:
            raise Refused(409, f"model {model_id} already exists")
        name = f"{self.parent}/models/{model_id}"
        now = stamp(datetime.now(UTC))
        number = str(max((int(one["versionId"]) for one in versions), default=0) + 1)
        aliases = [] if versions else ["default"]
        made = {**model, "name": name, "versionId": number, "versionAliases": aliases, "versionCreateTime": now}
        versions.append({**made, "createTime": now})
        return self.done({"model": name, "modelVersionId": number})

    def list_models(self, request: Request) -> Any:
        return self.page(request, "models", [versions[-1] for versions in self.models.values()])

    def version(self, request: Request) -> dict[str, Any]:
        wanted = request.match.group("version") if request.match else None
        for one in reversed(self.models.get(request.part("id"), [])):
            if wanted in (None, one["versionId"], *one["versionAliases"]):
                return one
        raise Refused(404, f"The Model {request.path} does not exist.")

    def patch_model(self, request: Request) -> Any:
        known, body = self.version(request), checked(v1.Model, request.body)
        for field in request.query["updateMask"].split(","):
            known[field] = body[field]
        return known

    def delete_model(self, request: Request) -> Any:
        if self.models.pop(request.part("id"), None) is None:
            raise Refused(404, f"The Model {request.path} does not exist.")
        return self.done({})

    def delete_version(self, request: Request) -> Any:
        chosen, versions = self.version(request), self.models[request.part("id")]
        if len(versions) == 1:
            raise Refused(400, "Deleting the only version in the Model is not allowed. Use DeleteModel instead.")
        if "default" in chosen["versionAliases"]:
            raise Refused(400, "The default version of a Model cannot be deleted.")
        versions.remove(chosen)
        return self.done({})

    def list_versions(self, request: Request) -> Any:
        if request.part("id") not in self.models:
            raise Refused(404, f"The Model {request.path} does not exist.")
        return self.page(request, "models", self.models[request.part("id")])

    def merge_aliases(self, request: Request) -> Any:
        chosen = self.version(request)
        for alias in request.body["versionAliases"]:
            for one in self.models[request.part("id")]:
                one["versionAliases"] = [name for name in one["versionAliases"] if name != alias]
            chosen["versionAliases"].append(alias)
        return chosen

    def import_evaluation(self, request: Request) -> Any:
        evaluation = checked(v1.ModelEvaluation, request.body["modelEvaluation"])
        self.evaluations.setdefault(self.version(request)["name"], []).append(evaluation)
        return evaluation


def checked_spec_of_vertex(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's specification; all images pinned but Google's own launcher."""
    executors = spec["deploymentSpec"]["executors"]
    ours = {
        name: one for name, one in executors.items() if not one["container"]["image"].startswith("gcr.io/ml-pipeline/")
    }
    checked_spec({**spec, "deploymentSpec": {"executors": ours}})
    return spec
