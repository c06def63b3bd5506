"""The training loop, the same for every device and any number of ranks."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from xlnet.data.dataset import Dataset
from xlnet.data.remarks import counted
from xlnet.data.shapes import Share
from xlnet.errors import RunError, UserError
from xlnet.evaluation.comparison import refuse_selection
from xlnet.recipe import TrainingRecipe
from xlnet.training import objective, schedule
from xlnet.training.checkpoint import Checkpoints, State
from xlnet.training.device import Device
from xlnet.training.failures import (
    NotFinite,
    check_finite,
    is_finite,
    is_out_of_memory,
    not_finite,
    not_finite_model,
    out_of_memory,
)
from xlnet.training.feed import Feed, row_stream
from xlnet.training.history import History, Progress, clock
from xlnet.training.optim import AdamW, set_learning_rate
from xlnet.training.preemption import StopRequest
from xlnet.training.schedule import CheckpointClock
from xlnet.training.step import optimise
from xlnet.training.tasks import TASKS, Model
from xlnet.training.tensors import Replicated
from xlnet.training.watchdog import Watchdog

SAVE, FINISH, LEAVE = 1, 2, 3  # what a rank can request between two steps; the ranks follow the highest request


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training: its final state, and the full best weights on the host."""

    state: State
    weights: dict[str, Tensor]
    tokens_per_second: float
    stopped_early: bool

    def facts(self) -> dict[str, Any]:
        """Return the outcome as a dict without nesting, for metadata."""
        return {
            **self.state.facts(),
            "tokens_per_second": round(self.tokens_per_second),
            "stopped_early": str(self.stopped_early).lower(),
        }


class Training:
    """One training, which resumes where an earlier attempt ended."""

    def __init__(
        self,
        model: Model,
        optimizer: AdamW,
        tensors: Replicated,
        data: Dataset,
        recipe: TrainingRecipe,
        device: Device,
        checkpoints: Checkpoints,
        progress: Progress,
        watchdog: Watchdog,
        stop: StopRequest,
    ) -> None:
        """Restore the state to resume from.

        Args:
            model: the model, on the device.
            optimizer: the model's optimizer.
            tensors: the tensors of model and optimizer, for checkpoints.
            data: a dataset with a train and a validation split.
            recipe: the training section of the recipe.
            device: the device to train on.
            checkpoints: the checkpoints of this training and of its interrupted attempts.
            progress: prints progress.
            watchdog: receives heartbeats.
            stop: says whether this process was asked to stop.
        """
        self.model, self.optimizer, self.tensors = model, optimizer, tensors
        self.task = TASKS[model.config.task]
        self.recipe, self.device, self.checkpoints = recipe, device, checkpoints
        self.progress, self.watchdog, self.stop = progress, watchdog, stop
        self.training, self.validation = data.split("train"), data.split("validation")
        if not len(self.training) or not len(self.validation):
            raise UserError("the dataset has no rows to train on or none to validate on; see its card.json")
        refuse_selection(recipe.select_by, model.config.task)
        self.class_weights = objective.class_weights(recipe, self.training.labels, data.classes)
        self.schedule = schedule.plan(self.training.lengths, recipe, device.shapes)
        self.clock, self.saved_at = CheckpointClock.from_environment(), -1
        checkpoints.start()
        self.state, self.best_weights = checkpoints.restore()
        self.pending: list[Tensor] = []  # losses still on the device, one per step

    def run(self, directory: Path) -> TrainingResult:
        """Train to the end; write ``history.jsonl`` and ``logs/`` to ``directory``.

        Raises:
            Preempted, KeyboardInterrupt: training was asked to stop, and saved a checkpoint.
            RunError: a loss is nan or inf, or memory does not suffice.
        """
        state, steps, first = self.state, self.schedule.steps, self.state.step
        rows = f"{counted(len(self.training), 'row')}, {counted(steps, 'step')}"
        rows += f", from step {first:,} on" * bool(first)
        precision = str(self.device.precision).removeprefix("torch.")
        self.progress.say(f"training on {self.device.describe()} in {precision}: {rows}")
        self.progress.start(steps, first)
        self.device.prepare_optimizer(self.model, self.optimizer)
        self.model.train()
        feed = Feed(self.training, self.recipe, first, steps, self.device, self.class_weights)
        with History(directory, state.history) if self.tensors.leads else contextlib.nullcontext() as history:
            self.history: History | None = history
            stopped_early = self.validate_if_due()
            for share in self._watched(feed) if not stopped_early else ():
                norm = self.update(share)
                if self.schedule.logs(state.step):
                    self.log(norm, feed.waited)
                if stopped_early := self.validate_if_due():
                    break
                request = LEAVE if self.stop else FINISH if self.out_of_time() else SAVE if self.clock.due() else 0
                request = self.device.ranks.agree(request) if state.step < steps else 0  # the same on every rank
                late = state.step == self.saved_at + 1  # this answer belongs to a request from before that checkpoint
                if (request == SAVE and not late) or state.step in self.schedule.checkpoints:
                    self.save()
                if request == LEAVE:
                    self.leave()
                if request == FINISH:
                    left = f"after step {state.step:,} of {steps:,}; a higher training.max_minutes lets it go on"
                    self.progress.say(f"stopping {left}: {self.recipe.max_minutes:g} minutes are over")
                    self.validate_if_due(last=True)
                    stopped_early = True
                    break
        seconds = self.progress.seconds()
        why = "" if state.best_step else ", for no later ones are better by a standard error"
        self.progress.say(
            f"trained {counted(state.step - first, 'step')} in {clock(seconds)}, "
            f"{self.progress.tokens_per_second():,.0f} tokens/s, {feed.waited:.1f} s of it waiting for batches, "
            f"{self.checkpoints.seconds:.1f} s for checkpoints; "
            f"kept the weights of step {state.best_step}{why}: {format_scores(state.best)}"
        )
        return TrainingResult(state, self.best_weights, self.progress.tokens_per_second(), stopped_early)

    def update(self, share: Share) -> Tensor:
        """Update the weights once; return the gradient norm before clipping, on the device."""
        state, device, at = self.state, self.device, self.watchdog.at
        step = state.step + 1
        set_learning_rate(self.optimizer, state.step, self.schedule.steps, self.recipe)
        losses = []
        try:
            for batch in share.batches:
                device.seed(self.recipe.seed, step)  # the same on every rank and for every part of the update
                device.ranks.add_gradients(last=batch is share.batches[-1])
                at(step, "forward")
                loss = self.task.loss(self.model, batch, share.texts, self.recipe, device)
                at(step, "backward")
                loss.backward()
                losses.append(loss.detach())
                del loss  # its nodes must not live into the recording of a graph
            at(step, "synchronise")
            device.ranks.synchronise()
            at(step, "optimise")
            norm = optimise(self.model, self.optimizer, self.recipe)
            self.pending.append(sum(losses[1:], losses[0]))
            device.step()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.model, device, share, step) from None
            raise
        state.step = step
        state.tokens += share.tokens
        self.progress.tokens += share.tokens
        if device.ranks.size == 1 and self.progress.due():  # several ranks would have to collect at the same step
            self.collect()
        self.progress.update(step, state.losses)
        return norm

    def collect(self) -> None:
        """Wait for the device, and collect the losses of all ranks."""
        if not self.pending:
            return
        self.device.synchronise()
        self.state.losses += self.device.ranks.sum(self.device.fetch(self.pending)).tolist()
        count = len(self.pending)
        self.pending.clear()
        try:
            check_finite(self.state.losses[-count:], self.state.step)
        except NotFinite as problem:
            raise self.explain(problem) from None

    def log(self, norm: Tensor, waited: float) -> None:
        """Write a line of history."""
        self.collect()
        state = self.state
        values = {
            "loss": sum(state.losses) / len(state.losses),
            "learning_rate": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["depth_factor"],
            "gradient_norm": norm.item(),
            "tokens": state.tokens,
        }
        if self.history:
            self.history.write(
                state.step, values, {"tokens_per_second": self.progress.tokens_per_second(), "waited": waited}
            )
        self.progress.last = values["loss"]
        state.losses.clear()

    def out_of_time(self) -> bool:
        """Whether this attempt has used the recipe's ``max_minutes``."""
        return 0 < self.recipe.max_minutes <= self.progress.seconds() / 60

    def validate_if_due(self, last: bool = False) -> bool:
        """Validate if it is due, or if this is the ``last`` step; return whether early stopping ends the training."""
        state, patience = self.state, self.recipe.patience
        if not (last or state.step in self.schedule.validations) or state.validated == state.step:
            return bool(patience) and state.evaluations_waited >= patience
        select_by = self.recipe.select_by
        scores = self.task.validate(self.model, self.validation, self.device, select_by, self.may_validate)
        if scores is None:
            self.leave()
        self.collect()
        if not math.isfinite(scores["validation_loss"]):
            raise not_finite_model(state.step, "the logits of the validation rows", self.checkpoints.directory())
        if self.history:
            self.history.write(state.step, scores)
        state.validated = state.step
        state.evaluations_waited += 1
        # A validated start is a linear model, the simpler one: it is kept unless another is better by a standard error
        # (Breiman et al. 1984, section 3.4.3). On few rows, the best of ten validations was often worse on others.
        is_start = bool(state.best) and state.best_step == 0
        margin = objective.standard_error(state.best, len(self.validation), select_by) if is_start else 0.0
        if objective.better(scores, state.best, select_by, margin):
            self.refuse_not_finite()
            state.best, state.best_step = scores, state.step
            self.best_weights = self.tensors.full_weights()
        # A network that gets better slowly may pass the start's margin in the end, so patience does not ask for it.
        if not state.step or objective.better(scores, state.best_trained, select_by):
            state.evaluations_waited, state.best_trained = 0, scores if state.step else {}
        is_best = state.best_step == state.step
        self.progress.say(
            f"step {state.step}/{self.schedule.steps}  {format_scores(scores)}{'  best so far' if is_best else ''}"
        )
        if patience and state.evaluations_waited >= patience:
            self.progress.say(f"stopping early: {patience} validations without improvement")
            return True
        return False

    def may_validate(self) -> bool:
        """Report progress to the watchdog; return whether no rank was asked to stop, the same on every rank."""
        self.watchdog.at(self.state.step, "validate")
        return not any(self.device.ranks.gather(bool(self.stop)))

    def save(self, wait: bool = False) -> None:
        """Write a checkpoint, after checking that losses and weights are finite."""
        began = time.perf_counter()
        self.collect()
        self.refuse_not_finite()
        self.watchdog.at(self.state.step, "checkpoint")
        self.state.history = list(self.history.lines) if self.history else []
        self.checkpoints.save(self.state, self.best_weights, wait)
        self.clock.saved(time.perf_counter() - began)
        self.saved_at = self.state.step

    def refuse_not_finite(self) -> None:
        """Check that the weights of all ranks are finite.

        Raises:
            RunError: a weight is nan or inf, because the last update was too large.
        """
        if not all(self.device.ranks.gather(is_finite(self.model))):
            raise not_finite_model(self.state.step, "the weights", self.checkpoints.directory())

    def leave(self) -> NoReturn:
        """Save a checkpoint and end the training.

        Raises:
            Preempted, KeyboardInterrupt: always.
        """
        self.save(wait=True)
        saved = f"checkpoint of step {self.state.step} saved; run the same command to go on"
        raise self.stop.leave(saved, self.progress.say)

    def explain(self, problem: NotFinite) -> RunError:
        """Return the error message for a loss that is nan or inf."""
        shapes, step = self.device.shapes, problem.step
        (rows,) = row_stream(self.training.lengths, self.recipe, shapes, step - 1, step)
        rows = rows[rows < len(self.training)]  # a corpus counts stretches, not documents
        return not_finite(problem, self.training, rows, self.recipe.seed, self.checkpoints.directory())

    def _watched(self, feed: Feed) -> Iterator[Share]:
        shares = self.device.prefetch(feed)
        while True:
            self.watchdog.at(self.state.step + 1, "wait for data")
            if (share := next(shares, None)) is None:
                return
            yield share


def format_scores(scores: dict[str, float]) -> str:
    """Format scores: ``{"validation_loss": 0.5}`` → ``"validation loss 0.5000"``."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
