"""Deletes a JobSet whose pipeline run has ended without it.

A cancelled run kills the container of its train step: Kubeflow Pipelines' launcher ends at once on SIGTERM, and the
program that would have deleted the JobSet ends with it. The workflow, which owns the JobSet, is kept. So the JobSet's
first pod checks whether any pod of that workflow is still alive, and deletes the JobSet if none is. The pods then get
SIGTERM, and save a checkpoint.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from xlnet.errors import RunError, UserError

POLL = 15.0  # seconds between two checks
PATIENCE = 120.0  # seconds without a live pod; the workflow controller takes less to start a failed step again
INDEX = "JOB_COMPLETION_INDEX"  # Kubernetes sets it to a pod's number in its Job
WATCH = "--watch"


def main(arguments: Sequence[str]) -> None:
    """Replace this process by a command; in the first pod of a JobSet, start the guard beside it.

    Args:
        arguments: the JobSet's name, its owner's kind and name, and the words of the command.
    """
    if arguments[0] == WATCH:
        watch(*arguments[1:])
        return
    about, command = arguments[:3], arguments[3:]
    if os.environ.get(INDEX, "0") == "0":
        ours, theirs = os.pipe()
        os.set_inheritable(theirs, True)  # the command holds this end open until it ends
        subprocess.Popen([sys.executable, "-m", __package__, WATCH, *about], stdin=ours)
        os.close(ours)
    os.execvp(command[0], list(command))


def watch(jobset: str, kind: str, owner: str) -> None:
    """Look at the owner's pods until the command that holds the other end of standard input ends."""
    from xlnet_cluster.api import Api  # and the Kubernetes client, which takes a second to import

    try:
        api = Api()
        alone_since: float | None = None
        while not select.select([sys.stdin], [], [], POLL)[0]:
            try:
                if any_alive(api.workflow_pods(owner) if kind == "Workflow" else [api.pod(owner)]):
                    alone_since = None
                    continue
            except RunError:  # the API server does not answer, so the run may still be there
                continue
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since >= PATIENCE:
                print(f"the pipeline run has ended without this training: JobSet {jobset} is deleted", flush=True)
                api.delete(jobset)
                return
    except (UserError, RunError) as error:
        print(
            f"warning: this pod cannot find out whether its pipeline run goes on ({error}); after a cancel, look "
            f"whether it is still there: kubectl get jobset {jobset}",
            flush=True,
        )


def any_alive(pods: Iterable[dict[str, Any] | None]) -> bool:
    """Whether one of the pods has not ended yet."""
    return any(pod is not None and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") for pod in pods)
