"""Detects and explains failures within a step: losses that are nan or inf, and lack of memory."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from xlnet.data.dataset import Split
from xlnet.data.shapes import Share
from xlnet.errors import RunError
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training.device import Device

GB = 1e9


class NotFinite(ArithmeticError):
    """A step's loss is nan or inf."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step, self.loss = step, loss


def check_finite(losses: Sequence[float], step: int) -> None:
    """Check the losses of the last steps; the newest belongs to ``step``.

    Raises:
        NotFinite: a loss is nan or inf; it names the first such step.
    """
    for at, value in enumerate(losses, step - len(losses) + 1):
        if not math.isfinite(value):
            raise NotFinite(at, value)


def not_finite(problem: NotFinite, split: Split, rows: np.ndarray, seed: int, directory: Path) -> RunError:
    """Write the step's rows to ``directory``; return an error that says what to do."""
    table = split.table().select(["row", "source", "line", "label", "input_ids"]).take(rows)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"batch-{problem.step}.json"
    content = {"step": problem.step, "seed": seed, "loss": str(problem.loss), "rows": table.to_pylist()}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return RunError(
        f"the loss became {problem.loss} at step {problem.step}; its batch is in '{path}', checkpoints before it are "
        "kept; lower training.learning_rate or training.clip_norm, or raise training.warmup"
    )


def is_finite(model: nn.Module) -> bool:
    """Whether all weights on this rank are finite; synchronises with the device once."""
    weights = [w.to_local() if isinstance(w, DTensor) else w for w in model.state_dict().values()]
    found = [weight.isfinite().all() for weight in weights if weight.is_floating_point() and weight.numel()]
    return not found or bool(torch.stack(found).all())


def not_finite_model(step: int, what: str, directory: Path) -> RunError:
    """Return the error for a model whose outputs or weights are nan or inf."""
    return RunError(
        f"{what} are not finite after step {step}, so this model is neither kept nor judged; checkpoints before it are "
        f"in '{directory}'; lower training.learning_rate or training.clip_norm, or raise training.warmup"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the host ran out of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


@contextlib.contextmanager
def explaining_memory(device: Device) -> Iterator[None]:
    """Explain an out-of-memory error that occurs before the first step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory: the model does not fit in the {device.memory()['total'] / GB:.2f} GB of {device.name}; "
            "choose a machine with more, a smaller model, or on several devices training.shard_weights=true"
        ) from None


def out_of_memory(model: XLNetClassifier, device: Device, share: Share, step: int) -> RunError:
    """Return an error that says what the memory was needed for, and which setting to change."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    memory = device.memory()
    longest = max(_tokens(batch) for batch in share.batches)
    table = {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations and the rest, at least": max(0, memory["peak"] - 4 * weights),
        "most in use": memory["peak"],
        f"{device.name} has": memory["total"],
    }
    lines = "".join(f"\n  {name:<36} {size / GB:8.2f} GB" for name, size in table.items())
    return RunError(
        f"out of memory at step {step}: {share.texts:,} texts with {share.tokens:,} tokens in the update, "
        f"{longest:,} of them at once on this device; set training.micro_batch_tokens={max(1, longest // 2)}, "
        f"training.recompute=true, or on several devices training.shard_weights=true{lines}"
    )


def _tokens(batch: object) -> int:
    return int(getattr(batch, "real_BL", getattr(batch, "input_ids_T", np.empty(0))).size)
