"""A damaged file of one run or schedule costs one line, and hides no other."""

import contextlib
import errno
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from conftest import write_sentences
from test_cli import written_run
from test_kfp_target import recipe_file

from xlnet.errors import RunError
from xlnet.provenance import digest_json
from xlnet_pipeline import cli
from xlnet_pipeline.notebook import functions
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.cache import Cache, Damaged
from xlnet_pipeline.targets.local.scheduled import main as fire
from xlnet_pipeline.targets.local.target import LocalTarget

BAD, GOOD = "20260103-100000-abc3", "20260101-100000-abc1"


def changed(content: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(content), **fields}).encode()


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "no UTF-8": lambda content: b"\xff\xfe\x00" + content,
    "a list": lambda content: b"[]",
    "a number": lambda content: b"7",
    "nested without end": lambda content: b"[" * 100_000,
    "no steps": lambda content: changed(content, steps=[]),
    "null steps": lambda content: changed(content, steps=None),
    "a step of another version": lambda content: changed(content, steps=[{"name": "train", "colour": "red"}]),
    "an odd time": lambda content: changed(content, created="yesterday"),
    "a time without a zone": lambda content: changed(content, ended="2026-01-01T10:00:00"),
    "another status": lambda content: changed(content, status=5),
    "an unknown field": lambda content: changed(content, colour="red"),
    "an odd error": lambda content: changed(
        content, status="FAILED", error={"step": None, "message": "", "kind": "odd"}
    ),
    "a recipe that is text": lambda content: changed(content, recipe="{}"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "a directory"])
def test_a_damaged_record_hides_no_other_run(
    damage: str, isolated_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written_run(isolated_state, 1, status=record.SUCCEEDED)
    written_run(isolated_state, 3, status=record.SUCCEEDED)
    path = isolated_state / "runs" / BAD / "run.json"
    if damage == "a directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))

    assert cli.main(["runs", "list"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [[BAD, "DAMAGED"], [GOOD, "SUCCEEDED"]]
    (line,) = shown.err.splitlines()
    assert line.startswith(f"warning: '{path}' is not a run record (")
    assert "remove its directory to forget the run" in line

    assert cli.main(["runs", "list", "--json"]) == 0
    assert [run["status"] for run in json.loads(capsys.readouterr().out)] == ["DAMAGED", "SUCCEEDED"]
    for words in (["runs", "show", BAD], ["runs", "show", "latest"], ["runs", "logs", "abc3"], ["runs", "cancel", BAD]):
        assert cli.main(words) == 1, words
        assert capsys.readouterr().err.startswith(f"error: '{path}' is not a run record (")
    assert cli.main(["runs", "show", GOOD]) == 0
    assert cli.main(["lineage", GOOD]) == 2, "it left no artifact, which is said of it"
    assert f"run '{GOOD}' is SUCCEEDED and left no artifact" in capsys.readouterr().err
    assert [result.record.status for result in functions.runs(home=isolated_state)] == ["DAMAGED", "SUCCEEDED"]
    with pytest.raises(RunError, match="is not a run record"):
        functions.compare(GOOD, BAD, home=isolated_state)

    assert cli.main(["runs", "prune", "--older-than", "0", "--keep", "0"]) == 0
    said = capsys.readouterr().out
    assert f"  {BAD}  its record is damaged; to forget it remove '{path.parent}'" in said
    assert f"  {GOOD}  may hold files that run {BAD} uses, whose record is damaged" in said
    shutil.rmtree(path.parent)
    assert cli.main(["runs", "prune", "--older-than", "0", "--keep", "0"]) == 0
    assert LocalTarget(isolated_state).runs() == []


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"name": "x"}', "null"])
@pytest.mark.parametrize(
    ("step", "artifact", "file", "column"),
    [("evaluate", "evaluation", "metrics.json", -1), ("register", "registration", "registration.json", -2)],
)
def test_a_damaged_result_hides_no_other_run(
    content: str,
    step: str,
    artifact: str,
    file: str,
    column: int,
    isolated_state: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written_run(isolated_state, 1, status=record.SUCCEEDED)
    run = written_run(isolated_state, 3, status=record.SUCCEEDED)
    run.step(step).outputs = {artifact: {"uri": str(isolated_state), "type": "t", "digest": None, "metadata": {}}}
    record.write(run, isolated_state / "runs" / BAD / "run.json")
    (isolated_state / file).write_text(content)
    assert cli.main(["runs", "list"]) == 0
    _, bad, good = capsys.readouterr().out.splitlines()
    assert (bad.split()[column], good.split()[1]) == ("damaged", "SUCCEEDED")
    assert cli.main(["runs", "show", BAD]) == 1
    shown = capsys.readouterr()
    assert "snapshot" in shown.out, "what is known is shown"
    assert shown.err == f"error: '{isolated_state}/{file}' is damaged; run the recipe again, which makes it anew\n"


@pytest.mark.parametrize("content", ["", '{"timing": {"cron"', "[]", '{"timing": {}, "recipe": {}, "history": []}'])
def test_a_damaged_schedule_hides_no_other(
    content: str, isolated_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, recipe = write_sentences(tmp_path / "rows.csv"), recipe_file(tmp_path / "recipe.toml")
    create = ["schedule", "create", "--cron", "0 3 * * *", "--set", f"data.train={rows}"]
    assert cli.main([*create, "nightly", str(recipe)]) == 0
    assert cli.main([*create, "weekly", str(recipe)]) == 0
    path = isolated_state / "schedules" / "nightly.json"
    path.write_text(content)
    (isolated_state / "schedules" / "weekly.runs").write_text("2026-01-01T00:00:00+00:00 x SUCCEEDED\n\n2026-")
    capsys.readouterr()

    assert cli.main(["schedule", "list"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [["nightly", "DAMAGED"], ["weekly", "ACTIVE"]]
    assert shown.err.startswith(f"warning: '{path}' is not a schedule (")
    assert "make it again with 'schedule create nightly', or remove it with 'schedule delete nightly'" in shown.err
    assert cli.main(["schedule", "list", "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["DAMAGED", "ACTIVE"]
    assert cli.main(["schedule", "show", "nightly"]) == 0
    assert "is not a schedule" in capsys.readouterr().out
    assert cli.main(["schedule", "show", "weekly"]) == 0
    for words in (["schedule", "pause", "nightly"], ["schedule", "resume", "nightly"]):
        assert cli.main(words) == 1
        assert capsys.readouterr().err.startswith(f"error: '{path}' is not a schedule (")
    assert fire(str(isolated_state), "nightly") == 1
    assert capsys.readouterr().err.startswith(f"error: schedule 'nightly': '{path}' is not a schedule (")

    assert cli.main([*create, "nightly", str(recipe)]) == 0, "it is made anew"
    assert "schedule nightly: created" in capsys.readouterr().out
    path.write_text(content)
    assert cli.main(["schedule", "delete", "nightly"]) == 0
    assert cli.main(["schedule", "list"]) == 0
    assert "nightly" not in capsys.readouterr().out.partition("\n")[2]


def test_damaged_jobs_of_schedules_are_one_line(isolated_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (isolated_state / "schedules").mkdir(parents=True)
    (isolated_state / "schedules" / "jobs.db").write_bytes(b"no sqlite file" * 100)
    (isolated_state / "schedules" / "nightly.json").write_text(
        json.dumps({"timing": {"cron": "0 3 * * *"}, "recipe": {}, "history": []})
    )
    assert cli.main(["schedule", "list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: '{isolated_state}/schedules/jobs.db' cannot be used (file is not a database)")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", "{}", '{"outputs": {}}', '{"outputs": []}'])
def test_a_damaged_cache_entry_is_made_again(content: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", lambda step: {})
    parts = {"step": "train", "code": digest_json({}), "parameters": {}, "inputs": {}, "definition": ""}
    (tmp_path / "cache" / "train-1.json").write_text(content)
    with pytest.raises(Damaged, match="cache entry 'train-1.json' is damaged"):
        cache.get("train-1")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    run = {"steps": [{"name": "train", "cache_key": "train-1"}], "recipe": {"registry": {"name": "m"}}}
    (tmp_path / "runs" / "a" / "run.json").write_text(json.dumps(run))
    assert cache.why(parts, "m") == "first time for model 'm'"


@pytest.mark.parametrize("damage", ["no database", "half", "zeros"])
def test_a_damaged_registry_is_one_line(
    damage: str, isolated_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    isolated_state.mkdir(parents=True)
    file = isolated_state / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE registered_models (name)")
        database.executemany("INSERT INTO registered_models VALUES (?)", [["x" * 100]] * 500)
        database.commit()
    content = file.read_bytes()
    damaged = {"no database": b"no sqlite file" * 100, "half": content[:5000], "zeros": content[:100] + bytes(9000)}
    file.write_bytes(damaged[damage])
    rows = write_sentences(tmp_path / "rows.csv")
    for words in (["models", "list"], ["predict", "reviews", "x"], ["run", "--set", f"data.train={rows}"]):
        assert cli.main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: registry file '{file}' is damaged (")


def test_a_directory_that_may_not_be_read_is_no_empty_one(
    isolated_state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything."""

    def refuse(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    written_run(isolated_state, 1, status=record.SUCCEEDED)
    monkeypatch.setattr("xlnet_pipeline.targets.local.target.os.listdir", refuse)
    for words in (["runs", "list"], ["runs", "show", "latest"], ["runs", "prune", "--dry-run"]):
        assert cli.main(words) == 1
        assert capsys.readouterr().err == f"error: cannot use '{isolated_state}/runs': Permission denied\n"


def test_a_run_directory_that_may_not_be_entered_hides_no_other(
    isolated_state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written_run(isolated_state, 1, status=record.SUCCEEDED)
    written_run(isolated_state, 3, status=record.SUCCEEDED)
    read = Path.read_text

    def refuse(path: Path, *options: str, **more: str) -> str:
        if BAD in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *options, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert cli.main(["runs", "list"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == ["DAMAGED", "SUCCEEDED"]
    assert "is not a run record (Permission denied)" in shown.err
