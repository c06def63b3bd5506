"""Runs a step's program in its pod, retries it once if it fails, and records its success in the index.

Kubeflow Pipelines' default installation never restarts a failed program, even if the pipeline asks for retries. So the
supervisor retries in the same pod and the same log. If an installation does restart failed pods, the new pod reads
the earlier pod's record and does not retry again. After SIGTERM, or after a user's mistake, there is no retry.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet.data import index
from xlnet.data.addresses import GCS, MINIO, S3, mount
from xlnet.errors import Preempted, RunError, UserError
from xlnet.steps import KEPT

TRIES = 2
NO_RETRY = (UserError.exit_status, Preempted.exit_status, 128 + signal.SIGTERM)
RUN, NODE, INDEX = "XLNET_RUN_ID", "XLNET_NODE", "XLNET_INDEX"
LATER = re.compile(r"\([1-9]\d*\)")  # in a node's path: an earlier try of the pod's template, or of one around it
SHARD = re.compile(r"\((\d+):[^()]*\)")  # in a node's path: the number of a loop's item
LAST_WORDS = "XLNET_LAST_WORDS"  # variable with the file for a program's final error
TRACEBACK = "Traceback (most recent call last):"  # marks the error in the log for its readers
MODULE = "kfp.dsl.executor_main"
PROGRAM = f"python3 -m {MODULE}"  # what kfp's compiler writes into a step's command
SUPERVISED = "python3 -m xlnet_steps.supervisor"


def main(arguments: Sequence[str]) -> int:
    """Supervise kfp's executor with these arguments; return the exit status of its last try."""
    step, given = _option(arguments, "--function_to_execute"), json.loads(_option(arguments, "--executor_input"))
    tries = TRIES
    node = os.environ.get(NODE, "")
    match = SHARD.search(node)
    part = f"{step}-{match[1]}" if match else step
    if not node or LATER.search(node):
        tries = 1  # a later pod of the same step: the first pod has used the retry, or was deleted
        if why := _try_index(lambda place, run: index.failed(place, run, part)):
            print(f"step '{step}' failed in an earlier pod, and is not tried again:\n{TRACEBACK}\n{why['words']}")
            return int(why["status"])
    with tempfile.NamedTemporaryFile("w+", prefix="xlnet-last-words-") as file:
        os.environ[LAST_WORDS] = file.name
        status = _tried(arguments, tries)
        words = file.read()
    if status == 0:
        _try_index(lambda place, run: _enter(place, run, step, given))
    elif status not in (Preempted.exit_status, 128 + signal.SIGTERM):
        words = words or f"xlnet.errors.RunError: step '{step}' ended with exit status {status}"
        _try_index(lambda place, run: index.fail(place, run, part, {"status": status, "words": words}))
    return status


def _tried(arguments: Sequence[str], tries: int) -> int:
    stopped = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: Any) -> None:
        nonlocal stopped
        stopped = True
        if child and child.poll() is None:
            child.send_signal(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        for left in reversed(range(tries)):
            child = subprocess.Popen([sys.executable, "-m", __spec__.name, "--once", *arguments])
            status = child.wait()
            status = 128 - status if status < 0 else status
            if status == 0 or stopped or status in NO_RETRY or not left:
                return 128 + signal.SIGTERM if stopped and status else status
            print(f"the program ended with exit status {status} and is started again, this once", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    raise AssertionError("at least one try")


def once(arguments: Sequence[str]) -> int:
    """Run kfp's executor in this process. Return its exit status, 2 for a user's mistake. Errors print a traceback."""
    from kfp.dsl import executor_main
    from kfp.dsl.types import artifact_types

    for name, scheme in (("GCS", GCS), ("S3", S3), ("MINIO", MINIO)):  # buckets may be mounted elsewhere than at /gcs
        setattr(artifact_types, f"_{name}_LOCAL_MOUNT_PREFIX", f"{mount(scheme)}/")
    sys.argv = ["executor_main", *arguments]
    try:
        executor_main.executor_main()
    except Exception as error:
        if isinstance(error, UserError):  # its message says everything; a traceback would not help the user
            print(f"{TRACEBACK}\n{traceback.format_exception_only(error)[-1]}", end="", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        if file := os.environ.get(LAST_WORDS):
            Path(file).write_text(traceback.format_exception_only(error)[-1], encoding="utf-8")
        return UserError.exit_status if isinstance(error, UserError) else RunError.exit_status
    return 0


def _option(arguments: Sequence[str], name: str) -> str:
    return arguments[list(arguments).index(name) + 1]


def _try_index(work: Any) -> Any:
    """Do some work on the index, if there is one; a failing bucket does not fail the step."""
    place, run = os.environ.get(INDEX), os.environ.get(RUN)
    if not place or not run:
        return None
    try:
        return work(place, run)
    except (UserError, RunError, OSError) as error:
        print(f"warning: the index of finished work at {place} could not be used: {error}", flush=True)
        return None


def _enter(place: str, run: str, step: str, given: dict[str, Any]) -> None:
    """Record a finished step in the index: the snapshot step writes all keys, a later one its artifact."""
    outputs = given["outputs"]
    if step == "snapshot":
        index.announce(place, run, index.keys(_parameters(outputs), os.environ.get("XLNET_IMAGE_DIGEST", "")))
        return
    uri = outputs["artifacts"][KEPT[step].output]["artifacts"][0]["uri"]
    index.enter(place, run, step, uri)


def _parameters(outputs: dict[str, Any]) -> dict[str, str]:
    """Read a step's output parameters from kfp's executor, which writes one file for each or one for all."""
    file = Path(outputs["outputFile"])
    found = json.loads(file.read_text(encoding="utf-8")).get("parameterValues", {}) if file.is_file() else {}
    for name, one in outputs["parameters"].items():
        if name not in found:
            found[name] = Path(one["outputFile"]).read_text(encoding="utf-8")
    return found


if __name__ == "__main__":
    sys.exit(once(sys.argv[2:]) if sys.argv[1:2] == ["--once"] else main(sys.argv[1:]))
