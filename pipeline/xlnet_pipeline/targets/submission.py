"""A submission: the run that a person asks for. A target refuses what it cannot do."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xlnet.errors import UserError
from xlnet.recipe import Recipe

Say = Callable[[str], None]  # prints a line


@dataclass(frozen=True)
class Submission:
    """The run that a person asks for. A field at its default asks for nothing in particular.

    Attributes:
        recipe: what to run.
        cache: reuse results of equal work; False runs every step again.
        timeout: seconds after which the run is stopped and fails; on a remote target the command that waits stops it.
        machine: name of the machine to train on; empty: a CPU machine.
        nodes: how many such machines train together.
        spot: take machines that can be preempted, for less money.
        flex_start: wait for machines, for less money.
        image: what the steps run in; empty: the target's settings say it.
        nproc: processes that train together on this machine; None: one for each device.
        device: kind of device to train on, on this machine; empty: the best that is there.
        memory: the most that a step's container may use, such as ``4g``; empty: no limit.

    Raises:
        UserError: a number is too small.
    """

    recipe: Recipe
    cache: bool = True
    timeout: float | None = None
    machine: str = ""
    nodes: int = 1
    spot: bool = False
    flex_start: bool = False
    image: str = ""
    nproc: int | None = None
    device: str = ""
    memory: str = ""

    def __post_init__(self) -> None:
        for name in ("nodes", "nproc"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"--{name} is {number}; allowed: 1 or more")


def refuse(submission: Submission, cannot: Mapping[str, str]) -> None:
    """Check that a target can do everything that a submission asks for.

    Args:
        submission: the submission.
        cannot: the target's :attr:`~xlnet_pipeline.targets.target.Target.cannot`.

    Raises:
        UserError: the target cannot do one of them; the message says why and what to do instead.
    """
    for field in dataclasses.fields(submission):
        if field.name in cannot and getattr(submission, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} {cannot[field.name]}")
