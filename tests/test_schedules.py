"""Schedules on this machine, and what all targets refuse."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_sentences
from test_kfp_target import recipe_file

from xlnet.errors import UserError
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets import schedules
from xlnet_pipeline.targets.local import schedules as local_schedules
from xlnet_pipeline.targets.local.schedules import LocalSchedules
from xlnet_pipeline.targets.local.target import LocalTarget


def test_a_name_with_slashes_is_refused(tmp_path: Path) -> None:
    for name in ("a/b", "../x", "", "Upper", "-a"):
        with pytest.raises(UserError, match="is not allowed: lower-case letters"):
            schedules.check_name(name)


def local_recipe(tmp_path: Path) -> list[str]:
    rows = write_sentences(tmp_path / "rows.csv")
    recipe = recipe_file(tmp_path / "recipe.toml")
    return [str(recipe), "--set", f"data.train={rows}"]


def test_a_local_schedule_is_made_changed_paused_and_deleted(
    isolated_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create = ["schedule", "create", "nightly", *local_recipe(tmp_path), "--cron", "0 3 * * *"]
    assert main(create) == 0
    assert main(create) == 0
    assert "unchanged" in capsys.readouterr().out
    assert main(["schedule", "pause", "nightly"]) == 0
    assert main([*create, "--timezone", "Asia/Tokyo"]) == 0
    assert "(paused)" in capsys.readouterr().out, "a change does not resume"
    (found,) = LocalSchedules(isolated_state).all()
    assert (found.state, found.timing.timezone, len(found.history)) == ("PAUSED", "Asia/Tokyo", 2)
    assert main(["schedule", "resume", "nightly"]) == 0
    (found,) = LocalSchedules(isolated_state).all()
    assert found.next_run is not None
    assert "T03:00:00+09:00" in found.next_run
    assert main(["schedule", "delete", "nightly"]) == 0
    assert LocalSchedules(isolated_state).all() == []


def test_the_schedules_of_a_moved_state_directory_start_their_runs_there(
    isolated_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "create", "nightly", *local_recipe(tmp_path), "--cron", "0 3 * * *"]) == 0
    assert main(["schedule", "create", "paused", *local_recipe(tmp_path), "--cron", "0 4 * * *"]) == 0
    assert main(["schedule", "pause", "paused"]) == 0
    moved = tmp_path / "elsewhere" / "home"
    moved.parent.mkdir()
    isolated_state.rename(moved)
    assert main(["--home", str(moved), "schedule", "list"]) == 0
    assert [one.state for one in LocalSchedules(moved).all()] == ["ACTIVE", "PAUSED"]
    with LocalSchedules(moved)._store() as store:
        assert [store.get_job(name).args for name in ("nightly", "paused")] == [
            (str(moved), "nightly"),
            (str(moved), "paused"),
        ]


@pytest.mark.slow
def test_a_served_schedule_fires_once_across_a_restart(isolated_state: Path, tmp_path: Path) -> None:
    """The scheduler is ended just before a minute begins and started just after it."""
    assert main(["schedule", "create", "often", *local_recipe(tmp_path), "--cron", "* * * * *"]) == 0

    def started() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "xlnet_pipeline", "schedule", "serve"], env={**os.environ})

    if time.time() % 60 > 40:
        time.sleep(61 - time.time() % 60)
        LocalSchedules(isolated_state).resume("often")
    serving = started()
    time.sleep(max(0.0, 57 - time.time() % 60))
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(20) == 0
    time.sleep(62 - time.time() % 60)
    serving = started()
    deadline = time.monotonic() + 45
    while not list((isolated_state / "schedules").glob("*.runs")) and time.monotonic() < deadline:
        time.sleep(0.5)
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(20) == 0
    (run,) = LocalTarget(isolated_state).runs()
    assert run.status == "SUCCEEDED"
    assert local_schedules.GRACE >= 10
