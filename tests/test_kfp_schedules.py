"""Schedules on Kubeflow Pipelines: their life, zones, and what happens to a run in progress."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from servers.kfp_server import KfpServer
from test_kfp_target import recipe_file

from xlnet_pipeline.cli import main
from xlnet_pipeline.targets.kfp import clock

KFP = ["--target", "kfp"]
RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "kfp-recordings"


class Table:
    """The command line over one recipe and server."""

    def __init__(self, server: KfpServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server, self.recipe, self.capsys = server, str(recipe), capsys
        server.run_pipelines = False  # runs go on until they are ended

    def say(self, *words: str, status: int = 0) -> str:
        assert main(["schedule", *words, *KFP]) == status
        found = self.capsys.readouterr()
        return found.out + found.err

    def create(self, *words: str, name: str = "nightly", status: int = 0) -> str:
        cron = [] if "--cron" in words else ["--cron", "0 3 * * *"]
        return self.say("create", name, self.recipe, *cron, *words, status=status)

    def posted(self) -> list[Any]:
        return [one.body for one in self.server.requests if one.method == "POST" and one.path.endswith("recurringruns")]

    def crons(self) -> dict[str, str]:
        """Expression → status of what the server holds."""
        return {one["trigger"]["cron_schedule"]["cron"]: one["status"] for one in self.server.recurring.values()}

    def fire(self) -> str:
        """A run of the newest recurring run, in progress."""
        return str(self.server.fire(list(self.server.recurring)[-1])["run_id"])

    def end(self, run: str) -> None:
        execution = self.server.executions[run]
        execution.state, execution.ended = "SUCCEEDED", datetime.now(UTC)


@pytest.fixture
def table(kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Table:
    return Table(kfp, recipe_file(tmp_path / "recipe.toml"), capsys)


def test_a_schedule_from_its_making_to_its_end(table: Table, kfp: KfpServer) -> None:
    assert "nightly: created" in table.create()
    assert "nightly: unchanged" in table.create("--cron", "00 03 * * *"), "another spelling"
    (body,) = table.posted()
    assert body["max_concurrency"] == "1"
    assert body["no_catchup"] is True

    shown = table.create("--timezone", "Asia/Tokyo", "--set", "training.epochs=3.0")
    assert "timezone: UTC → Asia/Tokyo" in shown
    assert "training.epochs: 4.0 → 3.0" in shown
    assert table.crons() == {"0 0 18 * * *": "ENABLED"}
    table.say("pause", "nightly")
    listed = table.say("list", "--recipe", table.recipe)
    assert "PAUSED" in listed
    assert "Asia/Tokyo" in listed
    assert "training.epochs" in listed, "drift"
    assert "(paused)" in table.create("--cron", "0 4 * * *"), "a change does not resume"
    table.say("resume", "nightly")
    shown = table.say("show", "nightly")
    assert shown.count("04:00 UTC") == 3, "the next three times"
    assert "created" in shown, "history survived the changes"

    made = table.fire()
    assert main(["runs", "list", *KFP]) == 0
    assert "nightly 20" in table.capsys.readouterr().out, "the schedule's name and time"
    assert main(["runs", "show", made, *KFP]) == 0
    assert "schedule nightly 20" in table.capsys.readouterr().out
    table.end(made)
    assert "20" in table.say("list").splitlines()[1].split("UTC", 1)[1], "its last run"

    table.say("delete", "nightly")
    assert kfp.recurring == {}
    assert "schedule 'nightly' is unknown" in table.say("delete", "nightly", status=2)
    assert main(["runs", "show", made, *KFP]) == 0
    assert "schedule (deleted) 20" in table.capsys.readouterr().out


def test_a_change_leaves_the_run_in_progress_alone(table: Table, kfp: KfpServer) -> None:
    table.create()
    run = table.fire()
    table.create("--cron", "0 4 * * *")
    assert table.crons() == {"0 0 3 * * *": "DISABLED", "0 0 4 * * *": "ENABLED"}
    table.create("--cron", "0 5 * * *")
    assert table.crons() == {"0 0 3 * * *": "DISABLED", "0 0 5 * * *": "ENABLED"}, "no run of the second one"
    assert table.say("list").count("nightly") == 1
    assert kfp.lost == set()
    table.end(run)
    table.say("show", "nightly")
    assert table.crons() == {"0 0 5 * * *": "ENABLED"}, "the next command that looks deletes the old one"
    assert kfp.lost == set()


def test_a_deletion_leaves_the_run_in_progress_alone(table: Table, kfp: KfpServer) -> None:
    table.create()
    run = table.fire()
    shown = table.say("delete", "nightly")
    assert "nightly: deleted" in shown
    assert f"its run {run} goes on" in shown
    assert "ENABLED" not in table.crons().values(), "it fires no more"
    assert "no schedules" in table.say("list")
    assert "is unknown" in table.say("delete", "nightly", status=2)
    assert "created" in table.create("--cron", "0 4 * * *"), "the name is free"
    assert kfp.lost == set()
    table.end(run)
    assert "nightly" in table.say("list")
    assert table.crons() == {"0 0 4 * * *": "ENABLED"}
    assert kfp.lost == set()


def test_the_old_schedule_goes_on_if_the_new_one_cannot_be_made(table: Table, kfp: KfpServer) -> None:
    table.create()
    kfp.fault("POST", "/recurringruns$", 400)
    assert "refused" in table.create("--cron", "0 4 * * *", status=2)
    assert table.crons() == {"0 0 3 * * *": "ENABLED"}


def test_a_broken_connection_makes_one_schedule(table: Table, kfp: KfpServer) -> None:
    kfp.fault("POST", "/recurringruns$", "cut")
    table.create()
    kfp.fault("POST", "/recurringruns$", "drop")
    table.create("--cron", "0 4 * * *")
    assert table.crons() == {"0 0 4 * * *": "ENABLED"}


def test_a_zone_with_daylight_saving_is_sent_only_when_asked_for(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    berlin = ["--timezone", "Europe/Berlin"]
    at(monkeypatch, "2026-11-26T12:00Z")
    shown = table.create(*berlin, status=2)
    assert "Europe/Berlin changes its clocks on 2027-03-28" in shown
    for offered in ("--current-offset", "'0 2 * * *'", "schedule sync", "--timezone UTC", "--target vertex"):
        assert offered in shown
    assert table.posted() == [], "said before anything is sent"

    shown = table.create(*berlin, "--current-offset")
    assert "warning: sent as '0 2 * * *' UTC; from 2027-03-28 on" in shown
    assert "it fires 1 h late" in shown
    assert table.crons() == {"0 0 2 * * *": "ENABLED"}
    assert "unchanged" in table.create(*berlin, "--current-offset")
    assert "nightly: unchanged" in table.say("sync")

    at(monkeypatch, "2027-03-28T12:00Z")
    assert "has changed its clocks" in table.say("show", "nightly")
    assert "clock change: 0 2 * * * → 0 1 * * * UTC" in table.say("sync", "nightly")
    assert table.crons() == {"0 0 1 * * *": "ENABLED"}
    assert "nightly: unchanged" in table.say("sync"), "idempotent"
    shown = table.say("show", "nightly")
    assert "clock change" in shown, "history"
    assert "0 3 * * * (Europe/Berlin)" in shown
    assert len(table.posted()) == 2


def at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Have the zones' offsets be those of a moment."""
    true = clock.in_utc
    now = datetime.fromisoformat(moment)
    original = getattr(true, "original", true)

    def in_utc(timing: Any, _: datetime | None = None) -> clock.UtcTimes:
        return original(timing, now)

    in_utc.original = original  # type: ignore[attr-defined]
    monkeypatch.setattr(clock, "in_utc", in_utc)


def test_sync_keeps_what_is_paused_and_what_is_utc(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "2026-11-26T12:00Z")
    table.create("--timezone", "America/New_York", "--current-offset")
    table.create(name="weekly")
    table.say("pause", "nightly")
    at(monkeypatch, "2027-06-01T12:00Z")
    shown = table.say("sync")
    assert "0 8 * * * → 0 7 * * * UTC" in shown
    assert "weekly: in UTC" in shown
    assert table.crons() == {"0 0 7 * * *": "DISABLED", "0 0 3 * * *": "ENABLED"}
    assert "is unknown; did you mean 'weekly'" in table.say("sync", "weeky", status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cron", "0 3 * * mon#1"], "no nth weekday"),
        (["--cron", "0 3 * * sat-mon"], "type sat,sun-mon"),
        (["--max-concurrent", "11"], "allowed: 1 to 10"),
        (["--max-concurrent", "0"], "allowed: 1 to 10"),
        (["--cron", "0 3 1 * *", "--timezone", "Asia/Tokyo"], "not a single expression in UTC"),
    ],
)
def test_bad_times_are_refused_before_anything_is_sent(table: Table, words: list[str], message: str) -> None:
    assert message in table.create(*words, status=2)
    assert table.posted() == []


@pytest.mark.parametrize("typed", ["0 3 * * fri-sun", "0 3 * * 1-5/2", "0 3 1 * 7", "@weekly"])
def test_what_is_sent_is_what_the_server_takes(table: Table, typed: str) -> None:
    assert "created" in table.create("--cron", typed)


def test_a_changed_machine_of_a_jobset_is_seen(table: Table) -> None:
    table.create("--machine", "l4", "--nodes", "2", "--spot")
    assert "unchanged" in table.create("--machine", "l4", "--nodes", "2", "--spot")
    assert "machine:" in table.create("--machine", "a100-40g", "--nodes", "2", "--spot")
    assert "spot 1 nvidia.com/gpu × 2" in table.say("list")
    assert "machine:" in table.create("--machine", "a100-40g", "--nodes", "4", "--spot")
    assert "spot 1 nvidia.com/gpu × 4" in table.say("list")
    assert "machine:" in table.create("--machine", "a100-40g")


def exchanges(name: str) -> list[dict[str, Any]]:
    """The requests that changed something, with their answers, as recorded from the real server."""
    path = RECORDINGS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the recordings are not beside this checkout")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [one for one in found if one["method"] != "GET"]


@pytest.mark.parametrize(
    "name",
    [
        "schedule-create",
        "schedule-create-zone-refused",
        "schedule-fri-sun",
        "schedule-max-concurrency-11",
        "schedule-step-weekday",
        "schedule-0-7",
        "schedule-pause",
        "schedule-resume",
        "schedule-update",
        "schedule-delete",
    ],
)
def test_our_server_answers_as_the_real_one(table: Table, kfp: KfpServer, name: str) -> None:
    """Field by field, except ids, times, and the specification that was sent."""
    import requests

    table.create()
    identity, made = next(iter(kfp.recurring.items()))
    for one in exchanges(name):
        path = one["path"].replace(one["path"].rpartition("/")[2].partition(":")[0], identity)
        body = one["request"] and {**one["request"], "pipeline_spec": made["pipeline_spec"]}
        path = path if one["method"] == "DELETE" or ":" in path else one["path"]
        answer = requests.request(one["method"], kfp.url + path, json=body, timeout=10)
        assert answer.status_code == one["status"]
        apart = ("recurring_run_id", "created_at", "updated_at", "pipeline_spec")
        ours, real = ({k: v for k, v in some.items() if k not in apart} for some in (answer.json(), one["response"]))
        assert ours == real
        assert set(answer.json()) == set(one["response"])
