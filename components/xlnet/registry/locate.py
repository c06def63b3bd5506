"""Finds the directory that a model's name stands for, for ``predict`` and for the server."""

import os
from collections.abc import Callable
from pathlib import Path

from xlnet.data import objects
from xlnet.errors import UserError
from xlnet.recipe import DataRecipe, Recipe
from xlnet.registry import Registry, open_registry

MLFLOW, RUNS = "models:/", "runs:/"
FORMS = "a directory, gs:// URI, models:/NAME/VERSION, or registered NAME, NAME:VERSION, NAME@ALIAS"


def model_directory(reference: str, registry: Callable[[], Registry] = open_registry) -> Path:
    """Return a model's directory: the given one, a download from a ``gs://`` URI, or a registered model's.

    A registered model is named by MLflow's ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``, or by ``NAME``,
    ``NAME:VERSION``, ``NAME@ALIAS``. Only then the registry is opened.

    Raises:
        UserError: there is no such model.
    """
    given, uri = Path(reference).expanduser(), ""
    if reference and given.is_dir():
        return given
    if objects.is_remote(reference):
        uri = reference
    elif not reference.startswith(MLFLOW) and (os.sep in reference or not reference.strip()):
        raise UserError(f"there is no model directory '{reference}'; name {FORMS}")
    else:
        uri = registry().find(registered(reference)).model_uri
        if not uri:
            raise UserError(f"model '{reference}' was registered without the place of its files; name their directory")
    directory = objects.local_directory(uri)
    if not directory.is_dir():
        raise UserError(f"model '{reference}' was kept in '{uri}', which is gone; run its recipe again")
    return directory


def _no_runs(run: str) -> str:
    raise UserError(f"model.pretrained is '{RUNS}{run}', and python -m xlnet keeps no runs; name the model's directory")


def with_weights(
    recipe: Recipe, registry: Callable[[], Registry] = open_registry, run: Callable[[str], str] = _no_runs
) -> Recipe:
    """If ``model.pretrained`` names a registered model or a run, replace it by the address of the model's files.

    It may be ``models:/NAME@champion``, ``models:/NAME/VERSION`` or ``runs:/RUN``; ``run`` returns the address of a
    run's model. So the recipe names one version, not an alias that may move. Its tokenizer replaces the default.

    Raises:
        UserError: there is no such model.
    """
    name = recipe.model.pretrained
    if name.startswith(RUNS):
        place = run(name.removeprefix(RUNS))
    elif name.startswith(MLFLOW):
        place = registry().find(registered(name)).model_uri
    else:
        return recipe
    if not objects.is_remote(place):  # steps that read an object in a bucket download it themselves
        place = str(model_directory(place) if place else model_directory(name, registry))
    has_own = recipe.data.tokenizer != DataRecipe().tokenizer
    return recipe.replace(model={"pretrained": place}, data={} if has_own else {"tokenizer": place})


def registered(reference: str) -> str:
    """Convert a reference, which may be MLflow's URI, to ``NAME:VERSION``, ``NAME@ALIAS`` or ``NAME``."""
    if not reference.startswith(MLFLOW):
        return reference
    name, slash, version = reference.removeprefix(MLFLOW).strip("/").rpartition("/")
    if not slash:
        return version
    if not version.isdecimal():
        raise UserError(f"'{reference}' names no version; type models:/{name}/1 or models:/{name}@champion")
    return f"{name}:{version}"


def short_name(reference: str) -> str:
    """Return a model's name for URLs: ``model`` for ``gs://b/run/model``, ``reviews`` for ``reviews@champion``."""
    name = registered(reference) if reference.startswith(MLFLOW) else reference.rstrip("/").rpartition("/")[2]
    return name.partition("@")[0].partition(":")[0] or "model"
