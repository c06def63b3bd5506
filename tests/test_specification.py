"""The one interpretation of a compiled pipeline: order, inputs, commands, outputs, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xlnet.errors import RunError
from xlnet.steps import KEPT, of_run
from xlnet_pipeline import dag
from xlnet_pipeline.targets import specification
from xlnet_pipeline.targets.local import compiled
from xlnet_pipeline.targets.specification import Task, Values


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return dag.documents()[0]


def pipeline(tasks: dict[str, Any], **components: Any) -> dict[str, Any]:
    """A specification whose tasks run the component ``one`` unless they name another."""
    defined = {"one": {"executorLabel": "run", "outputDefinitions": {"parameters": {"out": {}}}}, **components}
    full = {name: {"componentRef": {"name": "one"}, **task} for name, task in tasks.items()}
    containers = {"run": {"container": {"image": "x", "command": ["echo"], "args": ["{{$}}"]}}}
    return {"components": defined, "deploymentSpec": {"executors": containers}, "root": {"dag": {"tasks": full}}}


def from_task(name: str) -> dict[str, Any]:
    return {"parameters": {"in": {"taskOutputParameter": {"producerTask": name, "outputParameterKey": "out"}}}}


def test_the_real_pipeline_in_its_order_with_its_inputs(ours: dict[str, Any]) -> None:
    tasks = specification.tasks(ours)
    assert [task.name for task in tasks] == [*of_run(pretrains=False)]
    assert [task.caching for task in tasks[:3]] == [False, True, True]
    given: dict[str, Values] = {}

    def run(task: Task, values: Values) -> Values:
        given[task.name] = values
        told = specification.executor_input(task, values, f"/made/{task.name}", Path("/scratch"))
        made = {name: one["artifacts"][0] for name, one in told["outputs"]["artifacts"].items()}
        return Values({name: f"{task.name}.{name}" for name in told["outputs"]["parameters"]}, made)

    specification.execute(ours, {"recipe": "{}"}, run)
    assert given["snapshot"].parameters == {"recipe": "{}"}
    assert given["train"].parameters["pretrained"] == "snapshot.pretrained"
    assert given["register"].artifacts["model"]["uri"] == "/made/train/model"
    assert given["register"].artifacts["model"]["type"]["schemaTitle"] == "system.Model"


def test_what_needs_a_failed_task_is_left_out_and_the_rest_is_not() -> None:
    spec = pipeline({
        "last": {"dependentTasks": ["bad", "good"]},
        "good": {},
        "bad": {"dependentTasks": ["first"]},
        "beside": {"inputs": from_task("first"), "dependentTasks": ["first"]},
        "first": {},
    })  # fmt: skip
    ran: list[str] = []

    def run(task: Task, values: Values) -> Values | None:
        ran.append(task.name)
        assert task.name != "beside" or values.parameters == {"in": "from first"}
        return None if task.name == "bad" else Values({"out": f"from {task.name}"})

    done = specification.execute(spec, {}, run)
    assert set(ran) == {"first", "good", "bad", "beside"}
    assert set(done) == {"first", "good", "beside"}
    assert ran.index("first") < ran.index("beside")


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ({"triggerPolicy": {"condition": "inputs.parameter_values['x'] == 'y'"}}, "'triggerPolicy'"),
        ({"parameterIterator": {"itemInput": "x"}}, "'parameterIterator'"),
        ({"componentRef": {"name": "nested"}}, "no container"),
        ({"inputs": {"parameters": {"x": {"taskFinalStatus": {"producerTask": "y"}}}}}, "'taskFinalStatus'"),
    ],
)
def test_what_is_not_executed_is_refused_and_not_passed_over(task: dict[str, Any], what: str) -> None:
    spec = pipeline({"only": task}, nested={"dag": {"tasks": {}}})
    with pytest.raises(RunError, match=f"task 'only' of the pipeline (has|uses) {what}, which only a backend"):
        specification.execute(spec, {}, lambda task, values: Values())


def looping(items: dict[str, Any]) -> dict[str, Any]:
    """A specification with a loop, whose outputs another task collects."""
    taken = {"parameters": {"in": {"componentInputParameter": "item"}}}
    inner = {"one": {"inputs": taken, "componentRef": {"name": "one"}}}
    made = {"producerTask": "loop", "outputArtifactKey": "made"}
    collected = {"made": {"artifactSelectors": [{"producerSubtask": "one", "outputArtifactKey": "file"}]}}
    return pipeline(
        {
            "list": {},
            "loop": {
                "componentRef": {"name": "body"},
                "dependentTasks": ["list"],
                "inputs": from_task("list"),
                "parameterIterator": {"itemInput": "item", "items": items},
            },
            "join": {
                "dependentTasks": ["loop"],
                "inputs": {"artifacts": {"all": {"taskOutputArtifact": made}}},
            },
        },
        body={"dag": {"tasks": inner, "outputs": {"artifacts": collected}}},
    )


@pytest.mark.parametrize(
    ("items", "out"),
    [
        ({"inputParameter": "in"}, ["a", "b", "c"]),
        ({"inputParameter": "in"}, '["a", "b", "c"]'),
        ({"raw": '["a", "b", "c"]'}, []),
    ],
    ids=["list", "text", "raw"],
)
def test_a_loop_runs_its_tasks_for_each_item(items: dict[str, Any], out: Any) -> None:
    seen: list[Any] = []

    def run(task: Task, values: Values) -> Values:
        if task.iteration:
            seen.append((task.name, task.iteration, values.parameters["in"]))
            return Values(artifacts={"file": {"uri": values.parameters["in"]}})
        if task.name == "join":
            seen.append([one["uri"] for one in values.artifacts["all"]])
        return Values({"out": out})

    specification.execute(looping(items), {}, run)
    assert seen == [("one", (0, 3), "a"), ("one", (1, 3), "b"), ("one", (2, 3), "c"), ["a", "b", "c"]]


def test_what_needs_a_loop_is_left_out_when_an_item_fails() -> None:
    ran: list[str] = []

    def run(task: Task, values: Values) -> Values | None:
        ran.append(task.name)
        return None if task.iteration == (1, 3) else Values({"out": ["a", "b", "c"]}, {"file": {"uri": "x"}})

    done = specification.execute(looping({"inputParameter": "in"}), {}, run)
    assert ran == ["list", "one", "one"], "nor are the other items begun"
    assert set(done) == {"list"}
    told = specification.executor_input(
        specification.tasks(looping({"raw": "[]"}))[2], Values(artifacts={"all": [{"uri": "x"}]}), "/made", Path("/x")
    )
    assert told["inputs"]["artifacts"]["all"]["artifacts"] == [{"uri": "x"}]


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    artifact = {"name": "dataset", "uri": "/data", "type": {"schemaTitle": "system.Dataset"}, "metadata": {}}
    spec = pipeline({"only": {}})
    spec["components"]["one"]["outputDefinitions"]["artifacts"] = {"model": {"artifactType": {"schemaTitle": "t"}}}
    given = Values({"recipe": '{"a": "b"}', "number": 3}, {"dataset": artifact})
    return specification.executor_input(specification.tasks(spec)[0], given, "/made", tmp_path)


def test_placeholders_are_filled_as_a_launcher_does(told: dict[str, Any], tmp_path: Path) -> None:
    for word, expected in {
        "plain": "plain",
        "{{$.inputs.parameters['recipe']}}": '{"a": "b"}',
        "--n={{$.inputs.parameters['number']}}": "--n=3",
        "{{$.inputs.artifacts['dataset'].path}}": "/data",
        "{{$.outputs.artifacts['model'].uri}}": "/made/model",
        "{{$.outputs.parameters['out'].output_file}}": str(tmp_path / "out"),
        "{{$.pipeline_job_name}}": "job",
        "price: {{1}} {$}": "price: {{1}} {$}",
    }.items():
        assert specification.filled(word, told, {".pipeline_job_name": "job"}) == expected
    assert json.loads(specification.filled("{{$}}", told)) == told
    assert json.loads(json.loads('"' + specification.filled("{{$.json_escape[1]}}", told) + '"')) == told
    with pytest.raises(RunError, match="placeholder '{{\\$.unheard_of}}' is not known here"):
        specification.filled("x{{$.unheard_of}}", told)


def test_outputs_are_what_the_program_wrote(told: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="without its output 'out'"):
        specification.outputs(told)
    (tmp_path / "out").write_text("from a file")
    assert specification.outputs(told).parameters == {"out": "from a file"}
    written = {"parameterValues": {"out": 7}, "artifacts": {"model": {"artifacts": [{"metadata": {"steps": 10}}]}}}
    (tmp_path / specification.OUTPUT_FILE).write_text(json.dumps(written))
    made = specification.outputs(told)
    assert made.parameters == {"out": 7}
    assert made.artifacts["model"] == {
        "name": "model",
        "uri": "/made/model",
        "type": {"schemaTitle": "t"},
        "metadata": {"steps": 10},
    }
    assert told["outputs"]["artifacts"]["model"]["artifacts"][0]["metadata"] == {}, "what was told stays as it was"


# --- the compiled pipeline, kept -------------------------------------------------------------------------------------


def code_of(spec: Mapping[str, Any]) -> dict[str, str]:
    tasks = spec["root"]["dag"]["tasks"]
    kept = [step for step in tasks if step != "snapshot"]
    return {step: tasks[step]["inputs"]["parameters"]["code"]["runtimeValue"]["constant"] for step in kept}


@pytest.mark.parametrize("bytecode", [True, False])
def test_the_kept_pipeline_is_the_compiled_one(
    bytecode: bool, ours: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept beside the bytecode, or where that is not wanted, in the state directory."""
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "bytecode"))
    monkeypatch.setattr(sys, "dont_write_bytecode", not bytecode)
    code = code_of(ours)
    first = compiled.specification(code, home)
    (kept,) = tmp_path.rglob("pipeline-*")
    assert kept.is_relative_to(tmp_path / "bytecode" if bytecode else home / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compiled", lambda pretrains, shards: pytest.fail("it was compiled again"))
        assert compiled.specification(code, home) == first == ours
        other = compiled.specification({**code, "train": "sha256:other"}, home)
    assert code_of(other) == {**code, "train": "sha256:other"}
    kept.write_text("{half")
    assert compiled.specification(code, home) == ours, "a damaged file is as good as none"


def test_another_source_is_another_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled._name()
    monkeypatch.setattr(compiled.provenance, "digest_file", lambda path: f"changed {path}")
    assert compiled._name() != before


def test_the_pipeline_that_pretrains_is_kept_beside_the_other(
    ours: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    code = dict.fromkeys(KEPT, "x")
    other = compiled.specification(code, tmp_path, pretrains=True)
    assert [task.name for task in specification.tasks(other)] == [*of_run(pretrains=True)]
    compiled.specification(code, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compiled", lambda pretrains, shards: pytest.fail("it was compiled again"))
        assert compiled.specification(code, tmp_path, pretrains=True) == other


def test_where_nothing_can_be_kept_it_still_runs(
    ours: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", "/proc/nowhere")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert compiled.specification(code_of(ours), tmp_path / "home") == ours
    assert not (tmp_path / "home").exists()


def test_a_run_of_code_that_was_compiled_before_does_without_kfp(tmp_path: Path) -> None:
    """It waits for no second, and a step that fails says so all the same."""
    (tmp_path / "cache").mkdir()
    compiled.specification(dict.fromkeys(KEPT, "x"), tmp_path)
    program = (
        "import sys; from xlnet import recipe; from xlnet_pipeline.targets import Submission, open_target;"
        f"asked = Submission(recipe.tiny().replace(data={{'train': {str(tmp_path / 'absent.csv')!r}}}));"
        f"run = open_target('local', {str(tmp_path)!r}).submit(asked);"
        "print(run.exit_status, [name for name in ('kfp', 'torch', 'google.protobuf') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split(maxsplit=1) == ["2", "[]\n"]
