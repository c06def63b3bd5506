"""A step in a pod refuses a registry that goes with the pod, before anything is spent."""

from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.registry.own_disk import refuse_own_disk
from xlnet_steps.beginning import snapshot


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "xlnet-abc")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("XLNET_REGISTRY", raising=False)


@pytest.mark.usefixtures("pod")
@pytest.mark.parametrize("uri", ["", "sqlite:////tmp/none/mlflow.db", "file:///tmp/mlruns", "./mlruns"])
def test_a_registry_on_the_pods_own_disk_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="^no tracking server: .*set MLFLOW_TRACKING_URI"):
        refuse_own_disk(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="no tracking server"):
        snapshot(recipes.Recipe().to_json())


@pytest.mark.usefixtures("pod")
@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql://host/db", "vertex://p/l", "databricks://x"])
def test_a_server_is_taken(uri: str) -> None:
    refuse_own_disk(uri)


@pytest.mark.usefixtures("pod")
def test_a_volume_is_taken(tmp_path: Path) -> None:
    volume = Path("/dev/shm")  # another device
    if not volume.is_dir() or volume.stat().st_dev == Path("/").stat().st_dev:
        pytest.skip("there is no other device here")
    refuse_own_disk(f"sqlite:///{volume}/mlflow.db")


def test_this_machine_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    refuse_own_disk("")
    refuse_own_disk("sqlite:////tmp/mlflow.db")
