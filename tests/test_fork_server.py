"""The fork server: a step that it forks is the process that its own command would have started."""

import json
import os
import signal
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest

from xlnet_pipeline.targets import processes
from xlnet_pipeline.targets.local import fork_server
from xlnet_pipeline.targets.local.fork_server import ForkServer
from xlnet_steps import supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")

SCRIPT = (
    'folder=$(mktemp -d)\nprintf "%s" "$0" > "$folder/ephemeral_component.py"\n'
    f"_KFP_RUNTIME=true exec {sys.executable} -m {supervisor.MODULE}"
    ' --component_module_path "$folder/ephemeral_component.py" "$@"\n'
)
TOLD = {"inputs": {"parameterValues": {}}, "outputs": {"outputFile": "/dev/null"}}
FACTS = """
IGNORED = {"_", "PWD", "OLDPWD", "SHLVL"}  # a shell's own
IGNORED |= {"GOMP_SPINCOUNT"}  # set by xlnet when it is imported, which a fork has done before its step begins

def preprocess():
    import json, os, signal, sys
    facts = {
        "leads": [os.getpid() == os.getpgid(0), os.getpid() == os.getsid(0)],
        "parent": os.getppid(),
        "directory": os.getcwd(),
        "environment": {name: os.environ[name] for name in sorted(set(os.environ) - IGNORED)},
        "signals": {number: str(signal.getsignal(number)) for number in range(1, 32)},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "input": sys.stdin.read(),
        "arguments": [sys.argv[0], *sys.argv[3:]],
        "main": sys.modules["__main__"].__spec__.name,
        "terminal": [os.isatty(number) for number in range(3)],
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3],
    }
    print("facts", json.dumps(facts))
    print("written to stderr", file=sys.stderr)
    sys.exit(7)
"""
ENDLESS = """
def preprocess():
    import os, subprocess, time
    print("pids", os.getpid(), subprocess.Popen(["sleep", "60"]).pid, os.getppid())
    time.sleep(60)
"""


def command(source: str) -> list[str]:
    return ["sh", "-ec", SCRIPT, source, "--executor_input", json.dumps(TOLD), "--function_to_execute", "preprocess"]


def run(server: ForkServer | None, source: str, environment: dict[str, str], live: bool = False) -> tuple[int, str]:
    """Exit status and log of a step that ``server`` starts; None: that is started as a program of its own."""
    log = BytesIO()
    watch = processes.Watch(log, print, processes.Cancellation(120), print if live else None)
    start = server.spawn if server else processes.spawn
    status = processes.run(command(source), environment, watch, start=start)
    return status, log.getvalue().decode()


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 60
    assert len(pids) == 3
    while any(map(processes.started, pids)):
        assert time.monotonic() < deadline, (
            f"of {pids} there still are {[one for one in pids if processes.started(one)]}"
        )
        time.sleep(0.02)


def facts(output: str) -> dict[str, object]:
    (line,) = [one for one in output.splitlines() if one.startswith("facts ")]
    found: dict[str, object] = json.loads(line.removeprefix("facts "))
    return found


@pytest.mark.parametrize("live", [False, True])
def test_a_forked_step_is_what_its_own_command_starts(
    live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "3"}
    with ForkServer() as server:
        status, output = run(server, FACTS, environment, live)
        assert server._server is not None
        forked, parent = facts(output), server._server.pid
    assert forked.pop("parent") == parent
    own_status, own_output = run(None, FACTS, environment, live)
    expected = facts(own_output)
    assert expected.pop("parent") == os.getpid()
    assert forked == expected
    assert (status, "written to stderr" in output) == (own_status, True) == (7, True)


def test_a_stopped_fork_takes_its_children_with_it(tmp_path: Path) -> None:
    stop = processes.Cancellation()
    pids: list[int] = []

    def line(text: str) -> None:
        if text.startswith("pids"):
            pids.extend(map(int, text.split()[1:]))
            os.kill(pids[0], signal.SIGSTOP)  # it cannot answer SIGTERM
            stop.asked, stop.impatient = 0.0, True

    environment = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    with ForkServer() as server, pytest.raises(processes.Stopped) as stopped:
        processes.run(command(ENDLESS), environment, processes.Watch(BytesIO(), line, stop), start=server.spawn)
    assert stopped.value.ended == "at once"
    wait_until_gone(*pids)


def test_a_step_ends_with_its_server_and_the_next_one_starts_without(tmp_path: Path) -> None:
    """As if the server had run out of memory."""
    environment = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    pids: list[int] = []

    def line(text: str) -> None:
        if text.startswith("pids"):
            pids.extend(map(int, text.split()[1:]))
            os.kill(pids[2], signal.SIGKILL)

    watch = processes.Watch(BytesIO(), line, processes.Cancellation(120))
    with ForkServer() as server:
        assert processes.run(command(ENDLESS), environment, watch, start=server.spawn) == -signal.SIGKILL
        wait_until_gone(*pids)
        status, output = run(server, FACTS, environment)
    assert status == 7
    assert facts(output)["parent"] == os.getpid()


def test_a_run_can_be_stopped_while_its_server_imports(tmp_path: Path) -> None:
    def check() -> None:
        assert server._server is not None
        os.kill(server._server.pid, signal.SIGSTOP)  # as one that imports for a long time
        raise processes.Stopped("cancelled")

    words = command("import time; time.sleep(1)\n" + ENDLESS)
    with ForkServer() as server:
        reader, writer = os.pipe()
        with pytest.raises(processes.Stopped, match="cancelled"):
            server.spawn(words, {**os.environ, "TMPDIR": str(tmp_path)}, writer, None, check)
        os.close(writer)
        with os.fdopen(reader) as output:
            assert output.read() == "", "nothing was forked, or it has ended"


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["sh", "-ec", "echo $PPID"], {}),
        ([*command("")[:2], f"echo $PPID; : {supervisor.MODULE}", *command("")[3:-1], "snapshot"], {}),
        ([*command("")[:2], f"echo $PPID; : {supervisor.MODULE}", *command("")[3:]], {"OMP_NUM_THREADS": "5"}),
    ],
    ids=["no component", "nothing to import", "another environment"],
)
def test_other_programs_are_started_as_ever(words: list[str], variables: dict[str, str], tmp_path: Path) -> None:
    environment = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    log = BytesIO()
    with ForkServer() as server:
        run(server, "def preprocess(): pass", environment)
        watch = processes.Watch(log, print, processes.Cancellation(120))
        assert processes.run(words, environment | variables, watch, start=server.spawn) == 0
    assert log.getvalue() == f"{os.getpid()}\n".encode()


@pytest.mark.parametrize("found", fork_server.UNSAFE)
def test_nothing_is_forked_beside_a_tpu_s_libraries(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fork_server._can_fork(command(""))
    monkeypatch.setitem(sys.modules, found, fork_server)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fork_server.__spec__ if name == found else None)
    assert not fork_server._can_fork(command(""))
