"""The train step on one rank: reads a dataset artifact and writes a model artifact."""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import Dataset, open_dataset
from xlnet.errors import LostPeer, Preempted
from xlnet.model import config as configs
from xlnet.model.pretrained import find
from xlnet.recipe import Recipe, TrainingRecipe, budget
from xlnet.training import artifact, buckets
from xlnet.training.checkpoint import Checkpoints, store_of
from xlnet.training.detect import detect
from xlnet.training.device import Device
from xlnet.training.distributed import check_same_work, is_lost_peer
from xlnet.training.failures import explaining_memory
from xlnet.training.history import Progress
from xlnet.training.loop import Training
from xlnet.training.optim import AdamW, make_optimizer
from xlnet.training.preemption import StopRequest
from xlnet.training.sharding import shard
from xlnet.training.tasks import TASKS, Model
from xlnet.training.tensors import Replicated, Sharded
from xlnet.training.watchdog import Watchdog, end_with_parent

LINGER = 3.0  # seconds that a rank leaves the rank that failed first to report why


def train(recipe_json: str, dataset: str, out: str) -> dict[str, Any]:
    """Train a model on a dataset artifact and write a model artifact, as one rank of one or more.

    Args:
        recipe_json: JSON of a recipe, or of its ``model`` and ``training`` sections.
        dataset: directory of the dataset artifact.
        out: directory or ``gs://`` address of the model artifact, which rank 0 writes.

    Returns:
        Facts for the artifact's metadata; an empty dict on other ranks.

    Raises:
        UserError: the recipe, the dataset or the checkpoint store cannot be used.
        LostPeer: another rank is gone.
        RunError: a loss became nan or inf, memory did not suffice, or a rank is missing.
        Preempted: training was asked to stop, and saved a checkpoint.
    """
    started = provenance.now()
    end_with_parent()
    given = recipes.from_json(recipe_json)
    with StopRequest() as stop:
        dataset_digest = provenance.verify(dataset)
        data = open_dataset(dataset)
        whole = Recipe(recipes.of_artifact(dataset).data, given.model, given.training, pretraining=given.pretraining)
        size = _size(data, whole.model.pretrained)
        given, whole = whole, budget.decide(whole, size)
        training = whole.training
        shaping = whole.part("data", "model", "training", "pretraining")
        device = detect(precision=training.precision)
        about = {"recipe": json.loads(shaping), "dataset": dataset_digest, "classes": data.classes}
        with _together(device, about, stop) as watchdog:
            TASKS[data.card["task"]].choose_shapes(device, data, whole)
            store = store_of(out, shaping, dataset_digest, str(device.shapes))
            device.keep_programs(store.programs())
            model = _model_on(device, whole, data)
            facts = {**_facts(whole, model, device), "dataset_digest": dataset_digest, **provenance.code_facts()}
            leads = device.ranks.rank == 0
            progress = Progress(silent=not leads)
            if chosen := budget.explain(given, whole, size):
                facts["budget"] = chosen
                progress.say(chosen)
            with explaining_memory(device):
                optimizer, tensors = _tensors(model, training, device)
            checkpoints = Checkpoints(store, tensors, about, progress.say)
            with (
                contextlib.closing(checkpoints),
                buckets.writing(out) if leads else tempfile.TemporaryDirectory() as folder,
            ):
                parts = (model, optimizer, tensors, data, training, device, checkpoints, progress, watchdog, stop)
                result = Training(*parts).run(Path(folder))
                device.ranks.gather("done")  # a rank must not leave while another may still need it
                watchdog.close()
                if not leads:
                    return {}
                config, metadata = model.config, {**facts, **result.facts()}
                lineage = artifact.write(Path(folder), result.weights, config, metadata, started, whole, dataset)
            checkpoints.clear()
    return {**lineage["artifact"]["metadata"], "model_digest": lineage["artifact"]["digest"]}


def _model_on(device: Device, recipe: Recipe, data: Dataset) -> Model:
    """Return the model, on the device and ready for its task."""
    with explaining_memory(device):
        model = device.prepare(make_model(recipe, data), recipe.training.recompute)
        TASKS[data.card["task"]].begin(model, device, data, recipe)
    return model


def _size(data: Dataset, pretrained: str) -> budget.Size:
    lengths = data.split("train").lengths
    is_corpus = data.card["task"] == "pretrain"  # its documents become segments
    longest = data.card["max_length"] if is_corpus else int(lengths.max(initial=1))
    width = configs.read(find(pretrained)).d_model if pretrained else 0
    return budget.Size(len(lengths), int(lengths.sum()), longest, width)


def _facts(recipe: Recipe, model: Model, device: Device) -> dict[str, Any]:
    """Facts about the training that are known before its first step."""
    return {
        "base_model": recipe.model.pretrained or f"{recipe.model.preset}, from scratch",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accelerator": device.describe(),
        "ranks": device.ranks.size,
        "precision": str(device.precision).removeprefix("torch."),
        "attention": model.transformer.attention_name(),
        "batches": str(device.shapes),
    }


def _tensors(model: Model, recipe: TrainingRecipe, device: Device) -> tuple[AdamW, Replicated]:
    """Return the model's optimizer and the tensors of both, replicated on every rank or sharded."""
    if recipe.shard_weights and device.ranks.size > 1:
        shard(model, device)
        optimizer = make_optimizer(model, recipe)
        return optimizer, Sharded(model, optimizer, device.ranks)
    device.ranks.attach(model)
    optimizer = make_optimizer(model, recipe)
    return optimizer, Replicated(model, optimizer, device.ranks)


@contextlib.contextmanager
def _together(device: Device, about: dict[str, Any], stop: StopRequest) -> Iterator[Watchdog]:
    """Check that all ranks do the same work, run the watchdog, and report this rank's errors to the others."""
    ranks = device.ranks
    same = {
        "recipe": json.dumps(about["recipe"], sort_keys=True),
        "dataset": about["dataset"],
        "code": provenance.code_fingerprint("train"),
        "torch": torch.__version__,
        "device": device.kind,
    }
    with contextlib.ExitStack() as stack:
        stack.callback(ranks.leave)  # a process that exits with open connections may be aborted
        check_same_work(ranks, same)
        watchdog = stack.enter_context(contextlib.closing(Watchdog(ranks)))
        try:
            yield watchdog
        except Exception as error:
            if ranks.size > 1 and is_lost_peer(error):
                time.sleep(LINGER)
                if stop:  # all ranks were asked to stop, and the other one has left first
                    raise Preempted from None
                error = LostPeer(f"rank {ranks.rank} lost the connection to another rank, whose own message says why")
            watchdog.failed(error)
            raise error from None


def make_model(recipe: Recipe, data: Dataset) -> Model:
    """Make a new model, or load a pretrained one with a new head, for this dataset. Sets the random seed."""
    Device().seed(recipe.training.seed, 0)
    return TASKS[data.card["task"]].make(recipe, data)
