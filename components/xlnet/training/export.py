"""Exports a checkpoint as a model artifact, to inspect an unfinished training or to keep an aborted one's result."""

import json
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.errors import RunError, UserError
from xlnet.training import artifact
from xlnet.training.checkpoint import complete, training_of
from xlnet.training.checkpoint_store import open_checkpoint_store
from xlnet.training.tensors import read
from xlnet.training.train import make_model


def export(checkpoints: str, dataset: str, out: str, weights: str = "best") -> dict[str, Any]:
    """Write the newest complete checkpoint as a model artifact.

    Args:
        checkpoints: directory or ``gs://`` prefix of one training's checkpoints.
        dataset: directory of the dataset artifact that the training uses.
        out: directory to write, in Hugging Face's layout.
        weights: ``"best"`` for the best on the validation split so far, else those that training would resume with.

    Returns:
        Facts about the model.

    Raises:
        UserError: the store holds no checkpoints of one training, or the training used another dataset.
        RunError: all checkpoints are damaged.
    """
    started = provenance.now()
    store = open_checkpoint_store(checkpoints)
    if (described := training_of(store)) is None:
        raise UserError(f"'{checkpoints}' holds no training's checkpoints; allowed: {_allowed(checkpoints)}")
    digest = provenance.verify(dataset)
    if digest != described["dataset"]:
        raise UserError(f"'{dataset}' is {digest}, but the training used {described['dataset']}; name that dataset")
    recipe = recipes.from_json(json.dumps(described["recipe"]))
    complaints: list[str] = []
    for checkpoint in complete(store, complaints.append):
        best = weights == "best" and checkpoint.best_weights
        chosen = best or {
            name.removeprefix("model/"): value
            for name, value in read(checkpoint.folder).items()
            if name.startswith("model/")
        }
        config = make_model(recipe, open_dataset(dataset)).config
        facts = checkpoint.state.facts()
        step = facts["best_step"] if best else facts["global_step"]
        facts |= {"exported_from": f"{store}/{checkpoint.name}", "exported_step": step, "dataset_digest": digest}
        with provenance.writing(out, "model") as folder:
            history = "".join(line + "\n" for line in checkpoint.state.history)
            Path(folder, "history.jsonl").write_text(history, encoding="utf-8")
            lineage = artifact.write(Path(folder), chosen, config, facts, started, recipe, dataset)
        return {**lineage["artifact"]["metadata"], "model_digest": lineage["artifact"]["digest"]}
    raise RunError(
        "; ".join(complaints) or f"'{checkpoints}' has no checkpoint yet; the training has to reach one first"
    )


def _allowed(checkpoints: str) -> str:
    """List the checkpoint stores in this folder, for an error message; say where to find them if it has none."""
    below = Path(checkpoints)
    found = sorted(str(path.parent) for path in below.glob("*/about.json")) if below.is_dir() else []
    return (
        ", ".join(found) or "a folder with an about.json, below XLNET_CHECKPOINTS or the state directory's checkpoints/"
    )
