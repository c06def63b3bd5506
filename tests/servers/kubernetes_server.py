"""A Kubernetes API server with a JobSet controller, for one namespace: its pods are processes on this machine.

Over TLS with an authority of its own, and with a token, as a pod meets it. JobSets are checked strictly: their own
fields here, the Job inside against Kubernetes' schema. Failure policies are applied as the Job controller (1.31 or
newer) and the JobSet controller (0.6 or newer) do.
"""

import copy
import ipaddress
import json
import re
import ssl
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servers import kubernetes_records as records
from servers.pod_process import PodProcess, now
from servers.web import Refused, Request, WebServer

GROUP = "/apis/jobset.x-k8s.io/v1alpha2"
KNOWN = {  # the fields of version 0.6, which is the oldest that is asked for
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations", "ownerReferences"},
    "spec": {
        "replicatedJobs",
        "network",
        "successPolicy",
        "failurePolicy",
        "startupPolicy",
        "suspend",
        "managedBy",
        "ttlSecondsAfterFinished",
    },
    "failurePolicy": {"maxRestarts", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "replicatedJob": {"name", "template", "replicas"},
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
REASONS = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}
TICK = 0.05


def checked(jobset: dict[str, Any]) -> dict[str, Any]:
    """A JobSet that the API would take; 422 for one that it would not."""
    spec = jobset.get("spec", {})
    policy = spec.get("failurePolicy", {})
    parts = [("", jobset), ("metadata", jobset["metadata"]), ("spec", spec), ("failurePolicy", policy)]
    parts += [("rule", rule) for rule in policy.get("rules", [])]
    parts += [("replicatedJob", one) for one in spec["replicatedJobs"]]
    for kind, part in parts:
        if unknown := set(part) - KNOWN[kind]:
            raise Refused(400, f"strict decoding error: unknown field {kind}.{unknown.pop()}")
    for rule in policy.get("rules", []):
        named = re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        if not named or rule["action"] not in ACTIONS or not set(rule.get("onJobFailureReasons", [])) <= REASONS:
            raise Refused(422, f"invalid failure policy rule {rule}")
    if not isinstance(policy.get("maxRestarts", 0), int):
        raise Refused(422, "spec.failurePolicy.maxRestarts: must be an integer")
    for one in spec["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **one["template"]}
        try:
            kubernetes_validate.validate(job, "1.33", strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Refused(422, f"spec.replicatedJobs: {error.message}") from None
        most = one["template"]["spec"]["completions"] - 1
        longest = f"{jobset['metadata']['name']}-{one['name']}-{one.get('replicas', 1) - 1}-{most}-abcde"
        if len(longest) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest):
            raise Refused(422, "JobSet name is too long, pod names generated for this JobSet will exceed 63 characters")
        if one["template"]["spec"]["template"]["spec"]["restartPolicy"] != "Never":
            raise Refused(422, "podFailurePolicy needs restartPolicy Never")
    return jobset


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
        self.deleted: list[str] = []
        self.attempts: list[str] = []  # names of JobSets, each time that their pods are made
        self.identity = root / "serviceaccount"
        self._secure()
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

    def _secure(self) -> None:
        """A certificate of 127.0.0.1, and what a pod finds in its service account's folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(minutes=5))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(key, hashes.SHA256())
        )
        self.identity.mkdir(parents=True)
        public = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.identity / "ca.crt").write_bytes(public)
        (self.identity / "token").write_text(str(self.token))
        (self.identity / "namespace").write_text(self.namespace)
        (self.root / "server.pem").write_bytes(public + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.root / "server.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def kubeconfig(self) -> Path:
        """Write the file by which kubectl and Kubernetes' client reach this server; return its path."""
        path = self.root / "kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.identity / "ca.crt")}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": str(self.token)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(content))
        return path

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

    def step_pod(self, run: str, step: str) -> dict[str, str]:
        """Make the record of a step's pod, owned by its run, and return its environment."""
        name = f"{run[:8]}-{step}-{uuid.uuid4().hex[:5]}"
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "xlnet-abc", "uid": f"uid-of-{run}"}
        self.steps[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "labels": {"pipeline/runid": run},
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {"serviceAccountName": "xlnet-steps", "imagePullSecrets": [{"name": "pull"}]},
        }
        host, port = self.url.removeprefix("https://").split(":")
        return {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "TEST_POD_IDENTITY": str(self.identity),  # tests/faults/sitecustomize.py puts it where a pod finds it
            "PYTHONPATH": str(Path(__file__).parent.parent / "faults"),
            "XLNET_POD_NAME": name,
            "XLNET_RUN_ID": run,
        }

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
        pods = [record for one in self.sets.values() for record in one.records()]
        return {"kind": "PodList", "apiVersion": "v1", "items": _labelled(pods, request)}

    def get_pod(self, request: Request) -> Any:
        if request.part("name") in self.steps:
            return self.steps[request.part("name")]
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
        for name, jobset in list(self.jobsets.items()):
            pods = self.sets.get(name)
            if "deletionTimestamp" in jobset["metadata"]:
                if pods is None or pods.stopped():
                    del self.jobsets[name]
                    self.sets.pop(name, None)
                    self.deleted.append(name)
            elif not ended(jobset):
                self._advance(name, jobset, pods)

    def _advance(self, name: str, jobset: dict[str, Any], pods: "PodSet | None") -> None:
        if jobset["spec"].get("suspend"):
            if pods:
                pods.stop()
                if pods.stopped():
                    del self.sets[name]
            return
        if pods is None:
            self.sets[name] = PodSet(self, jobset)
            self.attempts.append(name)
            return
        pods.start()
        if all(pod.process for pod in pods.pods):
            records.ready(jobset, now())
        if pods.failure is None and pods.succeeded():
            condition(jobset, "Completed", "AllJobsCompleted", "jobset completed successfully")
        if pods.failure is not None and pods.stopped():  # a Job has failed once all of its pods have ended
            self._failed(name, jobset, *pods.failure)

    def _failed(self, name: str, jobset: dict[str, Any], reason: str, message: str) -> None:
        policy, status = jobset["spec"]["failurePolicy"], jobset["status"]
        rules = policy.get("rules", [])
        matching = [rule for rule in rules if reason in (rule.get("onJobFailureReasons") or [reason])]
        action = matching[0]["action"] if matching else "RestartJobSet"
        counted = status.get("restartsCountTowardsMax", 0)
        if action == "FailJobSet":
            condition(jobset, "Failed", "FailJobSetFailurePolicyAction", message)
        elif action == "RestartJobSet" and counted >= policy.get("maxRestarts", 0):
            condition(jobset, "Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")
        else:
            status["restarts"] += 1
            if action == "RestartJobSet":
                status["restartsCountTowardsMax"] = counted + 1
            records.restarting(jobset, matching[0]["name"] if matching else "", action, now())
            del self.sets[name]


def condition(jobset: dict[str, Any], kind: str, reason: str, message: str) -> None:
    about = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
    jobset["status"].setdefault("conditions", []).append(about)
    jobset["status"]["terminalState"] = kind


def ended(jobset: dict[str, Any]) -> bool:
    return bool({one["type"] for one in jobset["status"].get("conditions", [])} & {"Completed", "Failed"})


class PodSet:
    """The pods of one attempt: one indexed Job."""

    def __init__(self, server: KubernetesServer, jobset: dict[str, Any]) -> None:
        (self.replicated,) = jobset["spec"]["replicatedJobs"]
        self.server, self.job = server, self.replicated["template"]["spec"]
        assert self.job["completionMode"] == "Indexed"
        assert self.job["completions"] == self.job["parallelism"]
        self.failure: tuple[str, str] | None = None
        self.uids = jobset["metadata"]["uid"], str(uuid.uuid4())  # the JobSet's, the Job's
        attempt = jobset["status"]["restarts"]
        self.pods = [
            PodProcess(
                jobset["metadata"]["name"],
                self.replicated["name"],
                index,
                attempt,
                self.job["template"],
                server.root / f"{jobset['metadata']['name']}-{attempt}-{index}",
            )
            for index in range(self.job["completions"])
        ]

    def start(self) -> None:
        """Let pods run that can, and judge those that have ended."""
        for number, pod in enumerate(self.pods):
            if pod.process is None and pod.exit_code is None and self.failure is None:
                has_node = self.server.capacity is None or number < self.server.capacity
                if pod.may_start(has_node, self.server.images):
                    server = self.server
                    pod.start(server.environment, server.secrets, server.hosts, server.program)
            if pod.ended() and pod.exit_code and self.failure is None:
                self.failure = self._judge(pod)
                self.stop()

    def _judge(self, pod: PodProcess) -> tuple[str, str]:
        """Why the Job fails: the first rule of podFailurePolicy that fits, else backoffLimit (which is 0 here)."""
        assert self.job["backoffLimit"] == 0
        for number, rule in enumerate(self.job.get("podFailurePolicy", {}).get("rules", [])):
            codes = rule.get("onExitCodes")
            by_code = codes and (pod.exit_code in codes["values"]) == (codes["operator"] == "In")
            wanted = {(one["type"], one["status"]) for one in rule.get("onPodConditions", [])}
            if by_code or wanted & {(one["type"], one["status"]) for one in pod.conditions}:
                assert rule["action"] == "FailJob"
                return "PodFailurePolicy", f"pod {pod.name} matches FailJob rule at index {number}"
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"

    def records(self) -> list[dict[str, Any]]:
        """The pods as the API shows them."""
        return [records.pod(pod, self.server.namespace, *self.uids) for pod in self.pods]

    def succeeded(self) -> bool:
        return all(pod.ended() and pod.exit_code == 0 for pod in self.pods)

    def forget(self) -> None:
        """Its Job is deleted, and keeps no pod from being deleted."""
        for pod in self.pods:
            pod.tracked = False

    def stop(self) -> None:
        """Ask all pods to end; who has not after its grace is killed."""
        for pod in self.pods:
            pod.terminate()

    def stopped(self) -> bool:
        return all(pod.ended() for pod in self.pods)

    def kill(self) -> None:
        for pod in self.pods:
            pod.kill()
