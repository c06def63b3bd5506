"""Several ranks train the model that one rank trains, and end at once when one of them fails."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_interruption import Trainer, history
from token_rows import RECIPE, write_dataset

from xlnet.data.batches import cut_evenly, epoch_plan, spread
from xlnet.data.shapes import Budget, Packed, Padded
from xlnet.errors import UserError
from xlnet.training.distributed import join
from xlnet.training.launch import Node, node_from

MODEL = {"n_layer": 2, "d_model": 64, "n_head": 2, "d_head": 32, "d_inner": 128}
SHORT = RECIPE.replace(
    model=MODEL, training={"steps": 100, "evaluate_every": 25, "token_dropout": 0.1, "learning_rate": 1e-3}
)
FAULTS = str(Path(__file__).parent / "faults")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", rows=243)


@pytest.fixture(scope="module")
def one_rank(dataset, tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("one") / "run", dataset, SHORT)
    trainer.finish()
    return trainer


def losses(trainer: Trainer) -> np.ndarray:
    lines = [json.loads(line) for line in history(trainer).splitlines()]
    return np.array([line.get("loss", line.get("validation_loss")) for line in lines])


@pytest.mark.parametrize(
    ("ranks", "change"),
    [(2, {}), (1, {"micro_batch_tokens": 70}), (2, {"shard_weights": True})],
    ids=["two ranks", "in pieces", "sharded"],
)
def test_the_curve_is_that_of_one_rank(dataset, one_rank, tmp_path, ranks, change):
    """Dropout and hidden tokens included: every loss of 100 steps, and of validation."""
    trainer = Trainer(tmp_path / "run", dataset, SHORT.replace(training=change), ranks)
    facts = trainer.finish()
    assert facts["ranks"] == ranks
    assert len(losses(trainer)) == len(losses(one_rank))
    # Sharded, the embedding table is updated densely: other roundings, which a hundred steps make larger.
    assert np.abs(losses(trainer) / losses(one_rank) - 1).max() <= (1e-3 if change.get("shard_weights") else 1e-5)


def test_more_ranks_than_texts_in_an_update(dataset, tmp_path):
    """A rank with nothing to do keeps the others company, and counts for nothing."""
    tiny = SHORT.replace(training={"batch_tokens": 1, "steps": 12, "evaluate_every": 6})
    one = Trainer(tmp_path / "one", dataset, tiny)
    two = Trainer(tmp_path / "two", dataset, tiny, ranks=2)
    one.finish()
    two.finish()
    assert np.abs(losses(two) / losses(one) - 1).max() <= 1e-5


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("1:20:raise", r"rank 1 \(process \d+ on .*\): Traceback.*test divides by zero"),
        ("1:20:die", r"rank 1 was killed by SIGKILL; out of memory, perhaps"),
        ("1:20:hang", r"rank 1 .* hangs at 'forward' of step \d+: no progress for \d+ s.*time\.sleep\(600\)"),
        ("0:20:hang", r"rank 0 .* hangs at 'forward' of step \d+: no progress for \d+ s.*time\.sleep\(600\)"),
    ],
)
def test_a_rank_that_fails_dies_or_hangs_is_named_within_a_minute(dataset, tmp_path, fault, told):
    path = os.pathsep.join([FAULTS, *sys.path])
    started = time.monotonic()
    trainer = Trainer(tmp_path / "run", dataset, SHORT, 2, FAULT=fault, PYTHONPATH=path, XLNET_HANG_SECONDS="8")
    assert trainer.process.wait(timeout=100) == 1
    assert time.monotonic() - started < 60
    said = " ".join(trainer.log.read_text().split())
    assert re.search(told, said), said
    assert said.count("error: ") == 1, said


def rank(number: int, size: int, dataset: str, recipe, out: Path, port: int) -> subprocess.Popen:
    arguments = ["--recipe-json", recipe.part("model", "training"), "--dataset", dataset, "--out", str(out)]
    place = {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_PORT": str(port), "XLNET_JOIN_SECONDS": "20"}
    command = [sys.executable, "-m", "xlnet", "train", *arguments]
    return subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True)


def test_a_missing_rank_is_named(dataset, tmp_path):
    alone = rank(0, 3, dataset, SHORT, tmp_path / "model", 29471)
    _, said = alone.communicate(timeout=90)
    assert alone.returncode == 1
    assert "rank 0 waited 20 s for rank 1, 2 of 3, which never came" in said


def test_ranks_with_different_recipes_are_told_apart(dataset, tmp_path):
    other = SHORT.replace(training={"learning_rate": 2e-3})
    both = [rank(n, 2, dataset, recipe, tmp_path / "model", 29472) for n, recipe in enumerate((SHORT, other))]
    said = [process.communicate(timeout=90)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert "rank 1 does not do the same work as rank 0: recipe:" in said[0]


def test_an_update_is_shared_evenly_and_whole():
    lengths = np.clip(np.random.default_rng(0).lognormal(2.7, 0.6, 3000).astype(int) + 3, 4, 64)
    for rows in epoch_plan(lengths, 2048, 0, 0)[:-2]:
        assert sorted(spread(rows, lengths)) == sorted(rows)
        for parts in (2, 3, 4, 8):
            cuts = cut_evenly(lengths[rows], parts)
            assert [cut.start for cut in cuts[1:]] == [cut.stop for cut in cuts[:-1]]
            assert max(lengths[rows][cut].sum() for cut in cuts) <= lengths[rows].sum() / parts + 64


@pytest.mark.parametrize("shapes", [Packed(), Padded((16, 64), 5)], ids=["packed", "padded"])
@pytest.mark.parametrize(("ranks", "micro"), [(1, 0), (2, 0), (3, 40), (1, 64)])
def test_shares_add_up_to_the_update(dataset, shapes, ranks, micro):
    from xlnet.data.dataset import open_dataset

    split = open_dataset(dataset).split("train")
    for rows in shapes.plan(split.lengths, 256, 0, 0):
        shares = [shapes.share(split, rows, Budget(rank, ranks, 256, micro)) for rank in range(ranks)]
        assert len({len(share.batches) for share in shares}) == 1, "every rank computes as often"
        seen = []
        for share in shares:
            assert share.texts == len(rows)
            for batch in share.batches:
                weights = getattr(batch, "weights_S", getattr(batch, "weights_B", None))
                index = getattr(batch, "index_S", getattr(batch, "index_B", None))
                seen += index[: int(weights.sum())].tolist()
        assert sorted(seen) == sorted(rows.tolist())


@pytest.mark.parametrize(
    ("environment", "node"),
    [
        ({}, Node()),
        ({"XLNET_NPROC": "2"}, Node(ranks=2)),
        (
            {"PET_NNODES": "4", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "job-0.job", "PET_NPROC_PER_NODE": "8"},
            Node(8, 4, 2, "job-0.job", 29400, "PET_NNODES"),
        ),
        (
            {"XLNET_NODES": "2", "JOB_COMPLETION_INDEX": "1", "XLNET_MASTER": "set-0.set"},
            Node(0, 2, 1, "set-0.set", 29400, "XLNET_NODES"),
        ),
        (
            {
                "CLUSTER_SPEC": json.dumps(
                    {
                        "cluster": {"workerpool0": ["one:2222"], "workerpool1": ["two:2222", "three:2222"]},
                        "task": {"type": "workerpool1", "index": 1},
                    }
                )
            },
            Node(0, 3, 2, "one", 2222, "CLUSTER_SPEC"),
        ),
    ],
)
def test_a_node_knows_its_place(environment, node):
    assert node_from(environment) == node


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"XLNET_NPROC": "two"}, "not a number"),
        ({"XLNET_NPROC": "0"}, "0 ranks per node"),
        ({"XLNET_NODES": "2", "JOB_COMPLETION_INDEX": "2", "XLNET_MASTER": "a"}, "this is node 2 of 2"),
        ({"XLNET_NODES": "2"}, "XLNET_MASTER"),
        ({"CLUSTER_SPEC": "{"}, "incomplete"),
    ],
)
def test_a_node_that_cannot_know_says_so(environment, told):
    with pytest.raises(UserError, match=told):
        node_from(environment)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2; with WORLD_SIZE=2 it is 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "not divisible by 2 ranks per node"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "must be numbers"),
    ],
)
def test_an_environment_that_contradicts_itself(monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        join("cpu")
