"""Finds what can be deleted from the state directory: unneeded runs, and files that killed processes left behind.

A run is needed while it is running, new or young, while a registered version has its files there, and while another
run that is needed names a file in it: results are shared between runs through the cache.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from xlnet import state
from xlnet.errors import RunError, UserError
from xlnet.registry import CHAMPION, ModelVersion, Registry, open_registry
from xlnet.registry.address import sqlite
from xlnet.registry.champions import previous_champion
from xlnet.steps import STEPS
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local import checkpoints
from xlnet_pipeline.targets.local.cache import Cache
from xlnet_pipeline.targets.local.leftovers import leftovers
from xlnet_pipeline.targets.local.removal import Item, age_of, remove, size_of
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import Run


@dataclass
class PrunePlan:
    """The items to remove, and for each run that is kept the reason."""

    remove: list[Item] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # run → reason
    versions: list[tuple[Registry, ModelVersion]] = field(default_factory=list)  # of the runs that go

    @property
    def size(self) -> int:
        """The number of bytes that the plan frees."""
        return sum(item.size for item in self.remove)


def plan(target: LocalTarget, *, older_than: float, keep: int, versions: bool = False) -> PrunePlan:
    """Decide what can be removed.

    Args:
        target: the local target, whose state directory is examined.
        older_than: a run or a checkpoint stays until it is this many seconds old.
        keep: number of newest runs that always stay.
        versions: whether to remove registered versions without an alias too, with their runs.

    Raises:
        RunError: a registry does not answer, so that nobody knows what its champions need.
    """
    runs = target.runs()  # before the registries are asked: a run that ends meanwhile counts as running
    found = PrunePlan()
    registered = list(_registered(target.home, runs))
    found.kept = _reasons(target.home, runs, registered, older_than, keep, versions)
    for run in runs:
        if run.id not in found.kept:
            path = target.home / "runs" / run.id
            found.remove.append(Item("run", run.id, path, size_of(path), _age_of(run), run.status.lower()))
    going = {item.name for item in found.remove}
    for registry, version, protected in registered:
        if versions and not protected and _runs_of(target.home, version) & going:
            found.versions.append((registry, version))
            name = f"{version.name}:{version.version}"
            found.remove.append(Item("version", name, None, 0, 0.0, "has no alias, and its run goes"))
    found.remove += _cache_entries(target.home, going)
    running = {run.id for run in runs if run.status == record.RUNNING}
    found.remove += leftovers(target.home, running)
    found.remove += _abandoned(target.home, older_than)
    return found


def apply(target: LocalTarget, made: PrunePlan, say: Callable[[str], None] = lambda text: None) -> None:
    """Remove the items of a plan. An item that cannot be removed is reported, and the others are still removed."""
    for registry, version in made.versions:
        registry.delete(version.name, version.version)
    for item in sorted(made.remove, key=lambda item: item.kind != "cache entry"):  # or one would name what is gone
        if item.path is None:
            continue
        take = checkpoints.remove_at if item.kind == "checkpoints" else remove
        if problem := take(item.path, target.home):
            say(f"cannot remove {item.kind} '{item.name}': {problem}")


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Keep runs from taking results out of the cache while the plan is made and applied."""
    with Cache(home / "cache").changing():
        yield


def _registered(home: Path, runs: list[Run]) -> Iterator[tuple[Registry, ModelVersion, str]]:
    """Yield the versions in all registries that the runs here used, each with the alias that protects it, if any."""
    own = home / "mlflow.db"
    addresses = {"", *(run.recipe.get("registry", {}).get("uri", "") for run in runs)}
    addresses |= {sqlite(own)} if own.is_file() else set()
    seen = set()
    for address in sorted(addresses):
        registry = open_registry(address, home)
        if registry.shown_uri in seen:
            continue
        seen.add(registry.shown_uri)
        try:
            for name in registry.names():
                before = previous_champion(registry, name)
                for version in registry.versions(name):
                    mark = ", ".join(version.aliases)
                    if not mark and before is not None and before.version == version.version:
                        mark = f"{CHAMPION} before"
                    yield registry, version, mark
        except (UserError, RunError) as error:
            raise RunError(f"{error}; what its models need is not known, so nothing was removed") from None


def _reasons(
    home: Path,
    runs: list[Run],
    registered: list[tuple[Registry, ModelVersion, str]],
    older_than: float,
    keep: int,
    versions: bool,
) -> dict[str, str]:
    """Map each run that is kept to the reason."""
    reasons: dict[str, str] = {}
    for _, version, mark in sorted(registered, key=lambda one: one[2] == ""):
        if mark or not versions:
            what = f"{version.name}:{version.version}" + (f" ({mark})" if mark else ", which is registered")
            for one in _runs_of(home, version):
                reasons.setdefault(one, f"holds files of {what}")
    damaged = next((run for run in runs if run.status == record.DAMAGED), None)
    for number, run in enumerate(runs):  # the newest first
        if run.status == record.RUNNING:
            reasons[run.id] = "is running"
        elif run.status == record.DAMAGED:
            reasons[run.id] = f"its record is damaged; to forget it remove '{home / 'runs' / run.id}'"
        elif damaged and run.created <= str(damaged.ended):  # it used results of runs that began before it ended
            reasons.setdefault(run.id, f"may hold files that run {damaged.id} uses, whose record is damaged")
        elif number < keep:
            reasons.setdefault(run.id, f"is one of the {keep} newest")
        elif _age_of(run) < older_than:
            reasons.setdefault(run.id, "is not old enough")
    names = {run.id: _named_in(home, run) for run in runs}
    waiting = list(reasons)
    while waiting:
        for other in names.get(user := waiting.pop(), set()):
            if other not in reasons:
                reasons[other] = f"holds files that run {user} uses"
                waiting.append(other)
    return {run.id: reasons[run.id] for run in runs if run.id in reasons}


def _runs_of(home: Path, version: ModelVersion) -> set[str]:
    places = (version.model_uri, version.evaluation_uri, version.registration_uri)
    return {one for place in places if (one := _run_at(home, place))}


def _named_in(home: Path, run: Run) -> set[str]:
    """Return the runs whose directories hold the inputs and outputs that a run's record names."""
    found = set()
    for step in run.steps:
        for value in (*step.inputs.values(), *step.outputs.values()):
            if isinstance(value, dict) and (other := _run_at(home, str(value.get("uri") or ""))):
                found.add(other)
    return found


def _run_at(home: Path, place: str) -> str:
    for path, folder in ((Path(place), home / "runs"), (Path(place).resolve(), (home / "runs").resolve())):
        if place and path.is_relative_to(folder) and path != folder:
            return path.relative_to(folder).parts[0]
    return ""


def _cache_entries(home: Path, going: set[str]) -> Iterator[Item]:
    """Yield the cache entries that name something that will be removed, or that no longer exists."""
    for path in sorted(one for step in STEPS for one in (home / "cache").glob(f"{step}-*.json")):
        try:
            entry = state.restored(json.loads(path.read_text(encoding="utf-8")), home)
            artifacts = [value for value in entry["outputs"].values() if isinstance(value, dict)]
            places = [str(value["uri"]) for value in artifacts if value.get("digest")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            places = [""]  # no entry of ours
        if any(not place or _run_at(home, place) in going or not Path(place).exists() for place in places):
            yield Item("cache entry", path.stem, path, size_of(path), age_of(path), "its files go, or are gone")


def _abandoned(home: Path, older_than: float) -> Iterator[Item]:
    for one in checkpoints.found(home):
        if not one.in_use and one.age > older_than and one.path is not None:
            why = "of a training that was not taken up again"
            yield Item("checkpoints", one.name, one.path, one.size, one.age, why)


def _age_of(run: Run) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(run.ended or run.created)).total_seconds()
