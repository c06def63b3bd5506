"""A pod as a process: its container's words and variables as the kubelet fills them in, its log, and its end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ports: dict[str, int] = {}  # JobSet and attempt → the port that its pods meet at: each has a network of its own


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def expanded(word: str, variables: dict[str, str]) -> str:
    """``$(NAME)`` is a variable if it is known, ``$$`` a dollar."""
    known = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
    return known.sub(lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]), word)


class PodProcess:
    """One pod of an indexed Job."""

    def __init__(self, jobset: str, job: str, index: int, attempt: int, template: dict[str, Any], folder: Path) -> None:
        self.jobset, self.job, self.index, self.attempt, self.template, self.folder = (
            jobset,
            job,
            index,
            attempt,
            template,
            folder,
        )
        self.name = f"{jobset}-{job}-0-{index}-{os.urandom(3).hex()[:5]}"
        (self.container,) = template["spec"]["containers"]
        self.variables = {"JOB_COMPLETION_INDEX": str(index)}
        self.conditions: list[dict[str, str]] = []
        self.waiting = {"reason": "ContainerCreating"}
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[tuple[str, str]] = []
        self.exit_code: int | None = None
        self.made, self.started, self.finished, self.asked_to_end = now(), "", "", ""  # times
        self.tracked = True  # by its Job, until that is deleted
        self._reader: threading.Thread | None = None
        self._kill_at = float("inf")
        self._pulled = 0.0  # when its image was first tried to be pulled

    def may_start(self, has_node: bool, images: bool) -> bool:
        """Go through the states before a container runs."""
        if not has_node:
            message = "0/3 nodes are available: 3 Insufficient google.com/tpu. preemption: not eligible."
            self.conditions = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            ]
            return False
        self.conditions = [{"type": "PodScheduled", "status": "True"}]
        if not images:
            image = self.container["image"]
            cause = f'failed to pull and unpack image "{image}": not found'
            back_off = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
            self._pulled = self._pulled or time.monotonic()
            first = time.monotonic() - self._pulled < 0.3
            self.waiting = {"reason": "ErrImagePull", "message": cause} if first else back_off
            return False
        return True

    def start(
        self,
        more: dict[str, str],
        secrets: dict[str, dict[str, str]],
        hosts: dict[str, str],
        program: list[str],
    ) -> None:
        """Start its container.

        Args:
            more: variables beside the container's own.
            secrets: name → key → value.
            hosts: address that only the cluster's DNS knows → where it leads on this machine.
            program: instead of the container's own; empty: that one.
        """
        variables = self.variables
        for one in self.container.get("env", []):
            if "value" in one:
                variables[one["name"]] = expanded(one["value"], variables)
            else:
                reference = one["valueFrom"]["secretKeyRef"]
                secret = secrets.get(reference["name"], {})
                if reference["key"] in secret:
                    variables[one["name"]] = secret[reference["key"]]
                else:
                    assert reference.get("optional"), f"the pod would wait for {reference} for ever"
        words = program or [expanded(word, variables) for word in self.container["args"]]
        words = [sys.executable if word == "python" else word for word in words]
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {
            name: os.environ[name] for name in ("PATH", "STORAGE_EMULATOR_HOST", "PYTHONPATH") if name in os.environ
        }
        environment = {
            **kept,
            **{name: hosts.get(value, value) for name, value in self._resolved(variables).items()},
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),  # the image's kernels
            "TMPDIR": str(self.folder),  # a disk of its own
            **{f"XLNET_{kind}_MOUNT": str(self.folder / "no-bucket-is-mounted") for kind in ("GCS", "S3", "MINIO")},
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        self.started = now()
        self.process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _resolved(self, variables: dict[str, str]) -> dict[str, str]:
        """The cluster's DNS: the name of the JobSet's first pod stands for this machine, at a port of the attempt's."""
        if "XLNET_MASTER" not in variables:
            return variables
        assert variables["XLNET_MASTER"] == f"{self.jobset}-{self.job}-0-0.{self.jobset}", "no such host"
        key = f"{self.jobset}-{self.attempt}"
        if key not in _ports:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                _ports[key] = free.getsockname()[1]
        return {**variables, "XLNET_MASTER": "127.0.0.1", "XLNET_PORT": str(_ports[key])}

    def _read(self) -> None:
        assert self.process
        assert self.process.stdout
        for line in self.process.stdout:
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self.lines.append((moment, line.decode(errors="replace").rstrip("\n")))

    def ended(self) -> bool:
        """Whether its process has ended, or it was asked to before there was one."""
        if self.exit_code is None and self.process is not None:
            status = self.process.poll()
            if status is None:
                if time.monotonic() > self._kill_at:
                    self.kill()
                return False
            if self._reader:
                self._reader.join(2)
            self.exit_code = status if status >= 0 else 128 - status
            self.finished = now()
        return self.exit_code is not None

    def log_ended(self) -> bool:
        """Whether every process that could write its log has ended."""
        if self._reader:
            self._reader.join(30)
        return self._reader is None or not self._reader.is_alive()

    def terminate(self) -> None:
        """What the kubelet does to a pod that is to go: SIGTERM to the container's first process, a grace, SIGKILL."""
        if self.ended():
            return
        self.asked_to_end = self.asked_to_end or now()
        if self.process is None:
            self.exit_code = 137
            return
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + self.template["spec"]["terminationGracePeriodSeconds"]
            self.process.send_signal(signal.SIGTERM)

    def disrupt(self, gently: bool = True) -> None:
        """A spot machine is taken back: with a notice, or without."""
        reason = "TerminationByKubelet" if gently else "DeletionByTaintManager"
        message = "Pod was terminated in response to imminent node shutdown."
        self.conditions.append({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message})
        if gently:
            self.terminate()
        else:
            self.kill()

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self) -> dict[str, str]:
        """The end of its log, as the kubelet keeps it of a program that failed, if that was asked for."""
        if not self.exit_code or self.container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return {}
        text = "\n".join(text for _, text in self.lines[-80:])[-2048:]
        return {"message": text} if text else {}
