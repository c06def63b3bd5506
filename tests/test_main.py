"""``python -m xlnet``: every step without KFP, facts as JSON, errors in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from xlnet.__main__ import main
from xlnet.steps import STEPS

SMALL = [
    "model.n_layer=1",
    "model.d_model=16",
    "model.n_head=2",
    "model.d_head=8",
    "model.d_inner=32",
    "training.steps=4",
]


def run(*arguments, **options):
    command = [sys.executable, "-m", "xlnet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def settings(*fields):
    return [part for field in fields for part in ("--set", field)]


def test_a_whole_run_by_hand(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    paths = {name: str(tmp_path / name) for name in ("dataset", "model", "evaluation", "registration")}
    data = settings("data.train=demo:uci_sentences", "data.text=0", "data.label=1")

    def facts(*arguments):
        assert main(list(arguments)) == 0
        text = capsys.readouterr().out
        return json.loads(text[text.index("{") :])

    digest = facts("snapshot", *data)["digest"]
    found = facts("preprocess", *data, "--snapshot", digest, "--out", paths["dataset"])
    assert found["train_rows"] + found["validation_rows"] + found["test_rows"] == 2838
    model = facts("train", *settings(*SMALL), "--dataset", paths["dataset"], "--out", paths["model"])
    assert model["global_step"] == 4
    inputs = ("--dataset", paths["dataset"], "--model", paths["model"])
    judged = facts("evaluate", *inputs, "--out", paths["evaluation"])
    assert 0 <= judged["accuracy_low"] <= judged["accuracy"] <= judged["accuracy_high"] <= 1
    arguments = (*inputs, "--evaluation", paths["evaluation"], "--out", paths["registration"])
    entry = facts("register", *settings("registry.name=by-hand", "registry.force=true"), *arguments)
    assert (entry["name"], entry["version"], entry["promoted"]) == ("by-hand", 1, "true")

    assert main(["predict", paths["model"], "what a lovely film"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("step", [*STEPS, "predict"])
def test_every_step_has_help_with_an_example(step, capsys):
    with pytest.raises(SystemExit) as left:
        main([step, "--help"])
    assert left.value.code == 0
    assert f"example: python -m xlnet {step}" in " ".join(capsys.readouterr().out.split())


def test_a_users_mistake_is_one_line_and_status_2(tmp_path):
    done = run("train", "--set", "training.stepz=4", "--dataset", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown field 'training.stepz'; did you mean 'training.steps'?\n"
    done = run("train", "--dataset", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert run("trian").returncode == 2


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(500)))
    data = str(tmp_path / "dataset")
    assert run("preprocess", *settings(f"data.train={tmp_path / 'a.csv'}"), "--out", data).returncode == 0
    arguments = [
        *settings(*SMALL[:-1], "training.steps=100000", "training.patience=0"),
        "--dataset",
        data,
        "--out",
        str(tmp_path / "model"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "xlnet", "train", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLNET_PIPELINE_HOME": str(tmp_path / "home")},
    )
    try:
        assert process.stderr.readline().startswith("warning: attention on cpu")  # of heads that are so narrow
        assert process.stderr.readline().startswith("chosen for 400 rows")
        assert "training on" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*.partial"))
