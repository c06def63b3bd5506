"""Starts this node's ranks as the environment says, and watches them until they end.

The command is the same on every node. It may be started by torchrun (which starts the ranks itself), by Kubeflow
Trainer, by a JobSet or an indexed Job on Kubernetes, by worker pools on Vertex AI, or by the user.
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

from xlnet import recipe as recipes
from xlnet.data import objects
from xlnet.errors import LostPeer, Preempted, RunError, UserError
from xlnet.training import buckets
from xlnet.training.preemption import SIGNALS, grace, leaving_when_asked

POLL = 0.1  # seconds between two checks of the ranks
PATIENCE = 5.0  # seconds that the other ranks get to report why they end, after one has failed
PORT = 29400


@dataclass(frozen=True)
class Node:
    """This machine's place among the machines that train together.

    Attributes:
        ranks: number of ranks to start here; 0 means one per device.
        nodes: number of machines.
        node: this machine's number, from 0.
        master: host name of node 0.
        port: port that rank 0 listens on; 0 means any free port.
        source: the environment variables that say so.
    """

    ranks: int = 0
    nodes: int = 1
    node: int = 0
    master: str = "127.0.0.1"
    port: int = 0
    source: str = "nothing"


def train(recipe_json: str, dataset: str, out: str) -> dict[str, Any]:
    """Train with the number of ranks that the environment asks for; see :func:`xlnet.training.train.train`.

    Args:
        recipe_json: JSON of a recipe, or of its ``model`` and ``training`` sections.
        dataset: directory or ``gs://`` address of the dataset artifact.
        out: directory or ``gs://`` address of the model artifact to write.

    Returns:
        Facts for the artifact's metadata; an empty dict on nodes other than the first.

    Raises:
        UserError: the environment's numbers contradict each other or this machine's devices.
        LostPeer: another node is gone.
        RunError: a rank failed, died or hung; the message says which one, and why.
        Preempted: all ranks were asked to stop, and saved a checkpoint.
    """
    with leaving_when_asked():
        return _train(_with_local_weights(recipe_json), dataset, out)


def _with_local_weights(recipe_json: str) -> str:
    """Download pretrained weights that lie in a bucket."""
    recipe = recipes.from_json(recipe_json)
    if not objects.is_remote(recipe.model.pretrained):
        return recipe_json
    weights = buckets.local_dataset(recipe.model.pretrained)
    return recipe.replace(model={"pretrained": weights}).to_json()


def _train(recipe_json: str, dataset: str, out: str) -> dict[str, Any]:
    node = node_from(os.environ)
    dataset = buckets.local_dataset(dataset)
    ranks = node.ranks or _default_ranks()
    if "RANK" in os.environ or node.nodes * ranks == 1:
        from xlnet.training.train import train as one_rank

        return one_rank(recipe_json, dataset, out)
    _prepare(node.nodes, ranks)
    node = replace(node, ranks=ranks, port=node.port or _free_port())
    command = [sys.executable, "-m", "xlnet", "train", "--recipe-json", recipe_json, "--dataset", dataset, "--out", out]
    _run(node, command)
    if node.node:
        return {}
    return buckets.facts(out)


def node_from(environment: Mapping[str, str]) -> Node:
    """Read this node's place from the environment.

    Raises:
        UserError: the environment is incomplete, or contradicts itself.
    """
    try:
        node = _node_from(environment)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"the variables that describe this node are incomplete, or one is not a number: {error!r}"
        ) from None
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
    """Parse a number of ranks; 0 for torchrun's words that mean one per device."""
    if text in (None, "", "auto", "gpu", "cpu"):
        return 0
    number = int(text or 0)
    if number < 1:
        raise ValueError(f"{number} ranks per node")
    return number


def _default_ranks() -> int:
    """Return the default number of ranks on this node."""
    from xlnet.training.detect import choose, rank_count

    return rank_count(choose())


def _prepare(nodes: int, ranks: int) -> None:
    """Check that each rank will have a device, and set the environment variables that all ranks inherit."""
    from xlnet.training.detect import choose, rank_count

    kind = choose()
    there = (os.cpu_count() or 1) if kind == "cpu" else rank_count(kind)
    if ranks > there:
        what = {"cpu": "cores", "cuda": "GPUs, one for each", "tpu": "chips, one for each"}.get(kind)
        reason = f"this node has {there} {what}" if what else "one process drives all chips of a TPU machine"
        raise UserError(f"{ranks} ranks were asked for, but {reason}; ask for at most {there}")
    if kind == "tpu":
        from xlnet.training.tpu import set_rank_variables

        set_rank_variables(nodes, ranks)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(node: Node, command: list[str]) -> None:
    """Start this node's ranks, forward signals to them, and wait until they end."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _Forwarding() as forwarding:
        report = Path(folder, "report")
        ranks = forwarding.ranks
        try:
            for local in range(node.ranks):
                environment = _environment(node, local, report)
                ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
            _wait(ranks, forwarding)
            ends = [rank.poll() for rank in ranks]  # None: the rank had to be killed
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        _raise_failure(node, ends, report, forwarding)


class _Forwarding:
    """Forwards SIGTERM and Ctrl-C to the ranks, which save a checkpoint before they end."""

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
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # otherwise ranks that lose a peer bury the reason under C++ stack frames
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
    """Wait until all ranks have ended, or one has failed and the others had time to report why."""
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


def _raise_failure(node: Node, ends: list[int | None], report: Path, forwarding: _Forwarding) -> None:
    """Raise the exception that matches the ranks' exit statuses; None stands for a rank that had to be killed."""
    if not any(end != 0 for end in ends):
        return
    if Preempted.exit_status in ends:
        raise Preempted
    if forwarding.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if forwarding.signal and not report.exists():  # the signal came before there was anything to save
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
