"""Everything that was recorded of the real Kubeflow Pipelines is read by a test, and what no other test reads is here.

``python tests/test_every_recording.py`` lists each recording with the tests that read it.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CHECKOUT
from servers.argo import Workflow
from servers.execution import Task
from servers.kfp_server import KfpServer, checked_spec
from servers.kubernetes_replay import events
from servers.replay import Replay, exchanges, last_run
from servers.storage import bucket_server
from servers.web import Request

from xlnet import recipe as recipes
from xlnet.training.checkpoint_store import open_checkpoint_store
from xlnet_cluster.jobset import Requirements, TrainingJob, manifest
from xlnet_pipeline.cli import main
from xlnet_pipeline.targets import remote, schedules, specification
from xlnet_pipeline.targets.output import shown

FOLDER = CHECKOUT.parent / "shared" / "data" / "kfp-recordings"
TESTS = CHECKOUT / "tests"
RECORDED = [one.name for one in sorted(FOLDER.glob("*")) if one.suffix in (".json", ".jsonl", ".tsv")]
LINES = [
    (name, number)
    for name in ("logs", "ui-server")
    for number, _ in enumerate(exchanges(FOLDER, name) if RECORDED else ())
]

pytestmark = pytest.mark.skipif(not RECORDED, reason="the recordings are not beside this checkout")


# Which test reads what. --------------------------------------------------------------------------------------------


@functools.cache
def definitions(module: str) -> dict[str, tuple[str, ast.AST]]:
    """Map each name of a module of the tests, its own or imported, to the module that defines it and its syntax."""
    found: dict[str, tuple[str, ast.AST]] = {}
    for node in ast.parse((TESTS / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = module, node
        elif isinstance(node, ast.Assign):
            names = (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
            found |= dict.fromkeys(names, (module, node.value))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("servers."):
            theirs = definitions(str(node.module))
            found |= {one.asname or one.name: theirs[one.name] for one in node.names if one.name in theirs}
    return found


def words(module: str, tree: ast.AST, seen: set[tuple[str, str]]) -> set[str]:
    """The strings of a test, and of the fixtures and definitions that it uses."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
        if name in definitions(module) and (module, name) not in seen:
            seen.add((module, name))
            found |= words(*definitions(module)[name], seen)
    return found


@functools.cache
def readers() -> dict[str, list[str]]:
    """Map each recording to the tests that name it."""
    found: dict[str, list[str]] = {name: [] for name in RECORDED}
    for path in sorted(TESTS.glob("test_*.py")):
        if "kfp-recordings" not in path.read_text(encoding="utf-8"):
            continue
        for name, (module, node) in definitions(path.stem).items():
            said = words(module, node, set()) if name.startswith("test_") else set()
            for file in RECORDED:
                if {file, file.rpartition(".")[0]} & said:
                    found[file].append(f"{path.stem}.py::{name}")
    return found


@pytest.mark.parametrize("recording", RECORDED)
def test_a_test_reads_it(recording: str) -> None:
    assert readers()[recording], "name it in a test that replays it, or that compares our server with it"


# The logs of pods. -------------------------------------------------------------------------------------------------

FAILED_RUN, LOST_RUN = "ca2bf30b-d401-4a3a-b8b1-90fa629e553d", "bcc4d5dd-a707-42be-a76c-984a57be932f"
UI_RUN = "66e3443a-d14c-453b-a133-69531ba26f8d"
LINE = "[KFP Executor 2026-11-26 15:25:42,464 INFO]: a line of the program's\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KfpServer]:
    """Our server with the runs whose logs were asked for: one failed, one without its workflow, one succeeded."""
    with KfpServer(tmp_path / "kfp") as made:
        for run, name, state in (
            (FAILED_RUN, "xlnet-gshm7", "FAILED"),
            (LOST_RUN, "utc1xdxl4-2-957419143", "RUNNING"),
            (UI_RUN, "xlnet-cn288", "SUCCEEDED"),
        ):
            spec = json.loads((FOLDER / "spec-1.json").read_text())["pipeline_spec"]
            moment = datetime(2026, 11, 26, 14, tzinfo=UTC)
            tasks = {one: Task(one, one, "SUCCEEDED", moment, moment, LINE) for one in spec["root"]["dag"]["tasks"]}
            tasks["preprocess"].state = state
            execution: Any = SimpleNamespace(
                spec=spec, tasks=tasks, state=state, began=moment, ended=moment, broken="", cancel=list, stop=list
            )
            made.runs[run] = {"run_id": run, "state_history": [{"state": state}]}
            made.executions[run], made.workflows[run] = execution, Workflow(name, execution, moment)
        made.lose(LOST_RUN)
        yield made


def likeness(status: int, body: Any) -> Any:
    """An answer without what differs from run to run: an error's first words, a log's kinds of lines, JSON's fields."""
    text = body if isinstance(body, str) else json.dumps(body)
    if text.startswith('{"error_message"'):
        told = json.loads(text)
        return status, {key: value.partition(" archive")[0] for key, value in told.items()}
    if text.startswith("{"):
        return status, json.loads(text)
    if status != 200:
        return status, text
    argo = "argo=true" in text
    return status, "KFP Executor" in text, argo, "ExecutorOutput: {\n" in text, "failed to execute component" in text


@pytest.mark.parametrize(("recording", "number"), LINES)
def test_our_server_answers_each_request_for_a_log_as_the_real_one(
    recording: str, number: int, server: KfpServer
) -> None:
    recorded = exchanges(FOLDER, recording)[number]
    server.ui = recording == "ui-server"
    path, _, query = recorded["path"].partition("?")
    given = dict(pair.split("=", 1) for pair in query.split("&") if pair)
    status, body, _ = server.answer(Request(recorded["method"], path, given, None, {}))
    assert likeness(status, body) == likeness(recorded["status"], recorded["response"])


def test_a_steps_log_is_what_its_program_wrote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher and Argo write before and after it; what the program has made is printed as JSON of many lines."""
    written = exchanges(FOLDER, "ui-server")[0]["response"]
    with Replay(FOLDER, "show-succeeded", ui=True) as server:
        server.routes.insert(0, ("GET", re.compile("/k8s/pod/logs$"), lambda request: written))
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://xl/root")
        run = last_run(FOLDER, "show-succeeded")["run_id"]
        assert main(["runs", "logs", run, "register", "--target", "kfp"]) == 0
    heading, *mlflows, last = capsys.readouterr().out.splitlines()
    assert heading == "==> register (SUCCEEDED) <=="
    assert [line[2:6] for line in mlflows] == ["View", "View"]
    assert last == "kfp-rbac:1 is champion: no champion yet"


def test_a_drivers_log_keeps_no_json_of_its_input() -> None:
    log = exchanges(FOLDER, "logs")[2]["response"]
    assert "input ComponentSpec:{" in log
    assert list(shown(log.splitlines())) == []


# The pipeline root, and what is left. ------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bucket ``xl`` with every object that the real one held; the demo's files and the logs are whole."""
    log = exchanges(FOLDER, "logs")[0]["response"]
    with bucket_server(monkeypatch, "xl") as made:
        for line in (FOLDER / "pipeline-root.tsv").read_text(encoding="utf-8").splitlines():
            name = line.partition("gs://xl/")[2]
            demo = CHECKOUT / "components/xlnet/demo/uci_sentences" / name.rpartition("/")[2]
            content = demo.read_bytes() if demo.is_file() else log if name.endswith("/executor-logs-0") else "{}"
            made.blob(name).upload_from_string(content)
        monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://xl/root")
        yield made


def test_the_objects_of_the_real_root_are_found_and_the_same_schedule_sends_nothing(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Artifacts of whole and of cached runs, the log of a pod that is gone, and checkpoints, one of them cut off."""
    root, whole = "gs://xl/root", "e311aa78-02f2-4beb-8d95-2a2586f75e61"
    steps = {
        whole: ["evaluate", "preprocess", "register", "train"],
        "32d1af13-5626-48e7-bd22-4cb1937bbee5": ["evaluate", "register", "train"],
        "1493ca85-5c4c-48f7-b6e5-721c57a6413c": [],  # everything was cached
        FAILED_RUN: [],
    }
    assert {run: sorted(remote.artifact_places(root, run)) for run in steps} == steps
    model = f"{root}/xlnet/{whole}/train/6201aa06-3d9d-4205-a461-c5c62be3a6be/model"
    assert remote.artifact_places(root, whole)["train"] == model
    newest = {
        "3b8b30a96f90475cc866c1aa9d9853c8": "step-00000323-best-00000200",
        "8ebc7fe15bb4388d0bb8fd3c8ab8fccb": "step-00000010-best-00000010",  # the next was cut off: no manifest
    }
    for folder, name in newest.items():
        assert max(open_checkpoint_store(f"{root}/checkpoints/{folder}").names()) == name
    with Replay(FOLDER, "show-failed-step", ui=True) as ui:  # its pod is gone
        monkeypatch.setenv("KFP_ENDPOINT", ui.url)
        for words in (["runs", "logs", FAILED_RUN, "preprocess"], ["runs", "show", FAILED_RUN]):
            assert main([*words, "--target", "kfp"]) == 0
            assert "so none with index 7; allowed: 0 to 1" in capsys.readouterr().out
    the_same_schedule(tmp_path, monkeypatch)
    assert "schedule s1: unchanged" in capsys.readouterr().out


def the_same_schedule(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the recorded schedule again. Its recipe is as recorded, but for the fields that recipes have had since."""
    with Replay(FOLDER, "schedule-create-same") as server:
        (kept,) = server.schedules["recurringRuns"]
        recipe = recipes.from_json(kept["runtime_config"]["parameters"]["recipe"]).to_json()
        kept["runtime_config"]["parameters"]["recipe"] = recipe
        executors = kept["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
        monkeypatch.setenv("XLNET_IMAGE", executors["exec-train"]["container"]["image"])
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        lines = []
        for section, fields in json.loads(recipe).items():
            given = (f"{key} = {json.dumps(value)}" for key, value in fields.items() if value is not None)
            lines += [f"[{section}]", *given]
        (folder / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
        words = ["schedule", "create", "s1", str(folder / "recipe.toml"), "--target", "kfp"]
        assert main([*words, "--cron", "0 3 * * *"]) == 0
        assert {one.method for one in server.requests} == {"GET"}


@pytest.mark.parametrize("recording", ["spec-1.json", "spec-2.json", "spec-3.json"])
def test_a_recorded_specification_is_read(recording: str) -> None:
    document = json.loads((FOLDER / recording).read_text(encoding="utf-8"))
    spec = checked_spec(document)
    names = ["snapshot", "preprocess", "train", "evaluate", "register"]
    assert [task.name for task in specification.tasks(spec)] == names
    image, machine = schedules.image_and_machine(spec, document.get("platform_spec"))
    assert image == f"localhost:5001/xlnet-steps@sha256:{'a' * 64}"
    assert machine == ("nvidia-l4 spot 1 nvidia.com/gpu × 1" if recording == "spec-2.json" else "cpu")


def test_a_jobs_failure_carries_the_reason_that_our_jobset_names() -> None:
    """A pod that was deleted ended with 75: its Job says so by the rule's place, and the JobSet does not count it."""
    jobs = [one["object"] for one in events(FOLDER, "jobset-preempted-then-cancelled.job-events.json")]
    failed = [one for job in jobs for one in job["status"].get("conditions", []) if one["type"] == "FailureTarget"]
    assert {one["reason"] for one in failed} == {"PodFailurePolicy"}
    assert all("failed with exit code 75 matching FailJob rule at index 0" in one["message"] for one in failed)
    tries = [job["metadata"]["labels"]["jobset.sigs.k8s.io/restart-attempt"] for job in jobs]
    assert sorted(set(tries)) == ["0", "1"]
    policy, rule = preemption_rules()
    assert all(job["spec"]["podFailurePolicy"] == policy for job in jobs), "what we ask for now is what was there"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def preemption_rules() -> tuple[Any, Any]:
    """How a Job of ours tells a preempted pod, and what its JobSet does then."""
    needs = Requirements(1, "image", [], {}, {}, [], "1Gi", False, 1, 12)
    spec = manifest(needs, TrainingJob("run", "{}", "gs://b/d", "gs://b/m", {"kind": "Workflow", "name": "w"}))["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    return spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"], rule


if __name__ == "__main__":
    for file, tests in readers().items():
        print(file, *(tests or ["(none)"]), sep="\n    ")
