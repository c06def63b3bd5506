"""The Python API: the notebook of the documentation, executed; what its functions refuse."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import xlnet_pipeline
from xlnet.errors import RunError, UserError
from xlnet_pipeline import Recipe, compare, load, run, runs
from xlnet_pipeline.notebook.views import Predictions

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each cell of the notebook shows, by media type; print's output as text/plain."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {"XLNET_PIPELINE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return [_shown(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cell: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for output in cell.outputs:
        if output.get("name") == "stderr":
            continue
        data = output.get("data") or {"text/plain": output.get("text", "")}
        for kind, content in data.items():
            found[kind] = found.get(kind, "") + content
    return found


def test_the_notebook_shows_runs_metrics_and_predictions_as_tables(outputs: list[dict[str, str]]) -> None:
    html = "".join(output.get("text/html", "") for output in outputs)
    for cell in ("SUCCEEDED", "CACHED", "<td>accuracy</td>", "<td>training.steps</td><td>10</td><td>20</td>"):
        assert cell in html, cell
    assert html.count("<td>what a lovely film</td>") == 1
    assert any("<iframe sandbox" in output.get("text/html", "") for output in outputs), "the report"


def test_stored_outputs_are_those_of_this_version(outputs: list[dict[str, str]]) -> None:
    """The kinds of output that the page shows; figures and times may differ."""
    stored = [_shown(cell) for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [sorted(one) for one in stored] == [sorted(one) for one in outputs]


def test_a_run_that_fails_raises_what_its_step_said(tmp_path: Path) -> None:
    recipe = {"data": {"train": str(tmp_path / "nothing.csv")}}
    with pytest.raises(RunError, match=r"FAILED: .*nothing\.csv"):
        run(recipe, echo=None)
    failed = run(recipe, echo=None, must_succeed=False)
    assert failed.status == "FAILED"
    assert "FAILED" in failed._repr_html_()
    assert len(failed.metrics) == 0
    assert runs()[0].id == failed.id


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(Recipe(), spot_price=1), r"option 'spot_price' is unknown; allowed: cache, device"),
        (lambda: run(Recipe(), target="kpf"), r"target 'kpf' is unknown; allowed: local, docker, kfp, vertex; did"),
        (lambda: run({"training": {"epoch": 1}}), r"epoch.*did you mean 'training.epochs'"),
        (lambda: run(Recipe(), spot=True), r"--spot is for the targets kfp and vertex"),
        (lambda: compare(), r"compare got 0 run; give two or more"),
        (lambda: compare("a", "b"), r"'a'"),
        (lambda: load("reviews@champion"), r"reviews"),
    ],
)
def test_mistakes_are_one_line(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as mistake:
        call()
    assert "\n" not in str(mistake.value)


def test_cells_are_escaped() -> None:
    shown = Predictions(["<script>alert(1)</script>"], [{"error": "<b>"}])
    assert "<script>" not in shown._repr_html_()
    assert "<b>" not in shown._repr_html_()


def test_the_package_names_its_api() -> None:
    assert xlnet_pipeline.__all__ == ["Recipe", "compare", "load", "run", "runs"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xlnet_pipeline.nothing
