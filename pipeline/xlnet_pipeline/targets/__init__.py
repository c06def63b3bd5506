"""The targets that can run the pipeline, behind one small interface."""

from collections.abc import Collection
from pathlib import Path

from xlnet.errors import UserError, nearest
from xlnet_pipeline.targets.record import Artifact, Run, RunFailure, StepRun
from xlnet_pipeline.targets.submission import Submission
from xlnet_pipeline.targets.target import Target

__all__ = ["NAMES", "Artifact", "Run", "RunFailure", "StepRun", "Submission", "Target", "open_target"]

NAMES = ("local", "docker", "kfp", "vertex")


def open_target(
    name: str,
    home: str | Path | None = None,
    recipe_file: str | Path | None = None,
    needs: Collection[str] | None = None,
) -> Target:
    """Open a target by its name.

    Args:
        name: ``local``, ``docker``, ``kfp`` or ``vertex``.
        home: state directory of the targets on this machine.
        recipe_file: file with the settings of remote targets; environment variables override it.
        needs: required settings of a remote target; None: the ones needed to reach it.

    Raises:
        UserError: the target does not exist, or a setting is missing or invalid.
    """
    from xlnet_pipeline.targets import settings

    if name == "local":
        from xlnet_pipeline.targets.local.target import LocalTarget

        return LocalTarget(home)
    if name == "docker":
        from xlnet_pipeline.targets.docker import DockerTarget

        return DockerTarget(home)
    if name == "kfp":
        from xlnet_pipeline.targets.kfp.target import KfpTarget

        return KfpTarget(settings.read(settings.KfpSettings, recipe_file, needs))
    if name == "vertex":
        from xlnet_pipeline.targets.vertex.target import VertexTarget

        return VertexTarget(settings.read(settings.VertexSettings, recipe_file, needs))
    raise UserError(f"target '{name}' is unknown; allowed: {', '.join(NAMES)}{nearest(name, NAMES)}")
