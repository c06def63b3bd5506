"""Pruning by rules: what a run that stays names, stays; what killed processes left goes by age; checkpoints by name."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from conftest import PINNED_IMAGE

from xlnet import http
from xlnet.errors import RunError, UserError
from xlnet.registry import ModelVersion, champions
from xlnet.steps import STEPS
from xlnet_pipeline import cli
from xlnet_pipeline.targets import Run, StepRun, processes, record
from xlnet_pipeline.targets.local import leftovers, prune
from xlnet_pipeline.targets.local.cache import Cache
from xlnet_pipeline.targets.local.target import LocalTarget

OLD = time.time() - 40 * 86400


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs have left in the system's temporary directory is not ours to judge."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))


def a_run(home: Path, number: int, *, uses: str = "", **fields: object) -> Run:
    """The record of a run of long ago with one artifact, made by itself or taken from the run ``uses``."""
    name = f"2026010{number}-100000-abc{number}"
    moment = f"2026-01-0{number}T10:00:00.000+00:00"
    run = Run(name, "local", {"registry": {"uri": "", "name": "x"}}, "sha256:1", moment, "SUCCEEDED", moment)
    run.steps = [StepRun(step) for step in STEPS]
    place = home / "runs" / (uses or name) / "artifacts" / "train" / "model"
    run.step("train").outputs = {"model": {"uri": str(place), "digest": "sha256:2", "type": "t", "metadata": {}}}
    for key, value in fields.items():
        setattr(run, key, value)
    (home / "runs" / name).mkdir(parents=True)
    if not uses:
        place.mkdir(parents=True)
        (place / "weights").write_bytes(b"w" * 1000)
    record.write(run, home / "runs" / name / "run.json")
    return run


def going(home: Path, **options: int) -> dict[str, list[str]]:
    """Names of what would be removed, by kind."""
    given = {"older_than": 0, "keep": 0, **options}
    found: dict[str, list[str]] = {}
    for item in prune.plan(LocalTarget(home), **given).remove:  # type: ignore[arg-type]
        found.setdefault(item.kind, []).append(item.name)
    return found


def test_what_a_run_that_stays_uses_stays_too(tmp_path: Path) -> None:
    first, second, third = a_run(tmp_path, 1), a_run(tmp_path, 2), a_run(tmp_path, 3)
    user = a_run(tmp_path, 4, uses=first.id)
    assert going(tmp_path)["run"] == [user.id, third.id, second.id, first.id]
    assert going(tmp_path, keep=1)["run"] == [third.id, second.id]
    alive = {"status": record.RUNNING, "pid": os.getpid(), "pid_started": processes.started(os.getpid())}
    a_run(tmp_path, 5, uses=third.id, ended=None, **alive)
    assert going(tmp_path)["run"] == [user.id, second.id, first.id], "a running run keeps what it uses"
    assert going(tmp_path, older_than=10**10) == {}


def test_pruning_removes_the_run_and_the_cache_entries_that_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = a_run(tmp_path, 1), a_run(tmp_path, 2)
    for run in (one, two):
        cache = Cache(tmp_path / "cache", lambda step: {})
        cache.put(f"train-{run.id}", {"step": "train"}, {}, run.step("train").outputs, run.id)
    (tmp_path / "cache" / "train-odd.json").write_text("{")
    assert cli.main(["--home", str(tmp_path), "runs", "prune", "--older-than", "1d", "--keep", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"run          {one.id}" in shown
    assert f"  {two.id}  is one of the 1 newest" in shown
    assert [path.stem for path in (tmp_path / "cache").glob("*.json")] == [f"train-{two.id}"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [two.id]
    assert not list(tmp_path.glob(".*"))


def test_a_registry_that_does_not_answer_stops_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, 1)

    def silent(self: object) -> list[str]:
        raise RunError("registry 'http://mlflow.example' does not answer")

    monkeypatch.setattr("xlnet.registry.mlflow_registry.MlflowRegistry.names", silent)
    assert cli.main(["--home", str(tmp_path), "runs", "prune", "--older-than", "0", "--keep", "0"]) == 1
    assert "what its models need is not known, so nothing was removed" in capsys.readouterr().err
    assert (tmp_path / "runs" / run.id / "run.json").is_file()


@pytest.mark.parametrize(
    "place",
    [
        "runs/{run}/artifacts/train/.model.1a2b.partial",
        "runs/{run}/.run.json.77.partial",
        "cache/train-1.77.partial",
        "checkpoints/abc/.step-00000004-best-00000000.partial",
        "schedules/nightly.partial",
        ".removed-1a2b.partial",
        "runs/20250101-000000-dead",
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_leftovers_of_killed_processes_go_by_age(place: str, old: bool, tmp_path: Path) -> None:
    run = a_run(tmp_path, 1)
    path = tmp_path / place.format(run=run.id)
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_bytes(b"half")
    if old:
        for one in (path / "inner" / "file", path / "inner", path):
            os.utime(one, (OLD, OLD))
    assert going(tmp_path, keep=5).get("leftover", []) == [str(path.relative_to(tmp_path))] * old
    assert leftovers.leftovers(tmp_path, [run.id]) == [] or run.id not in place
    leftovers.clean(tmp_path)
    assert path.exists() is not old


def test_partial_files_of_a_running_run_stay_whatever_their_age(tmp_path: Path) -> None:
    run = a_run(tmp_path, 1)
    path = tmp_path / "runs" / run.id / ".run.json.1.partial"
    path.write_bytes(b"half")
    os.utime(path, (OLD, OLD))
    leftovers.clean(tmp_path, lambda one: one == run.id)
    assert path.exists()
    leftovers.clean(tmp_path, lambda one: False)
    assert not path.exists()


def test_temporary_directories_of_living_processes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    names = [f"xlnet-run-{os.getpid()}-abc", "xlnet-run-99999999-abc", "xlnet-tokenizer-abc"]
    names += ["xlnet-artifacts-0", "else"]
    for name in names:
        (tmp_path / "tmp" / name).mkdir(parents=True)
        os.utime(tmp_path / "tmp" / name, (OLD, OLD))
    (tmp_path / "tmp" / "xlnet-tokenizer-new").mkdir()
    leftovers.clean(tmp_path / "home")
    left = {path.name for path in (tmp_path / "tmp").iterdir()}
    assert left == {names[0], "xlnet-artifacts-0", "else", "xlnet-tokenizer-new"}


def a_checkpoint(home: Path, name: str, step: int, age: float = 0.0) -> Path:
    place = home / "checkpoints" / name
    (place / f"step-{step:08d}-best-00000000").mkdir(parents=True)
    (place / f"step-{step:08d}-best-00000000" / "manifest.json").write_text("{}")
    (place / "about.json").write_text(json.dumps({"recipe": {"data": {"train": ["/data/reviews.csv"]}}}))
    for path in place.rglob("*"):
        os.utime(path, (time.time() - age, time.time() - age))
    return place


def test_checkpoints_are_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = ["--home", str(tmp_path), "checkpoints"]
    assert cli.main([*tool, "list"]) == 0
    assert "no checkpoints in" in capsys.readouterr().out
    old, new = a_checkpoint(tmp_path, "aaaa1111", 20, 40 * 86400), a_checkpoint(tmp_path, "aaaa2222", 30)
    (tmp_path / "checkpoints" / "programs").mkdir()
    assert cli.main([*tool, "list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "STEP", "SIZE", "AGE", "STATE", "DATA"]
    assert (first.split()[:2], second.split()[:2]) == (["aaaa2222", "30"], ["aaaa1111", "20"])
    assert first.endswith("reviews.csv")
    for words, message in (
        (["remove", "aaaa"], "could be aaaa2222, aaaa1111; type more of it"),
        (["remove", "aaab1111"], "no checkpoints are named 'aaab1111'; did you mean 'aaaa1111'?"),
        (["remove"], "name checkpoints to remove, or --older-than AGE"),
        (["remove", "aaaa1", "--older-than", "1d"], "name checkpoints to remove, or --older-than AGE"),
        (["remove", "--older-than", "soon"], "'soon' is not an age; write it as 30d, 12h, 90m or 0"),
    ):
        assert cli.main([*tool, *words]) == 2
        assert message in capsys.readouterr().err
    assert going(tmp_path, older_than=30 * 86400)["checkpoints"] == ["aaaa1111"]
    assert cli.main([*tool, "remove", "--older-than", "1d", "--dry-run"]) == 0
    assert "would remove aaaa1111, step 20" in capsys.readouterr().out
    assert old.exists()
    with (new / "lock").open("a") as lock:  # a training holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main([*tool, "remove", "aaaa1", "aaaa2"]) == 1
        assert "a training is using checkpoints 'aaaa2222'" in capsys.readouterr().err
        assert cli.main([*tool, "remove", "--older-than", "0"]) == 0
        assert capsys.readouterr().out.startswith("removed aaaa1111, step 20")
    assert (old.exists(), new.exists()) == (False, True)
    assert cli.main([*tool, "remove", "aaaa2"]) == 0
    assert not new.exists()


class Versions:
    """A registry of one model in memory."""

    def __init__(self, *versions: ModelVersion) -> None:
        self.known = {one.version: one for one in versions}

    def names(self) -> list[str]:
        return ["m"]

    def versions(self, name: str) -> list[ModelVersion]:
        return [self.known[number] for number in sorted(self.known, reverse=True)]

    def champion(self, name: str) -> ModelVersion | None:
        return next((one for one in self.known.values() if "champion" in one.aliases), None)

    def describe(self, name: str, version: int, description: str, tags: dict[str, str]) -> None:
        old = self.known[version]
        self.known[version] = ModelVersion(name, version, old.aliases, "", description, {**old.tags, **tags})

    def set_alias(self, name: str, alias: str, version: int) -> None:
        for number, one in self.known.items():
            aliases = (alias,) if number == version else ()
            self.known[number] = ModelVersion(name, number, aliases, "", one.description, one.tags)


def version(number: int, *aliases: str, **tags: str) -> ModelVersion:
    return ModelVersion("m", number, aliases, "", "", {"model_digest": f"sha256:{number}", **tags})


def test_a_rollback_goes_back_from_champion_to_champion_and_the_gate_does_not_undo_it() -> None:
    store = Versions(*(version(number) for number in (1, 2, 3, 4)))
    for number in (1, 3, 4):  # version 2 was never champion
        champions.make_champion(store, store.known[number])  # type: ignore[arg-type]
    for champion, earlier in ((4, 3), (3, 1)):
        pair = champions.rollback_pair(store, "m")  # type: ignore[arg-type]
        assert [one.version for one in pair] == [champion, earlier]
        champions.roll_back(store, *pair)  # type: ignore[arg-type]
        assert store.champion("m") == store.known[earlier]
        assert champions.was_rolled_back(store, "m", f"sha256:{champion}")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'m:1' is the first champion of 'm', none came before it; choose one: .* m:4"):
        champions.rollback_pair(store, "m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([version(1, decision="promoted"), version(2, decision="kept"), version(3, "champion")], 1),
        ([version(2, decision="promoted"), version(3, "champion", champion_before="1")], 2),  # version 1 was deleted
        ([version(1, decision="kept"), version(2, "champion")], None),
        ([version(1), version(2)], None),
    ],
)
def test_who_was_champion_before_is_found_in_older_registries_too(
    versions: list[ModelVersion], expected: int | None
) -> None:
    found = champions.previous_champion(Versions(*versions), "m")  # type: ignore[arg-type]
    assert (found.version if found else None) == expected


def test_latest_names_the_newest_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    tool = ["--home", str(tmp_path), "runs", "show", "latest"]
    assert cli.main(tool) == 2
    assert "run 'latest' is unknown" in capsys.readouterr().err
    a_run(tmp_path, 1)
    newest = a_run(tmp_path, 2)
    assert cli.main(tool) == 0
    assert capsys.readouterr().out.startswith(f"run {newest.id} ")
    assert cli.main(["--home", str(tmp_path), "lineage", "--run", "latest"]) == 2, "it left no artifact"
    assert f"run '{newest.id}' is SUCCEEDED and left no artifact" in capsys.readouterr().err
    assert record.choose("latest", ["c", "b", "a"], "on target 'kfp'") == "c"


def test_vertex_keeps_a_default_version_and_loses_the_model_with_its_last_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servers.vertex_server import VertexServer

    from xlnet.registry import open_registry

    monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
    with VertexServer(tmp_path) as server:
        monkeypatch.setenv("VERTEX_ENDPOINT", server.url)
        monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "a-token")
        monkeypatch.setenv("XLNET_IMAGE", PINNED_IMAGE)
        store = open_registry("vertex://" + "/".join(server.parent.split("/")[1::2]))
        for number in (1, 2):
            tags = {"model_uri": "gs://bucket/model", "model_digest": f"sha256:{number}"}
            store.add("reviews", "", tags, {}, {"accuracy": 0.5})
        store.set_alias("reviews", "champion", 2)
        store.delete("reviews", 1)
        assert [one.version for one in store.versions("reviews")] == [2]
        store.delete("reviews", 2)
        assert store.names() == []
