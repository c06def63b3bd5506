"""torch_xla on a CPU: the same losses as eagerly, few compilations, several chips, and going on after an end.

It needs torch 2.9, and so an environment of its own: ``make xla-env``, then ``pytest -m xla``.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess

pytestmark = pytest.mark.xla

PYTHON = CHECKOUT / ".venv-xla/bin/python"
ROWS = 1600
SETTINGS = ["model.preset=tiny", "training.batch_tokens=1024"]


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    if not PYTHON.exists():
        pytest.skip("torch_xla has an environment of its own; type: make xla-env")


@pytest.fixture(scope="module")
def sst2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of SST-2's first train rows."""
    import gzip

    folder = tmp_path_factory.mktemp("sst2")
    with gzip.open(shared_data / "sst2" / "train.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        lines = file.read().split("\r\n")[1 : ROWS + 1]
    (folder / "rows.tsv").write_text("\n".join(["label\tsentence", *lines, ""]), encoding="utf-8")
    settings = [f'data.train=["{folder}/rows.tsv"]', "data.test_fraction=0.1", "data.text=sentence", "data.label=label"]
    preprocess(recipes.load(None, settings).to_json(), "", str(folder / "dataset"))
    return folder / "dataset"


def python(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """A process in torch_xla's environment."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "components"), "PJRT_DEVICE": "CPU", **variables}
    command = [str(PYTHON), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def both(sst2: Path, steps: int, *settings: str, **variables: str) -> dict[str, Any]:
    """What tests/xla_training.py prints: a training on torch_xla's device, and the same one without it."""
    script = CHECKOUT / "tests/xla_training.py"
    found = output(python(script, sst2, steps, *SETTINGS, *settings, **variables))
    return dict(json.loads(found.splitlines()[-1]))


def assert_same_curve(found: dict[str, Any], steps: int, tolerance: float) -> None:
    mine, expected = found["xla"]["losses"], found["eager"]["losses"]
    assert len(mine) == len(expected) >= steps
    worst = max(abs(a - b) / abs(b) for a, b in zip(mine[:steps], expected[:steps], strict=True))
    assert worst <= tolerance
    assert expected[0] != expected[1]


def test_losses_are_those_of_eager_training_and_few_programs_are_compiled(sst2: Path) -> None:
    """Dropout and hidden tokens on; two epochs and more."""
    found = both(sst2, 66, "training.evaluate_every=20")
    assert_same_curve(found, 50, 1e-5)
    assert found["xla"]["validations"] == pytest.approx(found["eager"]["validations"], rel=1e-5)
    compiled, shapes, epoch = found["xla"]["compiled"], len(found["buckets"]), found["steps_per_epoch"]
    assert 2 * epoch < 66
    assert compiled[-1] <= 2 * shapes + 1, "training and validation of each length, and whether all weights are finite"
    assert compiled[-1] == compiled[epoch], "something was compiled after the first epoch"
    assert found["programs_written"] >= compiled[-1]


def test_weights_spread_over_two_chips_give_the_same_curve(sst2: Path) -> None:
    found = both(sst2, 12, "training.shard_weights=true", CPU_NUM_DEVICES="2")
    assert found["device"].startswith("2 × CPU")
    assert "devices=[2," in found["xla"]["sharding"], "the largest weight is whole on each chip"
    assert_same_curve(found, 12, 1e-5)


def train(dataset: Path, out: Path, **variables: str) -> subprocess.Popen[str]:
    settings = [*SETTINGS, "training.steps=24", "training.checkpoint_every=2"]
    changes = [part for setting in settings for part in ("--set", setting)]
    return python("-m", "xlnet", "train", "--device", "xla", *changes, "--dataset", dataset, "--out", out, **variables)


def test_a_training_that_was_ended_goes_on_to_the_same_bits_and_two_machines_agree(sst2: Path, tmp_path: Path) -> None:
    """Two machines of one program: on CPUs each computes everything, and they exchange what hosts exchange."""
    whole = json.loads(output(train(sst2, tmp_path / "whole")))
    assert (whole["batches"], whole["attention"]) == ("padded to 16, 32, 48, 64", "padded")
    assert "torch_xla" in whole["accelerator"]

    port = {"XLNET_NODES": "2", "XLNET_MASTER": "127.0.0.1", "XLNET_PORT": str(29_000 + os.getpid() % 900)}
    folders = [tmp_path / "of two", tmp_path / "other"]
    machines = [train(sst2, out, JOB_COMPLETION_INDEX=str(i), **port) for i, out in enumerate(folders)]
    deadline = time.monotonic() + 300
    while not list((tmp_path / "home/checkpoints").glob("*/step-*/manifest.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for machine in machines:
        machine.send_signal(signal.SIGTERM)
    assert [machine.wait(120) for machine in machines] == [75, 75]
    machines = [train(sst2, out, JOB_COMPLETION_INDEX=str(i), **port) for i, out in enumerate(folders)]
    assert json.loads(output(machines[0]))["resumed_from"] > 0
    assert output(machines[1]).strip() == "{}"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "of two")]
    assert weights[0] == weights[1]


def test_more_ranks_than_processes_of_a_machine_are_refused(sst2: Path, tmp_path: Path) -> None:
    process = train(sst2, tmp_path / "model", XLNET_NPROC="2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "one process drives all chips of a TPU machine; ask for at most 1" in err
