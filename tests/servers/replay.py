"""A server that answers with what the real Kubeflow Pipelines was recorded to answer."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servers.web import Refused, Request, WebServer

PREFIX = "/apis/v2beta1"


def exchanges(folder: Path, situation: str) -> list[dict[str, Any]]:
    """The recorded requests and answers of a situation, in order."""
    return [json.loads(line) for line in (folder / f"{situation}.jsonl").read_text().splitlines()]


def last_run(folder: Path, situation: str, position: int = -1) -> dict[str, Any]:
    """The run that a situation shows, as it was answered last by its id."""
    shown = [one for one in exchanges(folder, situation) if _is_run(one)]
    first = shown[0]["response"]["run_id"]
    found: dict[str, Any] = [one["response"] for one in shown if one["response"]["run_id"] == first][position]
    return found


def _is_run(one: dict[str, Any]) -> bool:
    return isinstance(one["response"], dict) and "run_id" in one["response"]


class Replay(WebServer):
    """Answers about the runs, logs and errors of one situation; an answer that was asked for again moves on."""

    def __init__(self, folder: Path, situation: str, *, ui: bool = False) -> None:
        super().__init__()
        self.folder, self.ui = folder, ui
        self.silent = situation in ("show-lost-workflow", "show-failed-before-any-step")  # no pod has a log
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        recorded = exchanges(folder, situation)
        for one in recorded:
            if _is_run(one):
                self.answers[one["response"]["run_id"]].append(one["response"])
        self.listed = exchanges(folder, "runs-list")[1]["response"]
        self.experiments = exchanges(folder, "runs-list")[0]["response"]
        logs = [one for one in exchanges(folder, "logs") if "/nodes/" in one["path"]]
        self.logs = {urlsplit(one["path"]).path: one["response"] for one in logs if one["status"] == 200}
        unknown = next(one for one in exchanges(folder, "show-unknown") if one["status"] == 404)
        self.unknown = unknown["response"]
        no_node = next(path for path in self.logs if path.endswith("xlnet-gshm7-1/log"))
        self.no_log = self.logs[no_node]
        pages = exchanges(folder, "ui-server")
        self.no_page = next(one["response"] for one in pages if "/nodes/" in one["path"])
        self.no_pod = next(one["response"] for one in pages if one["status"] == 500)
        for method, path, work in (
            ("GET", "/experiments", lambda request: self.experiments),
            ("GET", "/runs", self.find),
            ("GET", "/runs/(?P<id>[^/:]+)", self.show),
            ("POST", "/runs/(?P<id>[^/:]+):terminate", lambda request: {}),
            ("GET", "/recurringruns", lambda request: self.schedules),
            ("GET", "/recurringruns/(?P<id>[^/:]+)", self.schedule),
            ("POST", "/recurringruns/[^/:]+:(enable|disable)", lambda request: {}),
        ):
            self.route(method, PREFIX + path, work)
        lists = [one["response"] for one in recorded if "recurringRuns" in (one["response"] or {})]
        self.schedules = self._with_specifications(lists[0]) if lists else {}
        self.last = self._with_specifications(lists[-1])["recurringRuns"] if lists else []
        self.route("GET", "/apis/v1alpha1/runs/[^/]+/nodes/[^/]+/log", self.log)
        self.route("GET", "/k8s/pod/logs", self.pod_log)

    def show(self, request: Request) -> Any:
        known = self.answers.get(request.part("id"))
        if not known:
            raise Refused(404, request.part("id"))
        return known.pop(0) if len(known) > 1 else known[0]

    def find(self, request: Request) -> Any:
        wanted = [one["stringValue"] for one in json.loads(request.query.get("filter", "{}")).get("predicates", [])]
        if not wanted:
            return self.listed
        found = [known[0] for known in self.answers.values() if wanted[0] in known[0]["display_name"]]
        return {"runs": found, "total_size": len(found)} if found else {}

    def _with_specifications(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A list of recurring runs, with the pipeline specifications that were recorded apart."""
        for one in answer["recurringRuns"]:
            if place := one["pipeline_spec"].get("$recorded"):
                one["pipeline_spec"] = json.loads((self.folder / place).read_text())
        return answer

    def schedule(self, request: Request) -> Any:
        """A recurring run as it was seen last; one of another situation is gone."""
        for one in self.last:
            if one["recurring_run_id"] == request.part("id"):
                return one
        raise Refused(404, request.part("id"))

    def log(self, request: Request) -> Any:
        if self.ui:
            raise Refused(404, self.no_page)
        return self.logs.get(request.path, self.no_log if self.silent else "step 10  loss 0.69\n")

    def pod_log(self, request: Request) -> Any:
        raise Refused(500 if self.ui else 404, self.no_pod if self.ui else "404 page not found\n")

    def refusal(self, status: int, message: str, details: str = "") -> Any:
        """What was recorded: text and pages as they were, and else the refusal of an unknown id."""
        if status == 404 and len(message) == 36:
            return json.loads(json.dumps(self.unknown).replace("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", message))
        return message
