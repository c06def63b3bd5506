"""The register step: a version in the registry, and the gate that decides who is champion."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlnet import provenance, state
from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet.data.dataset import open_dataset
from xlnet.errors import RunError, UserError
from xlnet.evaluation.comparison import Predictions, compare
from xlnet.evaluation.predictor import Predictor
from xlnet.recipe import EvaluationRecipe, Recipe
from xlnet.registry import CHAMPION, ModelVersion, Registry, open_registry
from xlnet.registry.succession import crown, was_rolled_back


@dataclass(frozen=True)
class Decision:
    """What the gate said, and the figures behind it (None where nothing was compared)."""

    promote: bool
    reason: str
    champion_version: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Candidate:
    """The model that asks to be registered."""

    dataset: Path
    model: Path
    evaluation: Path
    model_digest: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The evaluation's ``metrics.json``."""
        found: dict[str, Any] = json.loads((self.evaluation / "metrics.json").read_text(encoding="utf-8"))
        return found


def register(recipe: str, dataset: str, model: str, evaluation: str, out: str) -> dict[str, Any]:
    """Register a model as a version, and as champion if it beats the present one.

    Args:
        recipe: JSON of a recipe, or of its ``evaluation`` and ``registry`` sections.
        dataset: directory of the dataset artifact.
        model: directory of the model artifact.
        evaluation: directory of the evaluation artifact.
        out: directory of the registration artifact to be written.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the evaluation is not one of this model.
        RunError: the registry does not answer.
        CorruptArtifact: an input was changed after it was written.
    """
    started = provenance.now()
    given = recipes.from_json(recipe)
    digests = {name: provenance.verify(path) for name, path in (("dataset", dataset), ("model", model))}
    digests["evaluation"] = provenance.verify(evaluation)
    places = (Path(dataset).absolute(), Path(model).absolute(), Path(evaluation).absolute())
    candidate = Candidate(*places, digests["model"])
    if candidate.metrics["model_digest"] != digests["model"]:
        raise UserError(f"evaluation '{evaluation}' is not one of model '{model}'; evaluate the model first")
    registry = open_registry(given.registry.uri)
    name = given.registry.name
    with registry.exclusive():
        champion = registry.champion(name)
        decision = gate(candidate, champion, given.evaluation)
        if decision.promote and (earlier := was_rolled_back(registry, name, candidate.model_digest)):
            again = f"xlnet-pipeline models promote {name}:{earlier.version} decides otherwise"
            reason = f"this very model, version {earlier.version}, was rolled back by hand; {again}"
            decision = Decision(False, reason, champion.version if champion else None)
        tags = _tags(candidate, digests, decision, out)
        version, is_new = _version(registry, name, candidate, decision, tags)
        if decision.promote and CHAMPION not in version.aliases:
            crown(registry, version)
    line = (
        f"{name}:{version.version} {'is champion' if decision.promote else 'is kept, not champion'}: {decision.reason}"
    )
    print(line if is_new else f"{line} (the same model was registered before)")
    entry = _entry(name, version, decision, candidate, digests)
    facts = {key: value for key, value in entry.items() if isinstance(value, str | int | float) and value != ""}
    facts |= {
        "promoted": str(decision.promote).lower(),
        "gate_decision": tags["decision"],
        "registry": state.relative(registry.shown_uri, state.home()),
    }
    made_of = recipes.of_artifact(candidate.evaluation)
    whole = Recipe(made_of.data, made_of.model, made_of.training, given.evaluation, given.registry)
    with provenance.writing(out) as directory:
        text = json.dumps(entry, indent=1, ensure_ascii=False)
        (directory / "registration.json").write_text(text + "\n", encoding="utf-8")
        (directory / "recipe.json").write_text(whole.to_json(), encoding="utf-8")
        provenance.record(
            directory,
            type="registration",
            step="register",
            started=started,
            parameters=json.loads(whole.part("evaluation", "registry")),
            metadata=facts,
            inputs=[provenance.read(model), provenance.read(evaluation)],
        )
    return facts


def gate(candidate: Candidate, champion: ModelVersion | None, recipe: EvaluationRecipe) -> Decision:
    """Whether the candidate becomes champion, and why.

    It must beat the champion on the same test rows by the rule of :mod:`xlnet.evaluation.comparison`. The
    champion's own predictions are used where they are of these rows; otherwise it predicts them now.
    """
    if champion is None:
        return Decision(True, "no champion yet")
    if champion.tags.get("model_digest") == candidate.model_digest:
        return Decision(True, f"the champion is this very model, version {champion.version}", champion.version)
    content = candidate.metrics
    ours = _read_predictions(candidate.evaluation, content["classes"])
    theirs = _champion_predictions(candidate, champion, content)
    if isinstance(theirs, str):
        by_hand = f"xlnet-pipeline models promote {champion.name}:VERSION decides by hand"
        return Decision(
            False, f"cannot be compared with champion {champion.version}: {theirs}; {by_hand}", champion.version
        )
    found = compare(ours, theirs, content["primary"], recipe)
    figures = (found.difference, found.low, found.high)
    return Decision(found.wins, f"{found.reason} (version {champion.version})", champion.version, *figures)


def _champion_predictions(candidate: Candidate, champion: ModelVersion, content: dict[str, Any]) -> Predictions | str:
    """The champion's predictions of the candidate's test rows, or why there are none."""
    classes = content["classes"]
    if champion.tags.get("test_digest") == content["test_digest"] and champion.evaluation_uri:
        try:
            kept = objects.local_directory(champion.evaluation_uri)
            provenance.verify(kept)
            return _read_predictions(kept, classes)
        except (UserError, RunError):
            pass  # gone, damaged or out of reach: predict again
    try:
        model = objects.local_directory(champion.model_uri)
        if not model.is_dir():
            return f"its files in '{champion.model_uri}' are gone"
        provenance.verify(model)
    except (UserError, RunError) as error:
        return str(error)
    predictor = Predictor(model)
    if list(predictor.model.config.classes) != classes:
        return "it predicts other classes"
    split = open_dataset(candidate.dataset).split("test")
    rows = split.table()
    logits, _ = predictor.logits(rows["text"].to_pylist(), rows["text_pair"].to_pylist())
    return Predictions(split.labels, logits.argmax(1) if classes else logits[:, 0], len(classes))


def _read_predictions(evaluation: Path, classes: list[str]) -> Predictions:
    table: pa.Table = pq.read_table(evaluation / "predictions.parquet", columns=["label", "prediction"])
    labels, predictions = table["label"].to_pylist(), table["prediction"].to_pylist()
    if not classes:
        return Predictions(np.array(labels), np.array(predictions), 0)
    index = {name: i for i, name in enumerate(classes)}
    truth, said = (np.array([index[value] for value in column], np.int64) for column in (labels, predictions))
    return Predictions(truth, said, len(classes))


def _version(
    registry: Registry, name: str, candidate: Candidate, decision: Decision, tags: dict[str, str]
) -> tuple[ModelVersion, bool]:
    """The candidate's version: a new one, unless the same model has one already."""
    known = registry.versions(name) if name in registry.names() else []
    for version in known:
        if version.tags.get("model_digest") == candidate.model_digest:
            registry.describe(name, version.version, decision.reason, tags)
            return version, False
    fields = json.loads((candidate.evaluation / "recipe.json").read_text(encoding="utf-8"))
    parameters = {f"{section}.{key}": str(value) for section, part in fields.items() for key, value in part.items()}
    figures = {key: figure["value"] for key, figure in candidate.metrics["metrics"].items()}
    return registry.add(name, decision.reason, tags, parameters, figures), True


def _tags(candidate: Candidate, digests: dict[str, str], decision: Decision, out: str) -> dict[str, str]:
    content = candidate.metrics
    card = open_dataset(candidate.dataset).card
    return {
        "model_uri": objects.address(candidate.model),
        "model_digest": digests["model"],
        "dataset_digest": digests["dataset"],
        "snapshot_digest": card["snapshot"],
        "test_digest": content["test_digest"],
        "evaluation_uri": objects.address(candidate.evaluation),
        "evaluation_digest": digests["evaluation"],
        "registration_uri": objects.address(out),
        "run": os.environ.get("XLNET_RUN_ID", ""),
        "git_sha": provenance.git_sha(),
        "metric": f"{content['primary']} {content['metrics'][content['primary']]['value']:.4f}",
        "decision": "promoted" if decision.promote else "kept",
    }


def _entry(
    name: str, version: ModelVersion, decision: Decision, candidate: Candidate, digests: dict[str, str]
) -> dict[str, Any]:
    content = candidate.metrics
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
        "model_uri": state.relative(objects.address(candidate.model), state.home()),
        "model_digest": digests["model"],
        "dataset_digest": digests["dataset"],
        "evaluation_digest": digests["evaluation"],
        "test_digest": content["test_digest"],
        "metrics": {key: figure["value"] for key, figure in content["metrics"].items()},
    }
