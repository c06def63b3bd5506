"""The docker target: what a container may see and reach, and what a person reads when there is no engine or image.

tests/test_containers.py runs the real DAG in real containers; here no engine is needed.
"""

import os
import sys
import time
from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet.recipe import Recipe
from xlnet_pipeline import cli
from xlnet_pipeline.images import build
from xlnet_pipeline.targets import Submission, docker, processes
from xlnet_pipeline.targets.docker import DockerTarget

ID = "sha256:" + "1" * 64


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for docker that records its calls, and has the image :data:`ID`."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    lines = ["#!/bin/sh", f'echo "$*" >>{tmp_path}/calls', 'case "$*" in "image inspect"*" absent"*) ;;']
    lines += [f'"image inspect"*) echo {ID} ;;', f"run*) cat {tmp_path}/said; exit $(cat {tmp_path}/status) ;; esac"]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    (tmp_path / "said").write_text("")
    (tmp_path / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def started(target: DockerTarget, command: list[str], environment: dict[str, str], watch: processes.Watch) -> int:
    with target.starting() as start:
        return start(command, environment, watch)


def recipe(**fields: object) -> Recipe:
    return recipes.tiny().replace(data={"train": "demo:uci_sentences", **fields})


def test_data_is_seen_where_it_lies_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("text,label\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.csv").write_text("text,label\n")
    (folder / "link.csv").symlink_to(elsewhere / "b.csv")
    assert docker._data_folders(recipe()) == set()
    assert docker._data_folders(recipe(train=str(folder / "a.csv"))) == {folder}
    assert docker._data_folders(recipe(train=str(folder / "*.csv"))) == {folder}
    assert docker._data_folders(recipe(train=str(folder))) == {folder}
    assert docker._data_folders(recipe(train=str(folder / "link.csv"))) == {folder, elsewhere}
    assert docker._data_folders(recipe(train="gs://bucket/a.csv")) == set()
    monkeypatch.chdir(tmp_path)
    assert docker._data_folders(recipe(test="data/a.csv")) == {folder}
    assert docker._data_folders(recipe(tokenizer="elsewhere")) == {elsewhere}


def test_a_container_has_a_network_only_for_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not docker._leaves_this_machine(recipe())
    assert docker._leaves_this_machine(recipe(test="gs://bucket/rows.csv"))
    assert docker._leaves_this_machine(recipe().replace(registry={"uri": "http://mlflow:5000"}))
    assert not docker._leaves_this_machine(recipe().replace(registry={"uri": "sqlite:////x.db"}))
    assert docker._leaves_this_machine(recipe().replace(model={"pretrained": "xlnet-base-cased"}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert docker._leaves_this_machine(recipe())


def test_a_step_s_container_is_confined(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    target = DockerTarget(tmp_path / "home")
    target.prepare(Submission(recipe(), image="ours", memory="2g"))
    lines: list[str] = []
    (engine / "said").write_text("hello\n")
    with (tmp_path / "log").open("wb") as log:
        environment = {"XLNET_RUN_ID": "r1", "XLNET_IMAGE_DIGEST": ID, "TMPDIR": "/x"}
        assert (
            started(
                target, ["sh", "-c", "true"], environment, processes.Watch(log, lines.append, processes.Cancellation())
            )
            == 0
        )
    assert lines == ["hello"]
    told = (engine / "calls").read_text().splitlines()
    (run,) = [line for line in told if line.startswith("run ")]
    words = run.split()
    expected = {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none", "--memory=2g"}
    assert expected <= set(words)
    assert f"--user={os.getuid()}:{os.getgid()}" in words
    assert f"--mount=type=bind,source={tmp_path}/home,target={tmp_path}/home" in words
    passed = {word.removeprefix("--env=") for word in words if word.startswith("--env=")}
    assert {"XLNET_RUN_ID", "XLNET_IMAGE_DIGEST"} <= passed <= {*docker._PASSED, "XLNET_IMAGE", "XLNET_IMAGE_DIGEST"}
    assert run.endswith(f"{ID} sh -c true")
    name = words[words.index("--name") + 1]
    assert told[-1] == f"rm --force {name}", "a container never outlives its step"


def test_a_status_is_never_lost(engine: Path, tmp_path: Path) -> None:
    target = DockerTarget(tmp_path / "home")
    target.prepare(Submission(recipe(), image="ours"))
    (engine / "status").write_text("3")
    with (tmp_path / "log").open("wb") as log:
        assert started(target, ["false"], {}, processes.Watch(log, print, processes.Cancellation())) == 3
        (engine / "status").write_text(str(docker.ENGINE_FAILED))
        (engine / "said").write_text("docker: Error response from daemon: no such device\n")
        with pytest.raises(RunError, match="docker could not start the step's container: docker: Error response"):
            started(target, ["false"], {}, processes.Watch(log, print, processes.Cancellation()))


def test_an_image_that_is_not_there(engine: Path, tmp_path: Path) -> None:
    target = DockerTarget(tmp_path / "home")
    with pytest.raises(UserError, match="no CPU image was built yet; build it first: xlnet-pipeline build"):
        target.submit(Submission(recipe()))
    with pytest.raises(UserError, match="image 'absent' is not in docker; build it: xlnet-pipeline build"):
        target.submit(Submission(recipe(), image="absent"))
    build.record(build.Image("cpu", "xlnet-pipeline:cpu-0", ID, False, "now"), tmp_path / "home")
    target.prepare(Submission(recipe()))
    assert target.image == ID


def test_options_of_containers_need_the_docker_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--memory", "4g"]) == 2
    assert "--memory is for --target docker" in capsys.readouterr().err


def test_no_engine_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["run", "--target", "docker"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: docker or podman is not installed; install Docker or Podman"


SAVES = """#!{python}
import signal, subprocess, sys, time
if sys.argv[1] == "rm":
    open("{folder}/removed", "a").write(sys.argv[-1] + "\\n")
    sys.exit()
def save(*_):
    time.sleep(0.4)
    print("checkpoint of step 22 saved; run the same command to go on", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(60)
"""


def test_the_engines_client_is_waited_for_while_the_container_saves_its_work(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hands SIGTERM on to the container, whose first process hands it on to the trainer."""
    target = DockerTarget(tmp_path / "home")
    target.prepare(Submission(recipe(), image="ours"))
    program = tmp_path / "bin" / "docker"
    program.write_text(SAVES.format(python=sys.executable, folder=tmp_path))
    stop = processes.Cancellation()
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        stop.asked = stop.asked or time.monotonic()

    asked: list[str] = []
    with (tmp_path / "log").open("wb") as log, pytest.raises(processes.Stopped) as stopped:
        started(target, ["train"], {}, processes.Watch(log, line, stop, stopping=lambda: asked.append("asked")))
    assert stopped.value.ended == "by itself"
    assert asked == ["asked"]
    assert lines == ["training", "checkpoint of step 22 saved; run the same command to go on"]
    assert (tmp_path / "log").read_text().splitlines() == lines
    assert len((tmp_path / "removed").read_text().splitlines()) == 1, "the container is gone"
