"""A Kubernetes API server with a JobSet controller, for one namespace: its pods are processes on this machine.

Over TLS with an authority of its own, and with a token, as a pod meets it. JobSets are checked strictly: their own
fields here, the Job inside against Kubernetes' schema. Failure policies are applied as the Job controller (1.31 or
newer) and the JobSet controller (0.6 or newer) do.
"""

import copy
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from servers import jobset_controller as controller
from servers import kubernetes_records as records
from servers import service_account
from servers.jobset_controller import PodSet
from servers.jobset_schema import checked
from servers.pod_process import PodProcess, now
from servers.web import Refused, Request, WebServer

GROUP = "/apis/jobset.x-k8s.io/v1alpha2"
TICK = 0.05


def _labelled(found: Iterable[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    """The objects with the label that a list asks for."""
    label, _, value = request.query["labelSelector"].partition("=")
    return [one for one in found if one["metadata"].get("labels", {}).get(label) == value]


class KubernetesServer(WebServer):
    """State: JobSets with their pods, and the pods of pipeline steps.

    Attributes:
        allowed: what the caller's role lets it do, as ``(verb, resource)``.
        installed: whether the cluster knows JobSets.
        capacity: how many pods have a node; None: all of them.
        images: whether they can be pulled.
        secrets: name → key → value.
        hosts: address that only the cluster's DNS knows → where it leads on this machine.
        environment: variables of every pod's process, such as a fault.
        program: instead of a container's own, where a test is not about training.
    """

    namespace = "kubeflow"

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.token = "a-pods-own-token"
        self.allowed = {("get", "pods"), ("list", "pods"), ("get", "pods/log")}
        self.allowed |= {(verb, "jobsets") for verb in ("get", "create", "patch", "delete")}
        self.installed, self.images = True, True
        self.capacity: int | None = None
        self.secrets: dict[str, dict[str, str]] = {}
        self.hosts: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.program: list[str] = []
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.sets: dict[str, PodSet] = {}
        self.steps: dict[str, dict[str, Any]] = {}
        self.alive: dict[str, Callable[[], bool]] = {}  # step's pod → whether its container runs
        self.deleted: list[str] = []
        self.attempts: list[str] = []  # names of JobSets, each time that their pods are made
        self.identity = root / "serviceaccount"
        context = service_account.write(self.identity, self.namespace, self.token)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = self.url.replace("http://", "https://")
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        jobsets = f"{GROUP}/namespaces/{self.namespace}/jobsets"
        for method, path, verb, resource, work in (
            ("GET", pods, "list", "pods", self.list_pods),
            ("GET", pods + "/(?P<name>[^/]+)", "get", "pods", self.get_pod),
            ("DELETE", pods + "/(?P<name>[^/]+)", "delete", "pods", self.delete_pod),
            ("GET", pods + "/(?P<name>[^/]+)/log", "get", "pods/log", self.pod_log),
            ("GET", jobsets, "list", "jobsets", self.list_jobsets),
            ("POST", jobsets, "create", "jobsets", self.create),
            ("GET", jobsets + "/(?P<name>[^/]+)", "get", "jobsets", self.get),
            ("PATCH", jobsets + "/(?P<name>[^/]+)", "patch", "jobsets", self.patch),
            ("DELETE", jobsets + "/(?P<name>[^/]+)", "delete", "jobsets", self.delete),
        ):
            self.route(method, path, self._guarded(verb, resource, work))

    def kubeconfig(self) -> Path:
        """The file by which kubectl and Kubernetes' client reach this server."""
        return service_account.kubeconfig(self.identity, self.url)

    def account(self) -> dict[str, str]:
        """The variables by which a pod's process finds this server and its own service account."""
        host, port = self.url.removeprefix("https://").split(":")
        return {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "TEST_POD_IDENTITY": str(self.identity),  # tests/faults/sitecustomize.py puts it where a pod finds it
            "PYTHONPATH": str(Path(__file__).parent.parent / "faults"),
        }

    def __exit__(self, *arguments: object) -> None:
        for pods in self.sets.values():
            pods.kill()
        super().__exit__(*arguments)

    def _guarded(self, verb: str, resource: str, work: Any) -> Any:
        def guarded(request: Request) -> Any:
            if resource == "jobsets" and not self.installed:
                raise Refused(404, "404 page not found")
            if (verb, resource) not in self.allowed:
                who = f"system:serviceaccount:{self.namespace}:default"
                raise Refused(403, f'{resource} is forbidden: User "{who}" cannot {verb} resource "{resource}"')
            self._reconcile()
            return work(request)

        return guarded

    def refusal(self, status: int, message: str, details: str = "") -> Any:
        if message == "404 page not found":  # a group that nobody serves is answered without a Status
            return f"{message}\n"
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}

    def step_pod(self, run: str, step: str, alive: Callable[[], bool] = lambda: True) -> dict[str, str]:
        """Make the record of a step's pod, owned by its run, and return its environment.

        Args:
            run: the run's id.
            step: the step.
            alive: whether its container runs.
        """
        name = f"{run[:8]}-{step}-{uuid.uuid4().hex[:5]}"
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": f"xlnet-{run[:5]}",
            "uid": f"uid-of-{run}",
        }
        self.steps[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "labels": {"pipeline/runid": run, "workflows.argoproj.io/workflow": owner["name"]},
                "ownerReferences": [{**owner, "uid": f"uid-of-{run}", "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {"serviceAccountName": "xlnet-steps", "imagePullSecrets": [{"name": "pull"}]},
        }
        self.alive[name] = alive
        return {**self.account(), "XLNET_POD_NAME": name, "XLNET_RUN_ID": run}

    def _step(self, name: str) -> dict[str, Any]:
        """A step's pod as it is now; Argo keeps those of an ended workflow."""
        return {**self.steps[name], "status": {"phase": "Running" if self.alive[name]() else "Failed"}}

    # --- the API ---

    def create(self, request: Request) -> Any:
        made = checked(request.body)
        name = made["metadata"]["name"]
        if name in self.jobsets:
            raise Refused(409, f'jobsets.jobset.x-k8s.io "{name}" already exists')
        made = copy.deepcopy(made)
        made["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": self.namespace, "creationTimestamp": now()}
        made["metadata"] |= {"generation": 1, "resourceVersion": "1"}
        made["spec"] = records.with_defaults(made["spec"])
        answer = copy.deepcopy(made)  # before a controller has seen it
        made["status"] = {"restarts": 0}
        self.jobsets[name] = made
        self._reconcile()
        return answer

    def _found(self, request: Request) -> dict[str, Any]:
        name = request.part("name")
        if name not in self.jobsets:
            raise Refused(404, f'jobsets.jobset.x-k8s.io "{name}" not found')
        return self.jobsets[name]

    def get(self, request: Request) -> Any:
        return self.shown(self._found(request))

    def shown(self, jobset: dict[str, Any]) -> dict[str, Any]:
        """A JobSet as the API shows it."""
        jobs = records.jobs_status(jobset, self.sets.get(jobset["metadata"]["name"]))
        return {**jobset, "status": {"replicatedJobsStatus": jobs, **jobset["status"]}}

    def list_jobsets(self, request: Request) -> Any:
        chosen = _labelled(self.jobsets.values(), request)
        return {"kind": "JobSetList", "apiVersion": "jobset.x-k8s.io/v1alpha2", "items": chosen}

    def patch(self, request: Request) -> Any:
        assert request.headers["content-type"] == "application/merge-patch+json"
        found = self._found(request)
        assert set(request.body) == {"spec"}
        if set(request.body["spec"]) - {"suspend"}:
            raise Refused(422, "spec: Forbidden: field is immutable")
        found["spec"] |= request.body["spec"]
        return found

    def delete(self, request: Request) -> Any:
        found = self._found(request)
        assert request.body["propagationPolicy"] == "Foreground"
        self.remove(found["metadata"]["name"])
        return found

    def remove(self, name: str) -> None:
        """Ask for a JobSet's deletion, after that of its pods."""
        going = {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0, "finalizers": ["foregroundDeletion"]}
        self.jobsets[name]["metadata"] |= {**going, "generation": 2}
        if name in self.sets:
            self.sets[name].forget()
            self.sets[name].stop()

    def delete_owner(self, uid: str) -> None:
        """What the garbage collector does once an owner is gone."""
        with self.lock:
            for name, one in self.jobsets.items():
                if all(owner["uid"] == uid for owner in one["metadata"]["ownerReferences"]):
                    self.remove(name)

    def list_pods(self, request: Request) -> Any:
        pods = [*map(self._step, self.steps), *(record for one in self.sets.values() for record in one.records())]
        return {"kind": "PodList", "apiVersion": "v1", "items": _labelled(pods, request)}

    def get_pod(self, request: Request) -> Any:
        if request.part("name") in self.steps:
            return self._step(request.part("name"))
        return self._record(request.part("name"))

    def delete_pod(self, request: Request) -> Any:
        self._pod(request.part("name")).terminate()
        return self._record(request.part("name"))

    def _record(self, name: str) -> Any:
        found = [record for one in self.sets.values() for record in one.records()]
        self._pod(name)
        return next(one for one in found if one["metadata"]["name"] == name)

    def _pod(self, name: str) -> "PodProcess":
        for one in self.sets.values():
            for pod in one.pods:
                if pod.name == name:
                    return pod
        raise Refused(404, f'pods "{name}" not found')

    def pod_log(self, request: Request) -> Any:
        pod = self._pod(request.part("name"))
        if pod.process is None:
            raise Refused(400, f'container "train" in pod "{pod.name}" is waiting to start: ContainerCreating')
        assert request.query["timestamps"] == "true"
        since = request.query.get("sinceTime", "")[:19]  # whole seconds, as the kubelet compares
        return "".join(f"{moment} {text}\n" for moment, text in pod.lines if moment[:19] >= since)

    # --- the controllers ---

    def settle(self, condition: Any, seconds: float = 60.0) -> None:
        """Let the controllers work until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [one.records() for one in self.sets.values()]
            with self.lock:
                self._reconcile()
            time.sleep(TICK)

    def _reconcile(self) -> None:
        controller.reconcile(self)
