"""Where a run happens, behind one small interface."""

from collections.abc import Callable, Iterator
from typing import Protocol

from xlnet.recipe import Recipe
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun

__all__ = ["Run", "RunFailure", "StepRun", "Target"]


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
