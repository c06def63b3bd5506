"""The train step and the one training loop, for every device."""

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import Dataset, Split, open_dataset
from xlnet.data.shapes import Shapes
from xlnet.errors import RunError, UserError
from xlnet.model import config as configs
from xlnet.model.inference import predict_logits
from xlnet.model.weights import fetch, load_pretrained, save_classifier
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe, TrainingRecipe
from xlnet.training import objective
from xlnet.training.checkpoint import Checkpoints, State, place
from xlnet.training.device import Device, detect
from xlnet.training.feed import Feed, row_stream
from xlnet.training.history import History, Progress, clock
from xlnet.training.optim import make_optimizer, set_learning_rate
from xlnet.training.step import forward, optimise


def train(recipe: str, dataset: str, out: str) -> dict[str, Any]:
    """Train a classifier on a dataset artifact and write a model artifact.

    Args:
        recipe: JSON of a recipe, or of its ``model`` and ``training`` sections.
        dataset: directory of the dataset artifact.
        out: directory of the model artifact to be written.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the recipe or the dataset does not allow a training.
        RunError: the loss became nan or inf; the step's batch is written beside the checkpoints.
    """
    started = provenance.now()
    given = recipes.from_json(recipe)
    dataset_digest = provenance.verify(dataset)
    data = open_dataset(dataset)
    data_recipe = recipes.of_artifact(dataset).data
    whole = recipes.Recipe(data=data_recipe, model=given.model, training=given.training)
    device = detect(precision=given.training.precision)
    device.fit(data, given.training)
    model = device.prepare(make_model(whole, data), given.training.recompute)
    device.ranks.attach(model)
    checkpoints = place(out, whole.part("data", "model", "training"), dataset_digest)
    with provenance.writing(out) as directory:
        try:
            result = fit(model, data, given.training, device, directory, checkpoints)
        except NotFinite as problem:
            raise explain(problem, data.split("train"), given.training, device.shapes, checkpoints.directory) from None
        save_classifier(model, directory)
        for file in Path(dataset, "tokenizer").iterdir():
            shutil.copyfile(file, directory / file.name)
        (directory / "recipe.json").write_text(whole.part("data", "model", "training"), encoding="utf-8")
        facts = {
            "base_model": given.model.pretrained or f"{given.model.preset}, from scratch",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **result.facts(),
            "accelerator": device.name,
            "precision": str(device.precision).removeprefix("torch."),
            "attention": model.transformer.attention_name(),
            "dataset_digest": dataset_digest,
            "weights_digest": provenance.digest_file(directory / "model.safetensors"),
            **provenance.code_facts(),
        }
        lineage = provenance.record(
            directory,
            type="model",
            step="train",
            started=started,
            parameters=json.loads(whole.part("model", "training")),
            metadata=facts,
            inputs=[provenance.read(dataset), *pretrained_lineage(given.model.pretrained, started)],
        )
    checkpoints.clear()
    return {**facts, "model_digest": lineage["artifact"]["digest"]}


def make_model(recipe: Recipe, data: Dataset) -> XLNetClassifier:
    """A new model, or a pretrained one with a new head, for this dataset; seeded."""
    Device().seed(recipe.training.seed, 0)
    card = data.card
    if recipe.model.pretrained:
        return load_pretrained(recipe.model.pretrained, card["vocab_size"], card["task"], data.classes)
    shape = configs.from_recipe(recipe.model, card["vocab_size"], data.pad_id, card["task"], data.classes)
    return XLNetClassifier(shape)


def pretrained_lineage(name: str, started: str) -> list[dict[str, Any]]:
    """The lineage of the weights that a training starts from: their own, or for foreign ones their checksums."""
    if not name:
        return []
    directory = fetch(name)
    if (directory / provenance.LINEAGE).is_file():
        provenance.verify(directory)
        return [provenance.read(directory)]
    files = [
        {"split": "pretrained", "uri": file.name, "size": file.stat().st_size, "checksum": provenance.digest_file(file)}
        for file in sorted(directory.iterdir())
        if file.is_file()
    ]
    metadata = {"name": name, "files": files}
    digest = provenance.digest_json(files)
    return [
        provenance.node(
            type="pretrained", digest=digest, step="train", started=started, parameters={}, metadata=metadata
        )
    ]


@dataclass(frozen=True)
class Result:
    """How a training went. The model holds the best weights, not the last."""

    state: State
    resumed_from: int
    tokens_per_second: float
    stopped_early: bool

    def facts(self) -> dict[str, Any]:
        """Flat, for metadata."""
        return {
            "global_step": self.state.step,
            "best_step": self.state.best_step,
            **{name: round(value, 6) for name, value in self.state.best.items()},
            "tokens": self.state.tokens,
            "tokens_per_second": round(self.tokens_per_second),
            "stopped_early": str(self.stopped_early).lower(),
            "resumed_from": self.resumed_from,
        }


def fit(
    model: XLNetClassifier,
    data: Dataset,
    recipe: TrainingRecipe,
    device: Device,
    directory: Path,
    checkpoints: Checkpoints,
) -> Result:
    """Train in place; the model ends with its best weights on the validation split.

    Args:
        model: on the device.
        data: with a train and a validation split.
        recipe: how to train.
        device: where.
        directory: where ``history.jsonl`` and ``logs/`` are written.
        checkpoints: what an interrupted training left behind, and where this one leaves its own.
    """
    training, validation = data.split("train"), data.split("validation")
    if not len(training) or not len(validation):
        raise UserError("the dataset has no rows to train on or none to validate on; see its card.json")
    task = model.config.task
    steps, evaluation_steps = plan_steps(training.lengths, recipe, device.shapes)
    every = recipe.checkpoint_every
    checkpoint_steps = {*range(every, steps, every)} if every else evaluation_steps - {steps}
    optimizer = make_optimizer(model, recipe)
    state, found = checkpoints.restore(model, optimizer)
    state.losses = [loss.to(device.torch) for loss in state.losses]
    resumed_from = state.step
    progress = Progress(steps, resumed_from)
    if found:
        progress.say(found)
    log_every = max(1, steps // 200)

    model.train()
    with History(directory, state.history) as history:
        progress.say(f"training on {device.name}: {len(training):,} rows, {steps:,} steps")
        feed = Feed(training, recipe, state.step, steps, device)
        for share in feed:
            rate = set_learning_rate(optimizer, state.step, steps, recipe)
            parts = []
            for batch in share.batches:
                device.seed(recipe.seed, state.step + 1)  # the same on every rank, for every part of the update
                device.ranks.add_gradients(last=batch is share.batches[-1])
                inputs = device.move(batch)  # prepare and move the data
                loss = forward(model, inputs, share.texts, recipe, device)  # forward
                loss.backward()  # backward
                parts.append(loss.detach())
            device.ranks.synchronise()  # synchronise all devices
            norm = optimise(model, optimizer, recipe)
            device.step()

            state.step += 1
            state.tokens += share.tokens
            progress.tokens += share.tokens
            state.losses.append(sum(parts[1:], parts[0]))
            log_now = state.step % log_every == 0 or state.step in evaluation_steps
            if log_now or progress.due():
                device.synchronise()
                mean = finite_mean(device.ranks.sum(torch.stack(state.losses)), state.step)
                if progress.due() or state.step == steps:
                    progress.update(state.step, mean)
            if log_now:
                values = {"loss": mean, "learning_rate": rate, "gradient_norm": norm.item(), "tokens": state.tokens}
                history.write(
                    state.step, values, {"tokens_per_second": progress.tokens_per_second(), "waited": feed.waited}
                )
                state.losses.clear()
            if state.step in evaluation_steps:
                scores = objective.validation_metrics(predict_logits(model, validation), validation.labels, task)
                history.write(state.step, scores)
                note_validation(state, scores, model)
                is_best = state.best_step == state.step
                progress.say(f"step {state.step}/{steps}  {spell(scores)}{'  best so far' if is_best else ''}")
                if recipe.patience and state.evaluations_waited >= recipe.patience:
                    progress.say(f"stopping early: no better validation in {recipe.patience} evaluations")
                    break
            if state.step in checkpoint_steps:
                state.history = history.lines
                checkpoints.save(state, model, optimizer)

    seconds = time.perf_counter() - progress.started
    model.load_state_dict(state.best_weights)
    model.eval()
    progress.say(
        f"trained {state.step - resumed_from:,} steps in {clock(seconds)}, "
        f"{progress.tokens_per_second():,.0f} tokens/s, "
        f"{feed.waited:.1f} s of it waiting for batches; kept step {state.best_step}: {spell(state.best)}"
    )
    return Result(state, resumed_from, progress.tokens_per_second(), state.step < steps)


def note_validation(state: State, scores: dict[str, float], model: XLNetClassifier) -> None:
    """Keep the weights if this is the best validation so far."""
    if objective.better(scores, state.best):
        state.best, state.best_step, state.evaluations_waited = scores, state.step, 0
        state.best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    else:
        state.evaluations_waited += 1


def plan_steps(lengths: np.ndarray, recipe: TrainingRecipe, shapes: Shapes) -> tuple[int, set[int]]:
    """How many steps a training takes, and after which of them the validation split is looked at."""
    steps, epoch, ends = 0, 0, []
    target = recipe.steps or math.inf
    while steps < target and (recipe.steps or epoch < recipe.epochs):
        batches = len(shapes.plan(lengths, recipe.batch_tokens, recipe.seed, epoch))
        share = 1.0 if recipe.steps else min(1.0, recipe.epochs - epoch)
        steps, epoch = steps + max(1, round(batches * share)), epoch + 1
        ends.append(steps)
    steps = int(min(steps, target))
    if recipe.evaluate_every:
        return steps, {*range(recipe.evaluate_every, steps, recipe.evaluate_every), steps}
    return steps, {min(end, steps) for end in ends}


def finite_mean(losses: Tensor, step: int) -> float:
    """Mean of the losses of the last steps up to this one.

    Raises:
        NotFinite: one of them is nan or inf; the first of them.
    """
    values = losses.tolist()
    for at, value in enumerate(values, step - len(values) + 1):
        if not math.isfinite(value):
            raise NotFinite(at, value)
    return sum(values) / len(values)


class NotFinite(ArithmeticError):
    """A step's loss is nan or inf."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step, self.loss = step, loss


def explain(problem: NotFinite, split: Split, recipe: TrainingRecipe, shapes: Shapes, directory: Path) -> RunError:
    """Write the step's batch to ``directory`` and say what to do."""
    (rows,) = row_stream(split.lengths, recipe, shapes, problem.step - 1, problem.step)
    table = split.table().select(["row", "source", "line", "label", "input_ids"]).take(rows)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"batch-{problem.step}.json"
    content = {"step": problem.step, "seed": recipe.seed, "loss": str(problem.loss), "rows": table.to_pylist()}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return RunError(
        f"the loss became {problem.loss} at step {problem.step}; its batch is in '{path}', checkpoints before it are "
        "kept; lower training.learning_rate or training.clip_norm, or raise training.warmup"
    )


def spell(scores: dict[str, float]) -> str:
    """``{"validation_loss": 0.5}`` → ``"validation loss 0.5000"``."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
