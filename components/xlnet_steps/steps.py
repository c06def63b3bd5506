"""The five steps as thin Kubeflow Pipelines components; the work is done in ``xlnet``.

A lightweight component carries its own source, so each body imports what it needs. ``recipe`` is the step's part of
the recipe (the whole of it for ``snapshot`` and ``register``, which are never cached), ``code`` identifies the code (a
source fingerprint, or the image's digest), and ``pretrained`` identifies the pretrained weights. The backends' cache
keys contain only parameters, so these values must be parameters.
"""

from typing import NamedTuple

from kfp import dsl

IMAGE = "python:3.11"  # a placeholder: the local target uses no containers, the others set a pinned image


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def snapshot(recipe: str) -> NamedTuple(  # type: ignore[valid-type]
    "Snapshot",
    [("digest", str), ("pretrained", str), ("preprocess", str), ("train", str), ("evaluate", str)],
):
    """Compute digests of the input's content, and the part of the recipe that each cached step uses."""
    from xlnet_steps.beginning import snapshot as step

    return step(recipe)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(recipe: str, snapshot: str, code: str, dataset: dsl.Output[dsl.Dataset]) -> None:
    """Convert rows to token ids: ``xlnet.data.preprocess``."""
    from xlnet.data.preprocess import preprocess as step
    from xlnet_steps.display import stated

    dataset.metadata.update(stated(step(recipe, snapshot, dataset.path)))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    recipe: str, pretrained: str, code: str, dataset: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model]
) -> None:
    """Train a model on a dataset: ``xlnet.training.launch``, in this container or in a JobSet of the cluster."""
    from xlnet_steps.display import stated
    from xlnet_steps.training import train as step

    model.metadata.update(stated(step(recipe, dataset.path, model.path)))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    recipe: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Evaluate a model on the test split: ``xlnet.evaluation.evaluate``."""
    from xlnet.evaluation.evaluate import evaluate as step
    from xlnet_steps.display import show, stated

    evaluation.metadata.update(stated(step(recipe, dataset.path, model.path, evaluation.path)))
    show(evaluation.path, metrics, classification, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    recipe: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    lineage: dsl.Output[dsl.HTML],
) -> None:
    """Register a model, and promote it if it beats the champion: ``xlnet.registry.register``."""
    from xlnet.lineage import page
    from xlnet.registry.register import register as step
    from xlnet_steps.display import stated

    registration.metadata.update(stated(step(recipe, dataset.path, model.path, evaluation.path, registration.path)))
    page.write(registration.path, lineage.path)
