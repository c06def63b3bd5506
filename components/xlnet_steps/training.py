"""Runs the train step in its own container or in a JobSet."""

import os
from typing import Any

from xlnet.training import launch

JOBSET = "XLNET_JOBSET"


def train(recipe_json: str, dataset: str, out: str) -> dict[str, Any]:
    """Train here, or in the JobSet whose requirements ``XLNET_JOBSET`` holds; see :func:`xlnet.training.launch.train`.

    The requirements are a variable of the container and not an argument of the step. Kubeflow Pipelines computes its
    cache key from the arguments, and training on another machine must give the same key.
    """
    requirements = os.environ.get(JOBSET)
    if not requirements:
        return launch.train(recipe_json, dataset, out)
    from xlnet_cluster import launcher
    from xlnet_cluster.jobset import Requirements

    return launcher.train(Requirements.from_json(requirements), recipe_json, dataset, out)
