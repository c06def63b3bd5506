"""Forecasts which steps of a local run the cache has, and why the others have to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data import snapshot as snapshots
from xlnet.recipe import Recipe
from xlnet.steps import KEPT, SNAPSHOT, STEPS, before
from xlnet_pipeline.targets import specification
from xlnet_pipeline.targets.local import compiled, registration
from xlnet_pipeline.targets.local.cache import Cache, Damaged, key_of, parts_of


@dataclass(frozen=True)
class StepForecast:
    """The forecast for one step."""

    name: str
    cached: bool
    reason: str
    outputs: dict[str, Any]  # of the cached result; empty if there is none


def forecast(recipe: Recipe, home: Path) -> list[StepForecast]:
    """Forecast each step from the local target's cache in ``home``. Writes nothing.

    Raises:
        UserError: the recipe's input does not exist.
    """
    taken = snapshots.of(recipe)
    outputs = {"digest": taken.digest, "pretrained": taken.pretrained}
    definitions = _definitions(home, recipe)
    cache = Cache(home / "cache") if (home / "cache").is_dir() else None
    steps = [StepForecast(SNAPSHOT.name, False, "always runs: it checks the input for changes", {})]
    for name in recipe.steps[1:]:
        row = KEPT[name]
        made = [step for step in steps if step.name in before(name) and not step.cached]
        if made or cache is None:
            reason = f"{' and '.join(step.name for step in made)} will run" if made else "first time"
            steps.append(StepForecast(name, False, reason, {}))
            continue
        arguments: dict[str, Any] = {"recipe": recipe.part(*row.sections), "code": provenance.code_fingerprint(name)}
        arguments |= {parameter: outputs[output] for parameter, output in row.given.items()}
        kept = {STEPS[step.name].output: step.outputs for step in steps if step.outputs}
        for artifact in (*row.inputs, *row.if_made):
            arguments |= {one: value for one, value in kept.get(artifact, {}).items() if _is_of(one, artifact)}
        more = {"definition": definitions[name]}
        if row.looped:
            keys = kept["survey"]["keys"]
            looks = [
                _look(cache, name, parts_of(name, arguments | {row.key: key}, **more), recipe.registry.name)
                for key in keys
            ]
            steps.append(_whole(name, row.output, looks))
            continue
        arguments |= {"shards": str(recipe.shards)} if name == "survey" else {}
        if name == "register":
            more["registry"] = registration.standing(arguments["recipe"], home)
        step = _look(cache, name, parts_of(name, arguments, **more), recipe.registry.name)
        steps.append(_registered(step, arguments["recipe"], home) if name == "register" else step)
    return steps


def _is_of(name: str, artifact: str) -> bool:
    """Whether an output is this artifact, or one of the artifacts of this name that a loop has made."""
    return name == artifact or name.rpartition("-")[0] == artifact


def _whole(name: str, output: str, looks: list[StepForecast]) -> StepForecast:
    """Return the forecast for a step that runs once for each shard."""
    lacking = [one for one in looks if not one.cached]
    if lacking:
        reason = f"{len(lacking)} of {len(looks)} shards: {lacking[0].reason}"
        return StepForecast(name, False, reason, {})
    found = {f"{output}-{number}": one.outputs[output] for number, one in enumerate(looks)}
    return StepForecast(name, True, looks[0].reason, found)


def _look(cache: Cache, name: str, parts: dict[str, Any], model: str) -> StepForecast:
    try:
        entry = cache.get(key_of(parts))
    except Damaged as damaged:
        return StepForecast(name, False, str(damaged), {})
    if entry is None:
        return StepForecast(name, False, cache.why(parts, model), {})
    return StepForecast(name, True, f"same as in run {entry['run']}", entry["outputs"])


def _registered(step: StepForecast, recipe_json: str, home: Path) -> StepForecast:
    """Return the cached registration as a forecast, unless the registry no longer has it."""
    try:
        if step.cached:
            registration.check(step.outputs, recipe_json, home)
    except Damaged as damaged:
        return StepForecast(step.name, False, str(damaged), {})
    return step


def _definitions(home: Path, recipe: Recipe) -> dict[str, str]:
    """Return the digest of each component's source, as in the local target's cache keys."""
    spec = compiled.specification(dict.fromkeys(KEPT, ""), home, recipe.pretrains, recipe.shards)
    found = specification.tasks(spec)
    every = [one for task in found for one in (task.loop.tasks if task.loop else [task])]
    return {task.name: provenance.digest_json(task.words) for task in every}
