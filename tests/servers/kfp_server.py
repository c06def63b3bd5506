"""A Kubeflow Pipelines v2beta1 API server that runs what is submitted.

Bodies are checked against the models of kfp_server_api (unknown fields are refused, as by the real server's JSON
mapping) and pipeline specifications against kfp's own message class.
"""

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from servers.execution import Backend, Execution
from servers.kfp_schedules import RecurringRuns
from servers.kubernetes_server import KubernetesServer
from servers.web import Refused, Request, WebServer

STATES = {"CACHED": "SKIPPED", "CANCELLED": "CANCELED", "NOT_TRIGGERED": "SKIPPED", "PENDING": "PENDING"}
PREFIX = "/apis/v2beta1"


def stamp(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if moment else None


def checked(model: str, body: Any) -> Any:
    """The body, every field of which the model knows, at every depth."""
    kind = getattr(kfp_server_api, model)
    known = {wire: (name, kind.openapi_types[name]) for name, wire in kind.attribute_map.items()}
    for key, value in body.items():
        if key not in known:
            raise Refused(400, f"unknown field {key!r} in {model}")
        inner = known[key][1]
        if isinstance(value, dict) and hasattr(kfp_server_api, inner) and inner[0].isupper():
            checked(inner, value)
    return body


def checked_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's specification out of a submitted document."""
    inner = spec.get("pipeline_spec", spec)
    try:
        json_format.ParseDict(inner, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"invalid pipeline spec: {error}") from None
    for executor in inner["deploymentSpec"]["executors"].values():
        if "@sha256:" not in executor["container"]["image"]:
            raise Refused(400, "an image is not pinned")
    return dict(inner)


class KfpServer(WebServer):
    """State: experiments, runs, recurring runs."""

    def __init__(
        self, root: Path, environment: dict[str, str] | None = None, cluster: KubernetesServer | None = None
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.backend = Backend(root)
        self.steps_environment = environment or {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.executions: dict[str, Execution] = {}
        self.recurring_runs = RecurringRuns(self, PREFIX, checked)
        self.recurring = self.recurring_runs.store
        self.lost: set[str] = set()  # runs whose workflow is gone
        self.run_pipelines = True
        for method, path, work in (
            ("GET", "/experiments", self.list_experiments),
            ("POST", "/experiments", self.create_experiment),
            ("GET", "/runs", self.list_runs),
            ("POST", "/runs", self.create_run),
            ("GET", "/runs/(?P<id>[^/:]+)", lambda request: self.show(self.run(request))),
            ("POST", "/runs/(?P<id>[^/:]+):terminate", self.terminate),
            ("GET", "/healthz", lambda request: {"multi_user": False}),
        ):
            self.route(method, PREFIX + path, work)
        self.route("GET", "/k8s/pod/logs", self.pod_log)

    @staticmethod
    def one(store: dict[str, dict[str, Any]], request: Request) -> dict[str, Any]:
        if request.part("id") not in store:
            raise Refused(404, f"{request.part('id')} not found")
        return store[request.part("id")]

    def run(self, request: Request) -> dict[str, Any]:
        return self.one(self.runs, request)

    def page(self, request: Request, key: str, items: list[dict[str, Any]], size: int = 10) -> dict[str, Any]:
        """One page, newest first if asked, filtered by the predicates."""
        for predicate in json.loads(request.query.get("filter", "{}")).get("predicates", []):
            wanted, field = predicate["stringValue"], predicate["key"]
            if predicate["operation"] == "EQUALS":
                items = [one for one in items if one.get(field) == wanted]
            elif predicate["operation"] == "IS_SUBSTRING":
                items = [one for one in items if wanted in (one.get(field) or "")]
            else:
                raise Refused(400, f"unknown operation {predicate['operation']}")
        if request.query.get("experiment_id"):
            items = [one for one in items if one["experiment_id"] == request.query["experiment_id"]]
        if request.query.get("sort_by") == "created_at desc":
            items = sorted(items, key=lambda one: one["created_at"], reverse=True)
        size = min(int(request.query.get("page_size") or size), 200)
        start = int(request.query.get("page_token") or 0)
        more = {"next_page_token": str(start + size)} if start + size < len(items) else {}
        return {key: items[start : start + size], "total_size": len(items), **more}

    def list_experiments(self, request: Request) -> Any:
        return self.page(request, "experiments", list(self.experiments.values()))

    def create_experiment(self, request: Request) -> Any:
        body = checked("V2beta1Experiment", request.body)
        if any(one["display_name"] == body["display_name"] for one in self.experiments.values()):
            raise Refused(409, f"experiment {body['display_name']} already exists")
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": stamp(datetime.now(UTC))}
        self.experiments[made["experiment_id"]] = made
        return made

    def list_runs(self, request: Request) -> Any:
        found = self.page(request, "runs", list(self.runs.values()))
        found["runs"] = [self.show(run, details=False) for run in found["runs"]]
        return found

    def create_run(self, request: Request) -> Any:
        return self.start(checked("V2beta1Run", request.body))

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["experiment_id"] not in self.experiments:
            raise Refused(404, "experiment not found")
        spec = checked_spec(body["pipeline_spec"])
        run = {**body, "run_id": str(uuid.uuid4()), "created_at": stamp(datetime.now(UTC))}
        config = body["runtime_config"]
        execution = Execution(
            self.backend,
            spec,
            config["parameters"],
            run=run["run_id"],
            root=config["pipeline_root"],
            environment=lambda step: {**self.steps_environment, **self.fields(run, step)},
        )
        self.runs[run["run_id"]] = run
        self.executions[run["run_id"]] = execution
        if self.run_pipelines:
            execution.start()
        return self.show(run)

    def fields(self, run: dict[str, Any], step: str) -> dict[str, str]:
        """The variables that a step takes from its pod."""
        pod = self.cluster.step_pod(run["run_id"], step) if self.cluster else {}
        values = {"metadata.labels['pipeline/runid']": run["run_id"], "metadata.name": pod.get("XLNET_POD_NAME", step)}
        platform = run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        asked = platform[f"exec-{step}"]["fieldPathAsEnv"]
        there = {name: value for name, value in pod.items() if not name.startswith("XLNET")}
        return {**there, **{one["name"]: values[one["fieldPath"]] for one in asked}}

    def show(self, run: dict[str, Any], details: bool = True) -> dict[str, Any]:
        execution = self.executions.get(run["run_id"])
        if execution is None:
            return run
        state = "RUNNING" if run["run_id"] in self.lost else STATES.get(execution.state, execution.state)
        shown = {**run, "state": state, "finished_at": stamp(execution.ended)}
        if execution.state == "FAILED":
            shown["error"] = {"code": 2, "message": "a task failed"}
        if details:
            shown["run_details"] = {"task_details": self.details(run, execution)}
        return shown

    def details(self, run: dict[str, Any], execution: Execution) -> list[dict[str, Any]]:
        found = [{"run_id": run["run_id"], "task_id": "root", "display_name": "root", "state": "RUNNING"}]
        for task in execution.tasks.values():
            if task.started is None:
                continue
            pod = f"{run['run_id'][:8]}-{task.name}"
            common = {"run_id": run["run_id"], "create_time": stamp(task.started), "start_time": stamp(task.started)}
            found.append({**common, "task_id": f"{pod}-d", "display_name": f"{task.name}-driver", "state": "SUCCEEDED"})
            one = {
                **common,
                "task_id": pod,
                "display_name": task.name,
                "end_time": stamp(task.ended),
                "state": STATES.get(task.state, task.state),
                "child_tasks": [{"pod_name": f"{pod}-executor"}],
                "outputs": {name: {"artifact_ids": [value["id"]]} for name, value in task.artifacts.items()},
            }
            if task.error:
                one["error"] = {"code": 2, "message": task.error}
            found.append(one)
            found.append(
                {
                    **common,
                    "task_id": f"{pod}-executor",
                    "pod_name": f"{pod}-executor",
                    "display_name": "executor",
                    "state": STATES.get(task.state, task.state),
                    "end_time": stamp(task.ended),
                }
            )
        return found

    def terminate(self, request: Request) -> Any:
        self.executions[self.run(request)["run_id"]].cancel()
        return {}

    def pod_log(self, request: Request) -> Any:
        pod = request.query["podname"]
        for run, execution in self.executions.items():
            for task in execution.tasks.values():
                if pod == f"{run[:8]}-{task.name}-executor":
                    return task.log
        raise Refused(404, f"pod {pod} not found")

    def collect_garbage(self, recurring_run_id: str) -> None:
        """The workflows of a deleted recurring run go with it; the API never hears of their end."""
        for run in self.runs.values():
            execution = self.executions[run["run_id"]]
            if run.get("recurring_run_id") == recurring_run_id and execution.ended is None:
                self.lost.add(run["run_id"])
                execution.cancel()

    def refusal(self, status: int, message: str) -> Any:
        """As gRPC's gateway writes it: the details hold the innermost message."""
        code = {400: 3, 404: 5, 409: 6}.get(status, 2)
        inner = message.rpartition("Invalid input error: ")[2]
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": inner}
        return {"code": code, "message": message, "details": [detail]}

    def fire(self, recurring_run_id: str) -> dict[str, Any]:
        """What the real server does when a schedule's time has come."""
        number = sum(run.get("recurring_run_id") == recurring_run_id for run in self.runs.values()) + 1
        with self.lock:
            return self.start(self.recurring_runs.due(recurring_run_id, number))
