"""Training: it learns, twice the same, through a kill, and fails with a line that helps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from token_rows import RECIPE, write_dataset
from transformers import XLNetForSequenceClassification

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.data.shapes import Packed
from xlnet.errors import RunError, UserError
from xlnet.model.inference import predict_logits
from xlnet.model.weights import load_classifier
from xlnet.training import loop, objective
from xlnet.training.detect import detect
from xlnet.training.feed import Feed, row_stream
from xlnet.training.optim import learning_rate_factor, make_optimizer, set_learning_rate
from xlnet.training.schedule import plan
from xlnet.training.train import make_model, train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


def part(recipe):
    return recipe.part("model", "training")


def test_it_learns_and_leaves_a_whole_artifact(dataset, tmp_path):
    facts = train(part(RECIPE), dataset, str(tmp_path / "model"))
    assert facts["validation_accuracy"] >= 0.95
    assert provenance.verify(tmp_path / "model") == facts["model_digest"]
    lineage = provenance.read(tmp_path / "model")
    assert lineage["inputs"][0]["artifact"]["digest"] == facts["dataset_digest"]
    written = recipes.from_json((tmp_path / "model" / "recipe.json").read_text())
    assert (written.model, written.training) == (RECIPE.model, RECIPE.training)
    history = [json.loads(line) for line in (tmp_path / "model" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == facts["global_step"]
    assert any(file.name.startswith("events.") for file in (tmp_path / "model" / "logs").iterdir())
    assert not list(tmp_path.glob(".*")), "checkpoints and partial directories are gone"
    assert load_classifier(tmp_path / "model").config.classes == ("no", "yes")
    XLNetForSequenceClassification.from_pretrained(tmp_path / "model")


def test_same_recipe_same_seed_same_bytes(dataset, tmp_path):
    recipe = RECIPE.replace(training={"steps": 12, "token_dropout": 0.1})
    first, second = (train(part(recipe), dataset, str(tmp_path / name)) for name in "ab")
    third = train(part(recipe.replace(training={"seed": 1})), dataset, str(tmp_path / "c"))
    assert first["model_digest"] == second["model_digest"]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert first["weights_digest"] != third["weights_digest"]


def test_regression_learns(tmp_path):
    dataset = write_dataset(tmp_path / "dataset", task="regression")
    facts = train(part(RECIPE.replace(training={"epochs": 12.0})), dataset, str(tmp_path / "model"))
    assert facts["validation_pearson"] > 0.9
    assert json.loads((tmp_path / "model/config.json").read_text())["problem_type"] == "regression"


def test_early_stopping_keeps_the_best(dataset, tmp_path):
    recipe = RECIPE.replace(training={"epochs": 40.0, "evaluate_every": 5, "patience": 2})
    facts = train(part(recipe), dataset, str(tmp_path / "model"))
    assert facts["stopped_early"] == "true"
    model, data = load_classifier(tmp_path / "model"), open_dataset(dataset)
    logits = predict_logits(model, data.split("validation"))
    scores = objective.validation_metrics(logits, data.split("validation").labels, "classification")
    assert scores["validation_accuracy"] == pytest.approx(facts["validation_accuracy"], abs=1e-6)


def test_pretrained_weights_are_where_training_starts(dataset, tmp_path):
    first = train(part(RECIPE), dataset, str(tmp_path / "first"))
    recipe = recipes.from_changes(
        {
            "model": {"pretrained": str(tmp_path / "first")},
            "training": {"steps": 1, "learning_rate": 1e-6, "initialisation": "random"},
        }
    )
    second = train(part(recipe), dataset, str(tmp_path / "second"))
    assert second["validation_accuracy"] == first["validation_accuracy"]
    assert second["base_model"] == str(tmp_path / "first")
    _, base = provenance.read(tmp_path / "second")["inputs"]
    assert base["artifact"]["digest"] == first["model_digest"], "the lineage goes on through the weights"
    (tmp_path / "first" / "lineage.json").unlink()
    train(part(recipe), dataset, str(tmp_path / "third"))
    _, base = provenance.read(tmp_path / "third")["inputs"]
    assert base["artifact"]["type"] == "pretrained"
    checksums = {file["uri"]: file["checksum"] for file in base["artifact"]["metadata"]["files"]}
    assert checksums["model.safetensors"] == first["weights_digest"]


def test_signals_to_the_whole_job_leave_those_who_make_batches_alive(dataset):
    """Ctrl-C reaches every process of a terminal's job; the one that trains still needs batches until it stops."""
    device = detect("cpu")
    device.workers = 2
    steps, others = 40, psutil.Process().children()
    feed = iter(Feed(open_dataset(dataset).split("train"), RECIPE.training, 0, steps, device))
    assert next(feed)
    assert next(feed), "the second worker's"
    workers = [child for child in psutil.Process().children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
    assert len(list(feed)) == steps - 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_training_continues_to_the_same_bits(dataset, tmp_path, monkeypatch, precision):
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(tmp_path / "home"))
    steps = {"steps": 400, "checkpoint_every": 3, "evaluate_every": 50}
    recipe = RECIPE.replace(training={**steps, "precision": precision})
    whole = train(part(recipe), dataset, str(tmp_path / "whole"))
    code = "import sys; from xlnet.training.launch import train; train(*sys.argv[1:])"
    command = [sys.executable, "-c", code, part(recipe), dataset, str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("home/checkpoints/*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists(), "nothing half-written is under the artifact's name"
    resumed = train(part(recipe), dataset, str(tmp_path / "killed"))
    assert resumed["resumed_from"] > 0
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert (tmp_path / "killed/history.jsonl").read_text() == (tmp_path / "whole/history.jsonl").read_text()


def test_a_loss_that_explodes_names_the_step_and_keeps_its_batch(dataset, tmp_path, monkeypatch):
    recipe = RECIPE.replace(training={"epochs": 40.0, "checkpoint_every": 2})
    calls = []
    true_loss = objective.losses

    def explodes(*arguments):
        calls.append(0)
        return true_loss(*arguments) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(objective, "losses", explodes)
    out = tmp_path / "model"
    with pytest.raises(
        RunError, match=r"became nan at step 6; its batch is in '.*batch-6\.json'.*lower training"
    ) as told:
        train(part(recipe), dataset, str(out))
    assert not out.exists()
    batch = json.loads(Path(str(told.value).split("'")[1]).read_text())
    (rows,) = row_stream(open_dataset(dataset).split("train").lengths, recipe.training, Packed(), 5, 6)
    assert sorted(row["row"] for row in batch["rows"]) == sorted(rows.tolist())
    assert batch["rows"][0]["input_ids"][-2:] == [4, 3]
    monkeypatch.setattr(objective, "losses", true_loss)
    assert train(part(recipe), dataset, str(out))["resumed_from"] == 4, "the last good checkpoint was kept"


def test_worker_processes_pack_the_same_batches(dataset):
    split = open_dataset(dataset).split("train")
    device, ahead_of = detect("cpu"), detect("cpu")
    ahead_of.workers = 2
    inline, ahead = (list(Feed(split, RECIPE.training, 3, 30, one)) for one in (device, ahead_of))
    assert len(inline) == 27
    for share, other in zip(inline, ahead, strict=True):
        (ours,), (theirs,) = share.batches, other.batches
        assert np.array_equal(ours.input_ids_T, theirs.input_ids_T)
        assert np.array_equal(ours.index_S, theirs.index_S)


@pytest.mark.parametrize("change", [{"recompute": True}, {"precision": "bfloat16"}])
def test_memory_and_precision_settings_still_learn(dataset, tmp_path, change):
    facts = train(part(RECIPE.replace(training=change)), dataset, str(tmp_path / "model"))
    assert facts["validation_accuracy"] >= 0.95
    assert facts["precision"] == change.get("precision", "float32")


def test_a_changed_dataset_is_refused(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "dataset")
    with (tmp_path / "dataset/card.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RunError, match="was changed after it was written"):
        train(part(RECIPE), str(tmp_path / "dataset"), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="device is 'tpux'; allowed: auto, cpu, cuda, xla, tpu"):
        detect("tpux")
    with pytest.raises(UserError, match="'xla' was asked for, but torch_xla is not installed.*allowed here: .*cpu"):
        detect("xla")
    with pytest.raises(UserError, match="'tpu' was asked for, but torch_tpu is not installed.*allowed here: .*cpu"):
        detect("tpu")


def test_learning_rate_goes_up_and_down():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[-1] == pytest.approx(1 / 90)
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_layers_learn_at_decaying_rates_and_norms_are_not_decayed(dataset):
    recipe = RECIPE.replace(model={"n_layer": 3}, training={"layer_decay": 0.5, "weight_decay": 0.1})
    model = make_model(recipe, open_dataset(dataset))
    optimizer = make_optimizer(model, recipe.training)
    set_learning_rate(optimizer, 50, 100, recipe.training)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group_of = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(names)
    head = group_of["logits_proj.weight"]["lr"]
    assert group_of["transformer.layer.2.rel_attn.qkv"]["lr"] == pytest.approx(head * 0.5)
    assert group_of["transformer.layer.0.ff.layer_1.weight"]["lr"] == pytest.approx(head * 0.125)
    assert group_of["transformer.word_embedding.weight"]["lr"] == pytest.approx(head * 0.0625)
    assert group_of["transformer.layer.0.rel_attn.qkv"]["weight_decay"] == 0.1
    assert group_of["transformer.layer.0.rel_attn.r_w_bias"]["weight_decay"] == 0.0
    assert group_of["transformer.layer.0.ff.layer_norm.weight"]["weight_decay"] == 0.0


@pytest.mark.parametrize(("steps", "epochs"), [(7, 3.0), (0, 0.5), (0, 2.0)])
def test_planned_steps_are_the_steps_done(dataset, steps, epochs):
    training = RECIPE.replace(training={"steps": steps, "epochs": epochs}).training
    split = open_dataset(dataset).split("train")
    planned = plan(split.lengths, training, Packed())
    assert max(planned.validations) == planned.steps
    assert len(list(row_stream(split.lengths, training, Packed(), 0, planned.steps))) == planned.steps
    if steps:
        assert planned.steps == steps


LIMITED = """
import resource, sys
from pathlib import Path
from xlnet.training.launch import train
import xlnet.training.train
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)
try:
    train(*sys.argv[1:])
except xlnet.training.train.RunError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to know how much is in use")
def test_memory_that_does_not_suffice_names_the_batch_and_the_setting(tmp_path):
    dataset = write_dataset(tmp_path / "dataset", rows=20_000)
    wide = {"n_layer": 4, "d_model": 128, "n_head": 2, "d_head": 64, "d_inner": 512}
    recipe = RECIPE.replace(model=wide, training={"steps": 2, "batch_tokens": 150_000})
    command = [sys.executable, "-c", LIMITED, part(recipe), dataset, str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert found.returncode == 1
    said = found.stderr[found.stderr.index("out of memory") :]
    assert re.match(r"out of memory at step 1: [\d,]+ texts with 1[\d,]+ tokens in the update", said), said
    assert re.search(r"set training\.micro_batch_tokens=\d+, training\.recompute=true", said), said
    assert re.search(r"\n  optimizer +\d+\.\d\d GB\n", said), said


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["logits_proj.bias", "transformer.word_embedding.weight"])
def test_a_last_update_that_breaks_the_weights_keeps_and_saves_nothing(dataset, tmp_path, monkeypatch, place, poison):
    """Its loss was finite. A token that no validation row has is seen in the weights alone."""
    true_optimise, updates = loop.optimise, []

    def last_one_breaks(model, *arguments):
        norm = true_optimise(model, *arguments)
        updates.append(1)
        if len(updates) == 8:
            with torch.no_grad():
                dict(model.named_parameters())[place].view(-1)[-1] = poison
        return norm

    monkeypatch.setattr(loop, "optimise", last_one_breaks)
    recipe = RECIPE.replace(training={"steps": 8, "evaluate_every": 4, "checkpoint_every": 2})
    with pytest.raises(RunError, match=r"not finite after step 8, so this model is neither kept nor judged.*lower tr"):
        train(part(recipe), dataset, str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(loop, "optimise", true_optimise)
    facts = train(part(recipe), dataset, str(tmp_path / "model"))
    assert facts["resumed_from"] == 6, "the checkpoint before it is whole"


def test_a_constant_prediction_has_no_correlation():
    scores = objective.validation_metrics(np.full((9, 1), 0.1, np.float32), np.arange(9.0), "regression")
    assert scores.keys() == {"validation_loss"}
