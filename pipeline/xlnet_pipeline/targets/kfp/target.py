"""The target for Kubeflow Pipelines: a kind cluster, GKE, or any other installation with the v2beta1 API.

The server chooses a run's id. So that nothing is submitted twice, a run's display name holds an id of ours, by which
a submission that broke off is looked for before it is tried again.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import kfp_server_api as api

from xlnet.calls import Trouble
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet.registry import Registry, open_registry
from xlnet_pipeline.placement import TITLES, Placement
from xlnet_pipeline.targets import record, remote
from xlnet_pipeline.targets.kfp.api import KfpApi, contains, equals
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure, StepRun
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import KfpSettings
from xlnet_pipeline.targets.submission import Submission, refuse

OURS = re.compile(r"xlnet-(\d{8}-\d{6}-[0-9a-f]{4})")  # a display name with an id of ours
STATES = {
    "PENDING": record.RUNNING,
    "RUNNING": record.RUNNING,
    "PAUSED": record.RUNNING,
    "CANCELING": record.RUNNING,
    "SUCCEEDED": record.SUCCEEDED,
    "SKIPPED": record.SUCCEEDED,
    "FAILED": record.FAILED,
    "CANCELED": record.CANCELLED,
}
SEARCHED = 200  # earlier runs in which the work behind a cached step is looked for


class KfpTarget:
    """Runs on Kubeflow Pipelines. See :class:`xlnet_pipeline.targets.Target` for the methods."""

    name = "kfp"
    cannot = remote.HERE_ONLY

    def __init__(self, settings: KfpSettings) -> None:
        self.settings = settings
        self.api = KfpApi(settings)

    def place(self, submission: Submission) -> Placement:
        """Where the submission's steps are to run, with the registry's address or the secret that holds it."""
        uri = self.settings.tracking_uri
        return remote.place(
            self.name,
            self.settings,
            submission,
            environment={"MLFLOW_TRACKING_URI": uri} if uri else {},
            registry_secret=self.settings.registry_secret,
            output_root=self.settings.pipeline_root,
        )

    def body(self, recipe: Recipe, where: Placement, name: str, experiment: str, cache: bool = True) -> dict[str, Any]:
        """What creates a run, or is repeated by a schedule."""
        from xlnet_pipeline import dag  # and kfp, which takes most of a second: reading runs does without

        documents = dag.documents(where)
        if not cache:
            for task in documents[0]["root"]["dag"]["tasks"].values():
                task["cachingOptions"] = {}
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
        refuse(submission, self.cannot)
        recipe, where = submission.recipe, self.place(submission)
        remote.check_data(recipe, self.name)
        experiment = f"<id of experiment '{self.settings.experiment}'>"
        body = self.body(recipe, where, "xlnet-RUN", experiment, submission.cache)
        return [{"method": "POST", "url": f"{self.settings.endpoint}/apis/v2beta1/runs", "body": body}]

    def submit(
        self,
        submission: Submission,
        *,
        echo: Callable[[str], None] | None = None,
        live: Callable[[str], None] | None = None,
    ) -> Run:
        """Submit the recipe and return the record of the run that has begun; nothing is submitted twice."""
        refuse(submission, self.cannot)
        recipe, where = submission.recipe, self.place(submission)
        remote.check_data(recipe, self.name)
        run = remote.new_run(recipe.to_json(), self.name, record.new_id())
        name = f"{remote.PREFIX}{run.id}"
        fields = self.body(recipe, where, name, self.api.experiment(), submission.cache)
        body = api.V2beta1Run(**{**fields, "runtime_config": api.V2beta1RuntimeConfig(**fields["runtime_config"])})
        try:
            made = self.api.call(self.api.runs.run_service_create_run, body, recover=lambda: self._named(name))
        except Trouble as trouble:
            raise self.api.unexpected(trouble) from None
        if echo:
            echo(f"run {run.id}")
            echo(f"page {self.settings.endpoint.rstrip('/')}/#/runs/details/{made.run_id}")
        return run

    def _named(self, name: str) -> Any:
        found = self.api.call(self.api.runs.run_service_list_runs, filter=equals(name), **self.api._namespace())
        return (found.runs or [None])[0]

    def runs(self) -> list[Run]:
        """Every run of the experiment, the newest first, without its steps' outputs."""
        return [self._record(one) for one in self.listed()]

    def listed(self) -> Iterator[Any]:
        """The experiment's runs as the API describes them, the newest first."""
        experiment = self.api.experiment()
        return self.api.pages(self.api.runs.run_service_list_runs, "runs", experiment_id=experiment)

    def status(self, run: str) -> Run:
        """The record of a run as it is now, with what its artifacts say of themselves."""
        found = self._get(run)
        return self._with_artifacts(found, self._record(found))

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Lines of the logs of a run's pods."""
        found = self._get(run)
        return remote.log_lines(self._record(found), step, lambda one: self._log(found, one))

    def cancel(self, run: str) -> Run:
        """Ask the server to end a run, and wait until it has."""
        found = self._get(run)
        shown = self._record(found)
        if shown.status != record.RUNNING:
            raise UserError(f"run '{shown.id}' is {shown.status}; only a running one can be cancelled")
        self.api.call(self.api.runs.run_service_terminate_run, found.run_id)
        return remote.until_ended(lambda: self._record(self._by_id(found.run_id)))

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
        """The run whose id, name, or a unique part of either is given."""
        found = self._by_id(run) if len(run) == 36 else self._named(f"{remote.PREFIX}{run}")
        if found is not None:
            return self._by_id(found.run_id)
        some = list(self.api.pages(self.api.runs.run_service_list_runs, "runs", filter=contains(run))) if run else []
        candidates = {_id(one): one for one in some or self.listed()}
        return self._by_id(candidates[remote.choose(run, list(candidates), self.name)].run_id)

    def _by_id(self, run_id: str) -> Any:
        try:
            return self.api.call(self.api.runs.run_service_get_run, run_id)
        except Trouble:
            raise UserError(
                f"run '{run_id}' is unknown on target 'kfp'; see: xlnet-pipeline runs list --target kfp"
            ) from None

    def _record(self, found: Any) -> Run:
        text = (found.runtime_config.parameters or {}).get("recipe", "{}") if found.runtime_config else "{}"
        run = remote.new_run(text, self.name, _id(found))
        run.created, run.ended = str(remote.moment(found.created_at)), _ended(found.finished_at)
        run.status = STATES.get(found.state or "PENDING", record.RUNNING)
        if found.recurring_run_id:
            run.schedule = self.api.schedule_names().get(found.recurring_run_id, "(deleted)")
            run.due = remote.moment(found.scheduled_at)
        details = {name: one for one in _details(found) if (name := _step(one.display_name))}
        for step in run.steps:
            if one := details.get(step.name):
                _fill(step, one)
                if one.state == "SKIPPED":  # what the API says of a cached task, and of one after a failure
                    step.status = record.SKIPPED if run.status == record.FAILED else record.CACHED
            elif run.status in remote.ENDED:
                step.status = record.SKIPPED
        if run.status == record.FAILED:
            run.error = self._failure(found, run)
        return run

    def _failure(self, found: Any, run: Run) -> RunFailure:
        failed = next((step for step in run.steps if step.status == record.FAILED), None)
        if failed is None:
            return RunFailure(None, found.error.message if found.error else "the run failed", "run")
        try:
            return remote.failure(failed.name, self._log(found, failed).splitlines(), self.settings.pipeline_root)
        except (RunError, UserError, Trouble) as error:
            return RunFailure(failed.name, f"step '{failed.name}' failed; its log cannot be read: {error}", "run")

    def _log(self, found: Any, step: StepRun) -> str:
        lines = []
        for pod in _pods(_details(found), step.name):
            namespace = {"podnamespace": self.settings.namespace} if self.settings.namespace else {}
            try:
                lines.append(self.api.text("/k8s/pod/logs", podname=pod, runid=found.run_id, **namespace))
            except Trouble:
                lines.append(f"(the log of pod {pod} is gone)")
        return "\n".join(lines)

    def _with_artifacts(self, found: Any, run: Run) -> Run:
        places = remote.artifact_places(self.settings.pipeline_root, found.run_id)
        missing = {
            step.name: _output_ids(found, step.name)
            for step in run.steps
            if step.name in remote.ARTIFACTS
            and step.name not in places
            and step.status in (record.SUCCEEDED, record.CACHED)
        }
        for name, (place, earlier) in self._earlier(found, missing).items():
            places[name] = place
            step = run.step(name)
            step.status, step.reason = record.CACHED, f"same as in run {earlier}"
        return remote.with_artifacts(run, places)

    def _earlier(self, found: Any, missing: dict[str, set[str]]) -> dict[str, tuple[str, str]]:
        """Step → place of its artifact and the run that made it, for steps whose results came from the cache."""
        located: dict[str, tuple[str, str]] = {}
        if not missing:
            return located
        for number, listed in enumerate(self.listed()):
            if number >= SEARCHED or len(located) == len(missing):
                break
            if listed.run_id == found.run_id or listed.created_at > found.created_at:
                continue
            one = self._by_id(listed.run_id)
            shared = [name for name, ids in missing.items() if name not in located and ids & _output_ids(one, name)]
            places = remote.artifact_places(self.settings.pipeline_root, one.run_id) if shared else {}
            located |= {name: (places[name], _id(one)) for name in shared if name in places}
        return located


def _id(found: Any) -> str:
    match = OURS.fullmatch(found.display_name or "")
    return match.group(1) if match else str(found.run_id)


def _step(display_name: str | None) -> str | None:
    titles = {title: name for name, title in TITLES.items()}
    return display_name if display_name in TITLES else titles.get(display_name or "")


def _details(found: Any) -> list[Any]:
    return (found.run_details.task_details if found.run_details else None) or []


def _output_ids(found: Any, step: str) -> set[str]:
    return {
        one
        for detail in _details(found)
        if _step(detail.display_name) == step
        for artifact in (detail.outputs or {}).values()
        for one in artifact.artifact_ids or []
    }


def _pods(details: list[Any], step: str) -> list[str]:
    """The pods in which a step's program ran: the last of its node's descendants, drivers left out."""
    children: dict[str, list[str]] = {}
    names = {}
    for one in details:
        for key in (one.task_id, one.pod_name):
            if key:
                children[key] = [child.pod_name or child.task_id for child in one.child_tasks or []]
                names[key] = one.display_name or ""
    waiting = [key for one in details if _step(one.display_name) == step and (key := one.pod_name or one.task_id)]
    pods = []
    while waiting:
        pod = waiting.pop(0)
        if children.get(pod):
            waiting += children[pod]
        elif not names.get(pod, "").endswith("-driver"):
            pods.append(pod)
    return pods


def _ended(moment: Any) -> str | None:
    """The API writes 1970 where a run has not ended."""
    return remote.moment(moment) if moment and moment.year > 1970 else None


def _fill(step: StepRun, detail: Any) -> None:
    state = detail.state or "PENDING"
    step.status = record.PENDING if state == "PENDING" else STATES.get(state, record.RUNNING)
    step.started, step.ended = remote.moment(detail.start_time or detail.create_time), _ended(detail.end_time)
    step.seconds = remote.between(step.started, step.ended)
    step.log = detail.pod_name
