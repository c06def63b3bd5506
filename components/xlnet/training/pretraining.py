"""The pretrain step: trains a language model on a corpus, for the train step to continue."""

import tempfile
from pathlib import Path
from typing import Any

from xlnet import recipe as recipes
from xlnet.data import corpus
from xlnet.training import buckets, launch


def pretrain(recipe_json: str, pretrained: str, dataset: str, out: str) -> dict[str, Any]:
    """Write the corpus as a temporary dataset, and train a language model on it.

    Args:
        recipe_json: JSON of a recipe, or of its ``model`` and ``pretraining`` sections.
        pretrained: digest that corpus and pretrained weights must have; empty accepts any.
        dataset: directory of the dataset artifact of the training that follows.
        out: directory of the model artifact to write.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the corpus, or the weights to begin from, cannot be used.
        RunError: the corpus changed after the snapshot; or see :func:`xlnet.training.train.train`.
        Preempted: training was asked to stop, and saved a checkpoint.
    """
    given = recipes.from_json(recipe_json)
    dataset = buckets.local_dataset(dataset)
    recipe = corpus.recipe_of(given, dataset)
    with tempfile.TemporaryDirectory(prefix="xlnet-corpus-") as folder:
        corpus.write(dataset, given, recipe.data, pretrained, Path(folder))
        return launch.train(recipe.to_json(), folder, out)


def continuing(recipe_json: str, base: str) -> str:
    """Return the recipe of a train step that continues the model of a pretrain step."""
    return recipes.from_json(recipe_json).replace(model={"pretrained": base}).part("model", "training", "pretraining")
