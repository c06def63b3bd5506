"""Records forward and backward passes as CUDA graphs, and replays them.

A step launches about a thousand small kernels, and launching them takes the host longer than a fast GPU needs to run
them. A graph is one launch. It needs the same shapes and addresses each time, so texts are copied into a layout with
space for the texts of any batch, and dropout's keys into fixed buffers.

Where an update has several micro-batches, a second backward graph adds to the gradients that the first one wrote. Ranks
exchange gradients after the replay, outside of the graphs.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xlnet.data.batches import cut_evenly, epoch_plan
from xlnet.data.shapes import Budget
from xlnet.model.dropout import KeyBuffers
from xlnet.model.layout import Capacity, Layout
from xlnet.recipe import TrainingRecipe
from xlnet.training.inputs import Inputs

MORE_TEXTS = 1.25  # capacity in texts relative to the first epoch; other epochs pack rows in another order
# Seconds a layer, measured on an H200: launching the kernels one by one; computing a token of a model 768 wide.
LAUNCHING, TOKEN, WIDTH = 2.5e-3, 2.1e-7, 768

Work = Callable[[Inputs], Tensor]


def capacity(lengths: np.ndarray, recipe: TrainingRecipe, ranks: int = 1) -> Capacity:
    """Return a size that holds nearly every batch of every rank; larger ones are computed without a graph."""
    budget = Budget(0, ranks, recipe.batch_tokens, recipe.micro_batch_tokens)
    updates = [lengths[rows] for rows in epoch_plan(lengths, recipe.batch_tokens, recipe.seed, 0)]
    parts = [
        update[part] for update in updates for part in cut_evenly(update, ranks * budget.rounds(int(update.sum())))
    ]
    tokens, texts = max(int(part.sum()) for part in parts), max(map(len, parts))
    is_part = ranks > 1 or recipe.micro_batch_tokens > 0
    return Capacity(tokens, int(texts * MORE_TEXTS) + 1, int(lengths.max()), is_part)


def pays(tokens: int, width: int, ranks: int) -> bool:
    """Whether a graph is faster for batches of so many tokens and a model of this width.

    Kernels that are launched one by one let ranks exchange gradients during the backward pass. A graph does not, so for
    several ranks it pays where launching would take longer than computing.
    """
    return ranks == 1 or tokens * TOKEN * (width / WIDTH) ** 2 < LAUNCHING


def fits(layout: Layout, capacity: Capacity) -> bool:
    """Whether the capacity is large enough for the layout's texts."""
    return layout.tokens <= capacity.tokens and layout.texts < capacity.texts and layout.longest <= capacity.longest


class Replayable(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Do the work again, on the same tensors."""


class Recorder:
    """Records work on the current CUDA device; all its graphs share one memory pool, and run one after the other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def rehearse(self, work: Callable[[], object]) -> None:
        """Do the work once, to compile and load its kernels, because this is not allowed during a recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], object]) -> Replayable:
        """Record the work; its tensors keep their addresses."""
        graph = torch.cuda.CUDAGraph()
        # Threads that write checkpoints may run during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = self._pool or graph.pool()
        return graph


class CudaGraph:
    """The CUDA graphs of a function that computes a scalar from inputs and a model's parameters."""

    def __init__(self, work: Work, model: nn.Module, capacity: Capacity, like: Inputs, adds: bool = False) -> None:
        """Compute once without the graph, then once more to capture it. Gradients stay as they are.

        Args:
            work: the function to record; its only random numbers are dropout's keys.
            model: the model whose parameters get gradients.
            capacity: size of the recorded inputs.
            like: example inputs with the types of later ones.
            adds: whether gradients of several inputs will be added; it takes more memory.
        """
        device = like.input_ids_T.device
        recorder = Recorder()
        self._inputs = Inputs(
            like.input_ids_T.new_zeros(capacity.tokens),
            like.segment_ids_T.new_zeros(capacity.tokens),
            Layout.with_capacity(capacity, device),
            like.labels_S.new_zeros(capacity.texts),
            like.weights_S.new_zeros(capacity.texts),
        )
        self._keys = KeyBuffers()
        self._result: Tensor
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._factor = torch.ones((), device=device)
        self._fill(like)
        generator, given = torch.get_rng_state(), self._take_gradients()
        recorder.rehearse(lambda: self._compute_and_differentiate(work))
        self._forward = recorder.record(lambda: self._compute(work))
        self._backward = recorder.record(lambda: self._differentiate(again=adds))
        self._backward_adding = recorder.record(self._differentiate) if adds else None
        self._gradients = self._take_gradients()
        self._result = self._result.detach()
        for parameter, gradient in zip(self._parameters, given, strict=True):
            parameter.grad = gradient
        torch.set_rng_state(generator)

    def _compute_and_differentiate(self, work: Work) -> None:
        self._compute(work)
        self._differentiate()
        self._take_gradients()
        del self._result  # or the recording would use its nodes, which belong to another stream

    def _compute(self, work: Work) -> None:
        with self._keys:
            self._result = work(self._inputs)

    def _differentiate(self, again: bool = False) -> None:
        self._result.backward(self._factor, retain_graph=again)

    def _take_gradients(self) -> list[Tensor | None]:
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the function's result; its backward pass adds to the parameters' gradients."""
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
        self._inputs.layout.refill(inputs.layout)

    def forward(self) -> Tensor:
        """Replay the forward pass."""
        self._forward.replay()
        return self._result.clone()

    def backward(self, factor: Tensor) -> None:
        """Replay the backward pass; ``factor`` is the gradient of the result."""
        self._factor.copy_(factor)
        if all(parameter.grad is None for parameter in self._parameters):
            self._backward.replay()
        else:
            assert self._backward_adding, (
                "the graph was recorded for one batch an update, and there are gradients already"
            )
            self._move_gradients()
            self._backward_adding.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient

    def _move_gradients(self) -> None:
        """Copy gradients that were not computed by a graph to where the graph adds its own."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is None or gradient is parameter.grad:
                continue
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: CudaGraph, anchor: Tensor) -> Tensor:
        ctx.graph = graph
        return graph.forward()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.graph.backward(grads[0])
        return None, None
