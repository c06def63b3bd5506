"""Checkpoints: the newest whole one is used, and what is torn, foreign or cannot be written is told."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from servers import storage
from test_interruption import LONG, Trainer, history
from token_rows import write_dataset
from transformers import XLNetForSequenceClassification

from xlnet import provenance
from xlnet.__main__ import main
from xlnet.errors import RunError, UserError
from xlnet.training.checkpoint import Checkpoints, State
from xlnet.training.checkpoint_store import CheckpointStore, open_checkpoint_store
from xlnet.training.distributed import SingleRank
from xlnet.training.tensors import Replicated

ABOUT = {"recipe": {"training": {"seed": 0, "learning_rate": 1e-3}}, "dataset": "sha256:aa"}


@pytest.fixture(params=["directory", "bucket"])
def root(request, tmp_path, monkeypatch):
    if request.param == "directory":
        yield str(tmp_path / "place")
    else:
        pytest.importorskip("gcp_storage_emulator")
        with storage.bucket_server(monkeypatch) as bucket:
            yield f"gs://{bucket.name}/place"


class Work:
    """A model after some steps, and the checkpoints of it."""

    def __init__(self, root: str, about=ABOUT, width: int = 6) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.said: list[str] = []
        tensors = Replicated(self.model, self.optimizer, SingleRank())
        self.checkpoints = Checkpoints(open_checkpoint_store(root), tensors, about, self.said.append)
        self.state = State()

    def step(self) -> None:
        self.model(torch.randn(3, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def test_the_weights_at_the_start_can_be_the_best(root: str) -> None:
    work = Work(root)
    work.checkpoints.start()
    best = work.weights()
    work.state.best = {"validation_loss": 0.5}
    for _ in range(2):
        work.step()
        work.checkpoints.save(work.state, best)
    work.checkpoints.close()
    again = Work(root)
    state, restored = again.checkpoints.restore()
    assert (state.step, state.best_step) == (2, 0)
    assert restored.keys() == best.keys()
    assert all(torch.equal(restored[name], best[name]) for name in best)


def written(root: str, steps: int = 4) -> Work:
    """Checkpoints of every step; the second one is the best."""
    work = Work(root)
    work.checkpoints.start()
    best: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        work.step()
        if work.state.step == 2:
            work.state.best_step, best = 2, work.weights()
        work.checkpoints.save(work.state, best)
    work.checkpoints.close()
    assert not work.said
    return work


def test_the_last_two_are_kept_and_the_best(root):
    work = written(root, 5)
    place = open_checkpoint_store(root)
    assert place.names() == ["step-00000004-best-00000002", "step-00000005-best-00000002"]
    assert place.files("best-") == ["best-00000002.safetensors"]
    again = Work(root)
    again.checkpoints.start()
    state, best = again.checkpoints.restore()
    assert (state.step, state.best_step, state.resumed) == (5, 2, [5])
    assert set(best) == set(work.weights())
    for name, value in work.weights().items():
        assert torch.equal(value, again.weights()[name])
    for mine, theirs in zip(work.model.parameters(), again.model.parameters(), strict=True):
        for key, value in work.optimizer.state[mine].items():
            assert torch.equal(value, again.optimizer.state[theirs][key])
    again.checkpoints.close()
    again.checkpoints.clear()
    assert not open_checkpoint_store(root).names()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json", "../best-00000002.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_newest_is_reported_and_the_one_before_it_used(tmp_path, file, damage):
    written(str(tmp_path))
    path = tmp_path / "step-00000004-best-00000002" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :]) * (damage != "cut"))
    work = Work(str(tmp_path))
    state, _ = work.checkpoints.restore()
    if file.startswith(".."):  # both need the best weights
        assert state.step == 0
        assert len(work.said) == 2
    else:
        assert state.step == 3
        if (file, damage) != ("manifest.json", "gone"):  # without a manifest it was never there
            assert "checkpoint step-00000004-best-00000002 is damaged and not used" in work.said[0]


def test_of_another_recipe_with_the_fields_named(root):
    written(root)
    other = {"recipe": {"training": {"seed": 1, "learning_rate": 1e-3}}, "dataset": "sha256:aa"}
    with pytest.raises(UserError, match=r"of another training: training\.seed is 0 there and 1 here; name another"):
        Work(root, other).checkpoints.start()


def test_of_a_model_of_another_shape(tmp_path):
    written(str(tmp_path))
    with pytest.raises(UserError, match=r"'bias' has shape \(6,\) there and \(5,\) here, and 1 more differ"):
        Work(str(tmp_path), width=5).checkpoints.restore()


def test_two_at_once_are_refused(tmp_path):
    first, second = CheckpointStore(str(tmp_path)), CheckpointStore(str(tmp_path))
    first.lock(0.0)
    with pytest.raises(RunError, match=rf"already running \(process {os.getpid()} on"):
        second.lock(0.3)
    first.unlock()
    second.lock(0.0)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UserError, match="cannot be written to '.*file/below': Not a directory; name another"):
        Work(str(tmp_path / "file" / "below")).checkpoints.start()


@pytest.fixture
def full_disk(tmp_path):
    """A file system of one megabyte."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root, to mount a file system of one megabyte")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_is_told_at_the_start(full_disk):
    work = Work(str(full_disk), width=100_000)
    with pytest.raises(UserError, match=r"checkpoints need 0\.0 GB at .*, where 0\.0 GB are free; make room"):
        work.checkpoints.start()


def test_a_disk_that_fills_up_costs_no_checkpoint_that_is_there(full_disk):
    work = Work(str(full_disk), width=1000)
    work.checkpoints.start()
    work.step()
    work.checkpoints.save(work.state, {}, wait=True)
    (full_disk / "others").write_bytes(bytes(shutil.disk_usage(full_disk).free))
    work.step()
    with pytest.raises(RunError, match="the checkpoint of step 2 could not be written: .*"):
        work.checkpoints.save(work.state, {}, wait=True)
    assert "the one before it is kept" in work.said[0]
    work.checkpoints.close()
    assert Work(str(full_disk), width=1000).checkpoints.restore()[0].step == 1


def test_sharded_checkpoints_continue(tmp_path):
    """Two ranks with half of the weights each, stopped and started again: the same bits."""
    dataset = write_dataset(tmp_path / "dataset")
    recipe = LONG.replace(training={"steps": 80, "shard_weights": True, "checkpoint_every": 10})
    whole = Trainer(tmp_path / "whole", dataset, recipe, 2)
    expected = whole.finish()
    trainer = Trainer(tmp_path / "run", dataset, recipe, 2)
    trainer.until(lambda: trainer.steps() and trainer.steps()[-1] >= 20)
    assert trainer.kill(signal.SIGKILL) == -signal.SIGKILL
    (manifest,) = (tmp_path / "run/checkpoints").glob(f"*/step-{trainer.steps()[-1]:08d}-*/manifest.json")
    parts = {f"shard-{rank:05}-model-00001-of-00001.safetensors" for rank in (1, 2)}
    assert set(json.loads(manifest.read_text())) == {*parts, "state.json"}, "nothing that would have to be unpickled"
    last = Trainer(tmp_path / "run", dataset, recipe, 2)
    facts = last.finish()
    assert facts["resumed_from"] > 0
    assert facts["weights_digest"] == expected["weights_digest"]
    assert history(last) == history(whole)
    assert Path(last.out, "model.safetensors").is_file()


def test_checkpoints_outlive_a_change_of_ranks_and_become_models(tmp_path, capsys):
    """Sharded over two ranks, whole on one, sharded again: each goes on where the one before it stopped."""
    dataset = write_dataset(tmp_path / "dataset")
    often = {"checkpoint_every": 10, "evaluate_every": 20}
    recipe = LONG.replace(training={"steps": 90, "learning_rate": 1e-3, "shard_weights": True, **often})
    expected = Trainer(tmp_path / "whole", dataset, recipe, 2)
    expected.finish()
    kinds = []
    for ranks, until in ((2, 20), (1, 40), (2, 60)):
        trainer = Trainer(tmp_path / "run", dataset, recipe, ranks)
        trainer.until(lambda until=until, trainer=trainer: trainer.steps() and trainer.steps()[-1] >= until)
        assert trainer.kill(signal.SIGTERM) == 75, trainer.log.read_text()
        (newest,) = (tmp_path / "run/checkpoints").glob(f"*/step-{trainer.steps()[-1]:08d}-*")
        kinds.append((newest / "tensors.safetensors").is_file())
        for weights in ("best", "newest"):
            model = tmp_path / f"{weights}-{until}"
            assert (
                main(["export", str(newest.parent), "--dataset", dataset, "--out", str(model), "--weights", weights])
                == 0
            )
            assert XLNetForSequenceClassification.from_pretrained(model).config.n_layer == 2
            facts = provenance.read(model)["artifact"]["metadata"]
            assert facts["global_step"] == trainer.steps()[-1]
            assert facts["exported_step"] == (facts["best_step"] if weights == "best" else facts["global_step"])
    assert kinds == [False, True, False]
    last = Trainer(tmp_path / "run", dataset, recipe, 2)
    assert last.finish()["interruptions"] == 3
    curves = [[json.loads(line).get("loss", 0.0) for line in history(one).splitlines()] for one in (last, expected)]
    np.testing.assert_allclose(*curves, rtol=1e-3)

    assert main(["export", str(tmp_path / "run"), "--dataset", dataset, "--out", str(tmp_path / "none")]) == 2
    assert "holds no training's checkpoints; allowed:" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
