"""What every target can be asked to do, whichever machine its runs happen on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from xlnet.registry import Registry
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets.record import Artifact, Run
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import Settings
from xlnet_pipeline.targets.submission import Submission


class Target(Protocol):
    """Runs pipelines and remembers them. A run is named by its id, a unique beginning of it, or its last characters."""

    @property
    def name(self) -> str:
        """What ``--target`` calls it."""

    @property
    def cannot(self) -> Mapping[str, str]:
        """What this target cannot do: a field of :class:`Submission` or a method → why, and what to do instead."""

    @property
    def settings(self) -> Settings:
        """How to reach it, and what its runs use where nothing else is asked for."""

    def place(self, submission: Submission) -> Placement | None:
        """Where the submission's steps are to run; None: on this machine.

        Raises:
            UserError: the target has no such machine, or the image is not pinned.
        """

    def submit(
        self,
        submission: Submission,
        *,
        echo: Callable[[str], None] | None = None,
        live: Callable[[str], None] | None = None,
    ) -> Run:
        """Run what is asked for.

        Args:
            submission: what to run.
            echo: called with each line of live output, without its newline.
            live: called with each new state of a progress bar, where the output is a terminal.

        Returns:
            The run's record; ``exit_status`` says how it went. On this machine the run has ended, elsewhere it has
            begun. A failed or cancelled run does not raise.

        Raises:
            UserError: the target cannot do what is asked.
        """

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """The exact requests that :meth:`submit` would send, as JSON; UserError on a target that sends none."""

    def runs(self, limit: int | None = None) -> list[Run]:
        """The runs there are, or the newest ``limit`` of them, the newest first."""

    def status(self, run: str) -> Run:
        """The record of a run as it is now; UserError if there is no such run."""

    def progress(self, run: str) -> Run:
        """As :meth:`status`, without what has to be read from artifacts."""

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Lines that the run's steps, or one of them, have written so far."""

    def cancel(self, run: str) -> Run:
        """Stop a run, wait until it has stopped, and return its record; UserError if it is not running."""

    def artifacts(self, run: str) -> list[Artifact]:
        """What a run's steps have made, the first step's first."""

    def schedules(self) -> Schedules:
        """The target's schedules; UserError if it has none."""

    def models(self) -> Registry:
        """The registry in which its runs register models; UserError if its address is not known here."""
