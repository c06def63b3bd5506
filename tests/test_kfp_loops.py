"""The shards of a run on Kubeflow Pipelines, read from the nodes that its compiler makes of a loop."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import kfp_server_api
import pytest
from servers.argo import Workflow, within
from servers.execution import Task

from xlnet import recipe as recipes
from xlnet_pipeline import dag
from xlnet_pipeline.targets.kfp import states
from xlnet_pipeline.targets.kfp.nodes import EXECUTOR, Nodes

S, C, F, X, P, R, W = "SUCCEEDED", "CACHED", "FAILED", "CANCELLED", "PENDING", "RUNNING", "WAITING"
BEGAN = datetime(2026, 11, 26, 14, tzinfo=UTC)


def task(name: str, state: str, index: int | None = None) -> Task:
    made = Task(name, name, state, index=index)
    if state not in (P, "NOT_TRIGGERED"):
        made.started = BEGAN + timedelta(seconds=20)
        made.ended = None if state in (R, W) else BEGAN + timedelta(seconds=30)
    return made


def run_of(shards: list[str], rest: str, state: str) -> Any:
    """The API's object of a run whose shards are in these states, and the steps after them in the state ``rest``."""
    spec = dag.documents(shards=len(shards))[0]
    loop = task("for-loop-1", R if state == R else F if {F, X} & set(shards) else S)
    loop.iterations = [task("tokenise", one, index) for index, one in enumerate(shards)]
    tasks = {"snapshot": task("snapshot", S), "survey": task("survey", S), "for-loop-1": loop}
    tasks |= {name: task(name, rest) for name in ("preprocess", "train", "evaluate", "register")}
    ended = None if state == R else BEGAN + timedelta(seconds=90)
    execution: Any = SimpleNamespace(spec=spec, tasks=tasks, state=state, began=BEGAN, ended=ended, broken="")
    recipe = recipes.tiny().replace(data={"train": "gs://b/a.csv", "shards": len(shards)}).to_json()
    described = {
        "run_id": "run",
        "display_name": "xlnet-20261126-140000-abcd",
        "created_at": "2026-11-26T14:00:00Z",
        "state": {C: S, X: F}.get(state, state),
        "state_history": [{"state": "CANCELING", "update_time": "2026-11-26T14:00:25Z"}] if state == X else [],
        "runtime_config": {"parameters": {"recipe": recipe}},
        "run_details": {"task_details": Workflow("xlnet-abcde", execution, BEGAN).details("run")},
    }
    raw = SimpleNamespace(data=json.dumps(described))
    return kfp_server_api.ApiClient().deserialize(raw, "V2beta1Run")


@pytest.mark.parametrize(
    ("shards", "rest", "state", "shown", "whole", "reason"),
    [
        ([S, S, S], S, S, [S, S, S], S, "3 of 3 shards are done"),
        ([C, C], S, S, [C, C], C, "2 of 2 shards are done, 2 of them cached"),
        ([S, R, P], P, R, [S, R, P], R, "1 of 3 shards are done"),
        ([C, R, W], P, R, [C, R, P], R, "1 of 3 shards are done, 1 of them cached"),
        ([S, F, S], "NOT_TRIGGERED", F, [S, F, S], F, "2 of 3 shards are done"),
        ([S, X, P], "NOT_TRIGGERED", X, [S, X, "SKIPPED"], X, "1 of 3 shards are done"),
    ],
    ids=["done", "cached", "running", "waiting", "failed", "cancelled"],
)
def test_the_shards_of_a_run(
    shards: list[str], rest: str, state: str, shown: list[str], whole: str, reason: str
) -> None:
    run, nodes = states.run_of(run_of(shards, rest, state), "kfp")
    step = run.step("tokenise")
    assert [one.status for one in step.iterations] == shown
    assert (step.status, step.reason) == (whole, reason)
    assert run.step("preprocess").status == {S: S, P: P}.get(rest, "SKIPPED")
    if F in shards:
        (place,) = states.places("tokenise", nodes, failed=True)
        assert nodes.attempts(*place, EXECUTOR)[-1].path.endswith(f"{within(1)}tokenise(0).executor(0)")
    assert len(states.places("tokenise", nodes)) == sum(one != P for one in shards)


def test_every_node_of_many_shards_has_its_place() -> None:
    found = run_of([S] * 29 + [F], "NOT_TRIGGERED", F)
    details = found.run_details.task_details
    nodes = list(Nodes(details))
    assert len(nodes) == len([one for one in details if one.display_name])
    assert len({node.id for node in nodes}) == len(nodes) > 300
    run, _ = states.run_of(found, "kfp")
    assert [one.name for one in run.step("tokenise").told()] == ["tokenise-29"], "of many only those that are not done"
