"""Where the pipeline's steps are to run: target, machine, image, and what each target needs to be told of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from xlnet.errors import UserError
from xlnet_pipeline.placement.machines import MACHINES, Machine, refuse

__all__ = ["Placement", "placement"]

_PINNED = re.compile(r"[^\s@]+@(sha256:[0-9a-f]{64})")

# How often a task is started again. A preempted machine says nothing about the program, so that budget is larger and
# its own: a JobSet's on Kubernetes, the custom job's on Vertex AI.
PROGRAM_RETRIES = 1
PREEMPTION_RETRIES = 12
LAUNCHER_RETRIES = 2  # of a pod that only watches a JobSet: started again, it finds it and goes on
SHORT_SPOT_RETRIES = 3  # of an evaluation on spot, minutes long, for both reasons: a task has one budget
BACKOFF = {"backoff_duration": "30s", "backoff_factor": 2.0, "backoff_max_duration": "3600s"}
FLEXIBLE = ("l4", "a100-40g", "a100-80g", "h100", "h200")  # families that Vertex AI's Dynamic Workload Scheduler has


@dataclass(frozen=True)
class Placement:
    """One target, one machine for training, one image.

    Attributes:
        target: ``kfp`` or ``vertex``.
        image: ``REGISTRY/NAME@sha256:…``.
        machine: what the train step runs on; evaluation runs on one accelerator of the same family.
        nodes: how many such machines train together.
        spot: take machines that can be preempted, for less money.
        flex_start: wait until all machines are there at once, for less money; on Vertex AI.
        environment: variables of every step, such as the registry's address.
        registry_secret: Kubernetes secret from which every step gets MLFLOW_TRACKING_URI; empty: that of
            infra/kustomize, where the cluster has it.
        storage_secret: Kubernetes secret with the keys of S3; empty: none.
        service_account: whom the steps act as on Vertex AI; empty: the project's default.
        output_root: address below which checkpoints lie, and the files of Vertex AI's custom jobs.
    """

    target: str
    image: str
    machine: Machine = MACHINES["cpu"]
    nodes: int = 1
    spot: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    registry_secret: str = ""
    storage_secret: str = ""
    service_account: str = ""
    output_root: str = ""
    flex_start: bool = False

    @property
    def digest(self) -> str:
        """The image's digest, ``sha256:…``; UserError if the image is not pinned by one."""
        return image_digest(self.image)

    @property
    def hosts(self) -> int:
        """How many hosts train together."""
        return self.nodes * self.machine.hosts

    @property
    def several_pods(self) -> bool:
        """Whether training on Kubernetes is a JobSet: on several hosts, or on some that may be taken back."""
        return self.target == "kfp" and (self.hosts > 1 or self.spot)

    @property
    def checkpoints(self) -> str:
        """Where every machine that is given the same work finds its checkpoints; empty: beside the model."""
        return f"{self.output_root.rstrip('/')}/checkpoints" if self.output_root else ""

    @property
    def single(self) -> Machine:
        """The smallest machine of the family: one accelerator, enough to evaluate."""
        rows = [row for row in MACHINES.values() if row.family == self.machine.family and self.target in row.targets]
        return min(rows, key=lambda row: row.chips)


def placement(
    target: str, image: str, machine: Machine, *, nodes: int = 1, spot: bool = False, flex_start: bool = False
) -> Placement:
    """Check that a target can run a machine so, and return the placement.

    Raises:
        UserError: the target does not offer the machine, or not in that number, or not at that price; the image is
            not pinned.
    """
    refuse(machine, target)
    place = Placement(target, image, machine, nodes, spot, flex_start=flex_start)
    image_digest(image)
    if nodes < 1:
        raise UserError(f"--nodes is {nodes}; allowed: 1 or more")
    if target == "kfp" and nodes > 1 and machine.kind == "tpu":
        raise UserError(
            f"--nodes is {nodes}, but TPUs train together within one slice: take a larger one, such as --machine "
            f"{_larger(machine, nodes).name}"
        )
    if flex_start:
        _refuse_flexible_start(place)
    if machine.spot_only and not (spot or flex_start):
        how = "--spot or --flex-start" if target == "vertex" else "--spot"
        raise UserError(
            f"machine '{machine.name}' is sold on spot and flex-start alone; add {how}, or take '{machine.family}-8'"
        )
    return place


def _larger(machine: Machine, nodes: int) -> Machine:
    """The smallest slice of the family with at least as many chips as that many have, or the largest there is."""
    rows = sorted((row for row in MACHINES.values() if row.family == machine.family), key=lambda row: row.chips)
    return next((row for row in rows if row.chips >= nodes * machine.chips), rows[-1])


def _refuse_flexible_start(place: Placement) -> None:
    """Do nothing if the machine's family can be waited for on this target."""
    if place.spot:
        raise UserError("--flex-start and --spot exclude each other; choose one")
    if place.target != "vertex":
        raise UserError(f"--flex-start is for --target vertex; on '{place.target}' leave it out, or take --spot")
    if place.machine.family not in FLEXIBLE:
        raise UserError(
            f"machine '{place.machine.name}' is not offered with --flex-start; allowed: {', '.join(FLEXIBLE)}, alone "
            "or several; leave it out, or take --spot"
        )


def image_digest(image: str) -> str:
    """``sha256:…`` of a pinned image.

    Raises:
        UserError: the image is not pinned by its digest, so that a cache could not see that it changed.
    """
    match = _PINNED.fullmatch(image)
    if match:
        return match.group(1)
    how = ""
    if image and not re.search(r"[\s@]", image):
        how = f"; to read it: docker buildx imagetools inspect {image} --format '{{{{.Manifest.Digest}}}}'"
    raise UserError(f"image '{image}' is not pinned; give it as REGISTRY/NAME@sha256:… with all 64 digits{how}")
