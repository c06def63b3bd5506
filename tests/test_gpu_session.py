"""The measurements for a GPU, as far as a machine without one can run them."""

import ast
import importlib.util
import json
import sys

import pytest
from conftest import CHECKOUT

BENCHMARKS = CHECKOUT / "tests" / "benchmarks"
PROGRAMS = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob("*.py"))}


@pytest.fixture
def session(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("gpu_session", BENCHMARKS / "gpu_session.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_session", module)
    spec.loader.exec_module(module)
    return module


def _names(program):
    """The names that a program defines or imports at its top level."""
    for node in program.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from (found.id for found in ast.walk(node) if isinstance(found, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


@pytest.mark.parametrize("name", PROGRAMS)
def test_benchmarks_take_from_each_other_only_what_is_there(name):
    defined = {stem: set(_names(tree)) for stem, tree in PROGRAMS.items()}
    for node in ast.walk(PROGRAMS[name]):
        if isinstance(node, ast.ImportFrom) and node.module in defined:
            missing = {alias.name for alias in node.names} - defined[node.module]
            assert not missing, f"{name}.py imports {missing} from {node.module}.py"


def given(session, tmp_path, *arguments):
    """The arguments of a part's own process."""
    made = []
    session.FUNCTIONS["update"] = made.append
    session.main(
        ["--function", "update", *arguments, "--out", str(tmp_path), "--report", str(tmp_path / "report.json")]
    )
    return made[0]


def test_a_part_that_fails_or_is_late_costs_only_itself(session, tmp_path, capsys):
    parts = {
        "late": session.Part(0.4, ["-c", "import time; print('began', flush=True); time.sleep(60)"]),
        "wrong": session.Part(20, ["-c", "raise SystemExit('no such GPU')"]),
        "right": session.Part(20, ["-c", "pass"]),
    }
    arguments = given(session, tmp_path)
    session.run(parts, arguments, seconds=40)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["part"], line["status"]) for line in lines] == [("late", "too late"), ("wrong", 1), ("right", 0)]
    assert ["began" in lines[0]["told"], "no such GPU" in lines[1]["told"]] == [True, True]
    session.run({"another": session.Part(20, ["-c", "pass"])}, arguments, seconds=5)
    assert "another: left out, no time" in capsys.readouterr().out
    assert "| late | too late |" in session.table(tmp_path / "results.jsonl")


def test_calls_fit_into_their_time_and_name_what_exists(session, tmp_path):
    for parts in session.CALLS.values():
        assert sum(part.seconds for part in parts.values()) <= 600
        for part in parts.values():
            first, *rest = part.command
            if first == "update":
                assert given(session, tmp_path, *rest).set in ("full", "imdb", "sst2")
            elif first.endswith(".py"):
                options = {option for option in rest if option.startswith("--")}
                source = (BENCHMARKS / first).read_text(encoding="utf-8")
                assert {option for option in options if option.replace("--no-", "--") not in source} == set()
            else:
                assert first in session.FUNCTIONS or rest[-1].startswith("tests/")


def test_an_update_is_measured(session, tmp_path, monkeypatch):
    monkeypatch.setattr("train_speed.matrix_rate", lambda *_: 1e12)
    arguments = given(session, tmp_path, "full", "--rows-per-update", "2", "--smoke")
    found = session.update(arguments)
    assert found["tokens_per_second"] > 0
    assert 0 < found["share_of_ceiling"] < 1
    assert len(found["losses"]) == 4
    line = {"part": "base", "seconds": 1, "status": 0, "result": found}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert "| base | " in session.table(tmp_path / "results.jsonl")


def test_the_fastest_tiles_that_go_together_are_chosen(session):
    """Kernels that share gradients have as many keys; kernels that compute scores by distance spare another kernel."""
    import tune_tiles

    from xlnet.model.kernels.tiles import Tile

    small, large, turned = Tile(32, 32, 4, 2), Tile(64, 64, 4, 2), Tile(32, 32, 4, 2, turn=True)
    times = {
        small: {"position_scores": 4.0, "forward": 3.0, "backward_keys": 5.0, "backward_queries": 5.0},
        large: {"position_scores": 3.0, "forward": 2.0, "backward_keys": 5.5, "backward_queries": 1.0},
        turned: {"forward": 3.0, "backward_keys": 9.0, "backward_queries": 4.0, "backward_distances": 1.0},
    }
    times[small]["backward_distances"], times[large]["backward_distances"] = 3.0, 2.0
    found = tune_tiles.chosen(times)
    assert found["forward"] == turned, "3 for all, and not 2 and half of 3"
    assert found["backward_keys"] == large
    assert found["backward_queries"] == large
    assert found["backward_distances"] == large, "a turned one would need as many keys"
