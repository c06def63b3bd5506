"""Training on a CUDA device: the CPU's numbers, the same bits twice and after kills, and memory as planned.

pytest -m gpu        (also what tests/test_triton.py has for a GPU)
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from test_interruption import Trainer, history
from token_rows import RECIPE, write_dataset

from xlnet.errors import Preempted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Heads of 64 take the Triton kernels, as XLNet's own do.
MODEL = {"n_layer": 2, "d_model": 128, "n_head": 2, "d_head": 64, "d_inner": 512}
SHORT = RECIPE.replace(model=MODEL, training={"steps": 60, "learning_rate": 1e-3, "token_dropout": 0.1})
LONG = SHORT.replace(training={"steps": 300, "checkpoint_every": 10, "evaluate_every": 50})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


def losses(trainer):
    return [json.loads(line)["loss"] for line in history(trainer).splitlines() if "loss" in json.loads(line)]


def test_the_curve_is_that_of_the_cpu(dataset, tmp_path):
    """In float32, with dropout: every device drops the same."""
    recipe = SHORT.replace(training={"precision": "float32"})
    cpu, cuda = (Trainer(tmp_path / kind, dataset, recipe, XLNET_DEVICE=kind) for kind in ("cpu", "cuda"))
    facts = [trainer.finish() for trainer in (cpu, cuda)]
    assert [one["attention"] for one in facts] == ["native", "triton"]
    assert facts[1]["accelerator"] == torch.cuda.get_device_name()
    assert len(losses(cpu)) >= 5
    assert losses(cuda) == pytest.approx(losses(cpu), rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_trainings_end_in_the_same_bits(dataset, tmp_path, precision):
    recipe = SHORT.replace(training={"precision": precision})
    trainers = [Trainer(tmp_path / name, dataset, recipe) for name in "ab"]
    first, second = (trainer.finish() for trainer in trainers)
    assert first["precision"] == precision
    assert first["weights_digest"] == second["weights_digest"]


@pytest.mark.parametrize("change", [{}, {"micro_batch_tokens": 70}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_graph_computes_what_the_kernels_do(dataset, precision, change):
    """Losses and weights, over updates of different sizes, the smallest of an epoch among them."""
    from xlnet import recipe as recipes
    from xlnet.data.dataset import open_dataset
    from xlnet.training import cuda_graph
    from xlnet.training.detect import detect
    from xlnet.training.feed import Feed
    from xlnet.training.optim import make_optimizer, set_learning_rate
    from xlnet.training.step import forward, optimise
    from xlnet.training.train import make_model

    data, recipe = open_dataset(dataset), recipes.Recipe(model=SHORT.model, training=SHORT.training)
    recipe = recipe.replace(training=change)
    results = []
    for graphs in (False, True, True):
        device = detect("cuda", precision)
        device.workers = 0
        device.capacity = cuda_graph.capacity(data.split("train").lengths, recipe.training) if graphs else None
        device.adds = recipe.training.micro_batch_tokens > 0
        model = device.prepare(make_model(recipe, data), recipe.training.recompute).train()
        optimizer, found = make_optimizer(model, recipe.training), []
        for step, share in enumerate(Feed(data.split("train"), recipe.training, 0, 30, device)):
            set_learning_rate(optimizer, step, 30, recipe.training)
            losses = []
            for batch in share.batches:
                device.seed(0, step)
                loss = forward(model, device.move(batch), share.texts, recipe.training, device)
                loss.backward()
                losses.append(loss.detach())
                del loss
            optimise(model, optimizer, recipe.training)
            found.append(sum(losses).item())
        assert (device._graph is not None) == graphs
        results.append((found, [parameter.detach().cpu() for parameter in model.parameters()]))
    (plain, weights), (replayed, others), (again, same) = results
    assert replayed == again
    assert all(torch.equal(a, b) for a, b in zip(others, same, strict=True))
    assert replayed == pytest.approx(plain, rel=1e-4 if precision == "float32" else 2e-2)
    if precision == "float32":
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights, others, strict=True))


def test_kills_change_no_bit(dataset, tmp_path):
    """Also when it computes in bfloat16, as it does where the recipe leaves it open."""
    whole = Trainer(tmp_path / "whole", dataset, LONG)
    seen = 0
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, Preempted.exit_status)):
        trainer = Trainer(tmp_path / "killed", dataset, LONG, XLNET_GRACE_SECONDS="10")
        trainer.until(lambda trainer=trainer, seen=seen: trainer.steps() and trainer.steps()[-1] > seen + 20)
        assert trainer.kill(number) == expected, trainer.log.read_text()
        seen = trainer.steps()[-1]
    last = Trainer(tmp_path / "killed", dataset, LONG)
    facts = last.finish()
    assert facts["precision"] == "bfloat16"
    assert facts["resumed_from"] == seen
    assert facts["weights_digest"] == whole.finish()["weights_digest"]
    assert history(last) == history(whole)


@pytest.mark.parametrize(
    ("megabytes", "told"),
    [(60, "out of memory: the model does not fit in the "), (250, "out of memory at step 1: ")],
)
def test_too_little_memory_says_what_to_change(dataset, tmp_path, megabytes, told):
    """A model of 100 MB, whose training needs four times that and the activations."""
    program = (
        f"import sys, torch; torch.cuda.set_per_process_memory_fraction({megabytes}e6 / torch.cuda.mem_get_info()[1])\n"
        "from xlnet.training.train import train; train(*sys.argv[1:])"
    )
    recipe = RECIPE.replace(model={"n_layer": 8, "d_model": 512, "n_head": 8, "d_head": 64, "d_inner": 2048})
    command = [sys.executable, "-c", program, recipe.part("model", "training"), dataset, str(tmp_path / "model")]
    environment = {**os.environ, "XLNET_CHECKPOINTS": str(tmp_path / "checkpoints")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    error = done.stderr.partition("RunError: ")[2]
    assert told in error, done.stderr
    if megabytes == 250:
        assert "set training.micro_batch_tokens=" in error
        assert f"{torch.cuda.get_device_name()} has" in error


@pytest.mark.parametrize("preset", ["base", "large"])
def test_memory_is_within_15_percent_of_what_is_planned(preset):
    """Beside the process's own, which no allocator counts."""
    from xlnet import recipe as recipes
    from xlnet.model import config as configs
    from xlnet.model.layout import Layout
    from xlnet.model.xlnet import XLNetClassifier
    from xlnet.training.detect import detect
    from xlnet.training.inputs import Inputs
    from xlnet.training.optim import make_optimizer
    from xlnet.training.step import forward, optimise
    from xlnet_pipeline.placement.machines import machine
    from xlnet_pipeline.planning import estimate
    from xlnet_pipeline.planning.workload import Workload

    recipe = recipes.PRESETS[preset]()
    texts, longest = 32, 512
    tokens = texts * longest
    device = detect("cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    shape = configs.from_recipe(recipe.model, 32_000, 5, "classification", ["0", "1"])
    model = device.prepare(XLNetClassifier(shape)).train()
    best = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = make_optimizer(model, recipe.training)
    ids = torch.randint(10, 32_000, (tokens,), device="cuda")
    kinds = torch.zeros(tokens, dtype=torch.int32, device="cuda")
    labels, weights = torch.zeros(texts, dtype=torch.int64, device="cuda"), torch.ones(texts, device="cuda")
    for _ in range(2):
        inputs = Inputs(ids, kinds, Layout.of([longest] * texts, "cuda"), labels, weights)
        forward(model, inputs, texts, recipe.training, device).backward()
        optimise(model, optimizer, recipe.training)
    measured = (torch.cuda.max_memory_allocated() - before) / estimate.GIB
    work = Workload(1000, 512.0, 512, 512.0, 32_000, 2, 100, tokens, "")
    planned = estimate.memory(recipe.model, work, machine("h100"))
    print(f"{preset}: {measured:.2f} GiB measured, {planned.total - planned.process:.2f} planned", len(best))
    assert planned.total - planned.process == pytest.approx(measured, rel=0.15)
