"""The state directory: it can be copied and moved, and homes of earlier versions are still read."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import write_sentences

from xlnet import state
from xlnet_pipeline import cli

SETTINGS = {
    "data.max_length": 24,
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 1,
    "model.d_head": 16,
    "model.d_inner": 16,
    "training.steps": 4,
    "training.batch_tokens": 256,
    "evaluation.resamples": 100,
    "registry.name": "small",
}


def run(home: Path, **settings: Any) -> int:
    """``xlnet-pipeline run --set …`` of the CSV beside the state directory; two underscores stand for a dot."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    chosen = {"data.train": home.parent / "rows.csv", **SETTINGS, **changed}
    return cli.main(["--home", str(home), "run", *(f"--set={name}={value}" for name, value in chosen.items())])


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert cli.main(words) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory in which two models were trained, small:1 and small:2. Copy it, then use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("state")
        patch.chdir(folder)
        write_sentences(folder / "rows.csv", rows=60)
        assert run(folder / "home") == 0
        assert run(folder / "home", training__seed=1) == 0
        yield folder / "home"


def test_nothing_that_is_read_again_holds_an_absolute_path_of_the_state_directory(made: Path) -> None:
    texts = [*made.glob("runs/*/run.json"), *made.glob("cache/*.json"), *made.glob("**/lineage.json")]
    texts += made.glob("**/registration.json")
    assert len(texts) > 12
    assert not [path for path in texts if str(made) in path.read_text(encoding="utf-8")]
    with closing(sqlite3.connect(made / "mlflow.db")) as database:
        tags = database.execute("SELECT value FROM model_version_tags UNION SELECT value FROM tags").fetchall()
    assert not [value for (value,) in tags if str(made) in value]


@pytest.mark.parametrize("way", ["copied", "moved", "moved into a link", "copied, the first still there"])
def test_a_state_directory_works_where_it_was_taken_to(
    way: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "deep er" / "home"
    home.parent.mkdir()
    if way == "moved into a link":
        (tmp_path / "disk").mkdir()
        home.parent.rmdir()
        home.parent.symlink_to("disk")
    shutil.copytree(made, home)
    away = made.with_name("away")
    monkeypatch.chdir(tmp_path)
    if way != "copied, the first still there":
        made.rename(away)
    try:
        newest = sorted(path.name for path in home.glob("runs/*"))[-1]
        shown = "\n".join(lines(capsys, "--home", str(home), "runs", "show", newest))
        assert str(home / "runs" / newest / "artifacts" / "train" / "model") in shown
        assert "registered small:2" in shown
        assert str(made) not in shown
        assert len(lines(capsys, "--home", str(home), "models", "list")) == 3
        answer = json.loads(lines(capsys, "--home", str(home), "predict", "small", "a lovely warm film")[0])
        assert set(answer["probabilities"]) == {"0", "1"}
        for subject in ("small:1", newest):
            graph = json.loads("\n".join(lines(capsys, "--home", str(home), "lineage", subject, "--json", "--verify")))
            places = [node["uri"] for node in graph["nodes"] if not node["type"].startswith(("file", "snapshot"))]
            assert len(places) == 4
            assert all(Path(place).is_relative_to(home) and Path(place).is_dir() for place in places)
        assert run_cached(home, made) == 4
        assert_mlflow_finds_the_files(home)
    finally:
        if away.exists():
            away.rename(made)


def assert_mlflow_finds_the_files(home: Path) -> None:
    """Ask MLflow's own client for the artifacts of experiments and runs, and for the models' files."""
    from mlflow import MlflowClient

    store = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    for experiment in client.search_experiments():
        assert experiment.artifact_location.startswith(str(home))
        runs = client.search_runs([experiment.experiment_id])
        assert all(one.info.artifact_uri.startswith(str(home)) for one in runs)
    for number in ("1", "2"):
        source = client.get_model_version("small", number).source
        assert source == client.get_model_version_download_uri("small", number)
        assert source.startswith(home.as_uri())
        assert (Path(unquote(source.removeprefix("file://"))) / "config.json").is_file()


def as_earlier_versions_left_it(home: Path, made: Path) -> None:
    """Write absolute paths where earlier versions did: records, cache, and MLflow's tags and locations."""
    for path in [*home.glob("runs/*/run.json"), *home.glob("cache/*.json")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'("(?:\w+_)?uri": ")(?=runs/)', rf"\g<1>{made}/", text), encoding="utf-8")
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        for table in ("model_version_tags", "tags"):
            database.execute(f"UPDATE {table} SET value = ? || value WHERE value LIKE 'runs/%'", (f"{made}/",))
        database.execute("UPDATE experiments SET artifact_location = '/elsewhere/mlruns/' || experiment_id")
        database.commit()


@pytest.mark.parametrize("moved", [False, True])
def test_a_state_directory_of_an_earlier_version_is_read_also_after_a_move(
    moved: bool, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    as_earlier_versions_left_it(home, tmp_path / "gone" if moved else home)
    before = (tmp_path / "gone" if moved else home) / "runs"
    assert str(before) in next(home.glob("runs/*/run.json")).read_text(encoding="utf-8")
    tool = ("--home", str(home))
    newest = sorted(path.name for path in home.glob("runs/*"))[-1]
    assert "registered small:2" in "\n".join(lines(capsys, *tool, "runs", "show", newest))
    assert "probabilities" in lines(capsys, *tool, "predict", "small", "a lovely warm film")[0]
    assert lines(capsys, *tool, "lineage", "small:2", "--verify")
    facts = json.loads("\n".join(lines(capsys, *tool, "models", "show", "small:2", "--json")))
    assert Path(facts["tags"]["model_uri"]).is_relative_to(home)
    assert run_cached(home, made) >= 3, "the register step's key held the registry's place"


def run_cached(home: Path, made: Path) -> int:
    """How many steps of an equal run are cached."""
    words = {"data.train": made.parent / "rows.csv", **SETTINGS}
    assert cli.main(["--home", str(home), "run", *(f"--set={key}={value}" for key, value in words.items())]) == 0
    newest = max(home.glob("runs/*/run.json"), key=lambda path: path.parent.name)
    return newest.read_text(encoding="utf-8").count('"CACHED"')


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("/srv/state/runs/1/artifacts/train/model", "runs/1/artifacts/train/model"),
        ("/srv/state", "."),
        ("/srv/state2/runs/1", "/srv/state2/runs/1"),
        ("gs://bucket/srv/state/runs", "gs://bucket/srv/state/runs"),
        ("sqlite:////srv/state/mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("https://mlflow.example/a", "https://mlflow.example/a"),
        ("xlnet-base-cased", "xlnet-base-cased"),
        ("", ""),
    ],
)
def test_addresses_in_the_state_directory_are_relative(address: str, kept: str) -> None:
    folder = Path("/srv/state")
    assert state.relative(address, folder) == kept
    value = {"model_uri": address, "uri": address, "text": address, "more": [{"uri": address, "n": None}]}
    stored = state.stored(value, folder)
    assert (stored["uri"], stored["text"], stored["more"][0]["uri"]) == (kept, address, kept)


def test_a_path_is_found_in_the_directory_that_it_was_moved_to(tmp_path: Path) -> None:
    inside = tmp_path / "runs" / "1" / "artifacts" / "train" / "model"
    inside.mkdir(parents=True)
    for old in ("/old/home", "/old/runs/7/artifacts/home", str(tmp_path)):
        assert state.absolute(f"{old}/runs/1/artifacts/train/model", tmp_path) == str(inside)
    assert state.absolute("/old/runs/2/artifacts/train/model", tmp_path) == "/old/runs/2/artifacts/train/model"
    assert state.absolute("runs/2/artifacts/x", tmp_path) == str(tmp_path / "runs/2/artifacts/x")


def test_pruning_never_touches_what_a_champion_or_an_alias_needs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    tool = ("--home", str(home))
    everything = ("--older-than", "0", "--keep", "0")
    first, second = sorted(path.name for path in home.glob("runs/*"))
    assert lines(capsys, *tool, "models", "promote", "small:1") == ["small:1 is the champion already"]
    before = sorted(home.rglob("*"))
    kept = lines(capsys, *tool, "runs", "prune", *everything, "--dry-run")
    assert [line.split()[0] for line in kept if "holds files" in line] == [second, first], "both are registered"
    would = "\n".join(lines(capsys, *tool, "runs", "prune", *everything, "--versions", "--dry-run"))
    assert re.search(rf"^run +{second} ", would, re.MULTILINE)
    assert re.search(r"^version +small:2 ", would, re.MULTILINE)
    assert f"  {first}  holds files of small:1 (champion)" in would
    assert sorted(home.rglob("*")) == before

    assert lines(capsys, *tool, "models", "promote", "small:2") == ["small:2 is now the champion"]
    lines(capsys, *tool, "runs", "prune", *everything, "--versions")
    assert len(list(home.glob("runs/*"))) == 2, "small:1 was champion before, and a rollback needs it"
    assert cli.main([*tool, "models", "delete", "small:1", "small:2"]) == 2
    assert "'small:2' is champion" in capsys.readouterr().err
    assert len(lines(capsys, *tool, "models", "list")) == 3, "nothing was deleted"
    assert lines(capsys, *tool, "models", "rollback", "small", "--dry-run") == [
        "would make small:1 the champion instead of small:2"
    ]
    assert lines(capsys, *tool, "models", "rollback", "small") == ["small:1 is the champion again, instead of small:2"]
    assert cli.main([*tool, "models", "rollback", "small"]) == 2
    assert "'small:1' is the first champion of 'small'" in capsys.readouterr().err

    freed = "\n".join(lines(capsys, *tool, "runs", "prune", *everything, "--versions"))
    assert re.search(r"^freed \d", freed, re.MULTILINE)
    assert [path.name for path in home.glob("runs/*")] == [first]
    assert [line.split()[0] for line in lines(capsys, *tool, "models", "list")] == ["MODEL", "small:1"]
    assert "probabilities" in lines(capsys, *tool, "predict", "small", "a lovely warm film")[0]
    assert lines(capsys, *tool, "lineage", "small", "--verify")
    assert run_cached(home, made) >= 3, "the registration knew another champion"
    assert "nothing to remove" in lines(capsys, *tool, "runs", "prune", "--older-than", "30d")[0]
