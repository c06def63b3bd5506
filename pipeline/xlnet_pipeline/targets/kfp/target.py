"""The target for Kubeflow Pipelines: a kind cluster, GKE, or any other installation with the v2beta1 API.

The server chooses a run's id. So that nothing is submitted twice, a run's display name holds an id of ours, by which
a submission that broke off is looked for before it is tried again.
"""

import functools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import kfp_server_api as api

from xlnet.errors import UserError
from xlnet.http import HttpError
from xlnet.recipe import Recipe
from xlnet.registry import Registry, open_registry
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets import record, remote
from xlnet_pipeline.targets.kfp import cached, states
from xlnet_pipeline.targets.kfp.api import KfpApi, contains, equals
from xlnet_pipeline.targets.kfp.logs import PodLogs
from xlnet_pipeline.targets.kfp.nodes import EXECUTOR, ArgoNode, Nodes
from xlnet_pipeline.targets.output import LAST_LINES
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import KfpSettings
from xlnet_pipeline.targets.submission import Submission

OURS = re.compile(r"xlnet-(\d{8}-\d{6}-[0-9a-f]{4})")  # a display name with an id of ours
SERVERS_OWN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # an id that the server gave
GO_LOG = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (?P<text>.*)")
AMBIGUOUS = 6  # runs that are looked at to say that a name fits several
LOST = (
    "somebody deleted it, or changed or deleted the schedule that had started it; nothing of it goes on; run it again"
)
GONE_AFTER = 60.0  # seconds after which a running pod without a log anywhere is no pod that is just starting


class KfpTarget:
    """Runs on Kubeflow Pipelines. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "kfp"
    cannot = remote.HERE_ONLY

    def __init__(self, settings: KfpSettings) -> None:
        self.settings = settings
        self.namespace = settings.namespace or "kubeflow"  # the one of an installation for a single user

    @functools.cached_property
    def api(self) -> KfpApi:
        """The installation's API; a preview does without."""
        return KfpApi(self.settings)

    @functools.cached_property
    def pod_logs(self) -> PodLogs:
        """What steps write, read from their pods."""
        return PodLogs(self.api)

    def place(self, submission: Submission) -> Placement:
        """Where the submission's steps are to run, with the registry's address or the secret that holds it."""
        uri = "" if self.settings.registry_secret else self.settings.tracking_uri  # the pods' address, not ours
        variables, secret = self.settings.storage()
        return remote.place(
            self.name,
            self.settings,
            submission,
            environment={**({"MLFLOW_TRACKING_URI": uri} if uri else {}), **variables},
            registry_secret=self.settings.registry_secret,
            storage_secret=secret,
            output_root=self.settings.pipeline_root,
        )

    def body(self, recipe: Recipe, where: Placement, name: str, experiment: str, cache: bool = True) -> dict[str, Any]:
        """What creates a run, or is repeated by a schedule."""
        from xlnet_pipeline import dag  # and kfp, which takes most of a second: reading runs does without

        documents = dag.documents(where, pretrains=recipe.pretrains)
        if not cache:
            dag.without_cache(documents[0])
        spec = {"pipeline_spec": documents[0]} | ({"platform_spec": documents[1]} if len(documents) > 1 else {})
        made = {
            "display_name": name,
            "experiment_id": experiment,
            "pipeline_spec": spec,
            "runtime_config": {
                "parameters": {"recipe": recipe.to_json()},
                "pipeline_root": self.settings.pipeline_root,
            },
        }
        return made | ({"service_account": self.settings.service_account} if self.settings.service_account else {})

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """The request that a submission would send; the experiment's id is not known without asking the server."""
        where = remote.checked(self, submission)
        experiment = f"<id of experiment '{self.settings.experiment}'>"
        body = self.body(submission.recipe, where, "xlnet-RUN", experiment, submission.cache)
        server = self.settings.address or "<KFP_ENDPOINT>"
        return [{"method": "POST", "url": f"{server}/apis/v2beta1/runs", "body": body}]

    def submit(
        self,
        submission: Submission,
        *,
        echo: Callable[[str], None] | None = None,
        live: Callable[[str], None] | None = None,
    ) -> Run:
        """Submit the recipe and return the record of the run that has begun; nothing is submitted twice."""
        where = remote.checked(self, submission)
        run = remote.new_run(submission.recipe.to_json(), self.name, record.new_id())
        name = f"{remote.PREFIX}{run.id}"
        fields = self.body(submission.recipe, where, name, self.api.experiment(), submission.cache)
        body = api.V2beta1Run(**{**fields, "runtime_config": api.V2beta1RuntimeConfig(**fields["runtime_config"])})
        try:
            made = self.api.call(self.api.runs.run_service_create_run, body, recover=lambda: self._named(name))
        except HttpError as error:
            raise self.api.unexpected(error) from None
        if echo:
            echo(f"run {run.id}")
            echo(f"page {self.settings.address}/#/runs/details/{made.run_id}")
        return run

    def _named(self, name: str) -> Any:
        listed = self.api.pages(self.api.runs.run_service_list_runs, "runs", 1, filter=equals(name))
        return next(listed, None)

    def runs(self, limit: int | None = None) -> list[Run]:
        """The experiment's runs, or the newest of them, as the API describes them: no log and no artifact is read."""
        return [self._record(one) for one in self.listed(limit)]

    def listed(self, limit: int | None = None) -> Iterator[Any]:
        """The experiment's runs as the API describes them, the newest first."""
        experiment = self.api.experiment()
        return self.api.pages(self.api.runs.run_service_list_runs, "runs", limit, experiment_id=experiment)

    def status(self, run: str) -> Run:
        """The record of a run as it is now, with what its artifacts say of themselves."""
        found = self._get(run)
        shown = self._explained(found)
        try:
            return cached.with_artifacts(shown, found.run_id, _root(found) or self.settings.pipeline_root, self._name)
        except UserError as error:  # the pods wrote it, and we may not read it
            shown.notes.append(f"its artifacts are not shown: {error}")
            return shown

    def progress(self, run: str) -> Run:
        """The record of a run as it is now, without its artifacts."""
        return self._explained(self._get(run))

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Lines of the logs of a run's pods."""
        found = self._get(run)
        shown, nodes = self._read(found)
        return remote.log_lines(shown, step, lambda one: self._log(found, nodes, one.name))

    def cancel(self, run: str) -> Run:
        """Ask the server to end a run, and wait until it has."""
        found = self._get(run)
        shown = self._record(found)
        if shown.status != record.RUNNING:
            raise UserError(f"run '{shown.id}' is {shown.status}; only a running one can be cancelled")
        self.api.call(self.api.runs.run_service_terminate_run, found.run_id)
        return remote.until_ended(lambda: self._explained(self._by_id(found.run_id)))

    def artifacts(self, run: str) -> list[Artifact]:
        """What a run's steps have made."""
        return self.status(run).artifacts

    def schedules(self) -> Schedules:
        """The recurring runs."""
        from xlnet_pipeline.targets.kfp.schedules import KfpSchedules

        return KfpSchedules(self)

    def models(self) -> Registry:
        """The registry that the settings name."""
        if not self.settings.tracking_uri:
            raise UserError("the registry of target 'kfp' is not known here; type --uri or set MLFLOW_TRACKING_URI")
        return open_registry(self.settings.tracking_uri)

    def _get(self, run: str) -> Any:
        """The run whose id, name, or a unique part of either is given; no other runs are listed."""
        if SERVERS_OWN.fullmatch(run):
            return self._by_id(run)
        found = self._named(f"{remote.PREFIX}{run}")
        if found is None:
            list_runs = self.api.runs.run_service_list_runs
            some = list(self.api.pages(list_runs, "runs", AMBIGUOUS, filter=contains(run))) if run else []
            candidates = {states.run_id(one): one for one in some or self.listed(1)}
            found = candidates[remote.choose(run, list(candidates), self.name)]
        return self._by_id(found.run_id)

    def _by_id(self, run_id: str) -> Any:
        try:
            return self.api.call(self.api.runs.run_service_get_run, run_id)
        except HttpError as error:
            if error.status != 404:
                raise self.api.unexpected(error) from None
            raise UserError(
                f"run '{run_id}' is unknown on target 'kfp'; see: xlnet-pipeline runs list --target kfp"
            ) from None

    def _name(self, run_id: str) -> str:
        """How we name another run; by the server's id if it is there no more."""
        try:
            return states.run_id(self.api.call(self.api.runs.run_service_get_run, run_id))
        except HttpError:
            return run_id

    def _record(self, found: Any) -> Run:
        return self._read(found)[0]

    def _read(self, found: Any) -> tuple[Run, Nodes]:
        run, nodes = states.run_of(found, self.name, self.namespace)
        if found.recurring_run_id:
            run.schedule = self.api.schedule_names().get(found.recurring_run_id, "(deleted)")
            run.due = remote.moment(found.scheduled_at)
        return run, nodes

    def _explained(self, found: Any) -> Run:
        """The record of a run with the reason why it failed, or that its workflow is gone."""
        run, nodes = self._read(found)
        if run.status == record.FAILED:
            run.error = self._failure(found, run, nodes)
        elif run.status == record.RUNNING and self._lost(found, nodes):
            states.lose(run)
            run.error = RunFailure(None, f"its workflow '{nodes.workflow}' is gone from the cluster: {LOST}", "run")
        return run

    def _failure(self, found: Any, run: Run, nodes: Nodes) -> RunFailure:
        failed = next((step.name for step in run.steps if step.status == record.FAILED), None)
        driver = states.failed_driver(nodes)
        if driver and driver[0] in (None, failed):
            return self._driver_failure(found, *driver)
        if failed is None:
            return RunFailure(None, found.error.message if found.error else "the run failed", "run")
        lines = self._log(found, nodes, failed, last=True).splitlines()
        return remote.failure(failed, lines, self.settings.pipeline_root)

    def _driver_failure(self, found: Any, step: str | None, node: ArgoNode) -> RunFailure:
        """Why a driver failed, which starts a step, or at first the whole run: in its last words."""
        what = f"step '{step}' could not be started" if step else "the run failed before its first step"
        log = self.pod_logs.read(found.run_id, node)
        if log is None:
            see = f"kubectl -n {self.namespace} describe workflow {node.workflow}"
            return RunFailure(step, f"{what}: its driver {node.path} failed, and its log is nowhere; see: {see}", "run")
        words = [line for line in log.splitlines() if line.strip()]
        return RunFailure(step, f"{what}: {last_words(words)}", "run", words[-LAST_LINES:])

    def _log(self, found: Any, nodes: Nodes, step: str, last: bool = False) -> str:
        """What every attempt at a step wrote, or the last one."""
        root = _root(found) or self.settings.pipeline_root
        attempts = nodes.attempts(states.ROOT, step, EXECUTOR)
        texts = []
        for node in attempts[-1:] if last else attempts:
            text = self.pod_logs.read(found.run_id, node, root, _pipeline(found))
            if text is None:
                text = (
                    f"(no log of {node.path} is there yet)"
                    if node.live
                    else (f"(the log of {node.path} is gone: neither the server has it nor '{root}')")
                )
            texts.append(text if len(attempts) == 1 or last else f"(attempt {node.attempt + 1})\n{text}")
        return "\n".join(texts)

    def _lost(self, found: Any, nodes: Nodes) -> bool:
        """Whether a run that the API calls running has no workflow any more.

        The API goes on calling it so for ever. A deleted schedule takes its runs' workflows along. Of any other run,
        a pod that runs without a log anywhere tells; one that waits for a node has none either.
        """
        now = datetime.now(UTC)
        pods = [
            one
            for one in states.running_pods(nodes)
            if one.started and (now - one.started).total_seconds() > GONE_AFTER
        ]
        if not pods or found.state != "RUNNING":
            return False
        if self._schedule_gone(found.recurring_run_id):
            return True
        running = [one for one in pods if not one.waiting]
        return bool(running) and all(self.pod_logs.nowhere(found.run_id, one) for one in running)

    def _schedule_gone(self, identity: str | None) -> bool:
        if not identity:
            return False
        try:
            self.api.call(self.api.recurring.recurring_run_service_get_recurring_run, identity)
        except HttpError as error:
            return error.status == 404
        return False


def last_words(lines: list[str]) -> str:
    """The line of a Go program's log that says why it ended: the last fatal one, else the last error, else the last."""
    for level in "FE":
        for line in reversed(lines):
            if (match := GO_LOG.fullmatch(line)) and match["level"] == level:
                return match["text"]
    return lines[-1].strip() if lines else "it wrote nothing"


def _root(found: Any) -> str:
    return str((found.runtime_config.pipeline_root if found.runtime_config else None) or "")


def _pipeline(found: Any) -> str:
    spec = found.pipeline_spec or {}
    return str((spec.get("pipeline_spec", spec).get("pipelineInfo") or {}).get("name") or "")
