"""MLflow's own server behind a password: it is given the model's files, and the password is kept nowhere."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import write_sentences

from xlnet_pipeline import cli

SECRET = "s3cr3t-Pa55"
FIELDS = {
    "data": {"max_length": 24},
    "model": {"n_layer": 1, "d_model": 16, "n_head": 1, "d_head": 16, "d_inner": 16},
    "training": {"steps": 2},
    "evaluation": {"resamples": 100},
    "registry": {"name": "reviews"},
}


@dataclass(frozen=True)
class Server:
    """A running server."""

    host: str
    folder: Path  # its database and its artifacts


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("flask")
    folder = tmp_path / "server"
    folder.mkdir()
    words = [sys.executable, str(Path(__file__).parent / "servers" / "mlflow_server.py"), str(folder), f"user:{SECRET}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Server(f"127.0.0.1:{port}", folder)
        process.kill()


def holding(folder: Path, word: str) -> list[Path]:
    """Files whose names or bytes hold a word."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if word in str(path) or word.encode() in path.read_bytes()]


def test_a_run_registers_on_a_server_and_leaves_its_password_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@{server.host}")
    home = tmp_path / "home"
    rows = write_sentences(tmp_path / "rows.csv", 60)
    given = [f"{section}.{name}={value}" for section, fields in FIELDS.items() for name, value in fields.items()]
    tool = ["--home", str(home)]
    words = [word for one in (f"data.train={rows}", *given) for word in ("--set", one)]
    assert cli.main([*tool, "run", *words]) == 0, capfd.readouterr()
    for others in (
        ["models", "list"],
        ["models", "show", "reviews:1"],
        ["runs", "show", "latest"],
        ["runs", "logs", "latest"],
    ):
        assert cli.main([*tool, *others]) == 0
    assert cli.main([*tool, "lineage", "reviews:1", "--html", str(tmp_path / "lineage.html")]) == 0
    shown = "".join(capfd.readouterr())
    assert "registered reviews:1" in shown
    assert f"registry 'http://{server.host}'" not in shown, "nothing was refused"
    assert SECRET not in shown
    assert holding(tmp_path, SECRET) == []
    entries = [path for path in (home / "cache").glob("*.json") if not path.name.startswith("pipeline-")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in entries} == {0o600}

    (weights,) = home.glob("runs/*/artifacts/train/model/model.safetensors")
    (copy,) = server.folder.rglob("model.safetensors")
    assert copy.read_bytes() == weights.read_bytes()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:an0ther@{server.host}")
    assert cli.main([*tool, "run", *words]) == 1
    shown = "".join(capfd.readouterr())
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: registry 'http://{server.host}' does not answer or refuses: ")
    assert "an0ther" not in shown
    assert "preprocess" not in shown, "it is said before a step runs"
