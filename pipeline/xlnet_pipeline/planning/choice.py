"""Chooses one of several machines for a run, and says why."""

from dataclasses import dataclass

from xlnet.errors import UserError
from xlnet_pipeline.placement import machines
from xlnet_pipeline.placement.machines import Machine
from xlnet_pipeline.planning import estimate
from xlnet_pipeline.planning.estimate import Memory

HERE = "local"
SHORT = 0.5  # hours up to which this machine is recommended over a paid one


@dataclass(frozen=True)
class Candidate:
    """A machine, with the time, memory and cost of the training on it, and of the pretrain step before it."""

    machine: Machine
    target: str
    nodes: int
    spot: bool
    memory: Memory
    most_tokens: int  # the largest batch that fits
    step_seconds: float
    hours: float
    usd: float | None  # of all these hours; None: not sold
    speed_basis: str  # "measured …" or "modelled …"
    pretraining_hours: float = 0.0  # hours of the pretrain step, which ``hours`` includes

    @property
    def usable_memory(self) -> float:
        """The usable GiB of one chip."""
        return self.machine.memory_per_chip * estimate.USABLE[self.machine.kind]

    @property
    def fits(self) -> bool:
        """Whether a step fits into a chip's memory."""
        return self.memory.total <= self.usable_memory

    @property
    def name(self) -> str:
        """The number of machines and the name, such as ``l4`` or ``2 × l4``."""
        return self.machine.name if self.nodes == 1 else f"{self.nodes} × {self.machine.name}"


def choose(
    found: tuple[Candidate, ...], machine: str | None, spot: bool, deadline: float | None
) -> tuple[Candidate, str]:
    """Return the recommended candidate and the reason. Spot-only machines count only if the user asked for spot.

    Raises:
        UserError: no machine has enough memory or meets the deadline, and the user left the choice to us.
    """
    if len(found) == 1 and machine != machines.AUTO:
        return found[0], _judge(found[0], deadline)
    on_sale = [
        one for one in found if one.usd is not None and (spot or not one.machine.spot_only or one.target == HERE)
    ]
    fitting = [one for one in on_sale if one.fits]
    in_time = [one for one in fitting if deadline is None or one.hours <= deadline]
    if not in_time:
        raise UserError(_nothing(found, fitting, deadline))
    if machine != machines.AUTO and (ours := [one for one in in_time if one.target == HERE and one.hours <= SHORT]):
        best = min(ours, key=lambda one: one.hours)
        return best, f"this machine's {best.name}: {_takes(best)}, too little to pay for another"
    paid = [one for one in in_time if one.target != HERE] or in_time
    best = min(paid, key=lambda one: (one.usd or 0.0, one.hours))
    return best, _compare(best, paid, deadline)


def _judge(one: Candidate, deadline: float | None) -> str:
    if not one.fits:
        return f"no: {too_large(one)}"
    late = deadline is not None and one.hours > deadline
    return f"{one.name} {_takes(one)}" + (f": longer than the {time_text(deadline or 0.0)} allowed" if late else "")


def _compare(best: Candidate, others: list[Candidate], deadline: float | None) -> str:
    """Compare the best machine with the others: ``"TPU: v5e-1 …; the cheapest GPU, l4, …"``."""
    limit = f" within {time_text(deadline)}" if deadline is not None else ""
    text = f"{best.machine.kind.upper()}: {best.name} is the cheapest that fits{limit} ({_takes(best)})"
    for kind in ("gpu", "tpu"):
        rivals = [one for one in others if one.machine.kind == kind != best.machine.kind]
        if rivals:
            rival = min(rivals, key=lambda one: (one.usd or 0.0, one.hours))
            text += f"; the cheapest {kind.upper()}, {rival.name}, {_takes(rival)}{_power(best, rival)}"
    faster = min(others, key=lambda one: (one.hours, one.usd or 0.0))
    return text + (f"; the fastest, {faster.name}, {_takes(faster)}" if faster is not best else "")


def _power(best: Candidate, rival: Candidate) -> str:
    """Explain the choice by what one dollar per hour buys."""
    if not best.usd or not rival.usd:
        return ""
    ours, theirs = (
        one.machine.peak * one.machine.chips * one.nodes * one.hours / one.usd for one in (best, rival) if one.usd
    )
    return f" ({theirs:,.0f} TFLOP/s for a dollar an hour against {ours:,.0f})"


def _takes(one: Candidate) -> str:
    return f"takes {time_text(one.hours)}" + (f" and ${usd_text(one)}" if one.usd else "")


def _nothing(found: tuple[Candidate, ...], fitting: list[Candidate], deadline: float | None) -> str:
    if not fitting:
        return f"nothing fits: {too_large(max(found, key=lambda one: one.usable_memory))}"
    fastest = min(fitting, key=lambda one: one.hours)
    best = f"the fastest is '{fastest.name}' in {time_text(fastest.hours)}"
    return (
        f"no machine trains this within {time_text(deadline or 0.0)}; {best}; raise --deadline or lower training.epochs"
    )


def too_large(one: Candidate) -> str:
    """Say what the machine lacks, and what would fit."""
    text = f"a step needs {one.memory.total:.1f} GiB, and a chip of {one.name} has {one.usable_memory:.1f}"
    advice = (
        f"--set training.batch_tokens={one.most_tokens}" if one.most_tokens else "a smaller data.max_length or model"
    )
    return f"{text}; try {advice}"


def usd_text(one: Candidate) -> str:
    """Format what a candidate costs."""
    return f"{max(0.01, one.usd or 0.0):,.2f}{' spot' if one.spot else ''}"


def time_text(hours: float) -> str:
    """Format a duration in hours or minutes."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"
