"""Where a run happens, behind one small interface."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun

__all__ = ["NAMES", "Run", "RunFailure", "StepRun", "Target", "open_schedules", "open_target"]

NAMES = ("local", "kfp", "vertex")


def open_target(name: str, home: str | Path | None = None, recipe_file: str | Path | None = None) -> Any:
    """The target of that name.

    Args:
        name: ``local``, ``kfp`` or ``vertex``.
        home: state directory of the local target.
        recipe_file: where the settings of the others are, environment variables aside.

    Raises:
        UserError: a setting is missing or wrong.
    """
    from xlnet_pipeline.targets import settings

    if name == "local":
        from xlnet_pipeline.targets.local.target import LocalTarget

        return LocalTarget(home)
    if name == "kfp":
        from xlnet_pipeline.targets.kfp.target import KfpTarget

        return KfpTarget(settings.read(settings.KfpSettings, recipe_file))
    if name == "vertex":
        from xlnet_pipeline.targets.vertex.target import VertexTarget

        return VertexTarget(settings.read(settings.VertexSettings, recipe_file))
    raise UserError(f"target '{name}' is unknown; allowed: {', '.join(NAMES)}")


class Target(Protocol):
    """Runs pipelines and remembers them. A run is named by its id, a unique beginning of it, or its last characters."""

    name: str

    def submit(
        self,
        recipe: Recipe,
        *,
        cache: bool = True,
        timeout: float | None = None,
        echo: Callable[[str], None] | None = None,
    ) -> Run:
        """Run the recipe.

        Args:
            recipe: what to run.
            cache: reuse results of equal work; False runs every step again.
            timeout: seconds after which the run is stopped and fails.
            echo: called with each line of live output, without its newline.

        Returns:
            The run's record; ``exit_status`` says how it went. A failed or cancelled run does not raise.
        """

    def runs(self) -> list[Run]:
        """Every run, the newest first."""

    def status(self, run: str) -> Run:
        """The record of a run as it is now; UserError if there is no such run."""

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Lines that the run's steps, or one of them, have written so far."""

    def cancel(self, run: str) -> Run:
        """Stop a run, wait until it has stopped, and return its record; UserError if it is not running."""


def open_schedules(target: Any) -> Any:
    """The schedules of a target that :func:`open_target` returned; see ``targets.schedules.Schedules``."""
    if target.name == "kfp":
        from xlnet_pipeline.targets.kfp.schedules import KfpSchedules

        return KfpSchedules(target)
    if target.name == "vertex":
        from xlnet_pipeline.targets.vertex.schedules import VertexSchedules

        return VertexSchedules(target)
    from xlnet_pipeline.targets.local.schedules import LocalSchedules

    return LocalSchedules(target.home)
