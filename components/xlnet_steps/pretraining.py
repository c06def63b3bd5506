"""The steps that differ in a run that pretrains its model before the training.

They have the same names as in :mod:`xlnet_steps.steps`, because a step is known by the name of its function.
"""

from typing import NamedTuple

from kfp import dsl

from xlnet_steps.steps import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def snapshot(recipe: str) -> NamedTuple(  # type: ignore[valid-type]
    "Snapshot",
    [
        ("digest", str),
        ("pretrained", str),
        ("preprocess", str),
        ("pretrain", str),
        ("train", str),
        ("evaluate", str),
    ],
):
    """Compute digests of the input's content, and the part of the recipe that each cached step uses."""
    from xlnet_steps.beginning import snapshot as step

    return step(recipe, pretrains=True)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    recipe: str, pretrained: str, code: str, dataset: dsl.Input[dsl.Dataset], base: dsl.Output[dsl.Model]
) -> None:
    """Train a language model on a corpus: ``xlnet.training.pretraining``."""
    from xlnet.training.pretraining import pretrain as step
    from xlnet_steps.display import stated

    base.metadata.update(stated(step(recipe, pretrained, dataset.path, base.path)))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    recipe: str,
    pretrained: str,
    code: str,
    dataset: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
) -> None:
    """Train the pretrained model on a dataset: ``xlnet.training.launch``, in this container or in a JobSet."""
    from xlnet_steps.display import stated
    from xlnet_steps.training import train as step

    model.metadata.update(stated(step(recipe, dataset.path, model.path, base.path)))
