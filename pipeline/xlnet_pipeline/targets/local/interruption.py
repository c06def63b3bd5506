"""Messages about a stopped step: which of its work is kept, and which is lost."""

import json
import os
from pathlib import Path
from typing import Any

from xlnet.recipe.fields import AUTO
from xlnet_pipeline.targets import processes
from xlnet_pipeline.targets.output import GO_ON
from xlnet_pipeline.targets.record import StepRun

TRAIN, PRETRAIN = "train", "pretrain"
SHAPING = ("data", "model", "training", "pretraining")  # sections of a recipe that tell one training from another


def asked(step: StepRun) -> str:
    """Return the message for the moment when a step is asked to end."""
    work = "save a checkpoint" if step.name in (TRAIN, PRETRAIN) else "end"
    return f"stopping step '{step.name}': it has {processes.patience():.0f} s to {work}; Ctrl-C again ends it at once"


def told(step: StepRun, ended: str, recipe: dict[str, Any], home: Path) -> str:
    """Return the message for the moment when the step has ended.

    Args:
        step: the step that ran.
        ended: how it ended, see :attr:`processes.Stopped.ended`.
        recipe: the run's recipe.
        home: the state directory.
    """
    given_up = {
        "late": f"step '{step.name}' did not end within {processes.patience():.0f} s, and was ended",
        "at once": f"step '{step.name}' was ended at once",
    }.get(ended, "")
    if step.name == PRETRAIN:
        return f"{given_up or 'pretraining was stopped'}; its newest checkpoint is kept, if it has one; {GO_ON}"
    if step.name != TRAIN:
        how = given_up or f"step '{step.name}' was stopped"
        return f"{how}, and starts anew next time; finished steps are kept; {GO_ON}"
    saved = checkpoint(step, recipe, home)
    if saved is None:
        how = given_up or "training was stopped"
        return f"{how} before its first checkpoint: what it did is lost; run the same command to start it again"
    if given_up:
        return f"{given_up}: what it did since the checkpoint of step {saved} is lost; {GO_ON}"
    return f"checkpoint of step {saved} saved; {GO_ON}"


def checkpoint(step: StepRun, recipe: dict[str, Any], home: Path) -> int | None:
    """Return the step of a training's newest checkpoint; None if there is no checkpoint on this machine."""
    place = Path(os.environ.get("XLNET_CHECKPOINTS") or home / "checkpoints")
    dataset = step.inputs.get("dataset", {}).get("digest")
    found = [
        (manifest.stat().st_mtime_ns, int(manifest.parent.name.split("-")[1]))
        for about in place.glob("*/about.json")
        if _is_of(about, dataset, recipe)
        for manifest in about.parent.glob("step-*/manifest.json")
    ]
    return max(found)[1] if found else None


def _is_of(about: Path, dataset: str | None, recipe: dict[str, Any]) -> bool:
    """Whether checkpoints belong to a run with this recipe.

    The training has replaced each "auto" by a number, and does not know fields that change no byte, as ``data.shards``.
    """
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        return facts["dataset"] == dataset and all(
            recipe[section].get(name) in (AUTO, value)
            for section in SHAPING
            for name, value in facts["recipe"][section].items()
        )
    except (OSError, ValueError, KeyError):
        return False
