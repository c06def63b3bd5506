"""A Kubernetes API server that shows one recorded JobSet and its pods, moment after moment."""

import json
from pathlib import Path
from typing import Any

from servers.kubernetes_server import KubernetesServer
from servers.web import Refused, Request

JOBSETS = "jobset-preempted-then-cancelled.jobset-events.json"
PODS = "jobset-preempted-then-cancelled.pod-events.json"
JOBSET = "jobset.sigs.k8s.io/jobset-name"


def events(folder: Path, recording: str) -> list[dict[str, Any]]:
    """The watch events of a recording, in order."""
    text, found = (folder / recording).read_text(encoding="utf-8").lstrip(), []
    while text:
        event, end = json.JSONDecoder().raw_decode(text)
        found.append(event)
        text = text[end:].lstrip()
    return found


def history(folder: Path, jobset: str) -> list[dict[str, Any]]:
    """What became of a JobSet and its pods, in the order of the cluster's resource versions."""
    mine = [one for one in events(folder, JOBSETS) if one["object"]["metadata"]["name"] == jobset]
    mine += [one for one in events(folder, PODS) if one["object"]["metadata"]["labels"][JOBSET] == jobset]
    return sorted(mine, key=lambda one: int(one["object"]["metadata"]["resourceVersion"]))


class KubernetesReplay(KubernetesServer):
    """Takes a JobSet of the recorded name and shows what the real one did; the pods' logs were not recorded."""

    def __init__(self, root: Path, moments: list[dict[str, Any]]) -> None:
        super().__init__(root)
        self.moments = list(moments)
        self.sent: dict[str, Any] = {}
        self.shown: dict[str, dict[str, Any]] = {}  # name → JobSet or pod, as it is now

    def advance(self) -> str:
        """Move on by one event; empty at the end, else a word for it."""
        if not self.moments:
            return ""
        event = self.moments.pop(0)
        found, name = event["object"], event["object"]["metadata"]["name"]
        if event["type"] == "DELETED":
            self.shown.pop(name, None)
        else:
            self.shown[name] = found
        return f"{event['type']} {found['kind']}"

    def create(self, request: Request) -> Any:
        self.sent = request.body
        assert self.advance() == "ADDED JobSet"
        return self._found(request.body["metadata"]["name"])

    def get(self, request: Request) -> Any:
        return self._found(request.part("name"))

    def _found(self, name: Any) -> Any:
        if name not in self.shown:
            raise Refused(404, f'jobsets.jobset.x-k8s.io "{name}" not found')
        return self.shown[name]

    def delete(self, request: Request) -> Any:
        found = self._found(request.part("name"))
        self.deleted.append(found["metadata"]["name"])
        return found

    def list_pods(self, request: Request) -> Any:
        pods = [one for one in self.shown.values() if one["kind"] == "Pod"]
        return {"kind": "PodList", "apiVersion": "v1", "items": pods}

    def pod_log(self, request: Request) -> Any:
        name = request.part("name")
        began = self.shown[name]["status"].get("startTime")
        return f"{began} a line of {name}\n" if began else ""

    def _reconcile(self) -> None:
        pass
