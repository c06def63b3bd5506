"""Decides where the pipeline's steps run: target, machine, image, and the settings that each target needs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from xlnet.errors import UserError
from xlnet_pipeline.placement.machines import MACHINES, Machine, refuse

__all__ = ["Placement", "all_tasks", "larger", "placement"]

_PINNED = re.compile(r"[^\s@]+@(sha256:[0-9a-f]{64})")

# How often a task is started again. A preempted machine says nothing about the program, so that budget is larger and
# its own: a JobSet's on Kubernetes, the custom job's on Vertex AI.
PROGRAM_RETRIES = 1
PREEMPTION_RETRIES = 12
LAUNCHER_RETRIES = 2  # of the pod that watches a JobSet; after a restart it finds the JobSet and continues
SHORT_SPOT_RETRIES = 3  # of an evaluation on spot, minutes long, for both reasons: a task has one budget
BACKOFF = {"backoff_duration": "30s", "backoff_factor": 2.0, "backoff_max_duration": "3600s"}
FLEXIBLE = ("l4", "a100-40g", "a100-80g", "h100", "h200")  # families offered by Vertex AI's Dynamic Workload Scheduler


@dataclass(frozen=True)
class Placement:
    """One target, one machine for training, one image.

    Attributes:
        target: ``kfp`` or ``vertex``.
        image: ``REGISTRY/NAME@sha256:…``.
        machine: the machine of the train step; evaluation runs on one accelerator of the same family.
        nodes: how many such machines train together.
        spot: use cheaper machines that can be preempted.
        flex_start: wait until all machines are available at once, for a lower price; Vertex AI only.
        environment: variables of every step, such as the registry's address.
        registry_secret: Kubernetes secret from which every step gets MLFLOW_TRACKING_URI; empty: the secret of
            infra/kustomize, where the cluster has it.
        storage_secret: Kubernetes secret with the S3 keys; empty: none.
        service_account: account that the steps use on Vertex AI; empty: the project's default.
        output_root: URI prefix of the checkpoints and of the files of Vertex AI's custom jobs.
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
        """The image's digest, ``sha256:…``. Raises UserError if the image is not pinned by a digest."""
        return image_digest(self.image)

    @property
    def hosts(self) -> int:
        """The number of hosts that train together."""
        return self.nodes * self.machine.hosts

    @property
    def several_pods(self) -> bool:
        """Whether training on Kubernetes needs a JobSet, because of several hosts or because hosts can be preempted."""
        return self.target == "kfp" and (self.hosts > 1 or self.spot)

    @property
    def checkpoints(self) -> str:
        """URI of the checkpoint store that a training's machines share. Empty: checkpoints lie beside the model."""
        return f"{self.output_root.rstrip('/')}/checkpoints" if self.output_root else ""

    @property
    def single(self) -> Machine:
        """The smallest machine of the family. Its single accelerator is enough for the evaluation."""
        rows = [row for row in MACHINES.values() if row.family == self.machine.family and self.target in row.targets]
        return min(rows, key=lambda row: row.chips)


def placement(
    target: str, image: str, machine: Machine, *, nodes: int = 1, spot: bool = False, flex_start: bool = False
) -> Placement:
    """Check that a target offers the machine in this number and at this price, and return the placement.

    Raises:
        UserError: the target does not offer the machine, the number of machines or the price; the image is
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
            f"{larger(machine, nodes).name}"
        )
    if flex_start:
        _refuse_flexible_start(place)
    if machine.spot_only and not (spot or flex_start):
        how = "--spot or --flex-start" if target == "vertex" else "--spot"
        raise UserError(
            f"machine '{machine.name}' is sold on spot and flex-start only; add {how}, or take '{machine.family}-8'"
        )
    return place


def larger(machine: Machine, nodes: int) -> Machine:
    """Return the family's smallest slice with at least the chips of ``nodes`` machines, or else its largest slice."""
    rows = sorted((row for row in MACHINES.values() if row.family == machine.family), key=lambda row: row.chips)
    return next((row for row in rows if row.chips >= nodes * machine.chips), rows[-1])


def _refuse_flexible_start(place: Placement) -> None:
    """Raise UserError unless the target offers a flexible start for the machine's family."""
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
    """Return the digest, ``sha256:…``, of a pinned image.

    Raises:
        UserError: the image is not pinned by its digest, so a cache could not notice that it changed.
    """
    match = _PINNED.fullmatch(image)
    if match:
        return match.group(1)
    how = ""
    if image and not re.search(r"[\s@]", image):
        how = f"; to read it: docker buildx imagetools inspect {image} --format '{{{{.Manifest.Digest}}}}'"
    raise UserError(f"image '{image}' is not pinned; give it as REGISTRY/NAME@sha256:… with all 64 digits{how}")


def all_tasks(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of a compiled pipeline that run a program, by name, also those within a loop."""
    dags = [spec["root"], *(one for one in spec["components"].values() if "dag" in one)]
    found = {name: task for one in dags for name, task in one["dag"]["tasks"].items()}
    loops = {name for name, task in found.items() if "dag" in spec["components"][task["componentRef"]["name"]]}
    return {name: task for name, task in found.items() if name not in loops}
