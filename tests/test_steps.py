"""The thin components: what they hand to each other and what they show in the backends' pages."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Trained
from kfp import dsl

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.steps import KEPT, of_run
from xlnet_pipeline.targets.local.cache import key_of, parts_of
from xlnet_steps import display, pretraining, steps


def artifacts(folder: Path) -> tuple[dsl.Metrics, dsl.ClassificationMetrics, dsl.HTML]:
    kinds = (dsl.Metrics, dsl.ClassificationMetrics, dsl.HTML)
    made = [kind(name=kind.__name__, uri=str(folder / kind.__name__)) for kind in kinds]
    return made[0], made[1], made[2]


def evaluation(folder: Path, **more: object) -> str:
    folder.mkdir()
    found = {"task": "regression", "metrics": {"pearson": {"value": 0.5, "low": 0.4, "high": 0.6}}, **more}
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "report.html").write_text("<p>report</p>")
    return str(folder)


def test_the_snapshot_hands_each_cached_step_its_part_of_the_recipe(small_csv: Path) -> None:
    recipe = recipes.tiny().replace(data={"train": str(small_csv)}, training={"seed": 7})
    found = steps.snapshot.python_func(recipe.to_json())
    names = list(steps.snapshot.component_spec.outputs)
    assert names == ["digest", "pretrained", *(name for name in recipe.steps[1:] if KEPT[name].cached)]
    assert found[1] == ""
    for name, part in zip(names[2:], found[2:], strict=True):
        assert set(json.loads(part)) == set(KEPT[name].sections)
    assert json.loads(found[names.index("train")])["training"]["seed"] == 7


def test_a_recipe_with_a_corpus_needs_the_pipeline_with_the_step_that_pretrains(small_csv: Path) -> None:
    plain = recipes.tiny().replace(data={"train": str(small_csv)})
    corpus = plain.replace(pretraining={"corpus": "train"})
    found = pretraining.snapshot.python_func(corpus.to_json())
    cached = [name for name in corpus.steps[1:] if KEPT[name].cached]
    assert list(pretraining.snapshot.component_spec.outputs) == ["digest", "pretrained", *cached]
    assert set(json.loads(found[3])) == {"model", "pretraining"}
    with pytest.raises(UserError, match=r"lacks the step 'pretrain', and the recipe names a .*; compile it anew"):
        steps.snapshot.python_func(corpus.to_json())
    with pytest.raises(UserError, match=r"has the step 'pretrain', and the recipe names no .*; compile it anew"):
        pretraining.snapshot.python_func(plain.to_json())


def test_a_margin_is_nothing_that_training_depends_on(small_csv: Path) -> None:
    recipe = recipes.tiny().replace(data={"train": str(small_csv)})
    strict = recipe.replace(evaluation={"margin": 0.02})
    before, after = (steps.snapshot.python_func(one.to_json()) for one in (recipe, strict))
    names = list(steps.snapshot.component_spec.outputs)
    assert [name for name, old, new in zip(names, before, after, strict=True) if old != new] == ["evaluate"]


@pytest.mark.parametrize(
    ("section", "change", "again"),
    [
        ("data", {"train": "other.csv"}, False),
        ("training", {"seed": 7}, False),
        ("evaluation", {"margin": 0.02}, True),
        ("registry", {"name": "other"}, True),
    ],
)
def test_a_registration_depends_on_its_own_part_of_the_recipe(
    section: str, change: dict[str, object], again: bool
) -> None:
    """It is given the whole recipe; what it reads beside its part are the artifacts."""
    recipe = recipes.tiny().replace(data={"train": "rows.csv"})
    keys = [
        key_of(parts_of("register", {"recipe": one.to_json(), "code": "sha256:1", "model": {"digest": "sha256:2"}}))
        for one in (recipe, recipe.replace(**{section: change}))
    ]
    assert (keys[0] != keys[1]) is again


def test_pretrained_weights_are_nothing_that_preprocessing_depends_on(small_csv: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    recipe = recipes.tiny().replace(data={"train": str(small_csv)}, model={"pretrained": str(weights)})
    found = []
    for content in ("one", "two"):
        (weights / "model.safetensors").write_text(content)
        found.append(steps.snapshot.python_func(recipe.to_json()))
    names = list(steps.snapshot.component_spec.outputs)
    assert [name for name, old, new in zip(names, *found, strict=True) if old != new] == ["pretrained"]


def test_a_regression_shows_its_figures_and_the_report(tmp_path: Path) -> None:
    metrics, classification, report = artifacts(tmp_path)
    display.show(evaluation(tmp_path / "evaluation"), metrics, classification, report)
    assert metrics.metadata == {"pearson": 0.5}
    assert classification.metadata == {}
    assert Path(report.path).read_text() == "<p>report</p>"


def test_a_curve_is_thinned_and_has_no_infinity(tmp_path: Path) -> None:
    count = 5000
    roc = {
        "fpr": [index / (count - 1) for index in range(count)],
        "tpr": [math.sqrt(index / (count - 1)) for index in range(count)],
        "thresholds": [math.inf, *(1 - index / count for index in range(1, count))],
    }
    metrics, classification, report = artifacts(tmp_path)
    figures = {"task": "classification", "classes": ["a", "b"], "confusion": [[3, 1], [0, 4]], "roc": roc}
    display.show(evaluation(tmp_path / "evaluation", **figures), metrics, classification, report)
    points = classification.metadata["confidenceMetrics"]
    assert len(points) == display.ROC_POINTS
    assert (points[0]["falsePositiveRate"], points[-1]["falsePositiveRate"]) == (0.0, 1.0)
    assert points[0]["confidenceThreshold"] == 1.0
    json.dumps(classification.metadata, allow_nan=False)
    assert [row["row"] for row in classification.metadata["confusionMatrix"]["rows"]] == [[3, 1], [0, 4]]


def test_a_curve_of_two_points_stays_whole(tmp_path: Path) -> None:
    metrics, classification, report = artifacts(tmp_path)
    roc = {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0], "thresholds": [math.inf, 0.2]}
    figures = {"task": "classification", "classes": ["a", "b"], "confusion": [[1, 0], [0, 1]], "roc": roc}
    display.show(evaluation(tmp_path / "evaluation", **figures), metrics, classification, report)
    assert [one["recall"] for one in classification.metadata["confidenceMetrics"]] == [0.0, 1.0]


def test_a_real_evaluation_is_shown(trained: Trained, tmp_path: Path) -> None:
    metrics, classification, report = artifacts(tmp_path)
    display.show(str(trained.evaluation), metrics, classification, report)
    assert {"accuracy", "macro_f1", "mcc"} <= set(metrics.metadata)
    rows = classification.metadata["confusionMatrix"]["rows"]
    found = json.loads((trained.evaluation / "metrics.json").read_text())
    assert sum(sum(row["row"]) for row in rows) == found["rows"]
    json.dumps(classification.metadata, allow_nan=False)


def components_of(pretrains: bool) -> dict[str, Any]:
    """The components of a run's steps after the snapshot."""
    every = vars(steps) | (vars(pretraining) if pretrains else {})
    return {name: every[name].component_spec for name in of_run(pretrains) if name in KEPT}


@pytest.mark.parametrize("pretrains", [False, True])
def test_every_cached_step_takes_the_identity_of_its_code(pretrains: bool) -> None:
    assert all({"recipe", "code"} <= set(one.inputs) for one in components_of(pretrains).values())


@pytest.mark.parametrize("pretrains", [False, True])
def test_the_table_of_steps_describes_the_components(pretrains: bool) -> None:
    """Inputs, outputs and what the snapshot tells: the DAG, the cache and the plan read them from the table."""
    for name, component in components_of(pretrains).items():
        row = KEPT[name]
        artifacts = {key for key, one in component.inputs.items() if one.type != "String"}
        assert artifacts == {*row.inputs, *([name for name in row.if_made if name == "base" and pretrains])}
        assert set(component.inputs) - artifacts == {"recipe", "code", *row.given}
        assert row.output in component.outputs
        assert set(row.given.values()) <= set(steps.snapshot.component_spec.outputs)
        assert set(row.sections) <= {field.name for field in dataclasses.fields(recipes.Recipe)}


def test_what_a_backend_cannot_store_stays_out_of_an_artifacts_metadata() -> None:
    facts = {
        "rows": 3,
        "champion": None,
        "loss": float("nan"),
        "none": {"a": None, "b": [1, None, float("inf")]},
        "no": 0,
    }
    assert display.stated(facts) == {"rows": 3, "none": {"b": [1]}, "no": 0}
