"""Checkpoints by time: when one is due, and what a training then leaves."""

import time
from pathlib import Path

import pytest
from conftest import Trained

from xlnet.errors import UserError
from xlnet.training import checkpoint
from xlnet.training.launch import train
from xlnet.training.schedule import CheckpointClock


def test_none_is_due_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLNET_CHECKPOINT_SECONDS", raising=False)
    assert not CheckpointClock.from_environment().due()


def test_a_slow_place_is_written_to_less_often() -> None:
    clock = CheckpointClock(0.001)
    time.sleep(0.002)
    assert clock.due()
    clock.saved(waited=10.0)
    time.sleep(0.002)
    assert not clock.due(), "at most one part in a hundred of the time"


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_seconds_that_are_none_are_one_line(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLNET_CHECKPOINT_SECONDS", given)
    with pytest.raises(UserError, match=f"XLNET_CHECKPOINT_SECONDS is '{given}'"):
        CheckpointClock.from_environment()


def test_a_training_writes_them_and_ends_in_the_same_bits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = checkpoint.Checkpoints.save

    def noted(self: checkpoint.Checkpoints, state: checkpoint.State, *arguments: object) -> None:
        saved.append(state.step)
        save(self, state, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    monkeypatch.setattr(CheckpointClock, "SHARE", 0)
    monkeypatch.setenv("XLNET_CHECKPOINT_SECONDS", "0.000001")
    train(trained.recipe.to_json(), str(trained.dataset), str(tmp_path / "model"))
    assert len(saved) > 4, "not only at the validations"
    same = (trained.model / "model.safetensors").read_bytes()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == same
