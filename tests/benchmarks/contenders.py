"""Who runs in train_speed.py: each trains the same network on the same rows, one update at a time.

``ours`` is the trainer's own step, ``ours float32`` the same on a device of float32 whatever the others compute in.
``hf`` is transformers' XLNet as its best user would set it up:
batches grouped by length, padded to their longest row, fused AdamW, bfloat16 autocast on a GPU.
``hf compiled`` is the same under torch.compile. ``seed`` is the plain loop that this project began
with: float32, Adam, every row padded to the maximum.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from real_rows import Sample
from torch import Tensor

from xlnet.data.batches import collate
from xlnet.model.config import XLNetConfig
from xlnet.model.layout import Capacity
from xlnet.model.weights import join_qkv
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.device import Cuda, Device
from xlnet.training.optim import make_optimizer
from xlnet.training.step import forward, optimise

PAD = 5
RATE = 1e-5


@dataclass
class Ours:
    """The trainer's own update on packed rows."""

    config: XLNetConfig
    weights: dict[str, Tensor]
    device: Device
    clip: float = 1.0
    model: XLNetClassifier = field(init=False)

    def __post_init__(self) -> None:
        self.model = XLNetClassifier(self.config)
        self.model.load_state_dict(join_qkv(self.weights))
        self.device.prepare(self.model.to(self.device.torch)).train()
        self.recipe = TrainingRecipe(learning_rate=RATE, clip_norm=self.clip)
        self.optimizer = make_optimizer(self.model, self.recipe)

    def batches(self, sample: Sample, rows: int, count: int) -> list[np.ndarray]:
        """Rows in their random order."""
        chosen = [np.arange(i * rows, (i + 1) * rows) for i in range(count)]
        if (
            isinstance(self.device, Cuda) and os.environ.get("XLNET_CUDA_GRAPHS") != "0"
        ):  # as the trainer's own plan of an epoch would tell it
            lengths = [sample.lengths[part] for part in chosen]
            most = max(int(part.sum()) for part in lengths)
            self.device.capacity = Capacity(most, rows + 1, max(int(part.max()) for part in lengths))
        return chosen

    def step(self, sample: Sample, chosen: np.ndarray) -> Tensor:
        """One update; the loss, on the device."""
        inputs = self.device.move(collate(sample, chosen))
        loss = forward(self.model, inputs, len(chosen), self.recipe, self.device)
        loss.backward()
        optimise(self.model, self.optimizer, self.recipe)
        return loss.detach()


@dataclass
class HuggingFace:
    """transformers' XLNet in a plain loop."""

    config: XLNetConfig
    weights: dict[str, Tensor]
    device: Device
    tuned: bool = True
    compiled: bool = False
    clip: float = 1.0

    def __post_init__(self) -> None:
        from transformers import XLNetConfig as TheirConfig
        from transformers import XLNetForSequenceClassification

        shape = {name: getattr(self.config, name) for name in ("vocab_size", "n_layer", "d_model", "n_head", "d_inner")}
        noise = {"dropout": self.config.dropout, "summary_last_dropout": self.config.summary_last_dropout}
        self.model = XLNetForSequenceClassification(TheirConfig(**shape, **noise, num_labels=2))
        self.model.load_state_dict(self.weights)
        self.model.to(self.device.torch).train()
        parameters = self.model.parameters()
        # Like ours: XLNet's published settings, with weight decay where ours has it.
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=RATE, eps=1e-6, weight_decay=0.01, fused=True)
            if self.tuned
            else torch.optim.Adam(parameters, lr=RATE, eps=1e-6)
        )
        self.call: Any = torch.compile(self.model, dynamic=True) if self.compiled else self.model

    def batches(self, sample: Sample, rows: int, count: int) -> list[np.ndarray]:
        """Rows grouped by length, or in their random order."""
        order = np.arange(rows * count)
        if self.tuned:
            order = order[np.argsort(sample.lengths[: rows * count], kind="stable")]
        return np.split(order, count)

    def step(self, sample: Sample, chosen: np.ndarray) -> Tensor:
        """One update; the loss, on the device."""
        width = int(sample.lengths[chosen].max()) if self.tuned else sample.max_length
        tensors = {name: torch.from_numpy(x).to(self.device.torch) for name, x in padded(sample, chosen, width).items()}
        with self.device.autocast() if self.tuned else torch.autocast(self.device.torch.type, enabled=False):
            loss = self.call(**tensors, use_mems=False).loss
        loss.backward()
        if self.tuned:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def padded(sample: Sample, chosen: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """Rows as transformers takes them: left-padded."""
    ids = np.full((len(chosen), width), PAD, np.int64)
    segments = np.full((len(chosen), width), 3, np.int64)
    mask = np.zeros((len(chosen), width), np.float32)
    for place, row in enumerate(chosen):
        length = sample.lengths[row]
        ids[place, width - length :] = sample.tokens[sample.offsets[row] : sample.offsets[row + 1]]
        segments[place, width - length : -1] = 0
        segments[place, -1] = 2
        mask[place, width - length :] = 1
    labels = sample.labels[chosen].astype(np.int64)
    return {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask, "labels": labels}


KINDS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours float32": {},
    "hf": {"tuned": True},
    "hf compiled": {"tuned": True, "compiled": True},
    "seed": {"tuned": False},
}


def make(kind: str, config: XLNetConfig, weights: dict[str, Tensor], device: Device) -> Ours | HuggingFace:
    """A contender by name; the seed's loop always computes in float32."""
    if kind.startswith("ours"):
        return Ours(config, weights, device)
    return HuggingFace(config, weights, device, **KINDS[kind])
