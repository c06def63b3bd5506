"""Code that the remote targets share: submitting once, waiting, and reading a run's artifacts from its bucket.

The backend knows the status of its tasks. The lineage of an artifact is read from the ``lineage.json`` inside it.
"""

import dataclasses
import functools
import itertools
import json
import math
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet.data import snapshot as snapshots
from xlnet.data.addresses import GCS, SCHEMES
from xlnet.data.storage import DEMO
from xlnet.errors import CorruptArtifact, Missing, RunError, UserError, nearest
from xlnet.http import Unreachable
from xlnet.recipe import AUTO, MOST_SHARDS, Recipe
from xlnet.steps import KEPT, STEPS
from xlnet_pipeline.images import references
from xlnet_pipeline.placement import Placement, placement
from xlnet_pipeline.placement.machines import machine
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.output import Output, shown
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun
from xlnet_pipeline.targets.settings import Settings, image_of, refuse_password
from xlnet_pipeline.targets.submission import Submission, refuse
from xlnet_pipeline.targets.target import Target

PAGE = 100  # resources per request
PREFIX = "xlnet-"  # of a run's name in a backend; the run's id follows
FIRST_POLL, LONGEST_POLL = 1.0, 15.0  # seconds between two polls of a run
CANCEL_WAIT = 120.0  # seconds that a cancelled run has to end: 21 were seen, and a pod may have 30 of grace
# The last line of Kubeflow Pipelines' launcher; its program's status, or the signal in Go's words.
ENDED_WITH = re.compile(r"failed to execute component: (?:exit status (?P<status>\d+)|signal: (?P<signal>\w+))")
SIGNALS = {"killed": -signal.SIGKILL, "terminated": -signal.SIGTERM, "aborted": -signal.SIGABRT}
OUTAGE = 1800.0  # seconds without an answer until waiting for a run ends with an error; the run itself goes on
SILENCE = 20.0  # seconds that a step's pod waits before a message says so
REPEAT = 600.0  # seconds between two messages about the same wait
LOST_FOR = 180.0  # seconds until a run counts as lost: a cluster that is briefly unreachable looks the same
DONE = (record.SUCCEEDED, record.CACHED, record.FAILED, record.CANCELLED, record.SKIPPED)
ENDED = (record.SUCCEEDED, record.FAILED, record.CANCELLED, record.LOST)


LARGE_INPUT, SHARD_BYTES = 4 << 30, 1 << 30  # bytes from which on auto divides the input, and of a shard
HERE_ONLY = {
    "nproc": "is for the targets local and docker; elsewhere --machine says how many there are",
    "device": "is for the target local; elsewhere --machine says what there is",
    "memory": "is for --target docker; elsewhere --machine says what there is",
}


def place(name: str, settings: Settings, submission: Submission, **more: Any) -> Placement:
    """Return where a remote target will run a submission's steps. ``more`` holds further fields of the placement.

    Raises:
        UserError: the target does not offer the machine, or the image's tag has no digest.
    """
    found = placement(
        name,
        references.pinned(image_of(settings, submission.image)),
        machine(submission.machine or "cpu"),
        nodes=submission.nodes,
        spot=submission.spot,
        flex_start=submission.flex_start,
    )
    return dataclasses.replace(found, **more)


def checked(target: Target, submission: Submission) -> Placement:
    """Return where a submission's steps will run.

    Raises:
        UserError: the target cannot do what the submission asks, or its steps could not read the input.
    """
    refuse(submission, target.cannot)
    where = target.place(submission)
    assert where is not None, "remote targets place every submission"
    check_data(submission.recipe, target.name)
    return where


def check_data(recipe: Recipe, target: str) -> None:
    """Raise UserError unless steps on another machine can read the recipe's input.

    Raises:
        UserError: a path lies on this machine; the registry's address holds a password; a value holds ``{{``.
    """
    refuse_password(recipe.registry.uri, "registry.uri")
    refuse_templates(recipe, target)
    fields = {f"data.{name}": paths for name, paths in recipe.data.inputs.items()}
    fields["pretraining.corpus"] = recipe.pretraining.files
    for field, paths in fields.items():
        for path in paths:
            if not path.startswith((*SCHEMES, DEMO)):
                raise UserError(
                    f"{field}: '{path}' lies on this machine, where target '{target}' does not reach; copy it: "
                    "gcloud storage cp FILE gs://BUCKET/FOLDER/, or aws s3 cp FILE s3://BUCKET/FOLDER/"
                )
            if target == "vertex" and not path.startswith((GCS, DEMO)):
                raise UserError(f"{field}: '{path}' is not where Vertex AI's steps have rights; copy it to gs://")
    for name, place in (("data.tokenizer", recipe.data.tokenizer), ("model.pretrained", recipe.model.pretrained)):
        if place.startswith("/"):
            raise UserError(
                f"{name}: '{place}' lies on this machine; target '{target}' needs a name, or one in its image"
            )


def with_shards(recipe: Recipe) -> Recipe:
    """Replace ``data.shards = "auto"`` by a number that suits the size of the input, if that is more than one.

    If the input cannot be listed from here, one task preprocesses it.
    """
    if recipe.data.shards != AUTO:
        return recipe
    try:
        size = sum(file.size for file in snapshots.listed(recipe.data, []))
    except (UserError, RunError):
        return recipe
    number = min(MOST_SHARDS, math.ceil(size / SHARD_BYTES)) if size >= LARGE_INPUT else 1
    return recipe.replace(data={"shards": number}) if number > 1 else recipe


def refuse_templates(recipe: Recipe, target: str) -> None:
    """Raise UserError if a value of the recipe holds ``{{``: workflow engines replace or run what stands behind it.

    Argo Workflows replaces ``{{name}}`` and runs ``{{=expression}}`` anywhere in a workflow, arguments included, and
    Vertex AI does the same with ``{{$.name}}``.
    """
    for section, fields in json.loads(recipe.to_json()).items():
        for field, value in fields.items():
            if "{{" in json.dumps(value, ensure_ascii=False):
                raise UserError(
                    f"{section}.{field} is {value!r}; on target '{target}' no value may hold '{{{{', because its "
                    "workflow engine replaces what stands there; rename the file or column"
                )


def wait(
    target: Target,
    run: Run,
    timeout: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Run:
    """Watch a run until it ends, and report the end of each step. Cancel the run after the time-out.

    Raises:
        Unreachable: the target has not answered for OUTAGE seconds.
    """
    told: set[str] = set()
    pending = PendingSteps(say)
    deadline = time.monotonic() + timeout if timeout else None
    lost_since: float | None = None
    pause, answered = FIRST_POLL, time.monotonic()
    while True:
        for step in run.steps:
            if step.status in DONE and step.name not in told:
                told.add(step.name)
                took = f" in {step.seconds:.1f} s" if step.seconds else ""
                same = f" ({step.reason})" if step.status == record.CACHED and step.reason else ""
                say(f"{step.name}: {step.status.lower()}{took}{same}")
        pending.report(run)
        lost_since = (lost_since or time.monotonic()) if run.status == record.LOST else None
        if run.status in ENDED and (lost_since is None or time.monotonic() - lost_since >= LOST_FOR):
            return run
        if deadline and time.monotonic() > deadline:
            run = target.cancel(run.id)
            message = "the run took longer than its time limit and was stopped; finished steps are kept"
            run.status, run.error = record.FAILED, RunFailure(None, message, "timeout")
            return run
        time.sleep(pause if deadline is None else min(pause, max(0.01, deadline - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_POLL)
        try:
            run, answered = target.status(run.id), time.monotonic()
        except Unreachable as error:
            if time.monotonic() - answered > OUTAGE:
                raise
            say(f"{error}; the run goes on meanwhile, and this command goes on waiting")


class PendingSteps:
    """Reports steps whose pods have waited long, and repeats the report rarely."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._said: dict[str, float] = {}  # step and start → when it was said

    def report(self, run: Run) -> None:
        """Report the steps of the run that are waiting."""
        for step in run.steps:
            if run.status != record.RUNNING or step.status != record.PENDING or not step.started or not step.reason:
                continue
            waited = (datetime.now(UTC) - datetime.fromisoformat(step.started)).total_seconds()
            before = self._said.get(f"{step.name} {step.started}")
            if waited >= SILENCE and (before is None or time.monotonic() - before >= REPEAT):
                self._said[f"{step.name} {step.started}"] = time.monotonic()
                self.say(f"{step.name}: {step.reason}")


def until_ended(look: Callable[[], Run]) -> Run:
    """Wait until a cancelled run has ended, and return its record.

    Raises:
        RunError: the run did not end in time.
    """
    deadline = time.monotonic() + CANCEL_WAIT
    while (run := look()).status not in ENDED:
        if time.monotonic() > deadline:
            raise RunError(f"run '{run.id}' has not ended after {CANCEL_WAIT:.0f} s; look again with: runs show")
        time.sleep(FIRST_POLL)
    return run


def failure(step: str, lines: list[str], root: str) -> RunFailure:
    """Return why a step failed, from its log."""
    output = Output(lambda text: None)
    status = 1
    for line in lines:
        output.line(line)
        if match := ENDED_WITH.search(line):
            status = SIGNALS.get(match["signal"] or "", 1) if match["signal"] else int(match["status"])
    return output.failure(step, status, root)


def with_artifacts(run: Run, places: dict[str, str]) -> Run:
    """Fill in the outputs of a run's steps from the lineage inside each artifact.

    Args:
        run: the record, its steps without outputs.
        places: step → address of its artifact; ``STEP-NUMBER`` for each artifact of a looped step.
    """
    with ThreadPoolExecutor(len(KEPT)) as pool:
        found = dict(zip(places, pool.map(lineage_of, places.values()), strict=True))
    for name, lineage in found.items():
        if lineage is None:
            continue
        artifact = lineage["artifact"]
        step = run.step(name if name in KEPT else name.rpartition("-")[0])
        step.outputs[KEPT[step.name].output + name.removeprefix(step.name)] = {
            "uri": places[name],
            "type": artifact["type"],
            "digest": artifact["digest"],
            "metadata": artifact["metadata"],
        }
        step.inputs = dict(lineage["execution"]["parameters"])
    return run


def lineage_of(uri: str) -> dict[str, Any] | None:
    """Read the lineage inside the artifact at a URI. None if the artifact does not exist (yet, or any more)."""
    try:
        found: dict[str, Any] = json.loads(objects.read(f"{uri}/{provenance.LINEAGE}"))
    except Missing:
        return None
    except json.JSONDecodeError as error:
        raise CorruptArtifact(f"'{uri}/{provenance.LINEAGE}' is damaged ({error}); run the step again") from None
    return found


def artifact_places(root: str, run: str) -> dict[str, str]:
    """Map each step that this run has done to the address of its artifact, found by listing the run's folder.

    The artifacts of a looped step are mapped from ``STEP-NUMBER``.
    """
    found: dict[str, str] = {}
    for blob in objects.listing(f"{root.rstrip('/')}/{PREFIX.rstrip('-')}/{run}/"):
        folder, _, name = blob.name.rpartition("/")
        artifact = folder.rpartition("/")[2]
        for step, row in KEPT.items():
            if name == provenance.LINEAGE and artifact == row.output and f"/{run}/{step}/" in f"/{folder}/":
                found[numbered(step, found)] = f"{objects.scheme(root)}{objects.split(root)[0]}/{folder}"
    return found


def numbered(step: str, found: Collection[str]) -> str:
    """Return a step's name; of a looped step, ``STEP-NUMBER`` with the first number that is not among ``found``."""
    numbers = (f"{step}-{number}" for number in itertools.count())
    return next(one for one in numbers if one not in found) if KEPT[step].looped else step


def new_run(recipe_json: str, target: str, run: str) -> Run:
    """Make the record of a run that was just submitted. ``recipe_json`` may hold only some sections of the recipe."""
    whole, digest, steps = _described(recipe_json)
    return Run(run, target, json.loads(whole), digest, provenance.now(), steps=[StepRun(name) for name in steps])


@functools.lru_cache(maxsize=256)
def _described(recipe_json: str) -> tuple[str, str, tuple[str, ...]]:
    """Return a recipe's JSON with all fields, its digest and its steps. Cached: most runs share a few recipes."""
    whole = recipes.from_json(recipe_json)
    return whole.to_json(), whole.digest(), whole.steps


def moment(value: datetime | str | None) -> str | None:
    """Convert a backend's time to the format of our records."""
    if not value:
        return None
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.isoformat(timespec="milliseconds")


def between(started: str | None, ended: str | None) -> float | None:
    """Return the seconds between two times."""
    if not started or not ended:
        return None
    return round((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds(), 3)


def log_lines(run: Run, step: str | None, read: Callable[[StepRun], str]) -> Iterator[str]:
    """Yield the lines of the steps' logs, each step under a heading.

    Raises:
        UserError: the step does not exist.
    """
    if step is not None and step not in STEPS:
        raise UserError(f"step '{step}' is unknown; allowed: {', '.join(STEPS)}{nearest(step, STEPS)}")
    for one in run.steps:
        if step in (None, one.name) and one.status not in (record.PENDING, record.SKIPPED):
            yield f"==> {one.name} ({one.status}) <=="
            yield from shown(read(one).splitlines())
