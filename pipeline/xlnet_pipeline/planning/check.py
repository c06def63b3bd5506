"""Small named checks that reject a bad run before it costs anything; all that is wrong is told at once.

A check is a name, a function and a remedy. The function looks at what is about to be submitted and returns what is
wrong with it, or nothing; a UserError that it raises is what is wrong, remedy included.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from xlnet.data import snapshot as snapshots
from xlnet.data.readers import Reject, Row
from xlnet.data.storage import Source
from xlnet.errors import RunError, UserError
from xlnet.recipe import AUTO_VOCABULARY, DataRecipe, Recipe
from xlnet.registry import check_name, open_registry, resolve
from xlnet_pipeline.images import references
from xlnet_pipeline.placement import image_digest, placement
from xlnet_pipeline.placement.machines import MACHINES, Machine
from xlnet_pipeline.planning import estimate, workload
from xlnet_pipeline.targets import schedules

FIRST_ROWS = 200  # of each file
FIRST_FILES = 20  # of each split
MANY_CLASSES = 0.5  # classes per row beyond which a label column holds something else
TRUNCATED = 0.2  # share of texts cut that is worth a word
CHECKPOINTS = 2  # that lie beside each other while the newer one is written
MODEL_ERROR = 1.15  # how far a modelled memory figure may be wrong
LOCAL = "local"
ANY_IMAGE = "image@sha256:" + "0" * 64


@dataclass(frozen=True)
class Submission:
    """What is about to be submitted. A field left empty is not checked."""

    recipe: Recipe
    target: str = LOCAL
    machine: Machine = field(default_factory=lambda: MACHINES["cpu"])
    nodes: int = 1
    spot: bool = False
    image: str = ""
    home: Path = Path(".xlnet-pipeline")
    flex_start: bool = False
    pipeline_root: str = ""  # where a remote target keeps its artifacts
    registry: str = ""  # address of the target's registry, where the recipe names none
    cron: str = ""
    timezone: str = ""
    schedule: str = ""  # the schedule's name

    @cached_property
    def sources(self) -> list[tuple[str, Source]]:
        """Split and object of each input; raises UserError if there is none, or one is in two splits."""
        return [(file.split, file.source) for file in snapshots.of(self.recipe).files if file.split in snapshots.SPLITS]

    @cached_property
    def first(self) -> list[tuple[Source, list[Row | Reject]]]:
        """The first rows of the first objects; raises UserError if the columns are not there."""
        seen: dict[str, int] = {}
        found = []
        for split, source in self.sources:
            seen[split] = seen.get(split, 0) + 1
            if seen[split] <= FIRST_FILES:
                found.append((source, workload.first_rows(source, self.recipe.data, FIRST_ROWS)))
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """Those of the first rows that can be used."""
        return [row for _, rows in self.first for row in rows if isinstance(row, Row)]

    @cached_property
    def lengths(self) -> tuple[list[int], int]:
        """Tokens of some of these rows, and the size of the vocabulary."""
        return workload.token_lengths(self.rows, self.recipe.data)

    @property
    def chips(self) -> int:
        """Accelerators that train together."""
        return self.machine.chips * self.nodes

    @property
    def remote(self) -> bool:
        """Whether it runs elsewhere."""
        return self.target != LOCAL


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    function: Callable[[Submission], str | None]
    remedy: str
    fatal: bool = True  # False: a word of warning


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    problem: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.check}: {self.problem}"


def findings(submission: Submission, checks: Iterable[Check] = ()) -> list[Finding]:
    """Everything that is wrong, errors before warnings; what follows from an earlier finding is said once."""
    found: dict[str, Finding] = {}
    for check in checks or CHECKS:
        try:
            problem = check.function(submission)
        except (UserError, RunError) as error:
            found.setdefault(str(error), Finding(check.name, str(error), True))
            continue
        if problem:
            found.setdefault(problem, Finding(check.name, f"{problem}; {check.remedy}", check.fatal))
    return sorted(found.values(), key=lambda one: not one.fatal)


def require(submission: Submission, offline: bool = False) -> list[Finding]:
    """Run all checks, or those that ask nobody for the input or the image, and return the warnings.

    Raises:
        UserError: something is wrong; every such finding, one line each.
    """
    found = findings(submission, [one for one in CHECKS if not (offline and one.name in ASKING)])
    errors = [str(one) for one in found if one.fatal]
    if errors:
        raise UserError("\nerror: ".join(errors))
    return found


def reachable(given: Submission) -> str | None:
    """A remote target reads gs:// objects and the shipped demo data, not this machine's files."""
    own = [source.uri for _, source in given.sources if "://" not in source.uri and not source.uri.startswith("demo:")]
    return f"'{own[0]}' lies on this machine, where '{given.target}' cannot read it" if given.remote and own else None


def columns(given: Submission) -> str | None:
    """Compare the recipe's columns with the first rows of the real data."""
    for source, rows in given.first:
        rejects = [row for row in rows if isinstance(row, Reject)]
        if len(rejects) > max(1, given.recipe.data.max_rejects * len(rows)):
            where = f"{len(rejects)} of the first {len(rows)} rows of '{source.uri}'"
            return f"{where} cannot be used (line {rejects[0].line}: {rejects[0].reason})"
    return None


def labels(given: Submission) -> str | None:
    """The label column must hold classes, or numbers."""
    rows, data = given.rows, given.recipe.data
    names = {row.label for row in rows}
    if data.task == "regression":
        return None  # the reader takes numbers alone
    if len(rows) > 20 and len(names) > MANY_CLASSES * len(rows):
        return f"data.label = {data.label!r} has {len(names)} different values in the first {len(rows)} rows"
    if len(names) == 1 and not _sorted_by_class(data, given):
        return f"data.label = {data.label!r} is '{next(iter(names))}' in all of the first {len(rows)} rows"
    return None


def _sorted_by_class(data: DataRecipe, given: Submission) -> bool:
    """Whether further rows may well be of other classes: there are more than those read."""
    return any(len(rows) == FIRST_ROWS for _, rows in given.first) or len(given.sources) > len(given.first)


def truncation(given: Submission) -> str | None:
    """Few texts should be cut."""
    lengths, _ = given.lengths
    limit = given.recipe.data.max_length
    cut = sum(length >= limit for length in lengths) / max(1, len(lengths))
    return (
        f"{cut:.0%} of the first texts reach data.max_length = {limit} tokens and are cut" if cut > TRUNCATED else None
    )


def budget(given: Submission) -> str | None:
    """An update's tokens must hold the longest text."""
    tokens, length = given.recipe.training.batch_tokens, given.recipe.data.max_length
    return f"training.batch_tokens = {tokens:,} is less than data.max_length = {length:,}" if tokens < length else None


def divisible(given: Submission) -> str | None:
    """Each accelerator gets an equal part of a batch, and at least one text."""
    tokens, chips = given.recipe.training.batch_tokens, given.chips
    if chips <= 1:
        return None
    if tokens % chips:
        return f"training.batch_tokens = {tokens:,} cannot be divided by {chips} accelerators"
    if tokens // chips < given.recipe.data.max_length:
        length = given.recipe.data.max_length
        return f"{chips} accelerators get {tokens // chips:,} tokens each, less than data.max_length = {length:,}"
    return None


def offered(given: Submission) -> str | None:
    """The target must have the machine, in this number and at this price."""
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


def topology(given: Submission) -> str | None:
    """A TPU slice is one machine; several would not be connected."""
    machine = given.machine
    if machine.kind != "tpu" or given.nodes == 1:
        return None
    what = f"{given.nodes} slices '{machine.name}' are not one slice of {given.chips} chips"
    return f"{what}; the machine for that is '{machine.family}-{_next_slice(machine.family, given.chips)}'"


def _next_slice(family: str, chips: int) -> int:
    sizes = sorted(row.chips for row in MACHINES.values() if row.family == family)
    return next((size for size in sizes if size >= chips), sizes[-1])


def memory(given: Submission) -> str | None:
    """A step must fit into an accelerator's memory, as far as a model can tell."""
    need, most, has = _need(given)
    if need <= has * MODEL_ERROR:
        return None
    advice = f" (training.batch_tokens={most} would fit)" if most else ""
    return f"a step needs about {need:.0f} GiB, and '{given.machine.name}' has {has:.0f} in each chip{advice}"


def memory_tight(given: Submission) -> str | None:
    """The same where it is close."""
    need, most, has = _need(given)
    if not has * estimate.USABLE[given.machine.kind] < need <= has * MODEL_ERROR:
        return None
    return (
        f"a step needs about {need:.1f} of the {has:.1f} GiB of '{given.machine.name}' (up to {most:,} tokens are safe)"
    )


def _need(given: Submission) -> tuple[float, int, float]:
    """GiB that a step needs, the largest batch that is safe, GiB that there are."""
    if not given.remote or given.chips < 1:
        return 0.0, 0, 1.0  # the local target has this machine, whatever it is: plan tells
    lengths, vocabulary = given.lengths
    mean = sum(lengths) / max(1, len(lengths))
    classes, batch = len({row.label for row in given.rows}), given.recipe.training.batch_tokens
    work = workload.Workload(0, mean, max(lengths, default=1), mean, vocabulary, classes, 1, batch, "")
    model = workload.shape(given.recipe.model)
    need = estimate.memory(model, work, given.machine, given.nodes).total
    return need, estimate.most_tokens(model, work, given.machine, given.nodes), given.machine.memory_per_chip


def disk(given: Submission) -> str | None:
    """Checkpoints must find room: weights, optimizer and best weights, the new beside the old."""
    model = workload.shape(given.recipe.model)
    numbers = estimate.parameters(model, given.recipe.data.vocab_size or AUTO_VOCABULARY, 2)
    need = CHECKPOINTS * numbers * (estimate.WEIGHTS + estimate.OPTIMIZER + estimate.BEST) / 1e9
    from xlnet_pipeline.placement.vertex import BOOT_DISK_GB  # late: kfp takes most of a second to import

    free = float(BOOT_DISK_GB) if given.remote else shutil.disk_usage(_existing(given.home)).free / 1e9
    where = "the training machine's disk" if given.remote else f"the disk of '{given.home}'"
    return f"checkpoints need {need:.1f} GB and {where} has {free:.1f} GB free" if need > free else None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def image_pinned(given: Submission) -> str | None:
    """A remote step runs in an image that is named by its digest; a tag must have one in its registry."""
    if given.remote and not given.image:
        return f"target '{given.target}' has no image to run the steps in"
    if given.remote:
        image_digest(references.pinned(given.image))
    return None


def image_there(given: Submission) -> str | None:
    """The registry must have the image."""
    if not given.remote or "@sha256:" not in given.image or references.exists(given.image) is not False:
        return None
    return f"image '{given.image}' is not in its registry"


def root(given: Submission) -> str | None:
    """A remote target keeps artifacts below a URI."""
    if given.remote and given.pipeline_root and "://" not in given.pipeline_root:
        return f"pipeline root '{given.pipeline_root}' is no URI"
    return None


def registered(given: Submission) -> str | None:
    """The registry must be one, and take a model of this name."""
    found = given.recipe.registry
    address = resolve(found.uri or given.registry, given.home)
    check_name(address, found.name)
    if not given.remote:
        open_registry(address, given.home).ready(found.name)
    return None


def schedule_name(given: Submission) -> str | None:
    """A schedule's name is part of names of resources."""
    if given.schedule:
        schedules.check_name(given.schedule)
    return None


def timing(given: Submission) -> str | None:
    """Five fields and a time zone that has a name."""
    if given.cron:
        schedules.timing(given.cron, given.timezone or "UTC")
    return None


ASKING = ("columns", "labels", "reachable data", "truncation", "memory", "image")  # read the input, or ask a registry
CHECKS: tuple[Check, ...] = (
    Check("columns", columns, "set data.text, data.label, data.format and data.header to what the file holds"),
    Check("labels", labels, "set data.label to the column of classes, or data.task = 'regression'"),
    Check("reachable data", reachable, "copy it to a bucket and name it gs://BUCKET/OBJECT"),
    Check("machine", offered, "leave it out, or choose --target kfp or vertex"),
    Check("topology", topology, "choose it instead of --nodes"),
    Check("batch and length", budget, "raise training.batch_tokens or lower data.max_length"),
    Check(
        "batch and replicas", divisible, "choose training.batch_tokens = accelerators × a multiple of data.max_length"
    ),
    Check("memory", memory, "choose a larger machine or a smaller training.batch_tokens; plan shows all"),
    Check("memory", memory_tight, "watch the first steps", fatal=False),
    Check("disk", disk, "free some, or choose another --home"),
    Check("image", image_pinned, "give --image REGISTRY/NAME@sha256:…"),
    Check("image", image_there, "push it, or name another"),
    Check("pipeline root", root, "name it gs://BUCKET/FOLDER"),
    Check("registry", registered, "set registry.name and registry.uri"),
    Check("schedule name", schedule_name, "such as nightly-reviews"),
    Check("schedule", timing, "such as '0 3 * * mon' for Mondays at three"),
    Check("truncation", truncation, "raise data.max_length if their ends matter", fatal=False),
)
