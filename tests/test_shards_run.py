"""A run on this machine whose input is tokenised in shards: what is done is kept, whatever ends the run."""

import csv
from pathlib import Path
from typing import Any

import pytest

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet_pipeline.targets import Submission, open_target
from xlnet_pipeline.targets.local import compiled

STATES = ["CACHED", "SUCCEEDED"]


def write(path: Path, words: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"{words} {i}", "ab"[i % 2]) for i in range(60))])


@pytest.fixture
def only_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the steps after preprocess out of the pipeline."""
    whole = compiled.specification

    def shortened(*given: Any) -> compiled.Specification:
        spec = whole(*given)
        for step in ("train", "evaluate", "register"):
            del spec["root"]["dag"]["tasks"][step]
        return spec

    monkeypatch.setattr(compiled, "specification", shortened)


@pytest.mark.usefixtures("only_data")
def test_a_run_goes_on_with_the_shards_that_are_left(tmp_path: Path) -> None:
    """The second file changes after the first shard, so the second shard fails; the next run keeps the first one."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for number in range(2):
        write(rows / f"{number}.csv", f"file {number} row")
    recipe = recipes.tiny().replace(data={"train": str(rows), "shards": 2, "max_length": 16})
    target = open_target("local", tmp_path / "home")

    def change(line: str) -> None:
        if line.startswith("tokenise-0: done"):
            write(rows / "1.csv", "file 7 row")

    failed = target.submit(Submission(recipe), echo=change)
    assert failed.error
    assert failed.error.message.endswith("1.csv' changed after the survey; run again")
    assert failed.error.step == "tokenise-1"
    assert [one.status for one in failed.step("tokenise").iterations] == ["SUCCEEDED", "FAILED"]
    assert (failed.step("tokenise").status, failed.step("preprocess").status) == ("FAILED", "SKIPPED")

    lines: list[str] = []
    run = target.submit(Submission(recipe), echo=lines.append)
    step = target.status(run.id).step("tokenise")
    assert [one.status for one in step.iterations] == STATES
    assert (step.status, step.reason) == ("SUCCEEDED", "2 of 2 shards are done, 1 of them cached")
    assert f"tokenise-0: cached, same as in run {failed.id}" in lines
    assert set(step.outputs) == {"tokens-0", "tokens-1"}
    made = run.step("preprocess").outputs["dataset"]["digest"]
    assert made == preprocess(recipe.part("data"), "", str(tmp_path / "one"))["dataset_digest"]
    log = list(target.logs(run.id, "tokenise"))
    assert [line for line in log if line.startswith("(")] == ["(tokenise-1)"]
