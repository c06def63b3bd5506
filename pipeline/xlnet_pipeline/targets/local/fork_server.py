"""Starts steps as forks of a process that has imported their libraries already.

Importing torch, scikit-learn and MLflow takes longer than the work of a small run. The fork server imports them once,
while the first steps already run, and each step starts as a copy of it. A step that was started like this is a process
like any other: it has its own session, group, output and exit status, and its libraries have done nothing yet.

The server is a separate program and not a fork of this process, which may have threads, a notebook's CUDA context or
modules that a step must not see. It handles one request at a time, also between two imports. A request is one socket
message with the step's output and a socket for the answers: first ``pid N``, in the end ``status N``.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlnet.steps import KEPT
from xlnet_pipeline.targets import processes
from xlnet_steps import supervisor

EXECUTOR = "kfp.dsl.executor"  # what supervisor.MODULE imports

# The slow imports of each step, in the order in which a run needs them.
TRAINING = (
    EXECUTOR,
    "torch",
    "torch.distributed.tensor",
    "torch._dynamo",  # which torch's optimizers import when they are made
    "torch.utils.tensorboard",
    "xlnet.training.train",
)
LIBRARIES = {
    "survey": (EXECUTOR, "xlnet.data.dividing"),
    "tokenise": (EXECUTOR, "xlnet.data.shard_tokens"),
    "preprocess": (EXECUTOR, "xlnet.data.preprocess"),
    "pretrain": TRAINING,
    "train": TRAINING,
    "evaluate": (
        EXECUTOR,
        "xlnet.evaluation.evaluate",
        "sklearn.linear_model",
        "sklearn.feature_extraction.text",
    ),
    "register": (EXECUTOR, "xlnet.registry.register", "xlnet.registry.mlflow_client"),
}
UNSAFE = ("torch_xla", "torch_tpu")  # torch loads these by itself, and their runtimes do not survive a fork
_LENGTH = 8  # bytes of a request's length


class ForkServer:
    """The client's side of a fork server, which is started by the first step that it can start."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._environment: dict[str, str] = {}

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        if self._socket:
            self._socket.close()
        if self._server:
            self._server.kill()
            self._server.wait()

    def spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        directory: Path | None,
        check: Callable[[], None] = lambda: None,
    ) -> processes.Process:
        """Start a command as a fork if it is one of the steps in LIBRARIES, else as a program of its own.

        Args:
            command: a component's command, as kfp compiles it.
            environment: all variables of the new process.
            output: file descriptor for standard output and standard error.
            directory: its working directory; None: ours.
            check: called while the server imports the step's libraries; raises to give up.
        """
        with contextlib.suppress(OSError):  # if the server has died, start a program instead
            if _can_fork(command) and self._serves(dict(environment)):
                request = {"component": command[3], "arguments": command[4:], "directory": str(directory or Path.cwd())}
                return self._forked(json.dumps(request).encode(), output, check)
        return processes.spawn(command, environment, output, directory)

    def _forked(self, request: bytes, output: int, check: Callable[[], None]) -> processes.Process:
        assert self._socket
        answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            _send(self._socket, request, [output, theirs.fileno()])
        try:
            while not select.select([answers], [], [], processes.POLL)[0]:
                check()
            return _Forked(answers, _answer(answers, "pid"))
        except BaseException:  # nobody would watch the process that the server may be forking just now
            self.close()
            with answers, contextlib.suppress(OSError):
                os.killpg(_answer(answers, "pid"), signal.SIGKILL)
            raise

    def _serves(self, environment: dict[str, str]) -> bool:
        """Start the server if there is none. Return whether it has this environment, which its libraries have read."""
        if self._server is None:
            self._environment = environment
            ours, theirs = socket.socketpair()
            with theirs:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**environment, "_KFP_RUNTIME": "true"},  # as kfp's own command sets it
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._socket = ours
        return environment == self._environment


class _Forked:
    """A process that the server has forked. See :class:`subprocess.Popen` for the methods."""

    def __init__(self, answers: socket.socket, pid: int) -> None:
        self.pid = pid
        self._answers = answers
        self._status: int | None = None

    def __enter__(self) -> "_Forked":
        return self

    def __exit__(self, *problem: object) -> None:
        self.wait()
        self._answers.close()

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        if self._status is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self._status

    def wait(self) -> int:
        """Wait for the process and return its exit status."""
        if self._status is None:
            try:
                self._status = _answer(self._answers, "status")
            except ConnectionError:  # the server was killed, and nobody else would stop its child
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._status = -signal.SIGKILL
        return self._status


def _answer(answers: socket.socket, expected: str) -> int:
    """Receive the number that the server, or its fork, answers with."""
    word, _, number = answers.recv(100).decode().partition(" ")
    if word != expected:
        raise ConnectionError(f"the fork server ended before it told the step's {expected}")
    return int(number)


def _can_fork(command: Sequence[str]) -> bool:
    """Whether a command is a component of LIBRARIES on a system where a fork of a program with libraries is safe."""
    return (
        sys.platform == "linux"
        and list(command[:2]) == ["sh", "-ec"]
        and supervisor.MODULE in command[2]
        and command[-1] in LIBRARIES
        and not any(map(importlib.util.find_spec, UNSAFE))
    )


def _send(to: socket.socket, request: bytes, descriptors: list[int]) -> None:
    socket.send_fds(to, [len(request).to_bytes(_LENGTH, "big")], descriptors)
    to.sendall(request)


def _received(source: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next request with its file descriptors; None if the client has ended."""
    head, descriptors, _, _ = socket.recv_fds(source, _LENGTH, 2)
    if len(head) < _LENGTH:
        return None
    length, body = int.from_bytes(head, "big"), bytearray()
    while len(body) < length:
        piece = source.recv(length - len(body))
        if not piece:
            return None
        body += piece
    request: dict[str, Any] = json.loads(body)
    return request, descriptors


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the client ends.

    Returns:
        In each forked process, the request that it has to do; in the server itself, None at the end.
    """
    running: dict[int, socket.socket] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _tell(running))
    waiting: list[str] = []
    while True:
        if not select.select([requests], [], [], 0 if waiting else None)[0]:
            _load(waiting.pop(0))
            continue
        if (received := _received(requests)) is None:
            return None
        request, (output, answers) = received
        step = request["arguments"][-1]
        for module in LIBRARIES[step]:
            _load(module)
        later = list(KEPT)[list(KEPT).index(step) + 1 :]
        waiting = [module for name in later for module in LIBRARIES[name] if module not in sys.modules]
        answer = socket.socket(fileno=answers)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the new process is in ``running``
        if (pid := os.fork()) == 0:
            requests.close()
            for other in running.values():
                other.close()
            _begin(request, output, answer)
            return request
        os.close(output)
        running[pid] = answer
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _load(module: str) -> None:
    """Import a module. If it is missing or broken, do nothing: the step that needs it reports that."""
    with contextlib.suppress(Exception):
        importlib.import_module(module)
        gc.freeze()  # a garbage collection of a fork then copies no memory of ours


def _tell(running: dict[int, socket.socket]) -> None:
    """Tell the client the statuses of processes that have ended."""
    for pid in list(running):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with running.pop(pid) as answer, contextlib.suppress(OSError):
                answer.sendall(f"status {os.waitstatus_to_exitcode(status)}".encode())


def _begin(request: dict[str, Any], output: int, answer: socket.socket) -> None:
    """Become the process that the client asked for, as ``subprocess.Popen`` would have started it."""
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    os.chdir(request["directory"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    with answer:
        answer.sendall(f"pid {os.getpid()}".encode())


def execute(component: str, arguments: Sequence[str]) -> None:
    """Run a component as its own command does: write its source to a file, and give that to kfp's executor."""
    path = Path(tempfile.mkdtemp(), "ephemeral_component.py")
    path.write_text(component, encoding="utf-8")
    sys.argv = [supervisor.MODULE, "--component_module_path", str(path), *arguments]
    runpy.run_module(supervisor.MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        execute(asked["component"], asked["arguments"])
