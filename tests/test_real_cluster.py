"""A run's life on an installation of Kubeflow Pipelines: ours, or any real one.

``pytest -m cluster`` uses our own server. With ``KFP_ENDPOINT``, ``KFP_PIPELINE_ROOT`` and ``XLNET_IMAGE`` set it uses
that installation (``MLFLOW_TRACKING_URI``, ``KFP_NAMESPACE`` and the other settings as for ``xlnet-pipeline run``). It
works in a folder of its own below the pipeline root and in an experiment of its own, and removes its runs and objects.
With ``KUBECONFIG`` it also looks at JobSets and deletes one of their pods. See CONTRIBUTING.md.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from unittest import mock

import pytest
from installation import GIVEN, REAL, SMALL, Installation, our_server, until

from xlnet_cluster import guard

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    own = secrets.token_hex(3)
    with contextlib.ExitStack() as stack:
        environment = dict(GIVEN)
        missing = [name for name in ("KFP_PIPELINE_ROOT", "XLNET_IMAGE") if not GIVEN.get(name)]
        if REAL and missing:
            pytest.fail(f"KFP_ENDPOINT is set, and {' and '.join(missing)} is not; see CONTRIBUTING.md")
        if not REAL:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            environment = our_server(stack, patch, tmp_path_factory.mktemp("kfp"))
        environment["KFP_PIPELINE_ROOT"] = f"{environment['KFP_PIPELINE_ROOT'].rstrip('/')}/cluster-test-{own}"
        environment["KFP_EXPERIMENT"] = f"cluster-test-{own}"
        made = Installation(environment)
        try:
            made.ready()
            if REAL:  # whose pods take their time to start, and not this machine's processors
                begin_together(made)
            yield made
        finally:
            made.clean()


SUCCEEDED, FAILED = ("--wait",), ("--wait", "--set", "data.label=7")
ON_SPOT = ("--spot", "--set", "training.evaluate_every=20")  # says a step soon
TWO_PODS = ("--nodes", "2")


def begin_together(here: Installation) -> None:
    """Submit what needs nothing of other tests, so that all of it takes as long as the longest."""
    here.begin("succeeded", *SUCCEEDED)
    here.begin("failed", *FAILED)
    if here.environment.get("KUBECONFIG"):
        here.begin("on spot", *ON_SPOT, steps=100_002)
        here.begin("two pods", *TWO_PODS, steps=5)


def succeeded(here: Installation) -> str:
    return here.run("succeeded", *SUCCEEDED)


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
    for words in ("launcher_v2.go", '"executor-logs"', "argo=true", " is gone", "cannot be read"):
        assert words not in said


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
    assert run in installation.say("runs", "show", run[-11:])[1]


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
    return here.run("failed", *FAILED)


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
        here.said["cancel"] = here.answer("runs", "cancel", run)[:2]
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


def test_a_schedule_from_its_making_to_its_end(installation: Installation) -> None:
    """It never fires meanwhile: once a year."""
    settings = [word for one in SMALL for word in ("--set", one)]

    def created(*more: str) -> tuple[int, str]:
        return installation.say("schedule", "create", "yearly", *settings, *more)

    for words, told in (
        (["--cron", "0 0 1 1 *"], "schedule yearly: created"),
        (["--cron", "0 0 1 1 *"], "schedule yearly: unchanged"),
        (["--cron", "0 9 1 7 *", "--timezone", "Asia/Tokyo"], "timezone: UTC → Asia/Tokyo"),
    ):
        status, said = created(*words)
        assert (status, told in said) == (0, True), said
    for words, told in (
        (["--cron", "0 3 * * *", "--timezone", "Europe/Berlin"], "--current-offset"),
        (["--cron", "0 3 * * *", "--max-concurrent", "11"], "allowed: 1 to 10"),
    ):
        status, said = created(*words)
        assert (status, told in said) == (2, True), said
    for verb, told in (("pause", "PAUSED"), ("show", "PAUSED"), ("resume", "ACTIVE"), ("delete", "deleted")):
        status, said = installation.say("schedule", verb, "yearly")
        assert (status, told in said) == (0, True), said
    assert "no schedules" in installation.say("schedule", "list")[1]


def test_two_pods_train_one_model(installation: Installation) -> None:
    assert installation.cluster
    run = installation.run("two pods", *TWO_PODS, steps=5)

    installation.while_running("two pods to train", run, lambda: installation.states(run)[2] == "SUCCEEDED")
    installation.say("runs", "cancel", run)  # its evaluation would show nothing new
    log = installation.log(run, "train")
    assert "of 2 pods was created" in log
    assert "training on 2 × " in log
    model = installation.record(run)["steps"][2]["outputs"]["model"]  # type: ignore[index]
    assert model["metadata"]["ranks"] == 2


def on_spot(here: Installation) -> tuple[str, str]:
    """A run that trains on in a JobSet on spot machines: our id of it, and the server's."""
    cluster = here.cluster
    if "on spot" in here.skipped:
        pytest.skip(here.skipped["on spot"])
    known = "on spot" in here.runs
    run = here.run("on spot", *ON_SPOT, steps=100_002)
    identity = here.servers_id(run)
    if not known:
        unplaced = time.monotonic() + PLACED

        def trains_or_never_will() -> str:
            no_node = cluster.no_node(identity) if time.monotonic() > unplaced else ""
            return "it trains" if STEP.search(here.log(run, "train")) else no_node

        found = here.while_running("the training to begin", run, trains_or_never_will)
        if found != "it trains":
            here.skipped["on spot"] = f"no node takes a pod for spot machines: {found}"
            here.say("runs", "cancel", run)
            pytest.skip(here.skipped["on spot"])
    return run, identity


PLACED = 180.0  # seconds in which a cluster that makes nodes when they are asked for has made one
STEP = re.compile(r"^step [\d,]+/", re.MULTILINE)


def test_a_training_on_spot_is_a_jobset(installation: Installation) -> None:
    _, identity = on_spot(installation)
    (jobset,) = installation.cluster.jobsets(identity)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert len(installation.cluster.running(identity)) == 1
    assert jobset["metadata"]["ownerReferences"][0]["kind"] == "Workflow"


def preempted(here: Installation) -> tuple[str, str, str]:
    """That run after its pod was deleted and another one trains on: its ids, and the log of its train step."""
    run, identity = on_spot(here)
    if "preempted" not in here.said:
        (pod,) = here.cluster.running(identity)
        here.cluster.delete_pod(pod)

        def went_on() -> str:
            log = here.log(run, "train")
            return log if (again := ON.search(log)) and STEP.search(log, again.end()) else ""

        log = here.while_running("the training to go on", run, went_on)
        here.said["preempted"] = (0, log)
    return run, identity, here.said["preempted"][1]


ON = re.compile(r"training on .*, from step (?P<step>[\d,]+) on")


def test_a_preempted_pod_leaves_a_checkpoint_from_which_the_next_goes_on(installation: Installation) -> None:
    log = preempted(installation)[2]
    assert re.search(r"JobSet \S+ starts again after a preemption, 1 of \d+", log)
    goes_on = ON.search(log)
    assert goes_on
    saved = re.search(r"checkpoint of step (\d+) saved", log)
    if saved:  # the log of a pod that is deleted may end before its last line
        assert goes_on["step"].replace(",", "") == saved[1]


def test_a_preempted_run_is_still_running(installation: Installation) -> None:
    run = preempted(installation)[0]
    record = installation.record(run)
    assert record["status"] == "RUNNING"
    assert installation.states(run)[2] == "RUNNING"


def test_cancelling_removes_the_jobset_and_its_pods(installation: Installation) -> None:
    run, identity, _ = preempted(installation)
    status, output, messages = installation.answer("runs", "cancel", run)
    assert (status, output) == (0, f"run {run}: CANCELLED\n"), messages
    cluster = installation.cluster
    gone = guard.PATIENCE + 10 * guard.POLL  # its own guard may have to delete it
    until("the JobSet to go", lambda: not cluster.jobsets(identity), gone, lambda: str(cluster.jobsets(identity)))
    until("its pods to go", lambda: not cluster.running(identity), gone, lambda: str(cluster.running(identity)))
    states = installation.states(run)
    assert states[2:] == ["CANCELLED", "SKIPPED", "SKIPPED"]


def test_what_the_preempted_training_had_learnt_is_kept(installation: Installation) -> None:
    from xlnet.data import objects

    preempted(installation)
    root = installation.environment["KFP_PIPELINE_ROOT"]
    with mock.patch.dict(os.environ, installation.environment):
        names = [stored.name for stored in objects.listing(f"{root}/checkpoints/")]
    assert any(name.endswith("/manifest.json") for name in names)
