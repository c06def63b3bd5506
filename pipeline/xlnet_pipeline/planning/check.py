"""Small named checks that reject a bad run before it costs anything. They report all mistakes at once.

A check is a name, a function and a remedy. The function examines a planned run and returns what is wrong with it, or
None. It may raise a UserError instead, whose message includes the remedy.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from xlnet.errors import RunError, UserError
from xlnet.recipe import AUTO, AUTO_VOCABULARY
from xlnet.recipe import budget as budgets
from xlnet.registry import check_name, resolve
from xlnet_pipeline.images import references
from xlnet_pipeline.placement import image_digest, larger, placement
from xlnet_pipeline.planning import estimate, workload
from xlnet_pipeline.planning.data_checks import (
    class_weights,
    columns,
    corpus_text,
    labels,
    lost_rows,
    metric,
    truncation,
    vocabulary,
    weights,
)
from xlnet_pipeline.planning.planned_run import BEFORE_A_RUN, PlannedRun
from xlnet_pipeline.targets import remote, schedules
from xlnet_pipeline.targets.local import registration

CHECKPOINTS = 2  # the old one stays on disk while the new one is written
MODEL_ERROR = 1.15  # largest error of a modelled memory figure, as a factor
ANY_IMAGE = "image@sha256:" + "0" * 64


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    function: Callable[[PlannedRun], str | list[str] | None]
    remedy: str
    fatal: bool = True  # False: only a warning


@dataclass(frozen=True)
class Finding:
    """The result of one failed check."""

    check: str
    problem: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.check}: {self.problem}"


def findings(planned: PlannedRun, checks: Iterable[Check] = ()) -> list[Finding]:
    """Return all findings, errors before warnings. A consequence of an earlier finding is not repeated."""
    found: dict[str, Finding] = {}
    for check in checks or CHECKS:
        try:
            problem = check.function(planned)
        except (UserError, RunError) as error:
            found.setdefault(str(error), Finding(check.name, str(error), True))
            continue
        for one in [problem] if isinstance(problem, str) else problem or ():
            found.setdefault(one, Finding(check.name, f"{one}; {check.remedy}" if check.remedy else one, check.fatal))
    return sorted(found.values(), key=lambda one: not one.fatal)


def require(planned: PlannedRun, offline: bool = False) -> list[Finding]:
    """Run all checks and return the warnings. If ``offline``, skip those that fetch the input or the image.

    Raises:
        UserError: a check found an error; the message has one line for each error.
    """
    found = findings(planned, [one for one in CHECKS if not (offline and one.name in ASKING)])
    errors = [str(one) for one in found if one.fatal]
    if errors:
        raise UserError("\nerror: ".join(errors))
    return found


def reachable(given: PlannedRun) -> str | None:
    """A remote target must be able to read the input, and to pass the recipe's values on unchanged."""
    if given.remote:
        remote.check_data(given.recipe, given.target)
    return None


def budget(given: PlannedRun) -> str | None:
    """The token budget of an update must hold the longest text."""
    tokens, length = given.recipe.training.batch_tokens, given.recipe.data.max_length
    if tokens == AUTO:
        return None  # the budget's choice holds the longest text
    return f"training.batch_tokens = {tokens:,} is less than data.max_length = {length:,}" if tokens < length else None


def divisible(given: PlannedRun) -> str | None:
    """A batch must divide equally among the accelerators, with at least one text for each."""
    tokens, chips = given.recipe.training.batch_tokens, given.chips
    if chips <= 1 or tokens == AUTO:
        return None
    if tokens % chips:
        return f"training.batch_tokens = {tokens:,} cannot be divided by {chips} accelerators"
    if tokens // chips < given.recipe.data.max_length:
        length = given.recipe.data.max_length
        return f"{chips} accelerators get {tokens // chips:,} tokens each, less than data.max_length = {length:,}"
    return None


def pretraining_device(given: PlannedRun) -> str | None:
    """The two streams of a pretraining have no program for TPUs yet."""
    pretrains = given.recipe.pretrains or given.recipe.data.task == "pretrain"
    return (
        f"pretraining does not run on a TPU ('{given.machine.name}')"
        if pretrains and given.machine.kind == "tpu"
        else None
    )


def offered(given: PlannedRun) -> str | None:
    """The target must offer the machine in this number and at this price."""
    if given.remote:
        placement(
            given.target,
            ANY_IMAGE,
            given.machine,
            nodes=given.nodes,
            spot=given.spot,
            flex_start=given.flex_start,
        )
    elif given.nodes > 1 or given.spot or given.flex_start:
        option = "--nodes" if given.nodes > 1 else "--spot" if given.spot else "--flex-start"
        return f"target 'local' is this machine alone, without {option}"
    return None


def topology(given: PlannedRun) -> str | None:
    """A run must use a single TPU slice, because several slices are not connected."""
    machine = given.machine
    if machine.kind != "tpu" or given.nodes == 1:
        return None
    what = f"{given.nodes} slices '{machine.name}' are not one slice of {given.chips} chips"
    return f"{what}; the machine for that is '{larger(machine, given.nodes).name}'"


def memory(given: PlannedRun) -> str | None:
    """A step must fit into an accelerator's memory, according to the memory model."""
    need, most, has = _need(given)
    if need <= has * MODEL_ERROR:
        return None
    advice = f" (training.batch_tokens={most} would fit)" if most else ""
    return f"a step needs about {need:.0f} GiB, and '{given.machine.name}' has {has:.0f} in each chip{advice}"


def memory_tight(given: PlannedRun) -> str | None:
    """Warn if a step almost fills an accelerator's memory."""
    need, most, has = _need(given)
    if not has * estimate.USABLE[given.machine.kind] < need <= has * MODEL_ERROR:
        return None
    return (
        f"a step needs about {need:.1f} of the {has:.1f} GiB of '{given.machine.name}' (up to {most:,} tokens are safe)"
    )


def _need(given: PlannedRun) -> tuple[float, int, float]:
    """Return the GiB that a step needs, the largest safe batch in tokens, and the available GiB."""
    if not given.remote or given.chips < 1:
        return 0.0, 0, 1.0  # the local target uses this machine; plan measures it
    lengths, vocabulary = given.lengths
    mean = sum(lengths) / max(1, len(lengths))
    classes, batch = len({row.label for row in given.rows}), given.recipe.training.batch_tokens
    if batch == AUTO:
        batch = max(budgets.LARGEST_BATCH, max(lengths, default=1))
    work = workload.Workload(0, mean, max(lengths, default=1), mean, vocabulary, classes, 1, batch, "")
    model = workload.shape(given.recipe.model)
    need = estimate.memory(model, work, given.machine, given.nodes).total
    return need, estimate.most_tokens(model, work, given.machine, given.nodes), given.machine.memory_per_chip


def disk(given: PlannedRun) -> str | None:
    """The disk must hold two checkpoints, each with weights, optimizer and best weights."""
    model = workload.shape(given.recipe.model)
    numbers = estimate.parameters(model, given.recipe.data.vocab_size or AUTO_VOCABULARY, 2)
    need = CHECKPOINTS * numbers * (estimate.WEIGHTS + estimate.OPTIMIZER + estimate.BEST) / 1e9
    if given.remote:
        from xlnet_pipeline.placement.vertex import BOOT_DISK_GB  # late: kfp takes most of a second to import

        free, where = float(BOOT_DISK_GB), "the training machine's disk"
    else:
        free, where = shutil.disk_usage(_existing(given.home)).free / 1e9, f"the disk of '{given.home}'"
    return f"checkpoints need {need:.1f} GB and {where} has {free:.1f} GB free" if need > free else None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def image_pinned(given: PlannedRun) -> str | None:
    """A remote step needs an image pinned by its digest. The registry must know the digest of a tag."""
    if given.remote and not given.image:
        return f"target '{given.target}' has no image to run the steps in"
    if given.remote:
        image_digest(references.pinned(given.image))
    return None


def image_there(given: PlannedRun) -> str | None:
    """The registry must have the image."""
    if not given.remote or "@sha256:" not in given.image or references.exists(given.image) is not False:
        return None
    return f"image '{given.image}' is not in its registry"


def root(given: PlannedRun) -> str | None:
    """A remote target needs a URI to keep artifacts under."""
    if given.remote and given.pipeline_root and "://" not in given.pipeline_root:
        return f"pipeline root '{given.pipeline_root}' is not a URI"
    return None


def registered(given: PlannedRun) -> str | None:
    """The registry's address must be valid, and the registry must accept a model of this name."""
    if given.remote:
        found = given.recipe.registry
        check_name(resolve(found.uri or given.registry, given.home), found.name)
    else:
        # Before a run the target asks the registry itself, because it knows whether its steps can reach it.
        registration.ready(given.recipe, given.home, ask=given.whole > BEFORE_A_RUN)
    return None


def timing(given: PlannedRun) -> str | None:
    """A schedule needs five cron fields and a named time zone."""
    if given.cron:
        schedules.timing(given.cron, given.timezone or "UTC")
    return None


ASKING = (
    "columns",
    "corpus",
    "labels",
    "rows",
    "vocabulary",
    "weights",
    "reachable data",
    "truncation",
    "memory",
    "image",
)
CHECKS: tuple[Check, ...] = (
    Check("columns", columns, "set data.text, data.label, data.format and data.header to what the file holds"),
    Check("corpus", corpus_text, "give more text, or lower the length"),
    Check("pretraining", pretraining_device, "choose a CPU or a GPU, or pretrain first and start from that model"),
    Check("labels", labels, "set data.label to the column of classes, or data.task = 'regression'", fatal=False),
    Check("rows", lost_rows, "", fatal=False),
    Check("metric", metric, ""),
    Check("class weights", class_weights, ""),
    Check("vocabulary", vocabulary, "", fatal=False),
    Check("weights", weights, ""),
    Check("reachable data", reachable, ""),
    Check("machine", offered, "leave it out, or choose --target kfp or vertex"),
    Check("topology", topology, "choose it instead of --nodes"),
    Check("batch and length", budget, "raise training.batch_tokens or lower data.max_length", fatal=False),
    Check(
        "batch and replicas", divisible, "choose training.batch_tokens = accelerators × a multiple of data.max_length"
    ),
    Check("memory", memory, "choose a larger machine or a smaller training.batch_tokens; plan shows all"),
    Check("memory", memory_tight, "watch the first steps", fatal=False),
    Check("disk", disk, "free some, or choose another --home"),
    Check("image", image_pinned, "give --image REGISTRY/NAME@sha256:…"),
    Check("image", image_there, "push it, or name another with --image"),
    Check("pipeline root", root, "name it gs://BUCKET/FOLDER"),
    Check("registry", registered, "set registry.name and registry.uri"),
    Check("schedule", timing, "such as '0 3 * * mon' for Mondays at three"),
    Check("truncation", truncation, "raise data.max_length if their ends matter", fatal=False),
)
