"""``run``, ``load``, ``runs`` and ``compare``: what the command line does, for notebooks and scripts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet.registry.locate import model_directory
from xlnet_pipeline.commands.run import DEMO_RECIPE, HERE, check, located
from xlnet_pipeline.notebook.views import Comparison, Model, Result, Results
from xlnet_pipeline.targets import Submission, Target, open_target, remote
from xlnet_pipeline.targets.submission import refuse


def run(
    recipe: Recipe | Mapping[str, Mapping[str, Any]] | str | Path | None = None,
    *,
    target: str = "local",
    home: str | Path | None = None,
    wait: bool = True,
    must_succeed: bool = True,
    echo: Callable[[str], None] | None = print,
    **options: Any,
) -> Result:
    """Run a recipe through the whole pipeline.

    Args:
        recipe: a recipe; the path of a TOML file; sections as a dictionary, such as
            ``{"data": {"train": "reviews.csv", "text": "review", "label": "stars"}}``; None: the demo.
        target: where to run: ``local``, ``docker``, ``kfp`` or ``vertex``.
        home: state directory of the targets on this machine; None: ``XLNET_PIPELINE_HOME``, else ``.xlnet-pipeline``.
        wait: on ``kfp`` and ``vertex``, wait until the run has ended.
        must_succeed: raise RunError unless the run succeeds.
        echo: called with each line of the run's output; None: no output.
        options: fields of :class:`~xlnet_pipeline.targets.submission.Submission`, such as ``machine="l4"``,
            ``spot=True``, ``nproc=2``, ``cache=False`` or ``timeout=3600``.

    Returns:
        The run, with its metrics and artifacts.

    Raises:
        UserError: the recipe or an option is invalid, or a check finds a reason why the run would fail.
        RunError: ``must_succeed`` is true and the run failed or was cancelled.
    """
    file = recipe if isinstance(recipe, str | Path) else None
    where = open_target(target, home, file)
    asked = _submission(located(_recipe(recipe), target, home, file), options)
    refuse(asked, where.cannot)
    if target not in HERE:
        check(where, asked)
    done = where.submit(asked, echo=echo)
    if wait and target not in HERE:
        done = remote.wait(where, done, asked.timeout, echo or (lambda line: None))
    if must_succeed and done.exit_status:
        raise RunError(f"run {done.id} ended {done.status}: {done.error.message if done.error else 'it was stopped'}")
    return Result(done, where)


def runs(target: str = "local", *, home: str | Path | None = None, limit: int | None = None) -> Results:
    """List the runs of a target, the newest first.

    Args:
        target: ``local``, ``docker``, ``kfp`` or ``vertex``.
        home: as for :func:`run`.
        limit: most runs to return; None: all of them.
    """
    where = open_target(target, home)
    return Results(Result(one, where) for one in where.runs(limit))


def load(model: str | Path, *, target: str = "local", home: str | Path | None = None, precision: str = "auto") -> Model:
    """Open a model for predictions.

    Args:
        model: a registered ``NAME``, ``NAME:VERSION`` or ``NAME@ALIAS``; a directory; a bucket's address.
        target: the target in whose registry the name is looked up.
        home: as for :func:`run`.
        precision: number type of matrix products: ``auto`` (float32), ``float32``, ``bfloat16`` or ``int8``.

    Raises:
        UserError: the model does not exist.
    """
    return Model(str(model_directory(str(model), lambda: open_target(target, home).models())), precision)


def compare(*compared: Result | str, target: str = "local", home: str | Path | None = None) -> Comparison:
    """Compare runs side by side: the recipe fields that differ, and the metrics.

    Args:
        compared: two or more runs, or their ids.
        target: the target of the runs that are given by id.
        home: as for :func:`run`.

    Raises:
        UserError: there are fewer than two runs, or a run is unknown.
    """
    if len(compared) < 2:
        raise UserError(f"compare got {len(compared)} run; give two or more, such as compare(*runs()[:2])")
    where: Target | None = None
    found = []
    for one in compared:
        if isinstance(one, str):
            where = where or open_target(target, home)
            one = Result(where.status(one), where)
        found.append(one)
    return Comparison(found)


def _recipe(given: Recipe | Mapping[str, Mapping[str, Any]] | str | Path | None) -> Recipe:
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return recipes.from_changes(given)
    return recipes.load(given or DEMO_RECIPE)


def _submission(recipe: Recipe, options: Mapping[str, Any]) -> Submission:
    known = {field.name for field in dataclasses.fields(Submission)} - {"recipe"}
    if unknown := set(options) - known:
        raise UserError(f"option '{unknown.pop()}' is unknown; allowed: {', '.join(sorted(known))}")
    return Submission(recipe, **options)
