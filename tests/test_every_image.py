"""Every image for accelerators, built and trained in on a CPU; and one image by both of Docker's builders.

Run with ``pytest -m "slow and containers" tests/test_every_image.py``, where tests/test_containers.py can run: 60 GB of
disk, 9 GB of packages from the index, about half an hour. The image for GPUs trains on a CPU as it would without a GPU,
the one for torch_xla on XLA's own CPU device; torch_tpu has no such device.
"""

import json
from pathlib import Path

import container_engine as engine
import pytest
from conftest import write_sentences

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet_pipeline.images import build

pytestmark = [pytest.mark.slow, pytest.mark.containers]

DEVICES = {"gpu": "CPU", "tpu": "torch_xla", "tpu-native": "CPU"}
# torch loads torch_tpu by itself, which then looks for a TPU's metadata server for minutes.
WITHOUT_TPU = ("--env=PJRT_DEVICE=CPU", "--env=TORCH_DEVICE_BACKEND_AUTOLOAD=0")


def built(accelerator: str, arguments: tuple[str, ...], home: Path) -> build.Image:
    wanted = build.Build(accelerator, base_image=engine.BASE, arguments=arguments, network="host")
    return build.build(wanted, home, program="docker", say=lambda line: None)


@pytest.mark.parametrize("accelerator", DEVICES)
def test_an_accelerator_s_image_trains_on_a_cpu(
    accelerator: str, host: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    for name, value in engine.buildkit().items():  # the classic builder makes the stages of all others too
        monkeypatch.setenv(name, value)
    recipe = recipes.tiny().replace(
        data={"train": str(write_sentences(tmp_path / "rows.csv")), "max_length": 32},
        model={"n_layer": 1, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 32},
        training={"steps": 10, "batch_tokens": 512},
    )
    preprocess(recipe.to_json(), take(recipe.to_json()).digest, str(tmp_path / "dataset"))
    (tmp_path / "out").mkdir()
    image = built(accelerator, arguments, tmp_path / "home")
    size = int(engine.docker(host, "image", "inspect", "--format", "{{.Size}}", image.reference).stdout)
    print(f"{accelerator}: {size / 1e9:.2f} GB")
    options = ("--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--user=0", *WITHOUT_TPU)
    words = ("python", "-m", "xlnet", "train", "--recipe-json", recipe.to_json(), "--dataset=/given/dataset")
    volume = f"--volume={tmp_path}:/given"
    done = engine.docker(host, "run", *options, volume, image.reference, *words, "--out=/given/out/model", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lineage = json.loads((tmp_path / "out" / "model" / "lineage.json").read_text())
    assert DEVICES[accelerator] in lineage["artifact"]["metadata"]["accelerator"]
    assert lineage["artifact"]["metadata"]["global_step"] == 10


def test_both_builders_make_the_same_image(
    host: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    made, tags = [], []
    for builder in (engine.CLASSIC, engine.buildkit()):
        for name, value in builder.items():
            monkeypatch.setenv(name, value)
        image = built("cpu", arguments, tmp_path)
        (found,) = json.loads(engine.docker(host, "image", "inspect", image.reference).stdout)
        settings = {key: found["Config"][key] for key in ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels")}
        made.append((settings, engine.files(host, image.reference)))
        tags.append(image.tag)
        engine.docker(host, "image", "rm", image.tag)
    assert tags[0] == tags[1], "the fingerprint is of what goes in"
    assert made[0] == made[1]
