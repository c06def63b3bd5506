"""Where a run happens, behind one small interface."""

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
    """The target of that name.

    Args:
        name: ``local``, ``docker``, ``kfp`` or ``vertex``.
        home: state directory of the targets on this machine.
        recipe_file: where the settings of the others are, environment variables aside.
        needs: settings of the others that must be there; None: those that it takes to reach them.

    Raises:
        UserError: there is no such target; a setting is missing or wrong.
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
