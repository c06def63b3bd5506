"""The wheel holds what the packages need at run time, and ``xlnet`` trains where nothing else is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# Hides what a bare GPU machine lacks, whether or not it is installed here.
BARE = """
import importlib.machinery, sys
ABSENT = {"kfp", "kfp_server_api", "google", "mlflow", "tensorboard", "sentencepiece", "triton", "sklearn", "scipy",
          "pandas", "sqlalchemy", "psutil", "torch_xla", "torch_tpu", "kubernetes",
          "xlnet_cluster", "xlnet_steps", "xlnet_pipeline"}
class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
"""

IMPORT_ALL = """
import importlib, pathlib, xlnet
root = pathlib.Path(xlnet.__path__[0])  # the files, because pkgutil imports every package to look into it
parts = [path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")]
modules = sorted({".".join(["xlnet", *(one[:-1] if one[-1] == "__init__" else one)]) for one in parts} - {"xlnet"})
# Loaded only where their package is: torch for TPUs, MLflow.
ONE_PACKAGE = {"xlnet.training.tpu", "xlnet.training.xla", "xlnet.registry.mlflow_client"}
light = [name for name in modules if name.startswith(("xlnet.data", "xlnet.registry")) and name not in ONE_PACKAGE]
for name in light:
    importlib.import_module(name)
assert "torch" not in sys.modules, "xlnet.data and xlnet.registry load torch only for work"
for name in modules:
    if not name.startswith("xlnet.model.kernels.triton_") and name not in ONE_PACKAGE:  # written in Triton's language
        importlib.import_module(name)
print(len(modules))
"""

TRAIN = """
import json, pathlib, xlnet
from xlnet import recipe
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.training.launch import train
tiny = recipe.tiny().replace(
    data={"train": "demo:uci_sentences", "text": 0, "label": 1, "max_length": 16},
    model={"n_layer": 1, "d_model": 16, "n_head": 1, "d_head": 16, "d_inner": 16},
    training={"steps": 2, "batch_tokens": 256},
).to_json()
preprocess(tiny, take(tiny).digest, "dataset")
facts = train(tiny, "dataset", "model")
assert pathlib.Path("model/model.safetensors").stat().st_size > 0
print(xlnet.__file__)
"""


def python(code: str, folder: Path, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter in ``folder`` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(CHECKOUT),
    ]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_data_files_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("xlnet", "xlnet_cluster", "xlnet_steps", "xlnet_pipeline"):
        assert f"{package}/py.typed" in names
        assert f"{package}/__init__.py" in names
    assert "xlnet/demo/uci_sentences/imdb_labelled.txt" in names
    sources = ("attention.cpp", "elementwise.cpp", "products.h", "streams.cpp", "vectors.h")
    assert {f"xlnet/model/kernels/{name}" for name in sources} <= set(names)
    assert "xlnet/data/vocabulary/xlnet-base-cased/spiece.model" in names
    assert "xlnet/data/vocabulary/xlnet-base-cased/tokenizer.json" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assets = {path.relative_to(CHECKOUT / "pipeline").as_posix() for path in (CHECKOUT / "pipeline").rglob("ui/*.*")}
    assert assets <= set(names)
    ours = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert ours == {"xlnet", "xlnet_cluster", "xlnet_steps", "xlnet_pipeline"}


def test_every_xlnet_module_imports_on_a_bare_machine(tmp_path: Path) -> None:
    assert int(python(BARE + IMPORT_ALL, tmp_path)) > 20


def test_installed_wheel_trains_on_a_bare_machine(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    out = python(BARE + TRAIN, tmp_path, PYTHONPATH=str(site))
    assert Path(out.splitlines()[-1]).is_relative_to(site), "the wheel, not the checkout, was run"


def test_trainer_answers_without_the_pipeline_extra(wheel: Path, tmp_path: Path) -> None:
    run = "import runpy; sys.argv = ['xlnet', '--help']; runpy.run_module('xlnet', run_name='__main__')"
    assert "train" in python(BARE + run, tmp_path)


def test_command_without_its_extra_says_what_to_install(wheel: Path, tmp_path: Path) -> None:
    core = BARE.replace('"xlnet_cluster", "xlnet_steps", "xlnet_pipeline"', "")
    run = "from xlnet_pipeline.cli import main; sys.stderr = sys.stdout; print(main(['run']))"
    *lines, status = python(core + run, tmp_path).splitlines()
    assert status == "2"
    assert lines[-1] == "error: kfp is not installed; type: pip install 'xlnet-pipeline[pipeline]'"
