"""The real Dockerfile, built; the real DAG in its containers; and what a container must and must not be able to do.

Run with ``pytest -m containers`` as root where Debian's docker.io and debootstrap are installed; about six minutes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import container_engine as engine
import pytest
from conftest import Trained, write_sentences

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.errors import Preempted, UserError
from xlnet.evaluation.predict import predict
from xlnet.recipe import Recipe
from xlnet_pipeline.images import build
from xlnet_pipeline.targets import Submission
from xlnet_pipeline.targets.docker import DockerTarget
from xlnet_pipeline.targets.local.target import LocalTarget

pytestmark = pytest.mark.containers

CHECKOUT = Path(__file__).resolve().parent.parent
SIZE = 1.3e9  # bytes of the CPU image, base included; 150 MB are SciPy and scikit-learn
REBUILD = 20.0  # seconds after a changed line of code


@pytest.fixture(autouse=True)
def at_our_daemon(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)


@pytest.fixture(scope="session")
def image(host: str, arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> build.Image:
    """The CPU image, built once by the function that ``xlnet-pipeline build`` calls."""
    os.environ["DOCKER_HOST"] = host
    wanted = build.Build("cpu", base_image=engine.BASE, arguments=arguments, network="host")
    lines: list[str] = []
    try:
        return build.build(wanted, tmp_path_factory.mktemp("home"), program="docker", say=lines.append)
    except Exception:
        print("\n".join(lines[-40:]))
        raise
    finally:
        del os.environ["DOCKER_HOST"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A run of seconds over a file on this machine."""
    return small_recipe(write_sentences(tmp_path / "sentences.csv"))


def small_recipe(rows: Path, **training: object) -> Recipe:
    return recipes.tiny().replace(
        data={"train": str(rows), "max_length": 32},
        model={"n_layer": 1, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 32},
        training={"steps": 10, "batch_tokens": 512, **training},
        registry={"name": "sentences"},
    )


def run(
    host: str, image: build.Image, *command: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = ("run", "--rm", "--network=none", *options, image.reference, *command)
    return engine.docker(host, *words, check=False)


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_is_small_and_says_what_it_is(host: str, image: build.Image) -> None:
    (found,) = json.loads(engine.docker(host, "image", "inspect", image.reference).stdout)
    assert found["Size"] <= SIZE
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.revision"] == build.provenance.git_sha()
    assert "org.opencontainers.image.source" in labels
    assert found["Config"]["User"] == "10001:10001"
    materials = json.loads(run(host, image, "cat", labels["io.xlnet-pipeline.sbom"]).stdout)
    versions = {one["name"].lower(): one["version"] for one in materials["components"]}
    assert versions["torch"].endswith("+cpu")
    assert "kfp" in versions


def test_nothing_is_left_that_only_a_build_needs(host: str, image: build.Image) -> None:
    script = "ls /opt/venv/bin; find / -xdev -name .git -o -path '/build/*' -o -path '/tmp/*' -o -name .cache"
    shown = run(host, image, "sh", "-c", script).stdout.split()
    assert not [one for one in shown if one.startswith("pip")]
    assert not [one for one in shown if one.startswith("/")]
    assert run(host, image, "sh", "-c", "command -v gcc cc make git").returncode != 0
    assert not run(host, image, "find", "/var/lib/apt/lists", "/var/cache/apt", "-type", "f").stdout


def test_a_container_is_nobody_and_writes_nowhere_but_tmp(host: str, image: build.Image) -> None:
    assert run(host, image, "id", "-u").stdout.strip() == "10001"
    script = "import tempfile, xlnet.training.loop; tempfile.TemporaryFile(); open('/opt/x', 'w')"
    done = run(host, image, "python", "-c", script, options=("--read-only", "--tmpfs=/tmp"))
    assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 30] Read-only file system: '/opt/x'")
    assert "Permission denied" in run(host, image, "sh", "-c", "echo x > /opt/venv/x").stderr


def test_a_container_loads_nothing_that_training_does_not_need(host: str, image: build.Image) -> None:
    """Which is what keeps its start short; seconds are measured by tests/benchmarks/image_limits.py."""
    heavy = ("kfp", "mlflow", "google.auth", "tensorboard", "transformers", "sqlalchemy", "pandas")
    code = f"import sys, xlnet.training.loop; print([name for name in {heavy} if name in sys.modules])"
    done = run(host, image, "python", "-c", code, options=("--read-only", "--tmpfs=/tmp"))
    assert done.stdout.strip() == "[]", done.stderr


def test_a_trainer_that_is_asked_to_end_saves_and_goes_on_where_it_was(
    host: str, image: build.Image, recipe: Recipe, tmp_path: Path
) -> None:
    """As when a spot machine is taken back: SIGTERM to a container whose trainer is below a shell, as a step's is."""
    preprocess(recipe.to_json(), take(recipe.to_json()).digest, str(tmp_path / "dataset"))
    (tmp_path / "out").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "out").chmod(0o777)
    volumes = (
        "--network=none",
        "--read-only",
        "--tmpfs=/tmp",
        f"--volume={tmp_path}:/run",
        "--env=XLNET_GRACE_SECONDS=20",
    )
    endless = recipe.replace(training={"steps": 100_000, "patience": 0}).to_json()
    trainer = ["python", "-m", "xlnet", "train", "--recipe-json", endless, "--dataset", "/run/dataset"]
    step = ["sh", "-ec", '"$0" "$@"\n', *trainer, "--out", "/run/out/model"]

    def train() -> tuple[int, str, float]:
        """Train for a while and ask for the end: exit status, what it said, seconds to the end."""
        command = ["docker", "run", "--rm", "--name=asked", *volumes, image.reference, *step]
        environment = {**os.environ, "DOCKER_HOST": host}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if re.match(r"step +[\d,]+/100,?000", line):
                    break
            begun = time.monotonic()
            engine.docker(host, "kill", "--signal=TERM", "asked")
            said += process.communicate(timeout=30)[1]
        return process.returncode, "".join(said), time.monotonic() - begun

    status, said, seconds = train()
    assert status == Preempted.exit_status, said
    assert "stopping on SIGTERM" in said
    assert seconds < 20
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()], "a checkpoint"
    assert not (tmp_path / "out" / "model").exists()
    saved = re.search(r"checkpoint of step (\d+) saved", said)
    assert saved
    status, said, _ = train()
    assert status == Preempted.exit_status, said
    assert f", from step {saved.group(1)} on\n" in said


def test_the_server_answers_and_says_that_it_is_well(
    host: str, image: build.Image, arguments: tuple[str, ...], trained: Trained, tmp_path: Path
) -> None:
    wanted = build.Build("serve", base_image=engine.BASE, arguments=arguments, network="host")
    server = build.build(wanted, tmp_path / "home", program="docker", say=lambda line: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    for path in (tmp_path, model, *model.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)
    options = ["--detach", "--network=host", "--read-only", "--tmpfs=/tmp", f"--env=AIP_HTTP_PORT={port}"]
    options += ["--env=AIP_STORAGE_URI=/model", f"--volume={model}:/model:ro"]
    name = engine.docker(host, "run", *options, server.reference).stdout.strip()
    try:
        patience = time.monotonic() + 60
        asked = ("inspect", "--format", "{{.State.Health.Status}}", name)
        while engine.docker(host, *asked).stdout != "healthy\n":
            assert time.monotonic() < patience, engine.docker(host, "logs", name).stderr
            time.sleep(0.2)
        body = json.dumps({"instances": ["a lovely film"]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", body, timeout=10) as answer:
            (found,) = json.load(answer)["predictions"]
        (expected,) = predict(trained.model, [("a lovely film", None)])
        assert found["label"] == expected["label"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        logs = engine.docker(host, "logs", name)
        assert f" on http://0.0.0.0:{port} after" in logs.stdout + logs.stderr, "from outside of the container too"
        engine.docker(host, "stop", name)
        assert engine.docker(host, "inspect", "--format", "{{.State.ExitCode}}", name).stdout == "0\n"
    finally:
        engine.docker(host, "rm", "--force", name)


# --- the tests' own daemon -------------------------------------------------------------------------------------------

START_AND_WAIT = """
import sys, time
from pathlib import Path
import container_engine
with container_engine.daemon(Path(sys.argv[1])) as host:
    print(host, flush=True)
    time.sleep(600)
"""


def test_a_daemon_does_not_outlive_tests_that_are_killed() -> None:
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # a socket's path has no more than 107 characters
    command = [sys.executable, "-c", START_AND_WAIT, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        address = starter.stdout.readline().strip()
        assert engine.docker(address, "info", check=False).returncode == 0
        daemon = int((folder / "pid").read_text())
        starter.kill()
    patience = time.monotonic() + 30
    told = Path(f"/proc/{daemon}/cmdline")  # empty when it has ended and nobody asked how
    while told.exists() and told.read_bytes():
        assert time.monotonic() < patience
        time.sleep(0.2)
    engine.clear(folder)


# --- building ---------------------------------------------------------------------------------------------------------


def test_a_second_build_does_nothing(image: build.Image, arguments: tuple[str, ...], tmp_path: Path) -> None:
    wanted = build.Build("cpu", base_image=engine.BASE, arguments=arguments, network="host")
    lines: list[str] = []
    begun = time.monotonic()
    again = build.build(wanted, tmp_path, program="docker", say=lines.append)
    assert lines == [f"nothing changed: {image.tag} is there"]
    assert time.monotonic() - begun < 2
    assert again.digest == image.digest
    assert build.recorded("cpu", tmp_path) == again


@pytest.mark.parametrize("builder", ["classic", "BuildKit"])
def test_a_base_image_that_cannot_be_had(builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (engine.CLASSIC if builder == "classic" else engine.buildkit()).items():
        monkeypatch.setenv(name, value)
    wanted = build.Build("cpu", base_image="localhost:1/absent:1", network="host")
    with pytest.raises(
        UserError, match="base image 'localhost:1/absent:1' cannot be pulled: .*; name another: --base-image"
    ):
        build.build(wanted, tmp_path, program="docker", say=lambda text: None)


def test_both_builders_make_the_same_of_what_images_share(
    host: str, image: build.Image, arguments: tuple[str, ...]
) -> None:
    """The stage below all images, in seconds; tests/test_every_image.py compares a whole one."""
    made = []
    given = [
        f"BASE_IMAGE={engine.BASE}",
        *arguments,
    ]  # the classic builder looks at every stage before the one it is for
    for name, builder in (("classic", engine.CLASSIC), ("buildkit", engine.buildkit())):
        words = ["docker", "build", "--file", "containers/Dockerfile", "--target", "runtime", "--network", "host"]
        words += [*(f"--build-arg={one}" for one in given), "--tag", f"runtime:{name}", "."]
        environment = {**os.environ, **builder}
        subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, check=True)
        (found,) = json.loads(engine.docker(host, "image", "inspect", f"runtime:{name}").stdout)
        settings = {key: found["Config"][key] for key in ("Env", "Entrypoint", "Cmd", "User", "WorkingDir")}
        made.append((settings, engine.files(host, f"runtime:{name}")))
    assert made[0] == made[1]


# --- the DAG ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(image: build.Image, isolated_state: Path) -> DockerTarget:
    build.record(image, isolated_state)
    return DockerTarget(isolated_state)


def test_containers_and_processes_give_the_same_model_to_the_byte(
    target: DockerTarget, recipe: Recipe, tmp_path: Path, image: build.Image
) -> None:
    lines: list[str] = []
    done = target.submit(Submission(recipe), echo=lines.append)
    assert done.status == "SUCCEEDED", "\n".join(lines)
    assert done.target == "docker"
    here = LocalTarget(tmp_path / "other").submit(Submission(recipe))
    assert here.status == "SUCCEEDED"
    weights = [
        Path(one.step("train").outputs["model"]["uri"], "model.safetensors").read_bytes() for one in (done, here)
    ]
    assert weights[0] == weights[1]
    lineage = json.loads(Path(done.step("train").outputs["model"]["uri"], "lineage.json").read_text())
    assert lineage["execution"]["image_digest"] == image.digest
    assert "step 10/10" in "\n".join(target.logs(done.id, "train"))
    again = target.submit(Submission(recipe))
    assert [step.status for step in again.steps] == ["SUCCEEDED", *["CACHED"] * 4]
    assert (Path(again.step("train").outputs["model"]["uri"]).stat().st_uid) == os.getuid()


def test_a_failing_step_fails_the_run_in_its_own_words(target: DockerTarget, recipe: Recipe) -> None:
    done = target.submit(Submission(recipe.replace(data={"text": "absent"})))
    assert (done.status, done.exit_status) == ("FAILED", 2)
    assert done.error is not None
    assert "absent" in done.error.message
    assert [step.status for step in done.steps][1:] == ["FAILED", "SKIPPED", "SKIPPED", "SKIPPED"]


def test_a_step_that_needs_more_memory_than_it_may_use(
    image: build.Image, recipe: Recipe, isolated_state: Path
) -> None:
    done = DockerTarget(isolated_state).submit(Submission(recipe, image=image.reference, memory="150m"))
    assert (done.status, done.exit_status) == ("FAILED", 1)
    assert done.error is not None
    assert "ran out of memory" in done.error.message


def test_ctrl_c_ends_the_container_too(target: DockerTarget, tmp_path: Path, host: str) -> None:
    recipe = small_recipe(write_sentences(tmp_path / "rows.csv"), steps=100_000)
    begun: list[float] = []

    def watch(line: str) -> None:
        if "step " in line and not begun:
            begun.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    done = target.submit(Submission(recipe), echo=watch)
    assert (done.status, done.exit_status) == ("CANCELLED", 130)
    assert time.monotonic() - begun[0] < 15
    (note,) = done.notes
    (step,) = re.fullmatch(r"checkpoint of step (\d+) saved; run the same command to go on", note).groups()  # type: ignore[union-attr]
    kept = target.home.glob("checkpoints/*/step-*/manifest.json")
    assert int(step) in {int(path.parent.name.split("-")[1]) for path in kept}
    assert note in "\n".join(target.logs(done.id, "train"))
    assert not engine.docker(host, "ps", "--all", "--quiet").stdout


def test_a_container_does_not_outlive_a_run_that_was_killed(target: DockerTarget, tmp_path: Path, host: str) -> None:
    rows = write_sentences(tmp_path / "rows.csv")
    command = [sys.executable, "-m", "xlnet_pipeline", "--home", str(target.home), "run", "--target", "docker"]
    command += [
        "--set",
        f"data.train={rows}",
        "--set",
        "training.steps=100000",
        "--set",
        "training.patience=0",
        "--set",
        "registry.name=sentences",
    ]
    environment = {**os.environ, "DOCKER_HOST": host}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as runner:
        assert runner.stdout is not None
        assert any("train: first time" in line for line in runner.stdout)
        patience = time.monotonic() + 20
        while not (running := engine.docker(host, "ps", "--quiet").stdout):
            assert time.monotonic() < patience
            time.sleep(0.1)
        runner.kill()
    patience = time.monotonic() + 20
    while running:
        assert time.monotonic() < patience
        time.sleep(0.2)
        running = engine.docker(host, "ps", "--all", "--quiet").stdout


def test_changed_code_is_rebuilt_in_seconds_and_only_what_follows_it_runs(
    target: DockerTarget, recipe: Recipe, image: build.Image, arguments: tuple[str, ...], tmp_path: Path, host: str
) -> None:
    assert target.submit(Submission(recipe)).status == "SUCCEEDED"
    copy = tmp_path / "checkout"
    for folder in ("components", "pipeline", "containers"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / ".dockerignore", copy)
    with (copy / "components/xlnet/evaluation/report.py").open("a") as file:
        file.write("# a changed line\n")
    environment = {**os.environ, "PYTHONPATH": f"{copy}/components:{copy}/pipeline", "DOCKER_HOST": host}
    words = ["build", "--base-image", engine.BASE, "--network", "host"]
    for argument in arguments:
        words += ["--build-arg", argument]
    command = [sys.executable, "-m", "xlnet_pipeline", "--home", str(target.home), *words]
    begun = time.monotonic()
    built = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert time.monotonic() - begun <= REBUILD
    changed = DockerTarget(target.home)
    done = changed.submit(Submission(recipe))
    assert changed.image != image.digest
    # The evaluation came out equal, so that registering it again would be the same work.
    assert [step.status for step in done.steps] == ["SUCCEEDED", "CACHED", "CACHED", "SUCCEEDED", "CACHED"]
    assert done.step("evaluate").reason == "code changed: xlnet.evaluation.report"
    lineage = Path(done.step("evaluate").outputs["evaluation"]["uri"], "lineage.json").read_text()
    assert image.digest in lineage
    assert changed.image in lineage


def test_an_image_without_our_code_is_refused(host: str, image: build.Image, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold xlnet"):
        DockerTarget(tmp_path).submit(Submission(recipe, image=engine.BASE))
