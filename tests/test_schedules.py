"""Schedules: what cron means, and one life of a schedule on each target."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import write_sentences
from servers.kfp_server import KfpServer
from test_kfp_target import recipe_file

from xlnet.errors import UserError
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets import schedules
from xlnet_pipeline.targets.local import schedules as local_schedules
from xlnet_pipeline.targets.local.schedules import LocalSchedules
from xlnet_pipeline.targets.local.target import LocalTarget


def test_cron_is_converted_once_for_each_target() -> None:
    when = schedules.timing("0 3 * * 1-5", "Europe/Berlin")
    assert schedules.six_fields(when) == "TZ=Europe/Berlin 0 0 3 * * mon-fri"
    assert schedules.five_fields(when) == "TZ=Europe/Berlin 0 3 * * mon-fri"
    assert schedules.six_fields(schedules.timing("*/5 0-6 1,15 * *")) == "0 */5 0-6 1,15 * *"
    assert schedules.read_cron(schedules.six_fields(when), 1) == when
    assert schedules.read_cron(schedules.five_fields(when), 1) == when


def test_sunday_is_sunday_whatever_its_number() -> None:
    moment = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday
    for day in ("0", "7", "sun"):
        assert schedules.next_after(schedules.timing(f"30 2 * * {day}"), moment) == "2026-11-29T02:30:00+00:00"


def test_the_hour_that_summer_time_skips_or_repeats_fires_once() -> None:
    when = schedules.timing("30 1 * * *", "Europe/London")
    assert schedules.next_after(when, datetime(2026, 10, 25, 0, 0, tzinfo=UTC)) == "2026-10-25T01:30:00+01:00"
    assert schedules.next_after(when, datetime(2026, 10, 25, 12, 0, tzinfo=UTC)) == "2026-10-26T01:30:00+00:00"


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("0 3 * *", "UTC", "has 4 fields; it needs five"),
        ("0 0 3 * * *", "UTC", "leave the seconds out"),
        ("61 3 * * *", "UTC", "cron '61 3"),
        ("a b c d e", "UTC", "make two schedules|cron 'a b"),
        ("0 3 31 2 *", "UTC", "never comes"),
        ("0 3 1 * 1", "UTC", "make two schedules"),
        ("0 3 * * *", "Europe/Berln", "did you mean 'Europe/Berlin'"),
    ],
)
def test_a_wrong_expression_is_one_line(cron: str, zone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedules.timing(cron, zone)


def test_a_name_with_slashes_is_refused(tmp_path: Path) -> None:
    for name in ("a/b", "../x", "", "Upper", "-a"):
        with pytest.raises(UserError, match="is not allowed: lower-case letters"):
            schedules.check_name(name)


def test_a_schedule_on_kubeflow_pipelines(
    kfp: KfpServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(recipe_file(tmp_path / "recipe.toml"))
    create = ["schedule", "create", "nightly", recipe, "--target", "kfp", "--cron", "0 3 * * *"]
    assert main(create) == 0
    assert "nightly: created" in capsys.readouterr().out
    assert main(create) == 0
    assert "nightly: unchanged" in capsys.readouterr().out
    (body,) = kfp.recurring.values()
    assert body["max_concurrency"] == "1"
    assert body["no_catchup"] is True

    assert main([*create, "--timezone", "Europe/Berlin", "--set", "training.epochs=3.0"]) == 0
    shown = capsys.readouterr().out
    assert "timezone: UTC → Europe/Berlin" in shown
    assert "training.epochs: 4.0 → 3.0" in shown
    assert len(kfp.recurring) == 1
    assert main(["schedule", "pause", "nightly", "--target", "kfp"]) == 0
    assert main(["schedule", "list", "--target", "kfp", "--recipe", recipe]) == 0
    listed = capsys.readouterr().out
    assert "PAUSED" in listed
    assert "training.epochs" in listed, "drift"
    assert main(["schedule", "resume", "nightly", "--target", "kfp"]) == 0
    assert main(["schedule", "show", "nightly", "--target", "kfp"]) == 0
    assert "created" in capsys.readouterr().out, "history survived the change"

    made = kfp.fire(next(iter(kfp.recurring)))
    kfp.executions[made["run_id"]].join(60)
    assert main(["lineage", made["run_id"], "--target", "kfp"]) == 0
    assert "registration reviews:1" in capsys.readouterr().out
    again = kfp.fire(next(iter(kfp.recurring)))
    kfp.executions[again["run_id"]].join(60)
    states = [task.state for task in kfp.executions[again["run_id"]].tasks.values()]
    assert sorted(states) == ["CACHED"] * 4 + ["SUCCEEDED"], "unchanged data costs nothing but a look at it"

    assert main(["schedule", "delete", "nightly", "--target", "kfp"]) == 0
    assert main(["schedule", "delete", "nightly", "--target", "kfp"]) == 2
    assert "schedule 'nightly' is unknown" in capsys.readouterr().err


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
