"""The target for Kubeflow Pipelines: a kind cluster, GKE, or any other installation with the v2beta1 API.

The server chooses a run's id. A run's display name therefore contains an id of our own: if the answer to a submission
is lost, we look for that name before we submit again.
"""

import dataclasses
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
from xlnet_pipeline.targets.kfp.api import KfpApi, contains, equals, names_nothing
from xlnet_pipeline.targets.kfp.logs import PodLogs
from xlnet_pipeline.targets.kfp.nodes import EXECUTOR, ArgoNode, Nodes
from xlnet_pipeline.targets.output import LAST_LINES
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import KfpSettings
from xlnet_pipeline.targets.submission import Say, Submission

SERVERS_OWN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # an id that the server chose
GO_LOG = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (?P<text>.*)")
AMBIGUOUS = 6  # how many runs are listed to say that a name fits several
LOST = (
    "somebody deleted it, or changed or deleted the schedule that had started it; none of its steps runs any more; run "
    "it again"
)
DELETED = "(deleted)"  # instead of the name of a schedule that is gone
GONE_AFTER = 60.0  # seconds; a running pod without a log may be starting for as long


class KfpTarget:
    """Runs pipelines on Kubeflow Pipelines. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "kfp"
    cannot = remote.HERE_ONLY

    def __init__(self, settings: KfpSettings) -> None:
        self.settings = settings
        self.namespace = settings.namespace or "kubeflow"  # the namespace of an installation for a single user

    @functools.cached_property
    def api(self) -> KfpApi:
        """The installation's API, opened on first use: a preview does not need it."""
        return KfpApi(self.settings)

    @functools.cached_property
    def pod_logs(self) -> PodLogs:
        """Reads the logs of the steps' pods."""
        return PodLogs(self.api)

    def place(self, submission: Submission) -> Placement:
        """Return where the submission's steps will run, with the registry's address or the secret that holds it."""
        uri = "" if self.settings.registry_secret else self.settings.tracking_uri  # for the pods, not for this machine
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
        """Return the fields that create a run, or that a schedule repeats."""
        from xlnet_pipeline import dag  # imports kfp, which takes most of a second; reading runs does not need it

        documents = dag.documents(where, pretrains=recipe.pretrains, shards=recipe.shards)
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
        """Return the request that a submission would send. A placeholder stands for the experiment's id."""
        where = remote.checked(self, submission)
        experiment = f"<id of experiment '{self.settings.experiment}'>"
        body = self.body(submission.recipe, where, "xlnet-RUN", experiment, submission.cache)
        server = self.settings.address or "<KFP_ENDPOINT>"
        return [{"method": "POST", "url": f"{server}/apis/v2beta1/runs", "body": body}]

    def submit(self, submission: Submission, *, echo: Say | None = None, live: Say | None = None) -> Run:
        """Submit the recipe exactly once, and return the record of the new run."""
        where = remote.checked(self, submission)
        submission = dataclasses.replace(submission, recipe=remote.with_shards(submission.recipe))
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
        """Return the newest runs of the experiment, or all. Read no logs and no artifacts."""
        return [self._listed_record(one) for one in self.listed(limit)]

    def listed(self, limit: int | None = None) -> Iterator[Any]:
        """Yield the experiment's runs as the API's objects, newest first."""
        experiment = self.api.known_experiment()
        if experiment is None:
            return iter(())
        return self.api.pages(self.api.runs.run_service_list_runs, "runs", limit, experiment_id=experiment)

    def status(self, run: str) -> Run:
        """Return the current record of a run, with the facts that its artifacts hold."""
        found = self._get(run)
        shown = self._explained(found)
        try:
            return cached.with_artifacts(shown, found.run_id, _root(found) or self.settings.pipeline_root, self._name)
        except UserError as error:  # the pods may write the bucket, but this user may not read it
            shown.notes.append(f"its artifacts are not shown: {error}")
            return shown

    def progress(self, run: str) -> Run:
        """Return the current record of a run, without its artifacts."""
        return self._explained(self._get(run))

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Yield the lines of the logs of a run's pods."""
        found = self._get(run)
        shown, nodes = self._read(found)
        return remote.log_lines(shown, step, lambda one: self._log(found, nodes, one.name))

    def cancel(self, run: str) -> Run:
        """Ask the server to end a run, and wait until it has ended."""
        found = self._get(run)
        shown = self._record(found)
        if shown.status != record.RUNNING:
            raise UserError(f"run '{shown.id}' is {shown.status}; only a running one can be cancelled")
        try:
            self.api.call(self.api.runs.run_service_terminate_run, found.run_id)
        except HttpError as error:
            raise self._not_found(error, found.run_id) from None
        return remote.until_ended(lambda: self._explained(self._by_id(found.run_id)))

    def artifacts(self, run: str) -> list[Artifact]:
        """List the artifacts of a run."""
        return self.status(run).artifacts

    def schedules(self) -> Schedules:
        """Return the experiment's schedules."""
        from xlnet_pipeline.targets.kfp.schedules import KfpSchedules

        return KfpSchedules(self)

    def models(self) -> Registry:
        """Open the registry that the settings name."""
        if not self.settings.tracking_uri:
            raise UserError("the registry of target 'kfp' is not known here; type --uri or set MLFLOW_TRACKING_URI")
        return open_registry(self.settings.tracking_uri)

    def _get(self, run: str) -> Any:
        """Return the run with this id, or with an id of which this is a unique part. List no other runs."""
        if SERVERS_OWN.fullmatch(run):
            return self._by_id(run)
        found = self._named(f"{remote.PREFIX}{run}")
        if found is None:
            list_runs = self.api.runs.run_service_list_runs
            some = list(self.api.pages(list_runs, "runs", AMBIGUOUS, filter=contains(run))) if run else []
            candidates = {states.run_id(one): one for one in some or self.listed(1)}
            found = candidates[record.choose(run, list(candidates), f"on target '{self.name}'")]
        return self._by_id(found.run_id)

    def _by_id(self, run_id: str) -> Any:
        try:
            return self.api.call(self.api.runs.run_service_get_run, run_id)
        except HttpError as error:
            raise self._not_found(error, run_id) from None

    def _not_found(self, error: HttpError, run_id: str) -> UserError:
        """Return the error for a run that does not exist, or for a 404 or 409 that says something else."""
        if not names_nothing(error, run_id):
            return self.api.unexpected(error)
        return UserError(f"run '{run_id}' is unknown on target 'kfp'; see: xlnet-pipeline runs list --target kfp")

    def _name(self, run_id: str) -> str:
        """Return the id under which we show a run; the server's id if the run was deleted."""
        try:
            return states.run_id(self.api.call(self.api.runs.run_service_get_run, run_id))
        except (HttpError, UserError):  # deleted, or not for this user
            return run_id

    def _record(self, found: Any) -> Run:
        return self._read(found)[0]

    def _listed_record(self, found: Any) -> Run:
        """Return the record of one of the experiment's runs, which is LOST if its schedule was deleted under it."""
        run, nodes = self._read(found, lambda identity: self.api.schedule_names().get(identity))
        if run.status == record.RUNNING and run.schedule == DELETED and _long_running(nodes):
            states.lose(run)
        return run

    def _read(self, found: Any, schedule: Callable[[str], str | None] | None = None) -> tuple[Run, Nodes]:
        """Return the record of a run, without reasons and artifacts, and the nodes of its workflow.

        Args:
            found: the run as the API's object.
            schedule: maps the id of a recurring run to its name; None if it was deleted. By default, asks for each.
        """
        run, nodes = states.run_of(found, self.name, self.namespace)
        if found.recurring_run_id:
            run.schedule = (schedule or self.api.schedule_name)(found.recurring_run_id) or DELETED
            run.due = remote.moment(found.scheduled_at)
        return run, nodes

    def _explained(self, found: Any) -> Run:
        """Return the record of a run. If it failed or its workflow is gone, say why."""
        run, nodes = self._read(found)
        if run.status == record.FAILED:
            run.error = self._failure(found, run, nodes)
        elif run.status == record.RUNNING and self._lost(found, run, nodes):
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
        """Return why a driver failed, from the end of its log. A driver starts a step, or the whole run."""
        what = f"step '{step}' could not be started" if step else "the run failed before its first step"
        log = self.pod_logs.read(found.run_id, node)
        if log is None and self.pod_logs.trouble:
            return RunFailure(step, f"{what}, and {self._no_log(node, '')[1:-1]}", "run")
        if log is None:
            see = f"kubectl -n {self.namespace} describe workflow {node.workflow}"
            return RunFailure(step, f"{what}: its driver {node.path} failed and left no log; see: {see}", "run")
        words = [line for line in log.splitlines() if line.strip()]
        return RunFailure(step, f"{what}: {last_words(words)}", "run", words[-LAST_LINES:])

    def _log(self, found: Any, nodes: Nodes, step: str, last: bool = False) -> str:
        """Return the logs of all attempts at a step, or the log of the last attempt."""
        root = _root(found) or self.settings.pipeline_root
        places = states.places(step, nodes, failed=last)
        texts = []
        for shard, place in enumerate(places, 1):
            attempts = nodes.attempts(*place, EXECUTOR)
            for node in attempts[-1:] if last else attempts:
                text = self.pod_logs.read(found.run_id, node, root, _pipeline(found))
                if text is None:
                    text = self._no_log(node, root)
                heading = f"shard {shard} of {len(places)}" if len(places) > 1 else ""
                if len(attempts) > 1 and not last:
                    heading += f"{', ' * bool(heading)}attempt {node.attempt + 1}"
                texts.append(f"({heading})\n{text}" if heading else text)
        return "\n".join(texts)

    def _no_log(self, node: ArgoNode, root: str) -> str:
        """Return the words that stand for a log which was not found."""
        if self.pod_logs.trouble:
            return f"(the log of {node.path} cannot be read: {self.pod_logs.trouble})"
        if node.live:
            return f"(no log of {node.path} is there yet)"
        return f"(the log of {node.path} is gone: neither the server nor '{root}' has it)"

    def _lost(self, found: Any, run: Run, nodes: Nodes) -> bool:
        """Whether the workflow of a run is gone. The API goes on saying that such a run is running.

        If the run's schedule was deleted, its workflow was deleted too. Any other run has lost its workflow if none of
        its running pods has a log anywhere; a pod that waits for a node proves nothing, because it has no log yet.
        """
        pods = _long_running(nodes)
        if not pods or found.state != "RUNNING":
            return False
        if run.schedule == DELETED:
            return True
        running = [one for one in pods if not one.waiting]
        return bool(running) and all(self.pod_logs.nowhere(found.run_id, one) for one in running)


def _long_running(nodes: Nodes) -> list[ArgoNode]:
    """Return the running pods that must have a log by now."""
    now = datetime.now(UTC)
    pods = states.running_pods(nodes)
    return [one for one in pods if one.started and (now - one.started).total_seconds() > GONE_AFTER]


def last_words(lines: list[str]) -> str:
    """Return the line of a Go program's log that says why it ended: its last fatal line, last error, or last line."""
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
