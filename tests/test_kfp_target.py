"""The target for Kubeflow Pipelines against a server that runs what it is sent, over real connections."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import storage
from servers.kfp_server import KfpServer
from servers.kubernetes_server import KubernetesServer
from servers.storage import texts
from test_ui import pages_show

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet_pipeline.cli import main
from xlnet_pipeline.placement import LAUNCHER_RETRIES, PROGRAM_RETRIES

IMAGE = "registry.example/team/xlnet@sha256:" + "0123456789abcdef" * 4


def recipe_file(path: Path, **training: object) -> Path:
    """A recipe that trains in a second."""
    fields = {"epochs": 4.0, "batch_tokens": 512, "learning_rate": 3e-3, **training}
    lines = ["[data]", 'train = "gs://bucket/data/rows.csv"', "max_length = 32"]
    lines += ["[model]", "n_layer = 1", "d_model = 32", "n_head = 2", "d_head = 16", "d_inner = 64"]
    lines += ["[training]", *(f"{key} = {value}" for key, value in fields.items())]
    lines += ["[evaluation]", "resamples = 100", "[registry]", 'name = "reviews"']
    path.write_text("\n".join(lines))
    return path


def test_a_run_from_submission_to_lineage(kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pods tokenise a shard each; what they give is the dataset of one machine."""
    recipe = recipe_file(tmp_path / "recipe.toml")
    recipe.write_text(recipe.read_text().replace("[data]", "[data]\nshards = 2"))
    assert main(["run", str(recipe), "--target", "kfp", "--wait"]) == 0
    shown = capsys.readouterr().out
    run = shown.split("run ", 1)[1].split()[0]
    assert "registered reviews:1 as champion" in shown
    assert "accuracy" in shown

    assert main(["runs", "list", "--target", "kfp"]) == 0
    assert run in capsys.readouterr().out
    assert main(["runs", "show", run, "--target", "kfp", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "SUCCEEDED"
    assert [step["status"] for step in record["steps"]] == ["SUCCEEDED"] * 7
    steps = {step["name"]: step for step in record["steps"]}
    shards = [(one["name"], one["status"]) for one in steps["tokenise"]["iterations"]]
    assert shards == [("tokenise-0", "SUCCEEDED"), ("tokenise-1", "SUCCEEDED")]
    assert steps["tokenise"]["reason"] == "2 of 2 shards are done"
    assert set(steps["tokenise"]["outputs"]) == {"tokens-0", "tokens-1"}
    part = recipes.load(recipe).part("data")
    one = preprocess(part, "", str(tmp_path / "one"))
    assert one["dataset_digest"] == steps["preprocess"]["outputs"]["dataset"]["digest"]
    model = steps["train"]["outputs"]["model"]
    assert model["uri"].startswith("gs://bucket/root/xlnet/")
    assert model["digest"].startswith("sha256:")

    assert main(["runs", "logs", run, "train", "--target", "kfp"]) == 0
    log = capsys.readouterr().out
    assert "==> train (SUCCEEDED) <==" in log
    assert "step" in log
    assert "KFP Executor" not in log

    assert main(["runs", "logs", run, "tokenise", "--target", "kfp"]) == 0
    log = capsys.readouterr().out
    assert log.index("(shard 1 of 2)") < log.index("(shard 2 of 2)")
    assert main(["lineage", run, "--target", "kfp"]) == 0
    tree = capsys.readouterr().out
    for word in ("registration reviews:1", "evaluation", "model", "dataset", "snapshot", "gs://bucket/data/rows.csv"):
        assert word in tree
    assert all(word in tree for word in ("tokens", "survey"))
    (page,) = texts("/lineage")
    assert "Lineage of reviews:1" in page
    pages_show(tmp_path / "home", run, "kfp")
    assert main(["models", "list"]) == 0
    assert "reviews:1" in capsys.readouterr().out
    assert main(["lineage", "reviews:1"]) == 0
    assert "gs://bucket/data/rows.csv" in capsys.readouterr().out
    assert main(["predict", "reviews:1", "a lovely warm film"]) == 0

    assert main(["run", str(recipe), "--target", "kfp", "--wait"]) == 0, "equal work"
    again = capsys.readouterr().out
    assert again.count("cached") >= 3
    second = again.split("run ", 1)[1].split()[0]
    assert main(["lineage", second, "--target", "kfp"]) == 0
    assert f"cached: same as in run {run}" in capsys.readouterr().out


def test_a_failing_step_says_so_in_its_own_words(
    kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_file(tmp_path / "recipe.toml")
    arguments = ["run", str(recipe), "--target", "kfp", "--wait", "--no-check", "--set", "data.text=body"]
    assert main(arguments) == 2
    assert "column 'body'" in capsys.readouterr().out


def test_two_nodes_train_one_model(kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The train step hands its work to a JobSet of two pods, and the run ends as any other."""
    recipe = recipe_file(tmp_path / "recipe.toml")
    with KubernetesServer(tmp_path / "cluster") as kfp.cluster:
        assert main(["run", str(recipe), "--target", "kfp", "--nodes", "2", "--spot", "--wait"]) == 0
        (jobset,) = kfp.cluster.jobsets.values()
    shown = capsys.readouterr().out
    run = shown.split("run ", 1)[1].split()[0]
    assert "registered reviews:1 as champion" in shown
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == 2
    assert job["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert job["template"]["spec"]["serviceAccountName"] == "xlnet-steps"

    assert main(["runs", "show", run, "--target", "kfp", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    metadata = record["steps"][2]["outputs"]["model"]["metadata"]
    assert metadata["ranks"] == 2
    assert metadata["image_digest"] == IMAGE.partition("@")[2]
    assert main(["runs", "logs", run, "train", "--target", "kfp"]) == 0
    log = capsys.readouterr().out
    assert "of 2 pods was created" in log
    assert "training on 2 × cpu" in log
    assert main(["lineage", run, "--target", "kfp"]) == 0
    assert "gs://bucket/data/rows.csv" in capsys.readouterr().out


def test_a_failing_pod_speaks_for_its_step(kfp: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_file(tmp_path / "recipe.toml")
    kfp.always = True
    with KubernetesServer(tmp_path / "cluster") as kfp.cluster:
        kfp.cluster.program = ["sh", "-c", "echo 'error: the loss became nan at step 3'; exit 1"]
        assert main(["run", str(recipe), "--target", "kfp", "--spot", "--wait"]) == 1
        assert len(kfp.cluster.attempts) == 1 + PROGRAM_RETRIES, "however often its launcher was started"
    assert "ended with exit status 1: the loss became nan at step 3 (started again 1 time)" in capsys.readouterr().out
    (execution,) = kfp.executions.values()
    assert execution.tasks["train"].attempts == 1 + LAUNCHER_RETRIES


def test_nothing_outlives_the_test_servers(kfp: KfpServer, tmp_path: Path) -> None:
    """Neither a step that still runs when its server ends, nor a bucket whose test is killed."""
    recipe = recipe_file(tmp_path / "recipe.toml")
    kfp.run_pipelines = False
    assert main(["run", str(recipe), "--target", "kfp", "--no-check"]) == 0
    (execution,) = kfp.executions.values()
    execution.process = subprocess.Popen(["sleep", "60"], start_new_session=True, text=True)
    emulator = subprocess.Popen(
        [sys.executable, str(Path(storage.__file__).with_name("emulator.py")), "0"], stdin=subprocess.PIPE
    )
    assert emulator.stdin
    execution.stop()  # as the server does at its end
    assert execution.process.wait(10) == -signal.SIGKILL
    emulator.stdin.close()
    assert emulator.wait(30) == 0
