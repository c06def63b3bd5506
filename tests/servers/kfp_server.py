"""An API server of Kubeflow Pipelines that runs what is submitted and answers as the recorded real one did.

Bodies are checked against the models of kfp_server_api (unknown fields are refused, as by the real server's JSON
mapping) and pipeline specifications against kfp's own message class. With ``ui`` it stands for the UI's server, which
passes on the v2beta1 API alone and reads logs of pods that still exist by their names.
"""

import json
import secrets
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from servers.argo import Node, Workflow, node_id, stamp, within
from servers.execution import Backend, Execution, Task
from servers.kfp_schedules import RecurringRuns
from servers.kubernetes_server import KubernetesServer
from servers.web import Refused, Request, WebServer

PREFIX = "/apis/v2beta1"
NOT_ENDED = "1970-01-01T00:00:00Z"
CODES = {400: 3, 404: 5, 409: 6}  # gRPC's numbers for HTTP's
NO_PATH = "404 page not found\n"
NO_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Error</title>
</head>
<body>
<pre>Cannot {}</pre>
</body>
</html>
"""


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


# What the launcher writes before a program, and after one that succeeded or failed.
BEFORE = "I1126 14:35:55.237630      35 main.go:67] Setting log level to: '1'\n"
AFTER = """I1126 15:25:42.806619      35 launcher_v2.go:1230] ExecutorOutput: {
  "artifacts": {
    "executor-logs": {
      "artifacts": [
        {
          "name": "executor-logs",
          "metadata": {}
        }
      ]
    }
  }
}
I1126 15:25:42.806836      35 launcher_v2.go:867] Executing uploadOutputArtifacts attempt: 1
I1126 14:35:55.918848      35 launcher_v2.go:206] publish success.
"""
FAILED = """E1126 14:35:55.908994      35 launcher_v2.go:449] Component failed to execute successfully: exit status 1
I1126 14:35:55.909140      35 launcher_v2.go:867] Executing uploadOutputArtifacts attempt: 1
I1126 14:35:55.918848      35 launcher_v2.go:206] publish success.
F1126 14:35:55.920542      35 main.go:59] failed to execute component: exit status 1
"""


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
        self.workflows: dict[str, Workflow] = {}
        self.lost: set[str] = set()  # runs whose workflow is gone
        self.run_pipelines = True
        self.ui = False
        self.always = False  # whether the installation lets programs that failed be started again by Argo
        self.pods_deleted = False
        self.unschedulable: dict[str, threading.Event] = {}  # step → set once a node takes its pod
        self.kills = False  # whether a cancel kills a step's program, as a container's launcher does by ending first
        self.broken = ""  # what the root driver says before it fails
        for method, path, work in (
            ("GET", "/experiments", self.list_experiments),
            ("POST", "/experiments", self.create_experiment),
            ("DELETE", "/experiments/(?P<id>[^/:]+)", lambda request: self.experiments.pop(request.part("id")) and {}),
            ("GET", "/runs", self.list_runs),
            ("POST", "/runs", self.create_run),
            ("GET", "/runs/(?P<id>[^/:]+)", lambda request: self.show(self.run(request))),
            ("DELETE", "/runs/(?P<id>[^/:]+)", self.delete_run),
            ("POST", "/runs/(?P<id>[^/:]+):terminate", self.terminate),
            ("GET", "/healthz", self.health),
        ):
            self.route(method, PREFIX + path, work)
        self.route("GET", "/apis/v1alpha1/runs/(?P<id>[^/]+)/nodes/(?P<node>[^/]+)/log", self.node_log)
        self.route("GET", "/k8s/pod/logs", self.pod_log)

    def __exit__(self, *why: object) -> None:
        for execution in list(self.executions.values()):
            execution.stop()
        super().__exit__(*why)

    @staticmethod
    def one(store: dict[str, dict[str, Any]], request: Request) -> dict[str, Any]:
        if request.part("id") not in store:
            raise Refused(
                404,
                f"Failed to get a run: Failed to fetch run {request.part('id')}: ResourceNotFoundError: "
                f"Run {request.part('id')} not found",
                f"Run {request.part('id')} not found",
            )
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
        return {key: items[start : start + size], "total_size": len(items), **more} if items else {}

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        """See :class:`WebServer`; a path that does not exist is told in three ways."""
        status, body, headers = super().answer(request)
        if not isinstance(body, dict) or "no such path" not in json.dumps(body.get("error", "")):
            return status, body, headers
        if self.ui:
            return 404, NO_PAGE.format(f"{request.method} {request.path}"), headers
        return 404, {"code": 5, "message": "Not Found"} if request.path.startswith("/apis/") else NO_PATH, headers

    def health(self, request: Request) -> Any:
        if not self.ui:
            return {"commit_sha": "unknown", "tag_name": "unknown", "multi_user": False, "pipeline_store": "database"}
        unknown = dict.fromkeys(("apiServerCommitHash", "apiServerTagName"), "unknown")
        built = dict.fromkeys(("buildDate", "frontendCommitHash", "frontendTagName"), "")
        users = {"apiServerMultiUser": False, "multi_user": False}
        return {**built, "apiServerReady": True, **unknown, **users, "pipelineStore": "database"}

    def list_experiments(self, request: Request) -> Any:
        return self.page(request, "experiments", list(self.experiments.values()))

    def create_experiment(self, request: Request) -> Any:
        body = checked("V2beta1Experiment", request.body)
        if any(one["display_name"] == body["display_name"] for one in self.experiments.values()):
            raise Refused(409, f"experiment {body['display_name']} already exists")
        now = stamp(datetime.now(UTC))
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": now, "storage_state": "AVAILABLE"}
        made["last_run_created_at"] = "1970-01-01T00:00:00Z"
        self.experiments[made["experiment_id"]] = made
        return made

    def list_runs(self, request: Request) -> Any:
        found = self.page(request, "runs", list(self.runs.values()))
        return {**found, "runs": [self.show(run) for run in found["runs"]]} if found else {}

    def create_run(self, request: Request) -> Any:
        return self.start(checked("V2beta1Run", request.body))

    def start(self, body: dict[str, Any], workflow: str = "") -> dict[str, Any]:
        if body["experiment_id"] not in self.experiments:
            raise Refused(404, "experiment not found")
        spec = checked_spec(body["pipeline_spec"])
        now = datetime.now(UTC)
        scheduled = {"scheduled_at": stamp(now)} if "scheduled_at" not in body else {}
        run = {
            "service_account": "pipeline-runner",
            **body,
            **scheduled,
            "run_id": str(uuid.uuid4()),
            "storage_state": "AVAILABLE",
            "created_at": self.recurring_runs.now(),
            "state_history": [{"update_time": stamp(now), "state": "PENDING"}],
        }
        self.experiments[body["experiment_id"]]["last_run_created_at"] = stamp(now)
        config = body["runtime_config"]
        execution = Execution(
            self.backend,
            spec,
            config["parameters"],
            run=run["run_id"],
            root=config["pipeline_root"],
            environment=lambda task: {**self.steps_environment, **self.fields(run, task)},
            retries=self.always,
            unschedulable=self.unschedulable,
            broken=self.broken,
            kills=self.kills,
        )
        self.runs[run["run_id"]] = run
        self.executions[run["run_id"]] = execution
        name = workflow or f"{spec['pipelineInfo']['name']}-{secrets.token_hex(3)[:5]}"
        self.workflows[run["run_id"]] = Workflow(name, execution, now)
        if self.run_pipelines:
            execution.start()
        return {**run, "state": "PENDING", "finished_at": NOT_ENDED}

    def fields(self, run: dict[str, Any], task: Task) -> dict[str, str]:
        """The variables that a step takes from its pod."""
        step, workflow = task.name, self.workflows[run["run_id"]].name
        alive = lambda: task.ended is None  # noqa: E731  # a pod's container ends with its task
        pod = self.cluster.step_pod(run["run_id"], step, alive) if self.cluster else {}
        values = {
            "metadata.labels['pipeline/runid']": run["run_id"],
            "metadata.name": pod.get("XLNET_POD_NAME", step),
            "metadata.annotations['workflows.argoproj.io/node-name']": (
                f"{workflow}(0).root(0).{within(task.index)}{step}(0).executor({task.attempts - 1})"
            ),
        }
        platform = run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        asked = platform[f"exec-{step}"]
        there = {name: value for name, value in pod.items() if not name.startswith("XLNET")}
        there |= {one["name"]: values[one["fieldPath"]] for one in asked["fieldPathAsEnv"]}
        return there | self._secret_variables(asked.get("secretAsEnv", []))

    def _secret_variables(self, asked: list[dict[str, Any]]) -> dict[str, str]:
        """What a pod takes from secrets; a secret that is optional and not there gives nothing."""
        found = {}
        for one in asked:
            secret = self.backend.secrets.get(one["secretName"], {} if one.get("optional") else None)
            assert secret is not None, f"the pod would wait for secret {one['secretName']} for ever"
            found |= {key["envVar"]: secret[key["secretKey"]] for key in one["keyToEnv"] if key["secretKey"] in secret}
        return found

    def show(self, run: dict[str, Any]) -> dict[str, Any]:
        execution = self.executions.get(run["run_id"])
        if execution is None:
            return run
        self._note(run, execution)
        details = self.workflows[run["run_id"]].details(run["run_id"])
        return {
            **run,
            "state": run["state_history"][-1]["state"],
            "finished_at": stamp(execution.ended) if execution.ended else NOT_ENDED,
            **({"run_details": {"task_details": details}} if details else {}),
        }

    @staticmethod
    def _note(run: dict[str, Any], execution: Execution) -> None:
        """Add to a run's history what has become of its workflow, as the persistence agent does: a cancel is FAILED."""
        state = {"CANCELLED": "FAILED"}.get(execution.state, execution.state)
        history = run["state_history"]
        if execution.state != "PENDING" and len(history) == 1 and history[0]["state"] == "PENDING":
            history.append({"update_time": stamp(execution.began), "state": "RUNNING"})
        if execution.ended and history[-1]["state"] != state:
            history.append({"update_time": stamp(execution.ended), "state": state})

    def delete_run(self, request: Request) -> Any:
        del self.runs[self.run(request)["run_id"]]
        return {}

    def terminate(self, request: Request) -> Any:
        run = self.run(request)
        execution = self.executions[run["run_id"]]
        self._note(run, execution)
        run["state_history"].append({"update_time": stamp(datetime.now(UTC)), "state": "CANCELING"})
        execution.cancel()
        return {}

    def node_log(self, request: Request) -> Any:
        run, wanted = request.part("id"), request.part("node")
        if self.ui:
            raise Refused(404, NO_PAGE.format(f"{request.method} {request.path}"))
        if run not in self.runs:
            text = f"Failed to fetch run {run}: ResourceNotFoundError: Run {run} not found"
            return _error(f"BadRequestError: Failed to read logs for run {run} due to run fetching error: {text}")
        node = next((one for one in self._pods(run) if node_id(one.path) == wanted), None)
        if node is None:
            key = f"/artifacts/{wanted.rpartition('-')[0]}/{wanted}/main.log"
            return _error(
                f"BadRequestError: Failed to read logs for run {run}: InternalServerError: Failed to read logs from "
                f"archive {wanted} due to error fetching the log file: InternalServerError: Failed to get file reader "
                f'for {key}: blob (key "{key}") (code=NotFound): operation error S3: GetObject, https response error '
                "StatusCode: 404, NoSuchKey: The specified key does not exist."
            )
        return _as_written(node, argo=False)

    def _pods(self, run: str) -> list[Node]:
        """The pods that have written something."""
        workflow = self.workflows.get(run)
        return [node for node in workflow.nodes() if node.pod and node.state != "PENDING"] if workflow else []

    def pod_log(self, request: Request) -> Any:
        if not self.ui:
            raise Refused(404, NO_PATH)
        wanted = request.query["podname"]
        for node in self._pods(request.query["runid"]):
            name, _, number = node_id(node.path).rpartition("-")
            kind = "system-container-driver" if "-driver" in node.path else "retry-system-container-impl"
            if wanted == f"{name}-{kind}-{number}" and not self.pods_deleted:
                return _as_written(node, argo=True)
        raise Refused(500, "Could not get main container logs: S3Error: The specified key does not exist.")

    def refusal(self, status: int, message: str, details: str = "") -> Any:
        """The body of an answer other than 200: text where it is not part of the v2beta1 API."""
        if message.startswith(("<!DOCTYPE", "404 page", "Could not get")):
            return message
        inner = message.rpartition("Invalid input error: ")[2]
        kind = {"@type": "type.googleapis.com/google.rpc.Status", "code": CODES.get(status, 2)}
        return {"code": CODES.get(status, 2), "message": message, "details": [{**kind, "message": details or inner}]}

    def collect_garbage(self, recurring_run_id: str) -> None:
        """The workflows of a deleted recurring run go with it; the API never hears of their end."""
        for run_id, run in list(self.runs.items()):
            execution = self.executions.get(run_id)
            if run.get("recurring_run_id") == recurring_run_id and execution and execution.ended is None:
                self.lose(run_id)

    def lose(self, run: str) -> None:
        """Delete the workflow of a run, which is shown as it was from then on."""
        self.runs[run] = json.loads(json.dumps(self.show(self.runs[run])))
        self.executions.pop(run).cancel()
        del self.workflows[run]
        self.lost.add(run)

    def fire(self, recurring_run_id: str) -> dict[str, Any]:
        """What the real server does when a schedule's time has come."""
        number = sum(run.get("recurring_run_id") == recurring_run_id for run in self.runs.values()) + 1
        with self.lock:
            body = self.recurring_runs.due(recurring_run_id, number)
            return self.start(body, body["display_name"])


def _error(message: str) -> str:
    """How the API server says that a log cannot be read: with status 200."""
    return json.dumps({"error_message": message, "error_details": message})


def _as_written(node: Node, argo: bool) -> str:
    """A pod's log: the program's own lines between those of the launcher and, where asked for, of Argo."""
    if "-driver" in node.path:
        text = node.log or "driver ended"
        return f"I1126 14:35:14.626938      21 main.go:119] Setting log level to: '1'\n{text}\n"
    before, after, failed = BEFORE, AFTER, FAILED
    if argo:
        before = f'time=2026-11-26T15:25:40.257Z level=INFO msg="capturing logs" argo=true\n{before}'
        after = f'{after}time=2026-11-26T15:25:43.259Z level=INFO msg="sub-process exited" argo=true error=<nil>\n'
    ended = "" if node.ended is None else failed if node.state == "FAILED" else after
    return before + (node.log or "") + ended
