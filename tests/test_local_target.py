"""The local target: its records, and its errors in the step's own words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet.steps import STEPS
from xlnet_pipeline.targets import Run, StepRun, Submission, record
from xlnet_pipeline.targets.local.target import LocalTarget, summary
from xlnet_pipeline.targets.output import Output


def new_run(home: Path, name: str, **fields: object) -> Run:
    """Write the record of a run, as one that this very process is running."""
    from xlnet_pipeline.targets import processes

    facts = {"pid": os.getpid(), "pid_started": processes.started(os.getpid()), **fields}
    steps = [StepRun(step) for step in STEPS]
    run = Run(name, "local", {}, "sha256:0", "2026-01-02T03:04:05.000+00:00", steps=steps, **facts)  # type: ignore[arg-type]
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    record.write(run, folder / "run.json")
    return run


def test_listing_runs_does_not_wait_for_kfp(tmp_path: Path) -> None:
    code = (
        "import sys; from xlnet_pipeline.targets.local.target import LocalTarget;"
        f"LocalTarget({str(tmp_path)!r}).runs(); print([name for name in ('kfp', 'torch') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


# --- records --------------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = new_run(tmp_path, "20260102-030405-aaaa")
    run.step("train").outputs = {
        "model": {"uri": "/x", "type": "t", "digest": None, "metadata": {"seed": 2**60, "ä": 0.1}}
    }
    run.error = record.RunFailure("train", "no", "user", ["one", "two"])
    record.write(run, tmp_path / "run.json")
    assert record.read(tmp_path / "run.json") == run
    assert not list(tmp_path.glob("*.partial"))


def test_a_record_of_another_kind_is_one_line(tmp_path: Path) -> None:
    for text in ("{", '{"steps": []}', "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunError, match="is not a run record"):
            record.read(tmp_path / "run.json")


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [record.new_id() for _ in range(50)]
    assert [one[:15] for one in ids] == sorted(one[:15] for one in ids)
    assert len(set(ids)) > 45


def test_a_run_is_found_by_a_part_of_its_id(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path)
    for name in ("20260102-030405-aaaa", "20260102-030405-bbbb", "20260203-010101-cccc"):
        new_run(tmp_path, name)
    assert target.status("20260203").id == "20260203-010101-cccc"
    assert target.status("bbbb").id == "20260102-030405-bbbb"
    with pytest.raises(UserError, match=r"could be 20260102-030405-aaaa, 20260102-030405-bbbb; type more"):
        target.status("20260102")
    with pytest.raises(UserError, match=r"unknown.*did you mean '20260203-010101-cccc'"):
        target.status("20260203-010101-cccd")
    with pytest.raises(UserError, match="unknown"):
        target.status("")


def test_no_runs_yet(tmp_path: Path) -> None:
    assert LocalTarget(tmp_path).runs() == []
    with pytest.raises(UserError, match="there are no runs yet"):
        LocalTarget(tmp_path).status("x")


def test_a_run_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path)
    run = new_run(tmp_path, "20260102-030405-aaaa")
    assert target.status(run.id).status == "RUNNING"
    run.pid_started = "another start of the same number"
    run.step("preprocess").status = "RUNNING"
    record.write(run, tmp_path / "runs" / run.id / "run.json")
    found = target.status(run.id)
    assert (found.status, found.exit_status) == ("FAILED", 1)
    assert found.error is not None
    assert "process died" in found.error.message
    assert (found.step("preprocess").status, found.step("train").status) == ("FAILED", "SKIPPED")
    with pytest.raises(UserError, match="only a running one can be cancelled"):
        target.cancel(run.id)


@pytest.mark.parametrize(("kind", "status"), [("user", 2), ("run", 1), ("timeout", 124)])
def test_exit_status_of_a_failure(kind: str, status: int) -> None:
    failure = record.RunFailure("train", "why", kind)
    assert Run("x", "local", {}, "", "", status="FAILED", error=failure).exit_status == status
    assert Run("x", "local", {}, "", "", status="CANCELLED").exit_status == 130


def test_a_home_that_cannot_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a URI"):
        LocalTarget("gs://bucket/home")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        LocalTarget(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write below home"):
        LocalTarget(tmp_path / "file" / "home").submit(Submission(recipes.tiny()))


# --- errors in the step's own words -----------------------------------------------------------------------------------


def output_of(*lines: str) -> tuple[Output, list[str]]:
    shown: list[str] = []
    output = Output(shown.append)
    for line in lines:
        output.line(line)
    return output, shown


def traceback_of(error: str) -> list[str]:
    return ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "    f()", "    ^^^", error]


def test_the_executors_own_lines_are_not_shown() -> None:
    _, shown = output_of(
        "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Loading KFP component",
        "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:",
        "{",
        '    "inputs": {',
        "    }",
        "}",
        "step 1/2",
        "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Wrote executor output file to x.",
    )
    assert shown == ["step 1/2"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        ("xlnet.errors.UserError: column 'x' is: missing", 1, "user", "column 'x' is: missing"),
        ("xlnet.errors.RunError: loss became nan", 1, "run", "loss became nan"),
        ("OSError: [Errno 28] No space left on device: 'x'", 1, "run", "no space left on device while step 'train'"),
        ("sqlite3.OperationalError: database or disk is full", 1, "run", "no space left on device"),
        ("MemoryError", 1, "run", "ran out of memory"),
    ],
)
def test_an_expected_error_is_one_line_without_its_traceback(error: str, status: int, kind: str, message: str) -> None:
    output, shown = output_of(
        "working",
        *traceback_of("KeyError: 1"),
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        *traceback_of(error),
    )
    failure = output.failure("train", status, "home")
    assert (failure.kind, failure.step) == (kind, "train")
    assert failure.message.startswith(message) or message in failure.message
    assert "\n" not in failure.message
    assert shown == ["working"]
    assert failure.last_lines[-1] == ("working" if kind == "user" else error)


def test_a_bug_shows_its_traceback() -> None:
    output, shown = output_of(*traceback_of("KeyError: 'x'"))
    assert output.failure("train", 1, "home").message == "KeyError: 'x'"
    assert shown == traceback_of("KeyError: 'x'")


def test_a_traceback_in_the_middle_is_no_end() -> None:
    output, shown = output_of(*traceback_of("KeyError: 'x'"), "went on", *traceback_of("xlnet.errors.UserError: no"))
    assert output.failure("train", 1, "home").message == "no"
    assert shown == [*traceback_of("KeyError: 'x'"), "went on"]


@pytest.mark.parametrize(
    ("status", "message"),
    [(137, "ran out of memory"), (139, "signal 11"), (3, "exit status 3"), (75, "from outside, and saved its work")],
)
def test_a_step_that_ends_without_a_word(status: int, message: str) -> None:
    output, _ = output_of("working")
    assert message in output.failure("train", status, "home").message


# --- whole runs that end early ----------------------------------------------------------------------------------------


def submit(home: Path, recipe: Recipe) -> tuple[Run, list[str]]:
    shown: list[str] = []
    return LocalTarget(home).submit(Submission(recipe), echo=shown.append), shown


def test_a_missing_file_is_the_users_mistake_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    run, shown = submit(tmp_path / "home", recipes.tiny().replace(data={"train": str(missing)}))
    assert (run.status, run.exit_status) == ("FAILED", 2)
    assert run.error is not None
    assert (run.error.step, run.error.kind) == ("snapshot", "user")
    assert str(missing) in run.error.message
    assert [step.status for step in run.steps] == ["FAILED", *["SKIPPED"] * 4]
    assert not [line for line in shown if "Traceback" in line]
    assert "Traceback" in (tmp_path / "home/runs" / run.id / "logs/snapshot.log").read_text()
    assert LocalTarget(tmp_path / "home").status(run.id) == run
    assert summary(run)[-1] == f"error: {run.error.message}"


def test_a_path_with_python3_in_it_is_left_alone(tmp_path: Path) -> None:
    """Our interpreter takes the place of "python3" in a step's command, but not in the user's paths."""
    folder = tmp_path / "python3 it's"
    folder.mkdir()
    run, _ = submit(folder / "home", recipes.tiny().replace(data={"train": str(folder / "missing.csv")}))
    assert run.error is not None
    assert str(folder / "missing.csv") in run.error.message


def test_the_logs_of_a_run(tmp_path: Path) -> None:
    run, _ = submit(tmp_path, recipes.tiny().replace(data={"train": str(tmp_path / "missing.csv")}))
    target = LocalTarget(tmp_path)
    assert list(target.logs(run.id)) == list(target.logs(run.id, "snapshot"))
    assert next(target.logs(run.id)) == "==> snapshot (FAILED) <=="
    assert list(target.logs(run.id, "train")) == []
    with pytest.raises(UserError, match="did you mean 'train'"):
        list(target.logs(run.id, "trian"))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own writes, on a device that has no room at all."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    target = LocalTarget(tmp_path)
    original = target._new_run

    def log_on_a_full_device(recipe: Recipe) -> Run:
        run = original(recipe)
        (tmp_path / "runs" / run.id / "logs" / "snapshot.log").symlink_to("/dev/full")
        return run

    monkeypatch.setattr(target, "_new_run", log_on_a_full_device)
    with pytest.raises(RunError, match="no space left on device below"):
        target.submit(Submission(recipes.tiny()))
    assert json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())["status"] == "FAILED"


def test_a_damaged_record_of_another_run_stops_no_new_one(small_csv: Path, tmp_path: Path) -> None:
    home = tmp_path / "damaged"
    for name, content in {"20260101-000000-aaaa": '{"half', "20260101-000000-bbbb": "[]"}.items():
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "run.json").write_text(content)
        (partial := home / "runs" / name / ".run.json.1.partial").write_text("half")
        os.utime(partial, (0, 0))
    target = LocalTarget(home)
    recipe = recipes.tiny().replace(data={"train": str(small_csv), "max_length": 32, "label": "nothing"})
    run = target.submit(Submission(recipe))
    assert (run.status, run.error.step if run.error else None) == ("FAILED", "preprocess"), "it got to work"
    assert not list(home.glob("runs/*/.*.partial"))
