"""Plans a run: what it would reuse, and its memory, time and cost on each machine, before anything is spent.

Every figure states its source: counted in the data, computed exactly, measured, or modelled.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.data.remarks import counted
from xlnet.errors import UserError
from xlnet.recipe import ModelRecipe, Recipe
from xlnet.training import precision
from xlnet_pipeline.placement import machines, placement
from xlnet_pipeline.placement.machines import Machine, Price
from xlnet_pipeline.planning import estimate, preview, this_machine, workload
from xlnet_pipeline.planning.check import ANY_IMAGE
from xlnet_pipeline.planning.choice import HERE, Candidate, choose, time_text, too_large, usd_text
from xlnet_pipeline.planning.preview import StepForecast
from xlnet_pipeline.planning.workload import Workload

_HOUR = 3600.0


@dataclass(frozen=True)
class Plan:
    """The whole plan. ``chosen`` is the requested machine, the choice of ``auto``, or the recommended machine."""

    model: ModelRecipe
    parameters: int
    work: Workload
    steps: tuple[StepForecast, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    recommendation: str
    pretraining: Workload | None = None
    deadline: float | None = None  # hours

    def text(self) -> str:
        """Return the plan as text for people."""
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values for programs."""
        return {
            "parameters": self.parameters,
            "work": dataclasses.asdict(self.work),
            "pretraining": dataclasses.asdict(self.pretraining) if self.pretraining else None,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "machines": [_row(candidate) for candidate in self.candidates],
            "chosen": self.chosen.machine.name,
            "recommendation": self.recommendation,
        }


def plan(
    recipe: Recipe,
    home: Path,
    *,
    target: str | None = None,
    machine: str | None = None,
    nodes: int = 1,
    spot: bool = False,
    deadline: float | None = None,
    prices: Mapping[str, Price] | None = None,
) -> Plan:
    """Estimate what a run would take.

    Args:
        recipe: recipe of the run.
        home: the local target's state directory: its cache, and its past runs for their speed.
        target: target of the run; None: compare this machine and all machines of Vertex AI.
        machine: a machine's name; ``auto``: the cheapest that fits; None: all.
        nodes: number of such machines.
        spot: use spot prices.
        deadline: hours that the training may take.
        prices: machine → the user's own price.

    Raises:
        UserError: the data are missing, the machine is unknown or not offered, or no machine meets the deadline.
    """
    if nodes < 1:
        raise UserError(f"--nodes is {nodes}; allowed: 1 and more")
    places = _places(target, machine, nodes, spot, prices)
    work, before = workload.measure(recipe), workload.measure_pretraining(recipe)
    model = workload.shape(recipe.model)
    speeds = _past_speeds(recipe, home)
    chosen_type = precision.on_cpu(recipe.training.precision, recipe.data.task, model.d_model)
    halves = chosen_type == "bfloat16" and precision.has_amx()
    found = tuple(_candidate(model, work, before, place, where, nodes, spot, speeds, halves) for place, where in places)
    chosen, why = choose(found, machine, spot, deadline)
    return Plan(
        model=model,
        parameters=estimate.parameters(model, work.vocabulary, work.outputs),
        work=work,
        steps=tuple(preview.forecast(recipe, home)) if target in (None, HERE) else (),
        candidates=found,
        chosen=chosen,
        recommendation=why,
        pretraining=before,
        deadline=deadline,
    )


def _places(
    target: str | None, name: str | None, nodes: int, spot: bool, prices: Mapping[str, Price] | None
) -> list[tuple[Machine, str]]:
    """Return the machines to compare, each with its target."""
    if name and name != machines.AUTO:
        asked = machines.machine(name, prices)
        if target in ("kfp", "vertex"):
            placement(target, ANY_IMAGE, asked, nodes=nodes, spot=spot)
        machines.refuse(asked, target or next(one for one in ("vertex", "kfp", HERE) if one in asked.targets))
    ours = [(row, HERE) for row in this_machine.here()] if target in (None, HERE) else []
    theirs = [(row, target or "vertex") for row in machines.offered(target or "vertex", prices)]
    theirs = [(row, where) for row, where in theirs if nodes == 1 or row.kind != "tpu"]  # TPU slices are not connected
    places = ours + (theirs if target != HERE else [])
    if name and name != machines.AUTO:
        same = [(row, where) for row, where in places if row.name == name]
        return same or [(asked, HERE)]
    return places


def _past_speeds(recipe: Recipe, home: Path) -> dict[str, tuple[float, str]]:
    """Map accelerator to tokens per second and id of the latest run here with the same network and batches."""
    from xlnet_pipeline.targets.local.target import LocalTarget

    found: dict[str, tuple[float, str]] = {}
    for run in LocalTarget(home).runs() if (home / "runs").is_dir() else []:
        made = run.step("train").outputs.get("model", {}).get("metadata", {})
        if not made.get("tokens_per_second"):
            continue
        wanted, past = dataclasses.asdict(recipe), run.recipe
        fields = (("data", "task"), ("data", "max_length"), ("training", "batch_tokens"))
        same = (past[section][name] == wanted[section][name] for section, name in fields)
        if past["model"] == wanted["model"] and all(same):
            found.setdefault(str(made.get("accelerator", "")).split()[0], (made["tokens_per_second"], run.id))
    return found


def _candidate(
    model: ModelRecipe,
    work: Workload,
    before: Workload | None,
    machine: Machine,
    target: str,
    nodes: int,
    spot: bool,
    speeds: Mapping[str, tuple[float, str]],
    halves: bool,
) -> Candidate:
    cheap = spot or machine.spot_only
    seconds = estimate.step_seconds(model, work, machine, machine.peak, nodes)
    basis = "modelled"
    if target == HERE and machine.kind == "cpu":
        basis = f"modelled on {1000 * machine.peak:.0f} GFLOP/s measured here"
        if halves:
            seconds, basis = seconds / precision.GAIN, f"{basis} and bfloat16's gain of {precision.GAIN}"
        if "cpu" in speeds:
            rate, run = speeds["cpu"]
            seconds, basis = work.batch_tokens / rate, f"measured in run {run}"
    hours, memory = _hours(work, machine, target, seconds), estimate.memory(model, work, machine, nodes)
    most, hours_before = estimate.most_tokens(model, work, machine, nodes), 0.0
    if before:  # the two steps run one after the other
        step = estimate.step_seconds(model, before, machine, machine.peak, 1)
        hours_before = _hours(before, machine, target, step)
        memory = max(memory, estimate.memory(model, before, machine), key=lambda one: one.total)
    hours += hours_before
    price = machine.price.per_hour(cheap, target)
    return Candidate(
        machine=machine,
        target=target,
        nodes=nodes,
        spot=cheap and target != HERE,
        memory=memory,
        most_tokens=most,
        step_seconds=seconds,
        hours=hours,
        usd=None if price is None else price * hours * nodes,
        speed_basis=basis,
        pretraining_hours=hours_before,
    )


def _hours(work: Workload, machine: Machine, target: str, seconds: float) -> float:
    """Return the hours of a step of the pipeline whose updates take so many seconds each."""
    start = estimate.START[machine.kind] + (0.0 if target == HERE else estimate.AWAY)
    training = work.steps * seconds
    return (start + (min(training, 60 * work.minutes) if work.minutes else training)) / _HOUR


def _row(one: Candidate) -> dict[str, Any]:
    return {
        "machine": one.machine.name,
        "nodes": one.nodes,
        "target": one.target,
        "spot": one.spot,
        "memory_gib": {**dataclasses.asdict(one.memory), "total": one.memory.total, "usable": one.usable_memory},
        "fits": one.fits,
        "most_tokens": one.most_tokens,
        "steps_per_second": 1 / one.step_seconds,
        "hours": one.hours,
        "pretraining_hours": one.pretraining_hours,
        "usd": one.usd,
        "speed_basis": one.speed_basis,
        "price": dataclasses.asdict(one.machine.price),
    }


def _lines(plan: Plan) -> list[str]:
    work, best = plan.work, plan.chosen
    origin = f"from {plan.model.pretrained}" if plan.model.pretrained else "from scratch"
    lines = [
        f"network   {plan.model.preset}, {origin}: {plan.parameters:,} parameters (exact)",
        f"data      {work.rows:,} rows to train on, {work.mean:.0f} tokens on average, {work.longest} at most "
        f"({work.basis})",
        f"training  {_updates(work)}",
    ]
    if work.chosen:
        lines.append(f"budget    {work.chosen}")
    if one := plan.pretraining:
        lines.append(f"before    pretraining on {one.rows:,} documents ({one.basis}), {_updates(one)}")
        lines.append(f"          {time_text(best.pretraining_hours)} of the {time_text(best.hours)} on {best.name}")
        lines += [f"          {one.chosen}"] if one.chosen else []
    if plan.steps:
        lines += ["", "steps"]
        lines += [f"  {step.name:<11}{'cached' if step.cached else 'runs':<8}{step.reason}" for step in plan.steps]
    else:
        lines += ["steps     the target's own cache decides, by the same digests of data, recipe and code"]
    lines += ["", *_table(plan), "", *_basis(plan), ""]
    lines.append(f"{'best' if len(plan.candidates) > 1 else 'verdict'}: {plan.recommendation}")
    if not best.fits and len(plan.candidates) > 1:
        lines.append(f"error: {too_large(best)}")
    return lines


def _updates(work: Workload) -> str:
    limit = f", at most {work.minutes:g} minutes" if work.minutes else ""
    tokens = f"{work.tokens / 1e6:,.1f} M" if work.tokens >= 1e6 else f"{work.tokens:,.0f}"
    return f"{counted(work.steps, 'step')} of {work.batch_tokens:,} tokens, {tokens} tokens in all{limit}"


def _table(plan: Plan) -> list[str]:
    header = ("MACHINE", "ON", "CHIPS", "NEEDS GiB", "HAS GiB", "FITS", "STEPS/S", "TIME", "USD")
    rows = [header, *(_cells(one, one is plan.chosen) for one in plan.candidates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(one: Candidate, chosen: bool) -> tuple[str, ...]:
    most = f"to {one.most_tokens:,}" if one.most_tokens else "no"
    usd = "-" if one.usd is None else "free" if one.target == HERE else usd_text(one)
    return (
        one.name + (" *" if chosen else ""),
        "here" if one.target == HERE else one.target,
        str(one.machine.chips * one.nodes),
        f"{one.memory.total:.1f}",
        f"{one.machine.memory_per_chip:.1f}",
        "yes" if one.fits else most,
        f"{rate:,.0f}" if (rate := 1 / one.step_seconds) >= 100 else f"{rate:.2g}",
        time_text(one.hours),
        usd,
    )


def _basis(plan: Plan) -> list[str]:
    """Return lines that state the sources of the table's figures."""
    best = plan.chosen
    parts = best.memory
    per_chip = (
        f"weights {parts.weights:.2f}, optimizer {parts.optimizer:.2f}, best weights {parts.best:.2f}, the larger "
    )
    per_chip += (
        f"of gradients {parts.gradients:.2f} and activations {parts.activations:.2f}, program {parts.process:.2f}"
    )
    price = best.machine.price
    shares = " or ".join(sorted({f"{estimate.SHARE[one.machine.kind]:.0%}" for one in plan.candidates}))
    speeds = sorted({one.speed_basis for one in plan.candidates})
    what, cost = "pretraining and training" if plan.pretraining else "training", ""
    if best.target != HERE:
        cost = f"{price.source}, {price.region}, {price.date}"
        cost += f", and Vertex AI's {machines.VERTEX_FEE:.0%}" if best.target == "vertex" else ""
    lines = [
        f"memory    GiB of a chip on {best.name}: {per_chip} (modelled; measured on a CPU and an H200 within 15 %)",
        f"time      {what} alone; speed {' or '.join(speeds)}, at {shares} of the peak",
    ]
    return lines + ([f"price     {cost}; --prices FILE for your own"] if cost else [])
