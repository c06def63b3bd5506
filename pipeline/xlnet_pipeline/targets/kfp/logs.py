"""Reads the logs of a run's pods from three places: the API server, the UI's server, and the pipeline root.

The API server has the logs of running and ended pods and, from its archive, of deleted ones. The UI's server, whose
address most users have, does not forward those requests; it reads the logs of pods that still exist, by pod name. The
launcher writes each ended attempt's log below the pipeline root. No request is repeated, because a user is waiting.
"""

import json
import re

from xlnet.data import objects
from xlnet.errors import RunError, UserError
from xlnet.http import reason
from xlnet_pipeline.targets import remote
from xlnet_pipeline.targets.kfp.api import KfpApi, Page
from xlnet_pipeline.targets.kfp.nodes import DRIVER, ArgoNode

BY_NODE = "/apis/v1alpha1/runs/{}/nodes/{}/log"
BY_POD = "/k8s/pod/logs"
# Argo names a pod after its template. These are the templates of Kubeflow Pipelines' own compiler.
STEP_TEMPLATES = ("retry-system-container-impl", "system-container-impl")
DRIVER_TEMPLATES = ("system-container-driver", "system-dag-driver")
GLIMPSE = 2000  # bytes that are enough to distinguish a log from an error, and to read the error
NO_LOG = re.compile(r"NoSuchKey|NotFound|not found", re.IGNORECASE)  # in an error: there is none, or no such run


class PodLogs:
    """Reads the logs of one installation's pods."""

    def __init__(self, api: KfpApi) -> None:
        self.api = api
        self._by_node = self._by_pod = True  # becomes False when the server answers that it has no such path
        self.trouble = ""  # why the last log that was not found may exist nevertheless

    def read(self, run: str, node: ArgoNode, root: str = "", pipeline: str = "") -> str | None:
        """Return a node's log from the first place that has it; None if no place has it (see ``trouble``).

        Args:
            run: the server's id of the run.
            node: a node of the run that stands for a pod.
            root: the run's pipeline root; empty if it is unknown.
            pipeline: the pipeline's name; empty if the run does not say it.
        """
        self.trouble = ""
        found = self._from_api(run, node)
        if found is None:
            found = self._from_ui(run, node)
        if found is None and root and not node.live and DRIVER not in node.path:
            workflows = node.workflow.rpartition("-")[0]  # the workflow is named after its pipeline
            names = dict.fromkeys(name for name in (pipeline, workflows, remote.PREFIX.rstrip("-")) if name)
            texts = (self._from_root(f"{root.rstrip('/')}/{name}", run, node) for name in names)
            found = next((text for text in texts if text is not None), None)
        return found

    def nowhere(self, run: str, node: ArgoNode) -> bool:
        """Whether the API server says that it has no log of a node; False if the server does not answer."""
        page = self._ask_node(run, node, GLIMPSE)
        return page is not None and _refused(page) and NO_LOG.search(page.text) is not None

    def _from_api(self, run: str, node: ArgoNode) -> str | None:
        page = self._ask_node(run, node)
        if page is None or not _refused(page):
            return page.text if page else None
        if not NO_LOG.search(page.text):
            self._note(page)
        return None

    def _ask_node(self, run: str, node: ArgoNode, most: int | None = None) -> Page | None:
        if not self._by_node:
            return None
        page = self.api.page(BY_NODE.format(run, node.id), {"follow": "false"}, most)
        self._by_node = page.status != 404
        if page.status == 200 and "html" not in page.kind:
            return page
        if self._by_node:
            self._note(page)
        return None

    def _from_ui(self, run: str, node: ArgoNode) -> str | None:
        templates = DRIVER_TEMPLATES if DRIVER in node.path else STEP_TEMPLATES
        number = node.id.removeprefix(node.workflow).lstrip("-")
        for template in templates if self._by_pod else ():
            pod = f"{node.workflow}-{template}-{number}"
            query = {"podname": pod, "runid": run, "podnamespace": self.api.settings.namespace}
            page = self.api.page(BY_POD, {key: value for key, value in query.items() if value})
            if page.status == 200 and "html" not in page.kind:
                return page.text
            if page.status == 404:
                self._by_pod = False
            elif page.status != 500:  # which means that there is no such pod
                self._note(page)
            if page.status in (0, 404):
                break
        return None

    def _from_root(self, folder: str, run: str, node: ArgoNode) -> str | None:
        """Return the log that the launcher wrote to ROOT/PIPELINE/RUN/TASK/UUID/executor-logs-ATTEMPT; None if none."""
        task = node.path.split(".")[-2].partition("(")[0]
        base = f"{folder}/{run}/{task}/"
        try:
            left = [blob for blob in objects.listing(base) if blob.name.endswith(f"/executor-logs-{node.attempt}")]
            if not left:
                return None
            newest = max(left, key=lambda blob: str(blob.updated))
            return objects.read(f"{base}{newest.name.partition(f'/{task}/')[2]}").decode("utf-8", "replace")
        except (UserError, RunError) as error:
            self.trouble = self.trouble or str(error)
            return None

    def _note(self, page: Page) -> None:
        """Remember the first answer that is an error, to report it if no place has the log."""
        said = " ".join(reason(page.text, page.text).split())[:200] or "nothing"
        what = f"answers {page.status}: {said}" if page.status else f"does not answer ({said})"
        self.trouble = self.trouble or f"Kubeflow Pipelines at {self.api.settings.address} {what}; try again later"


def _refused(page: Page) -> bool:
    """Whether an answer of status 200 is an error: JSON with ``error_message``, which may be cut off."""
    text = page.text.lstrip()
    if not text.startswith('{"error_message"'):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return len(text) >= GLIMPSE - 1  # cut off
