"""Fixtures shared by all tests: isolated state, shared data, a small CSV, and one tiny trained pipeline."""

import csv
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests share few cores, and repeat to the bit

import pytest

from xlnet import recipe as recipes
from xlnet.recipe import Recipe

if TYPE_CHECKING:
    from servers.kfp_server import KfpServer

PINNED_IMAGE = "registry.example/team/xlnet@sha256:" + "0123456789abcdef" * 4
CHECKOUT = Path(__file__).resolve().parent.parent
GOOD = ["a lovely warm film", "great food and great service", "works well, very happy", "the best phone I had"]
BAD = ["a dull cold film", "awful food and rude service", "broke at once, very sad", "the worst phone I had"]


# A shell that starts the tests in the background ignores Ctrl-C for them, and nohup the end of the terminal; every
# process that they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits for a daemon and its builds, so that other tests fill the time; then with torch_xla.

    Raises:
        pytest.UsageError: a test's name holds an address in memory, which differs between the workers.
    """
    if named_by_address := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give its parameters other ids: {named_by_address[0]}")
    items.sort(key=lambda item: not item.get_closest_marker("xla"))
    items.sort(key=lambda item: not item.get_closest_marker("containers"))


@pytest.fixture(autouse=True)
def isolated_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's runs, cache and registry in its own directory; returns that directory."""
    home = tmp_path / "home"
    monkeypatch.setenv("XLNET_PIPELINE_HOME", str(home))
    for name in (
        "MLFLOW_TRACKING_URI",
        "XLNET_RUN_ID",
        "XLNET_IMAGE_DIGEST",
        "XLNET_GIT_SHA",
        "XLNET_IMAGE",
        "XLNET_REGISTRY",
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data sets beside the checkout (``../shared/data``)."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets of ../shared/data are not beside this checkout")
    return folder


def write_sentences(path: Path, rows: int = 200) -> Path:
    """Write a CSV (``text,label``) of ``rows`` different sentences, half of each class, that a small net can learn."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(rows):
            phrases = (BAD, GOOD)[row % 2]
            writer.writerow([f"{draw.choice(phrases)}, and {draw.choice(phrases)} ({row})", row % 2])
    return path


def write_real_sentences(path: Path, rows: int = 600) -> Path:
    """Write the first of the demo's sentences about products as a CSV (``text,label``)."""
    source = CHECKOUT / "components/xlnet/demo/uci_sentences/amazon_cells_labelled.txt"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(line.rsplit("\t", 1) for line in source.read_text(encoding="utf-8").split("\n")[:rows])
    return path


@pytest.fixture
def small_csv(tmp_path: Path) -> Path:
    """A CSV of 200 sentences with the columns text and label (0 or 1)."""
    return write_sentences(tmp_path / "sentences.csv")


@dataclass(frozen=True)
class Trained:
    """The artifacts of one tiny run: read them, never write into them."""

    recipe: Recipe
    snapshot: str
    dataset: Path
    model: Path
    evaluation: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A dataset, a model and an evaluation, made once by the real steps from 200 sentences."""
    from xlnet.data.preprocess import preprocess
    from xlnet.data.snapshot import take
    from xlnet.evaluation.evaluate import evaluate
    from xlnet.training.launch import train

    folder = tmp_path_factory.mktemp("trained")
    recipe = recipes.tiny().replace(
        data={"train": str(write_sentences(folder / "sentences.csv")), "max_length": 32},
        model={"n_layer": 1, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
        training={"epochs": 4.0, "batch_tokens": 512, "learning_rate": 3e-3},
        evaluation={"resamples": 100},
    )
    text = recipe.to_json()
    dataset, model, evaluation = folder / "dataset", folder / "model", folder / "evaluation"
    snapshot = take(text).digest
    preprocess(text, snapshot, str(dataset))
    train(text, str(dataset), str(model))
    evaluate(text, str(dataset), str(model), str(evaluation))
    return Trained(recipe, snapshot, dataset, model, evaluation)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DOCKER_HOST of a Docker daemon of the tests' own, which has the base image."""
    import container_engine as engine

    if reason := engine.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("engine")
    with engine.daemon(folder) as address:
        engine.import_base(address, tmp_path_factory.mktemp("base"))
        yield address


@pytest.fixture(scope="session")
def arguments(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """Build arguments that make the unmodified Dockerfile build on this machine."""
    import container_engine as engine

    with engine.torch_index(tmp_path_factory.mktemp("index")) as index:
        yield (index,) if index else ()


@pytest.fixture
def kfp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[KfpServer]":
    """A server, a bucket with real sentences, and settings that name both."""
    from servers.kfp_server import KfpServer
    from servers.storage import bucket_server

    from xlnet import http
    from xlnet_pipeline.targets import remote

    with bucket_server(monkeypatch) as bucket:
        bucket.blob("data/rows.csv").upload_from_filename(str(write_real_sentences(tmp_path / "rows.csv")))
        store = f"sqlite:///{tmp_path / 'registry.db'}"
        with KfpServer(tmp_path / "kfp") as started:
            monkeypatch.setenv("KFP_ENDPOINT", started.url)
            monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://bucket/root")
            monkeypatch.setenv("XLNET_IMAGE", PINNED_IMAGE)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
            monkeypatch.setattr(remote, "FIRST_POLL", 0.1)
            monkeypatch.setattr(remote, "LONGEST_POLL", 0.3)
            monkeypatch.setattr(http, "FIRST_PAUSE", 0.02)
            yield started
