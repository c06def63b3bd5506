"""A run's life on an installation of Kubeflow Pipelines: ours, or any real one.

``pytest -m cluster`` uses our own server. With ``KFP_ENDPOINT``, ``KFP_PIPELINE_ROOT`` and ``XLNET_IMAGE`` set it uses
that installation (``MLFLOW_TRACKING_URI``, ``KFP_NAMESPACE`` and the other settings as for ``xlnet-pipeline run``). It
works in a folder of its own below the pipeline root and in an experiment of its own, and removes its runs and objects.
"""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from xlnet_pipeline.cli import main
from xlnet_pipeline.targets.kfp.target import KfpTarget
from xlnet_pipeline.targets.settings import KfpSettings

pytestmark = pytest.mark.cluster
GIVEN = {
    name: value for name, value in os.environ.items() if name.startswith(("KFP_", "XLNET_IMAGE", "MLFLOW_", "AWS_"))
}
REAL = "KFP_ENDPOINT" in GIVEN
SMALL = (
    "data.train=demo:uci_sentences",
    "data.format=tsv",
    "data.header=no",
    "data.text=0",
    "data.label=1",
    "data.max_length=32",
    "model.n_layer=1",
    "model.d_model=32",
    "model.n_head=2",
    "model.d_head=16",
    "model.d_inner=64",
    "evaluation.resamples=100",
    "registry.name=cluster-test",
)


class Installation:
    """One installation, and what was run on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.runs: dict[str, str] = {}  # situation → run
        self.said: dict[str, tuple[int, str]] = {}  # situation → exit status and output

    def say(self, *words: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        text = io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment),
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
        ):
            status = main([*words, "--target", "kfp"])
        return status, text.getvalue()

    def run(self, situation: str, *more: str, steps: int = 4) -> str:
        """The run of a situation, made once; its id."""
        if situation not in self.runs:
            settings = [word for one in (*SMALL, f"training.steps={steps}") for word in ("--set", one)]
            self.said[situation] = self.say("run", "--no-check", *settings, *more)
            self.runs[situation] = self.said[situation][1].split("run ", 1)[1].split()[0]
        return self.runs[situation]

    def record(self, run: str) -> dict[str, object]:
        """What ``runs show --json`` says."""
        status, text = self.say("runs", "show", run, "--json")
        assert status == 0, text
        found: dict[str, object] = json.loads(text)
        return found

    def states(self, run: str) -> list[str]:
        """The states of a run's five steps."""
        return [step["status"] for step in self.record(run)["steps"]]  # type: ignore[attr-defined, index]

    def clean(self) -> None:
        """Remove the runs and everything below this test's own root."""
        from xlnet.data import objects

        with mock.patch.dict(os.environ, self.environment):
            settings = KfpSettings(endpoint=self.environment["KFP_ENDPOINT"], **self._rest())
            target = KfpTarget(settings)
            for one in list(target.listed()):
                target.api.call(target.api.runs.run_service_delete_run, one.run_id)
            root = self.environment["KFP_PIPELINE_ROOT"]
            for stored in objects.listing(f"{root}/"):
                objects.delete(stored.uri)

    def _rest(self) -> dict[str, str]:
        names = {"pipeline_root": "KFP_PIPELINE_ROOT", "experiment": "KFP_EXPERIMENT", "namespace": "KFP_NAMESPACE"}
        return {key: self.environment.get(name, "") for key, name in names.items()}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    own = secrets.token_hex(3)
    with contextlib.ExitStack() as stack:
        environment = dict(GIVEN)
        if not REAL:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            environment = _our_server(stack, patch, tmp_path_factory.mktemp("kfp"))
        environment["KFP_PIPELINE_ROOT"] = f"{environment['KFP_PIPELINE_ROOT'].rstrip('/')}/cluster-test-{own}"
        environment["KFP_EXPERIMENT"] = f"cluster-test-{own}"
        made = Installation(environment)
        try:
            yield made
        finally:
            made.clean()


def _our_server(stack: contextlib.ExitStack, patch: pytest.MonkeyPatch, folder: Path) -> dict[str, str]:
    from conftest import PINNED_IMAGE
    from servers.kfp_server import KfpServer
    from servers.storage import bucket_server

    from xlnet_pipeline.targets import following, remote

    stack.enter_context(bucket_server(patch))
    server = stack.enter_context(KfpServer(folder / "server"))
    patch.setattr(remote, "FIRST_POLL", 0.1)
    patch.setattr(remote, "LONGEST_POLL", 0.3)
    patch.setattr(following, "POLL", 0.1)
    return {
        "KFP_ENDPOINT": server.url,
        "KFP_PIPELINE_ROOT": "gs://bucket/root",
        "XLNET_IMAGE": PINNED_IMAGE,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'registry.db'}",
    }


def succeeded(here: Installation) -> str:
    return here.run("succeeded", "--wait")


def test_a_run_ends_as_champion_or_version(installation: Installation) -> None:
    succeeded(installation)
    status, said = installation.said["succeeded"]
    assert status == 0, said
    assert "registered cluster-test:" in said
    assert "accuracy" in said


def test_its_steps_have_succeeded(installation: Installation) -> None:
    assert installation.states(succeeded(installation)) == ["SUCCEEDED"] * 5


def test_its_artifacts_are_in_the_root(installation: Installation) -> None:
    record = installation.record(succeeded(installation))
    places = [out["uri"] for step in record["steps"] for out in step["outputs"].values()]  # type: ignore[attr-defined]
    assert len(places) == 4
    assert all(place.startswith(installation.environment["KFP_PIPELINE_ROOT"]) for place in places)


@pytest.mark.parametrize("step", ["snapshot", "preprocess", "train", "evaluate", "register"])
def test_each_step_has_a_log(step: str, installation: Installation) -> None:
    status, said = installation.say("runs", "logs", succeeded(installation), step)
    assert status == 0
    assert f"==> {step} (SUCCEEDED) <==" in said
    assert len(said.splitlines()) > 1
    assert "launcher_v2.go" not in said
    assert " is gone" not in said


def test_following_ends_with_the_run(installation: Installation) -> None:
    status, said = installation.say("runs", "logs", succeeded(installation), "-f")
    assert status == 0
    assert said.count("==>") == 5


def test_it_is_listed(installation: Installation) -> None:
    run = succeeded(installation)
    status, said = installation.say("runs", "list", "--limit", "5")
    assert status == 0
    assert run in said


def test_a_part_of_its_id_will_do(installation: Installation) -> None:
    run = succeeded(installation)
    assert run in installation.say("runs", "show", run[-4:])[1]


def test_its_lineage_is_whole(installation: Installation) -> None:
    status, said = installation.say("lineage", succeeded(installation))
    assert status == 0
    for word in ("registration", "evaluation", "model", "dataset", "snapshot", "amazon_cells_labelled.txt"):
        assert word in said


def cached(here: Installation) -> str:
    succeeded(here)
    return here.run("cached", "--wait")


def test_the_same_again_is_cached(installation: Installation) -> None:
    run = cached(installation)
    assert installation.said["cached"][0] == 0
    kept = ["CACHED"] * 3  # register always runs: no key of the server's can see the registry
    assert installation.states(run) == ["SUCCEEDED", *kept, "SUCCEEDED"]


def test_a_cached_run_says_whose_work_it_took_and_shows_it(installation: Installation) -> None:
    run, first = cached(installation), succeeded(installation)
    assert f"same as in run {first}" in installation.say("runs", "show", run)[1]
    assert "accuracy" in installation.said["cached"][1]
    assert "amazon_cells_labelled.txt" in installation.say("lineage", run)[1]


def failed(here: Installation) -> str:
    return here.run("failed", "--wait", "--set", "data.label=7")


def test_a_failing_step_says_so_in_its_own_words(installation: Installation) -> None:
    failed(installation)
    status, said = installation.said["failed"]
    assert status == 2
    assert "so none with index 7" in said


def test_the_steps_after_a_failure_are_skipped(installation: Installation) -> None:
    assert installation.states(failed(installation)) == ["SUCCEEDED", "FAILED", "SKIPPED", "SKIPPED", "SKIPPED"]


def test_the_log_of_a_failed_step_is_there(installation: Installation) -> None:
    assert "so none with index 7" in installation.say("runs", "logs", failed(installation), "preprocess")[1]


def cancelled(here: Installation) -> str:
    if "cancelled" not in here.runs:
        run = here.run("cancelled", steps=100_000)
        here.said["cancel"] = here.say("runs", "cancel", run)
    return here.runs["cancelled"]


def test_a_running_one_can_be_cancelled(installation: Installation) -> None:
    run = cancelled(installation)
    assert installation.said["cancel"] == (0, f"run {run}: CANCELLED\n")
    assert installation.record(run)["status"] == "CANCELLED"


def test_one_that_has_ended_cannot(installation: Installation) -> None:
    status, said = installation.say("runs", "cancel", cancelled(installation))
    assert status == 2
    assert "only a running one can be cancelled" in said


def test_a_time_limit_stops_a_run(installation: Installation) -> None:
    installation.run("timeout", "--timeout", "5", steps=100_001)
    assert installation.said["timeout"][0] == 124


@pytest.mark.parametrize("run", ["20200101-000000-0000", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"])
def test_an_unknown_run_is_one_line(run: str, installation: Installation) -> None:
    status, said = installation.say("runs", "show", run)
    assert status == 2
    assert f"run '{run}' is unknown" in said
    assert len(said.splitlines()) == 1
