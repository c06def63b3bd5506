"""What differs between the tasks that a model is trained for, in one table; the training loop is the same for all."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xlnet.data.dataset import Dataset, Split
from xlnet.data.segments import CorpusSegments, segments_of
from xlnet.errors import UserError
from xlnet.evaluation.permuted import moved, segment_losses
from xlnet.model import config as configs
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.matching import begin_matching
from xlnet.model.neighbours import begin_neighbours
from xlnet.model.token_loss import token_loss
from xlnet.model.weights import load_pretrained
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe, TrainingRecipe
from xlnet.training import linear_start, objective, step
from xlnet.training.device import Device
from xlnet.training.validation import validation_logits

Model = Any  # XLNetClassifier or XLNetLanguageModel


class TrainingTask(Protocol):
    """A task: its model, its batches, its loss, and how its model is validated."""

    def choose_shapes(self, device: Device, data: Dataset, recipe: Recipe) -> None:
        """Choose the device's batch shapes, before batches are planned."""

    def make(self, recipe: Recipe, data: Dataset) -> Model:
        """Make a new model, or load a pretrained one. The random seed is set."""

    def begin(self, model: Model, device: Device, data: Dataset, recipe: Recipe) -> None:
        """Prepare a model that is on its device."""

    def loss(self, model: Model, batch: Any, total: int, recipe: TrainingRecipe, device: Device) -> Tensor:
        """Return a batch's share of the mean loss over the update's ``total`` texts or tokens: a scalar."""

    def validate(
        self, model: Model, split: Split, device: Device, select_by: str, goes_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return the scores of the validation rows, nan if not finite; None as soon as ``goes_on()`` is False."""


class Supervised:
    """Classification and regression."""

    def choose_shapes(self, device: Device, data: Dataset, recipe: Recipe) -> None:
        """See :class:`TrainingTask`."""
        device.choose_shapes(data, recipe.training)

    def make(self, recipe: Recipe, data: Dataset) -> Model:
        """See :class:`TrainingTask`."""
        card = data.card
        about = card["task"], data.classes, objective.label_scale(data.split("train").labels, card["task"])
        if recipe.model.pretrained:
            return load_pretrained(recipe.model.pretrained, data.path / "tokenizer", *about)
        shape = configs.from_recipe(recipe.model, card["vocab_size"], data.pad_id, *about)
        model = XLNetClassifier(shape)
        if recipe.training.initialisation == "matching":
            begin_matching(model)
        return model

    def begin(self, model: Model, device: Device, data: Dataset, recipe: Recipe) -> None:
        """See :class:`TrainingTask`."""
        linear_start.begin(model, device, data, recipe)

    def loss(self, model: Model, batch: Any, total: int, recipe: TrainingRecipe, device: Device) -> Tensor:
        """See :class:`TrainingTask`."""
        return step.forward(model, device.move(batch), total, recipe, device)

    def validate(
        self, model: Model, split: Split, device: Device, select_by: str, goes_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """See :class:`TrainingTask`."""
        logits = validation_logits(model, split, device, goes_on)
        if logits is None:
            return None
        if not np.isfinite(logits).all():
            return {"validation_loss": math.nan}
        about = model.config
        return objective.validation_metrics(logits, split.labels, about.task, select_by, about.value_deviation)


class Pretraining:
    """Permutation language modelling."""

    def choose_shapes(self, device: Device, data: Dataset, recipe: Recipe) -> None:
        """See :class:`TrainingTask`.

        Raises:
            UserError: the device, or several of them, cannot pretrain as the recipe asks.
        """
        if device.kind in ("xla", "tpu"):
            raise UserError(f"data.task = 'pretrain' does not run on {device.kind!r} yet; allowed: cpu, cuda")
        if device.ranks.size > 1 and (recipe.pretraining.mem_len or recipe.training.shard_weights):
            raise UserError(
                "pretraining on several devices has no memory and no sharded weights; set pretraining.mem_len=0, "
                "pretraining.reuse_len=0 and training.shard_weights=false, or train on one device"
            )
        device.shapes = segments_of(data, recipe)

    def make(self, recipe: Recipe, data: Dataset) -> Model:
        """See :class:`TrainingTask`."""
        if recipe.model.pretrained:
            return load_pretrained(recipe.model.pretrained, data.path / "tokenizer", configs.PRETRAIN, [])
        shape = configs.from_recipe(recipe.model, data.card["vocab_size"], data.pad_id, configs.PRETRAIN, [])
        model = XLNetLanguageModel(shape)
        model.lm_loss.bias.data = _log_frequencies(data.split("train").tokens, shape.vocab_size)
        begin_neighbours(model)
        return model

    def begin(self, model: Model, device: Device, data: Dataset, recipe: Recipe) -> None:
        """See :class:`TrainingTask`."""
        model.transformer.sparse_gradient = False  # the output layer gives every row of the table a gradient
        if recipe.pretraining.mem_len:
            assert isinstance(device.shapes, CorpusSegments)
            texts = device.shapes.at_once(data.split("train").lengths, recipe.training.batch_tokens)
            model.remember(texts, recipe.pretraining.mem_len, recipe.pretraining.reuse_len)

    def loss(self, model: Model, batch: Any, total: int, recipe: TrainingRecipe, device: Device) -> Tensor:
        """See :class:`TrainingTask`."""
        text, weights_BP = moved(batch, device.tensor)
        kept = model.memory_of(batch.first_text, len(batch.index_B), batch.is_first)
        text = replace(text, memory=kept)
        with device.autocast():
            hidden_BPD, memory = model(text, *model.recurrence)
            model.keep(memory, batch.first_text)
            return token_loss(
                hidden_BPD.flatten(0, 1),
                model.transformer.word_embedding.weight,
                model.lm_loss.bias,
                text.targets_BP.flatten(),
                weights_BP.flatten() / total,
                recipe.label_smoothing,
            )

    def validate(
        self, model: Model, split: Split, device: Device, select_by: str, goes_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """See :class:`TrainingTask`."""
        assert isinstance(device.shapes, CorpusSegments)
        found = segment_losses(model, split, device.shapes, device.tensor, device.autocast, goes_on)
        if found is None:
            return None
        loss = float(found[0].sum() / found[1].sum())
        # Does not depend on the tokenizer; under drawn orders, so it is not the evaluation's, which is left to right.
        bits = loss / math.log(2) * split.lengths.sum() / split.bytes.sum()
        return {"validation_loss": loss, "validation_bits_per_byte": float(bits)}


def _log_frequencies(tokens: np.ndarray, vocabulary: int) -> Tensor:
    """Return the logarithm of each token's frequency, each token counted once more: float32 [V].

    New weights then predict frequencies from the first update on, which they else learn in hundreds of updates.
    """
    count_V = np.bincount(tokens, minlength=vocabulary) + 1.0
    return torch.from_numpy(np.log(count_V / count_V.sum()).astype(np.float32))


SUPERVISED, PRETRAINING = Supervised(), Pretraining()
TASKS: dict[str, TrainingTask] = {"classification": SUPERVISED, "regression": SUPERVISED, "pretrain": PRETRAINING}
