"""The interface of every target."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from xlnet.registry import Registry
from xlnet_pipeline.placement import Placement
from xlnet_pipeline.targets.record import Artifact, Run
from xlnet_pipeline.targets.schedules import Schedules
from xlnet_pipeline.targets.settings import Settings
from xlnet_pipeline.targets.submission import Say, Submission


class Target(Protocol):
    """Runs pipelines and remembers them. A run is named by its id, a unique beginning of it, or its last characters."""

    @property
    def name(self) -> str:
        """The target's name for ``--target``."""

    @property
    def cannot(self) -> Mapping[str, str]:
        """What the target cannot do: a field of :class:`Submission` or a method → the reason and what to do instead."""

    @property
    def settings(self) -> Settings:
        """How to reach the target, and the defaults of its runs."""

    def place(self, submission: Submission) -> Placement | None:
        """Return where the submission's steps will run. None: on this machine.

        Raises:
            UserError: the target does not offer the machine, or the image is not pinned.
        """

    def submit(self, submission: Submission, *, echo: Say | None = None, live: Say | None = None) -> Run:
        """Run the submission.

        Args:
            submission: what to run.
            echo: called with each line of live output, without its newline.
            live: called with each new state of a progress bar, where the output is a terminal.

        Returns:
            The run's record; ``exit_status`` says how it went. On this machine the run has ended, elsewhere it has
            begun. A failed or cancelled run does not raise.

        Raises:
            UserError: the target cannot do what the submission asks.
        """

    def preview(self, submission: Submission) -> list[dict[str, Any]]:
        """Return the exact requests that :meth:`submit` would send, as JSON; UserError on a target that sends none."""

    def runs(self, limit: int | None = None) -> list[Run]:
        """List all runs, or the newest ``limit`` runs, the newest first."""

    def status(self, run: str) -> Run:
        """Return the current record of a run. Raises UserError if the run does not exist."""

    def progress(self, run: str) -> Run:
        """Like :meth:`status`, but reads no artifacts."""

    def logs(self, run: str, step: str | None = None) -> Iterator[str]:
        """Yield the log lines written so far by all steps, or by one step."""

    def cancel(self, run: str) -> Run:
        """Cancel a run, wait until it has stopped, and return its record; UserError if it is not running."""

    def artifacts(self, run: str) -> list[Artifact]:
        """List the artifacts of a run, the first step's first."""

    def schedules(self) -> Schedules:
        """Return the target's schedules; UserError if it has none."""

    def models(self) -> Registry:
        """Open the registry in which its runs register models; UserError if its address is not known here."""
