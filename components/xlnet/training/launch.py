"""Starts the ranks of a training on this node, as the environment says, and watches them to their end.

The command is the same on every node, whoever started it: torchrun (which starts the ranks itself), Kubeflow
Trainer, a JobSet or an indexed Job on Kubernetes, worker pools on Vertex AI, or nobody but the user.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from xlnet.errors import LostPeer, Preempted, RunError, UserError
from xlnet.training import buckets
from xlnet.training.preemption import SIGNALS, grace, leaving_when_asked

POLL = 0.1  # seconds between two looks at the ranks
PATIENCE = 5.0  # seconds that other ranks have to say why they end, once one has ended
PORT = 29400


@dataclass(frozen=True)
class Node:
    """This machine among those that train together.

    Attributes:
        ranks: to be started here; 0: as many as there are devices.
        nodes: how many machines there are.
        node: which one this is, from 0.
        master: host of node 0.
        port: where rank 0 listens; 0: any free one.
        source: which variables say so.
    """

    ranks: int = 0
    nodes: int = 1
    node: int = 0
    master: str = "127.0.0.1"
    port: int = 0
    source: str = "nothing"


def train(recipe: str, dataset: str, out: str) -> dict[str, Any]:
    """Train with as many ranks as the environment asks for; see :func:`xlnet.training.train.train`.

    Args:
        recipe: JSON of a recipe, or of its ``model`` and ``training`` sections.
        dataset: directory or ``gs://`` address of the dataset artifact.
        out: directory or ``gs://`` address of the model artifact to be written.

    Returns:
        Facts for the artifact's metadata; nothing on nodes other than the first.

    Raises:
        UserError: the environment's numbers do not fit each other or the devices that are here.
        LostPeer: another node is gone.
        RunError: a rank failed, died or hung; which one, and why.
        Preempted: all ranks were asked to stop, and left a checkpoint.
    """
    with leaving_when_asked():
        return _train(recipe, dataset, out)


def _train(recipe: str, dataset: str, out: str) -> dict[str, Any]:
    node = node_from(os.environ)
    dataset = buckets.local_dataset(dataset)
    ranks = node.ranks or _devices()
    if "RANK" in os.environ or node.nodes * ranks == 1:
        from xlnet.training.train import train as one_rank

        return one_rank(recipe, dataset, out)
    _prepare(node.nodes, ranks)
    node = replace(node, ranks=ranks, port=node.port or _free_port())
    command = [sys.executable, "-m", "xlnet", "train", "--recipe-json", recipe, "--dataset", dataset, "--out", out]
    _run(node, command)
    if node.node:
        return {}
    return buckets.facts(out)


def node_from(environment: Mapping[str, str]) -> Node:
    """What the environment says about this node.

    Raises:
        UserError: it is incomplete, or contradicts itself.
    """
    try:
        node = _node_from(environment)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the variables that describe this node are incomplete or no numbers: {error!r}") from None
    if not 0 <= node.node < node.nodes:
        raise UserError(f"{node.source} says this is node {node.node} of {node.nodes}; nodes are counted from 0")
    return node


def _node_from(environment: Mapping[str, str]) -> Node:
    ranks = _count(environment.get("XLNET_NPROC"))
    if "PET_NNODES" in environment:  # Kubeflow Trainer's torch runtime
        ranks = ranks or _count(environment.get("PET_NPROC_PER_NODE"))
        master, port = environment.get("PET_MASTER_ADDR", ""), int(environment.get("PET_MASTER_PORT", PORT))
        nodes, node = int(environment["PET_NNODES"]), int(environment.get("PET_NODE_RANK", 0))
        return Node(ranks, nodes, node, master or "127.0.0.1", port, "PET_NNODES")
    if cluster := environment.get("CLUSTER_SPEC"):  # Vertex AI: the chief, then the workers
        return _vertex(json.loads(cluster), ranks)
    if "XLNET_NODES" in environment:  # a JobSet or an indexed Job
        nodes = int(environment["XLNET_NODES"])
        node = int(environment.get("JOB_COMPLETION_INDEX", 0))
        master = environment["XLNET_MASTER"] if nodes > 1 else "127.0.0.1"
        return Node(ranks, nodes, node, master, int(environment.get("XLNET_PORT", PORT)), "XLNET_NODES")
    return Node(ranks)


def _vertex(spec: Mapping[str, Any], ranks: int) -> Node:
    pools = [pool for pool in sorted(spec["cluster"]) if pool.startswith("workerpool")]
    hosts = [host for pool in pools for host in spec["cluster"][pool]]
    pool, index = spec["task"]["type"], int(spec["task"].get("index", 0))
    node = sum(len(spec["cluster"][earlier]) for earlier in pools if earlier < pool) + index
    if len(hosts) == 1:
        return Node(ranks, source="CLUSTER_SPEC")
    master, _, port = hosts[0].partition(":")
    return Node(ranks, len(hosts), node, master, int(port or PORT), "CLUSTER_SPEC")


def _count(text: str | None) -> int:
    """A number of ranks; torchrun's words for "all there are" are 0."""
    if text in (None, "", "auto", "gpu", "cpu"):
        return 0
    number = int(text or 0)
    if number < 1:
        raise ValueError(f"{number} ranks per node")
    return number


def _devices() -> int:
    """Ranks that a node has where nobody says how many."""
    from xlnet.training.detect import choose, count

    return count(choose())


def _prepare(nodes: int, ranks: int) -> None:
    """Before ranks are started here: make sure that there is a device for each, and set what they all inherit."""
    from xlnet.training.detect import choose, count

    kind = choose()
    there = (os.cpu_count() or 1) if kind == "cpu" else count(kind)
    if ranks > there:
        what = {"cpu": "cores", "cuda": "GPUs, one for each", "tpu": "chips, one for each"}.get(kind)
        reason = f"this node has {there} {what}" if what else "one process drives all chips of a TPU machine"
        raise UserError(f"{ranks} ranks were asked for, but {reason}; ask for at most {there}")
    if kind == "tpu":
        from xlnet.training.tpu import tell_ranks

        tell_ranks(nodes, ranks)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(node: Node, command: list[str]) -> None:
    """Start this node's ranks, pass signals on to them, and end when they end."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _Forwarding() as forwarding:
        report = Path(folder, "report")
        ranks = forwarding.ranks
        try:
            for local in range(node.ranks):
                environment = _environment(node, local, report)
                ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
            _wait(ranks, forwarding)
            ends = [rank.poll() for rank in ranks]  # None: it does not end by itself
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        _judge(node, ends, report, forwarding)


class _Forwarding:
    """Passes signals that ask this process to end on to its ranks, which leave a checkpoint first."""

    def __init__(self) -> None:
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.signal: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "_Forwarding":
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for rank in self.ranks:
            rank.send_signal(number)


def _environment(node: Node, local: int, report: Path) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // node.ranks)
    return {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else ranks that lose a peer print C++ frames over the reason
        **os.environ,
        "RANK": str(node.node * node.ranks + local),
        "WORLD_SIZE": str(node.nodes * node.ranks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(node.ranks),
        "MASTER_ADDR": node.master,
        "MASTER_PORT": str(node.port),
        "XLNET_RANK_REPORT": str(report),
    }


def _wait(ranks: list[subprocess.Popen[bytes]], forwarding: _Forwarding) -> None:
    """Until all ranks have ended, or one has failed and the others had time to say why."""
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        time.sleep(POLL)
        failed = any(rank.poll() not in (None, 0) for rank in ranks)
        if forwarding.signal and deadline is None:
            deadline = time.monotonic() + grace() + PATIENCE
        elif failed and not forwarding.signal and deadline is None:
            preempted = any(rank.poll() == Preempted.exit_status for rank in ranks)
            deadline = time.monotonic() + (grace() if preempted else PATIENCE)
        if deadline is not None and time.monotonic() > deadline:
            return


def _judge(node: Node, ends: list[int | None], report: Path, forwarding: _Forwarding) -> None:
    """Raise what the ranks' ends mean; None is the end of a rank that had to be ended."""
    if not any(end != 0 for end in ends):
        return
    if Preempted.exit_status in ends:
        raise Preempted
    if forwarding.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if forwarding.signal and not report.exists():  # before there was anything to leave a checkpoint of
        raise Preempted
    for local, end in enumerate(ends):
        if end is not None and end < 0:
            raise RunError(
                f"rank {node.node * node.ranks + local} was killed by {signal.Signals(-end).name}"
                f"{'; out of memory, perhaps: see the kernel log' if end == -signal.SIGKILL else ''}; "
                "run again to go on from the last checkpoint"
            )
    reason = report.read_text(encoding="utf-8") if report.exists() else f"the ranks ended with statuses {ends}"
    if {end for end in ends if end} == {LostPeer.exit_status}:
        raise LostPeer(reason)
    raise (UserError if UserError.exit_status in ends else RunError)(reason)
