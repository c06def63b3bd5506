"""Trains the same rows on torch_xla's device and eagerly, and prints what was seen as JSON: what test_xla.py runs.

PJRT_DEVICE=CPU python tests/xla_training.py DATASET STEPS [SECTION.FIELD=VALUE ...]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch_xla
from torch import Tensor
from torch_xla.debug import metrics

from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.data.shapes import Share
from xlnet.recipe import budget
from xlnet.training.checkpoint import Checkpoints
from xlnet.training.checkpoint_store import open_checkpoint_store
from xlnet.training.detect import detect
from xlnet.training.device import Device
from xlnet.training.history import Progress
from xlnet.training.loop import Training
from xlnet.training.optim import make_optimizer
from xlnet.training.preemption import StopRequest
from xlnet.training.tensors import Replicated
from xlnet.training.train import make_model
from xlnet.training.watchdog import Watchdog
from xlnet.training.xla import CACHING


class Observed(Training):
    """Counts compiled programs after each step."""

    compiled: list[int]

    def update(self, share: Share) -> Tensor:
        """See :class:`Training`."""
        norm = super().update(share)
        self.compiled.append(compilations())
        return norm


def compilations() -> int:
    """Programs compiled so far in this process."""
    found = metrics.metric_data("CompileTime")
    return int(found[0]) if found else 0


def train(device: Device, recipe: recipes.Recipe, dataset: str) -> dict[str, Any]:
    """Losses of all steps, compiled programs after each, and the final weights' sums."""
    data = open_dataset(dataset)
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        model = device.prepare(make_model(recipe, data))
        optimizer = make_optimizer(model, recipe.training)
        tensors = Replicated(model, optimizer, device.ranks)
        checkpoints = Checkpoints(open_checkpoint_store(f"{folder}/checkpoints"), tensors, {}, print)
        parts = (model, optimizer, tensors, data, recipe.training, device, checkpoints, Progress(silent=True))
        training = Observed(*parts, Watchdog(device.ranks), stop)
        training.compiled = [compilations()]
        training.run(Path(folder))
        checkpoints.close()
        lines = [json.loads(line) for line in Path(folder, "history.jsonl").read_text().splitlines()]
        weights = {name: value.double().abs().sum().item() for name, value in tensors.full_weights().items()}
        largest = model.transformer.word_embedding.weight
        sharding = torch_xla._XLAC._get_xla_sharding_spec(largest) if device.kind == "xla" else ""
    return {
        "sharding": sharding,
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validations": [line["validation_loss"] for line in lines if "validation_loss" in line],
        "compiled": [*training.compiled, compilations()],
        "weights": weights,
    }


def main(dataset: str, steps: str, *settings: str) -> None:
    """Both trainings, one after the other."""
    torch.set_num_threads(1)
    recipe = recipes.load(None, [f"training.steps={steps}", *settings])
    xla = detect("xla")  # before any eager backward pass, or torch fails an assertion
    data = open_dataset(dataset)
    lengths = data.split("train").lengths
    recipe = budget.decide(recipe, budget.Size(len(lengths), int(lengths.sum()), int(lengths.max())))
    xla.choose_shapes(data, recipe.training)
    with tempfile.TemporaryDirectory() as programs:
        CACHING.add("CPU")  # what was written could not be read again
        xla.keep_programs(Path(programs))
        found = {"xla": train(xla, recipe, dataset), "programs_written": len(list(Path(programs).iterdir()))}
    found["eager"] = train(Device(shapes=xla.shapes), recipe, dataset)
    plan = xla.shapes.plan(lengths, recipe.training.batch_tokens, recipe.training.seed, 0)
    found["steps_per_epoch"] = len(plan)
    found |= {"buckets": xla.shapes.buckets, "device": xla.describe()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
