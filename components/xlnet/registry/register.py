"""The register step: registers a version, and lets the gate decide whether it becomes champion."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from xlnet import provenance, state
from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet.data.dataset import open_dataset
from xlnet.errors import UserError
from xlnet.evaluation.baseline import spell
from xlnet.recipe import Recipe
from xlnet.registry import CHAMPION, ModelVersion, Registry, open_registry
from xlnet.registry.challenger import Challenger
from xlnet.registry.champions import make_champion, was_rolled_back
from xlnet.registry.gate import Decision, gate
from xlnet.registry.own_disk import refuse_own_disk


def register(recipe_json: str, dataset: str, model: str, evaluation: str, out: str) -> dict[str, Any]:
    """Register a model as a version, and as champion if it beats the current champion.

    Args:
        recipe_json: JSON of a recipe, or of its ``evaluation`` and ``registry`` sections.
        dataset: directory of the dataset artifact.
        model: directory of the model artifact.
        evaluation: directory of the evaluation artifact.
        out: directory of the registration artifact to write.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the evaluation belongs to another model.
        RunError: the registry does not answer, or a weight or a prediction of the model is not finite.
        CorruptArtifact: an input was changed after it was written.
    """
    started = provenance.now()
    given = recipes.from_json(recipe_json)
    provenance.refuse_foreign(out, "registration")
    digests = {name: provenance.verify(path) for name, path in (("dataset", dataset), ("model", model))}
    digests["evaluation"] = provenance.verify(evaluation)
    challenger = _challenger(dataset, model, evaluation, digests["model"])
    refuse_own_disk(given.registry.uri)
    registry = open_registry(given.registry.uri)
    name = given.registry.name
    registry.ready(name)
    with registry.exclusive():
        decision = _decide(registry, challenger, given)
        tags = _tags(challenger, digests, decision, out)
        version, is_new = _version(registry, name, challenger, decision, tags)
        if decision.promote and CHAMPION not in version.aliases:
            make_champion(registry, version)
        registry.ready(name)  # The next commands find these answers in the cache, and do not open MLflow.
        registry.versions(name)
    standing = "is champion" if decision.promote else "is registered, but not as champion"
    line = f"{name}:{version.version} {standing}: {decision.reason}"
    print(line if is_new else f"{line} (the same model was registered before)")
    entry = _entry(name, version, decision, challenger, digests)
    facts = {key: value for key, value in entry.items() if isinstance(value, str | int | float) and value != ""}
    facts |= {
        "promoted": str(decision.promote).lower(),
        "gate_decision": tags["decision"],
        "registry": state.relative(registry.shown_uri, state.home()),
    }
    made_of = recipes.of_artifact(challenger.evaluation)
    whole = Recipe(made_of.data, made_of.model, made_of.training, given.evaluation, given.registry, made_of.pretraining)
    with provenance.making(out, "registration", "register", started) as made:
        text = json.dumps(entry, indent=1, ensure_ascii=False)
        (made.directory / "registration.json").write_text(text + "\n", encoding="utf-8")
        (made.directory / "recipe.json").write_text(whole.to_json(), encoding="utf-8")
        made.parameters, made.metadata = json.loads(whole.part("evaluation", "registry")), facts
        made.inputs = [provenance.read(model), provenance.read(evaluation)]
    return facts


def _challenger(dataset: str, model: str, evaluation: str, model_digest: str) -> Challenger:
    """Return the challenger after checking that the evaluation is its own and that its numbers are finite."""
    places = (Path(dataset).absolute(), Path(model).absolute(), Path(evaluation).absolute())
    challenger = Challenger(*places, model_digest)
    if challenger.metrics["model_digest"] != model_digest:
        raise UserError(f"evaluation '{evaluation}' is not one of model '{model}'; evaluate the model first")
    challenger.refuse_not_finite()
    return challenger


def _decide(registry: Registry, challenger: Challenger, recipe: Recipe) -> Decision:
    """Return the gate's decision. It does not promote a model that a person has rolled back, unless forced."""
    name = recipe.registry.name
    champion = registry.champion(name)
    decision = gate(challenger, champion, recipe.evaluation, recipe.registry.force)
    earlier = was_rolled_back(registry, name, challenger.model_digest) if decision.promote else None
    if earlier and not recipe.registry.force:
        again = f"xlnet-pipeline models promote {shlex.quote(name)}:{earlier.version}"
        reason = f"this very model, version {earlier.version}, was rolled back by hand; to promote it again: {again}"
        return Decision(False, reason, champion.version if champion else None)
    return decision


def _version(
    registry: Registry, name: str, challenger: Challenger, decision: Decision, tags: dict[str, str]
) -> tuple[ModelVersion, bool]:
    """Return the challenger's version and whether it is new; the same model is registered only once."""
    known = registry.versions(name) if name in registry.names() else []
    for version in known:
        if version.tags.get("model_digest") == challenger.model_digest:
            registry.describe(name, version.version, decision.reason, tags)
            return version, False
    fields = json.loads((challenger.evaluation / "recipe.json").read_text(encoding="utf-8"))
    parameters = {f"{section}.{key}": str(value) for section, part in fields.items() for key, value in part.items()}
    return registry.add(name, decision.reason, tags, parameters, challenger.scores), True


def _tags(challenger: Challenger, digests: dict[str, str], decision: Decision, out: str) -> dict[str, str]:
    content = challenger.metrics
    card = open_dataset(challenger.dataset).card
    return {
        "model_uri": objects.address(challenger.model),
        "model_digest": digests["model"],
        "dataset_digest": digests["dataset"],
        "snapshot_digest": card["snapshot"],
        "test_digest": content["test_digest"],
        "evaluation_uri": objects.address(challenger.evaluation),
        "evaluation_digest": digests["evaluation"],
        "registration_uri": objects.address(out),
        "run": os.environ.get("XLNET_RUN_ID", ""),
        "git_sha": provenance.git_sha(),
        "metric": f"{content['primary']} {'unknown' if challenger.score is None else f'{challenger.score:.4f}'}",
        "baseline": _baseline(content),
        "decision": "promoted" if decision.promote else "kept",
    }


def _baseline(content: dict[str, Any]) -> str:
    """Return ``"tfidf accuracy 0.7900, difference in accuracy +0.0200 [+0.0010, +0.0390]"``; empty if there is none."""
    base = content.get("baseline")
    if not base:
        return ""
    score = base["metrics"][content["primary"]]["value"]
    shown = "unknown" if score is None else f"{score:.4f}"
    return f"{base['kind']} {content['primary']} {shown}, {spell(base['difference'])}"


def _entry(
    name: str, version: ModelVersion, decision: Decision, challenger: Challenger, digests: dict[str, str]
) -> dict[str, Any]:
    content = challenger.metrics
    aliases = [alias for alias in version.aliases if alias != CHAMPION] + ([CHAMPION] if decision.promote else [])
    return {
        "name": name,
        "version": version.version,
        "aliases": aliases,
        "promoted": decision.promote,
        "reason": decision.reason,
        "champion_version": decision.champion_version,
        "difference": decision.difference,
        "low": decision.low,
        "high": decision.high,
        "model_uri": state.relative(objects.address(challenger.model), state.home()),
        "model_digest": digests["model"],
        "dataset_digest": digests["dataset"],
        "evaluation_digest": digests["evaluation"],
        "test_digest": content["test_digest"],
        "metrics": challenger.scores,
        "baseline": _baseline(content),
    }
