"""Runs the train step in its own container or in a JobSet."""

import os
from typing import Any

from xlnet.data import objects
from xlnet.training import launch

JOBSET = "XLNET_JOBSET"


def train(recipe_json: str, dataset: str, out: str, base: str = "") -> dict[str, Any]:
    """Train here, or in the JobSet whose requirements ``XLNET_JOBSET`` holds; see :func:`xlnet.training.launch.train`.

    The requirements are a variable of the container and not an argument of the step. Kubeflow Pipelines computes its
    cache key from the arguments, and training on another machine must give the same key.

    ``base`` is the model of a pretrain step, which this training continues; empty without such a step.
    """
    requirements = os.environ.get(JOBSET)
    if base:
        from xlnet.training.pretraining import continuing

        recipe_json = continuing(recipe_json, objects.address(base) if requirements else base)
    if not requirements:
        return launch.train(recipe_json, dataset, out)
    from xlnet_cluster import launcher
    from xlnet_cluster.jobset import Requirements

    return launcher.train(Requirements.from_json(requirements), recipe_json, dataset, out)
