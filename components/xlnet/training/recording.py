"""An update's forward and backward pass, recorded once as CUDA graphs and then replayed.

The kernels of a step are a thousand small launches, for which the host takes longer than a fast GPU takes to compute
them. A graph is one launch. It needs the same shapes and addresses each time: texts are copied into a layout with room
for any update's, and dropout's keys into buffers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlnet.data.batches import epoch_plan
from xlnet.model.dropout import KeyBuffers
from xlnet.model.layout import Layout, Room
from xlnet.recipe import TrainingRecipe
from xlnet.training.inputs import Inputs

MORE_TEXTS = 1.25  # than an update of the first epoch has: others are packed from another order

Work = Callable[[Inputs], Tensor]


def room(lengths: np.ndarray, recipe: TrainingRecipe) -> Room:
    """What holds any update, or nearly any: a larger one is computed without a graph."""
    plan = epoch_plan(lengths, recipe.batch_tokens, recipe.seed, 0)
    tokens = max(int(lengths[rows].sum()) for rows in plan)
    return Room(tokens, int(max(map(len, plan)) * MORE_TEXTS) + 1, int(lengths.max()))


def fits(layout: Layout, room: Room) -> bool:
    """Whether there is room for its texts."""
    return layout.tokens <= room.tokens and layout.texts < room.texts and layout.longest <= room.longest


class Recording:
    """The graphs of one piece of work, which computes a scalar from inputs and from a model's parameters."""

    def __init__(self, work: Work, model: nn.Module, room: Room, like: Inputs) -> None:
        """Compute once as usual, and once to record it.

        Args:
            work: to be recorded; draws no random numbers but dropout's keys.
            model: whose parameters get gradients; they have none yet.
            room: for inputs.
            like: inputs of the types to come.
        """
        device = like.input_ids_T.device
        self._inputs = Inputs(
            like.input_ids_T.new_zeros(room.tokens),
            like.segment_ids_T.new_zeros(room.tokens),
            Layout.with_room(room, device),
            like.labels_S.new_zeros(room.texts),
            like.weights_S.new_zeros(room.texts),
        )
        self._keys = KeyBuffers()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._factor = torch.ones((), device=device)
        self._fill(like)
        generator = torch.get_rng_state()
        self._rehearse(work)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads, which write checkpoints, may go on meanwhile.
        with self._keys, torch.cuda.graph(self._forward, capture_error_mode="thread_local"):
            self._result = work(self._inputs)
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), capture_error_mode="thread_local"):
            self._result.backward(self._factor)
        self._gradients = self._take_gradients()
        torch.set_rng_state(generator)

    def _rehearse(self, work: Work) -> None:
        """Compile and load what a graph can only find ready."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            with self._keys:
                result = work(self._inputs)
            result.backward(self._factor)
            self._take_gradients()
        torch.cuda.current_stream().wait_stream(stream)

    def _take_gradients(self) -> list[Tensor | None]:
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    def __call__(self, inputs: Inputs) -> Tensor:
        """The work's result, whose backward pass replaces the parameters' gradients."""
        self._fill(inputs)
        self._keys.refill()
        return _Replayed.apply(self, self._anchor)

    def _fill(self, inputs: Inputs) -> None:
        pairs = (
            (self._inputs.input_ids_T, inputs.input_ids_T),
            (self._inputs.segment_ids_T, inputs.segment_ids_T),
            (self._inputs.labels_S, inputs.labels_S),
            (self._inputs.weights_S, inputs.weights_S),
        )
        for to, given in pairs:
            to[: len(given)].copy_(given)
            to[len(given) :].zero_()
        self._inputs.layout.replace(inputs.layout.lengths_S)

    def forward(self) -> Tensor:
        """Replay the forward pass."""
        self._forward.replay()
        return self._result.detach().clone()

    def backward(self, factor: Tensor) -> None:
        """Replay the backward pass from this gradient of the result."""
        self._factor.copy_(factor)
        self._backward.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, anchor: Tensor) -> Tensor:
        ctx.recording = recording
        return recording.forward()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.recording.backward(grads[0])
        return None, None
