"""Records an update's forward and backward pass as CUDA graphs, and replays them.

A step launches about a thousand small kernels, and launching them takes the host longer than a fast GPU needs to run
them. A graph is one launch. It needs the same shapes and addresses each time, so texts are copied into a layout with
space for any update's texts, and dropout's keys into fixed buffers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlnet.data.batches import epoch_plan
from xlnet.model.dropout import KeyBuffers
from xlnet.model.layout import Capacity, Layout
from xlnet.recipe import TrainingRecipe
from xlnet.training.inputs import Inputs

MORE_TEXTS = 1.25  # capacity in texts relative to the first epoch; other epochs pack rows in another order

Work = Callable[[Inputs], Tensor]


def capacity(lengths: np.ndarray, recipe: TrainingRecipe) -> Capacity:
    """Return a size that holds nearly every update; larger updates are computed without a graph."""
    plan = epoch_plan(lengths, recipe.batch_tokens, recipe.seed, 0)
    tokens = max(int(lengths[rows].sum()) for rows in plan)
    return Capacity(tokens, int(max(map(len, plan)) * MORE_TEXTS) + 1, int(lengths.max()))


def fits(layout: Layout, capacity: Capacity) -> bool:
    """Whether the capacity is large enough for the layout's texts."""
    return layout.tokens <= capacity.tokens and layout.texts < capacity.texts and layout.longest <= capacity.longest


class CudaGraph:
    """The CUDA graphs of a function that computes a scalar from inputs and a model's parameters."""

    def __init__(self, work: Work, model: nn.Module, capacity: Capacity, like: Inputs) -> None:
        """Compute once without the graph, then once more to capture it.

        Args:
            work: the function to record; its only random numbers are dropout's keys.
            model: the model whose parameters get gradients; they must have none yet.
            capacity: size of the recorded inputs.
            like: example inputs with the types of later ones.
        """
        device = like.input_ids_T.device
        self._inputs = Inputs(
            like.input_ids_T.new_zeros(capacity.tokens),
            like.segment_ids_T.new_zeros(capacity.tokens),
            Layout.with_capacity(capacity, device),
            like.labels_S.new_zeros(capacity.texts),
            like.weights_S.new_zeros(capacity.texts),
        )
        self._keys = KeyBuffers()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._factor = torch.ones((), device=device)
        self._fill(like)
        generator = torch.get_rng_state()
        self._rehearse(work)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Threads that write checkpoints may run during the capture.
        with self._keys, torch.cuda.graph(self._forward, capture_error_mode="thread_local"):
            self._result = work(self._inputs)
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), capture_error_mode="thread_local"):
            self._result.backward(self._factor)
        self._gradients = self._take_gradients()
        torch.set_rng_state(generator)

    def _rehearse(self, work: Work) -> None:
        """Compile and load kernels, because this is not allowed during the capture."""
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
        """Return the function's result; its backward pass replaces the parameters' gradients."""
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
        """Replay the backward pass; ``factor`` is the gradient of the result."""
        self._factor.copy_(factor)
        self._backward.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: CudaGraph, anchor: Tensor) -> Tensor:
        ctx.graph = graph
        return graph.forward()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.graph.backward(grads[0])
        return None, None
