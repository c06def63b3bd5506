"""Estimates a training: parameters, operations, memory and seconds per step. Each constant states its source.

Shapes: d model width, i inner width, N heads, H head width, L tokens of a text, T tokens on one chip in one step.
"""

import math
from dataclasses import dataclass

from xlnet.recipe import ModelRecipe
from xlnet_pipeline.placement.machines import Machine
from xlnet_pipeline.planning import network
from xlnet_pipeline.planning.workload import Workload

GIB = float(1 << 30)

# Bytes of one parameter: the optimizer holds two moments; the best weights so far are kept besides the current ones.
WEIGHTS, GRADIENTS, OPTIMIZER, BEST = 4, 4, 8, 4
ACTIVATION = {"cpu": 4, "gpu": 2, "tpu": 2, "t4": 4}  # bytes of one activation: float32, else bfloat16
# GiB that the program takes before it trains (CPU: measured); on a GPU it includes temporary attention scores.
PROCESS = {"cpu": 0.46, "gpu": 1.05, "tpu": 0.5}
# Usable share of a chip's memory. A CPU's allocator was measured to hold a third more than is in use.
USABLE = {"cpu": 0.70, "gpu": 0.92, "tpu": 0.92}

# Activations of each token, as multiples of (d, i, N·L): KEPT by one layer for its backward pass, added by dropout,
# kept outside the layers, and the largest temporary ones. The first three are counted in the code, the last is
# measured; `tests/test_plan.py` checks them, and `tests/test_gpu.py` does on a GPU. On TPUs, products are bfloat16, but
# activations between layers are float32, with a bfloat16 copy. On GPUs both are bfloat16, without a copy (counted, not
# measured). A GPU without bfloat16 computes in float32, and its attention keeps scores (modelled).
KEPT = {"cpu": (8.5, 2, 0), "gpu": (8, 2, 0), "tpu": (12, 2, 0), "t4": (8.5, 2, 2)}
KEPT_BY_DROPOUT, AROUND, PASSING = (0, 0, 0), (0, 0, 0), (0, 1.2, 0)
SPARED = (4, 2, 0)  # what the last layer does not keep: after attention it computes only each text's last token

# Share of a chip's peak that training reaches in useful operations. CPU: measured, of the rate at which matrices are
# multiplied. GPU: measured on an H200 in bfloat16, 30 % (base) and 34 % (large) of what it multiplies, which is 77 % of
# its data sheet. TPU: modelled, as a GPU.
SHARE = {"cpu": 0.45, "gpu": 0.23, "tpu": 0.23}
# Seconds that a step, and each of its layers, costs whatever its size: the optimizer, and on a GPU what a replayed
# graph of small kernels takes (measured on an H200: 6.9 ms a step of XLNet-base). CPU and TPU: modelled.
STEP, LAUNCH = 2e-3, {"cpu": 1e-4, "gpu": 4e-4, "tpu": 1e-4}
# Seconds that a step of a CPU costs for each parameter, however few tokens it has: casting weights, writing gradients,
# the optimizer. Measured on a Xeon with one thread, 11.7 million parameters: 32 ms. A GPU's memory is fast enough.
WEIGHT = {"cpu": 2.7e-9, "gpu": 0.0, "tpu": 0.0}
# Several GPUs without a graph: each kernel is launched while earlier ones run (measured: 30 ms per step, 12 layers).
# With graphs they should need less, but several GPUs have not been measured.
HOST = 2.5e-3
# Seconds before the first step: loading, compiling; on a remote target also the wait for machine and image (modelled).
START, AWAY = {"cpu": 5.0, "gpu": 60.0, "tpu": 180.0}, 120.0
BACKWARD = 2 / 3  # share of the operations; on a GPU, gradients are exchanged while it computes


@dataclass(frozen=True)
class Memory:
    """GiB on one chip. Gradients grow while activations are freed, so only the larger of the two counts."""

    weights: float
    gradients: float
    optimizer: float
    best: float
    activations: float
    process: float

    @property
    def total(self) -> float:
        """GiB at the peak."""
        static = self.process + self.weights + self.optimizer + self.best
        return static + max(self.gradients, self.activations)


def parameters(model: ModelRecipe, vocabulary: int, outputs: int) -> int:
    """Return the exact number of parameters: embeddings, layers, summary and head, or a language model's biases."""
    d, i, heads = model.d_model, model.d_inner, model.n_head * model.d_head
    attention = 5 * d * heads + 5 * heads + 2 * d
    feed_forward = 2 * d * i + i + d + 2 * d
    summary = d * d + d + d * outputs + outputs if outputs else vocabulary
    return vocabulary * d + d + model.n_layer * (attention + feed_forward) + summary


def operations(model: ModelRecipe, attended: float, predicted: float = 0.0, vocabulary: int = 0) -> float:
    """Return the operations per token of training: three times the forward pass (24 d² + 6 L d per layer).

    Args:
        model: the network.
        attended: mean number of tokens that a token attends to.
        predicted: share of the tokens that pretraining predicts: each has a query stream, without keys and values of
            its own, and logits.
        vocabulary: number of tokens that are told apart.
    """
    d, heads = model.d_model, model.n_head * model.d_head
    rest = 4 * d * model.d_inner + 6 * attended * heads
    content, query = 8 * d * heads + rest, 4 * d * heads + rest
    return 3.0 * (model.n_layer * (content + predicted * query) + predicted * 2 * d * vocabulary)


def memory(model: ModelRecipe, work: Workload, machine: Machine, nodes: int = 1) -> Memory:
    """Return the GiB that a step needs on one chip of the machine."""
    numbers = parameters(model, work.vocabulary, work.outputs) / GIB
    kind = machine.family if machine.family in KEPT else machine.kind
    tokens = tokens_per_chip(work, machine, nodes)
    values = (1 + work.predicted) * kept_values(model, work.longest, kind) + _values(PASSING, model, work.longest)
    return Memory(
        weights=numbers * WEIGHTS,
        gradients=numbers * GRADIENTS,
        optimizer=numbers * OPTIMIZER,
        best=numbers * BEST,
        activations=tokens * ACTIVATION[kind] * values / GIB,
        process=PROCESS[machine.kind],
    )


def kept_values(model: ModelRecipe, longest: int, kind: str) -> float:
    """Return the number of values kept per token between forward and backward pass."""
    layer = _values(KEPT[kind], model, longest) + (_values(KEPT_BY_DROPOUT, model, longest) if model.dropout else 0.0)
    return model.n_layer * layer + _values(AROUND, model, longest) - _values(SPARED, model, longest)


def _values(multiples: tuple[float, float, float], model: ModelRecipe, longest: int) -> float:
    sizes = (model.d_model, model.d_inner, model.n_head * longest)
    return sum(multiple * size for multiple, size in zip(multiples, sizes, strict=True))


def tokens_per_chip(work: Workload, machine: Machine, nodes: int = 1) -> float:
    """Return the tokens per step on one chip: its share of the batch, but at least one text."""
    return max(work.batch_tokens / (machine.chips * nodes), float(work.longest))


def step_seconds(model: ModelRecipe, work: Workload, machine: Machine, peak: float, nodes: int = 1) -> float:
    """Return the seconds per step: computing, launching kernels, and summing gradients between chips.

    Args:
        model: the network.
        work: its batches.
        machine: machine to train on.
        peak: TFLOP/s of one chip.
        nodes: number of such machines.
    """
    rows = max(work.mean, 1.0)
    tokens = max(work.batch_tokens / (machine.chips * nodes), rows)
    per_token = operations(model, work.attended, work.predicted, work.vocabulary)
    computing = tokens * per_token / (peak * 1e12 * SHARE[machine.kind])
    numbers = parameters(model, work.vocabulary, work.outputs)
    step = computing + STEP + model.n_layer * LAUNCH[machine.kind] + numbers * WEIGHT[machine.kind]
    if machine.kind == "gpu" and machine.chips * nodes > 1:
        step = max(step, model.n_layer * HOST)
    table = work.vocabulary * model.d_model
    sparse = min(work.vocabulary, math.ceil(tokens)) if machine.kind == "cpu" else 0
    gradients = network.Gradients(numbers - table, table, sparse, model.d_model)
    hidden = BACKWARD * step if machine.kind == "gpu" else 0.0
    return step + network.waited(gradients, network.links(machine, nodes), hidden)


def most_tokens(model: ModelRecipe, work: Workload, machine: Machine, nodes: int = 1) -> int:
    """Return the largest ``training.batch_tokens`` that fits into memory. 0: not even one text fits."""
    need = memory(model, work, machine, nodes)
    static = need.total - max(need.gradients, need.activations)
    room = machine.memory_per_chip * USABLE[machine.kind] - static
    if room < need.gradients:
        return 0
    per_token = need.activations / tokens_per_chip(work, machine, nodes)
    tokens = math.floor(room / per_token)
    return tokens * machine.chips * nodes if tokens >= work.longest else 0
