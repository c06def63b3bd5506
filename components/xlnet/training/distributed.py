"""Data-parallel ranks: the processes that train one model together, one per device, over NCCL or gloo.

Gradients are summed, not averaged, because each rank's loss is already a share of the mean over the whole update.
This module replaces torch's DistributedDataParallel for two reasons. DistributedDataParallel changes its buckets
after the first step, so a resumed training would add in another order and end with other bits. And the embedding's
gradient, most of a small model's bytes, is exchanged here as only the rows that a batch used.
"""

import contextlib
import os
import socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xlnet.errors import RunError, UserError

BUCKET = 25 << 20  # bytes of gradients per all-reduce, which overlaps with the backward pass
JOIN_SECONDS = 300  # how long ranks wait for each other at the start


class SingleRank:
    """A single rank, which exchanges nothing; also the interface of all ranks.

    Attributes:
        rank: this rank's number, from 0 to ``size - 1``.
        part: the part of an update that this rank computes, from 0 to ``parts - 1``.
        local_rank: this rank's number on its machine.
    """

    rank = part = local_rank = 0
    size = parts = 1
    background: Any = None  # the process group of the thread that writes checkpoints

    def attach(self, model: nn.Module) -> None:
        """Sum this model's gradients over all ranks from now on."""

    def add_gradients(self, last: bool) -> None:
        """Announce a backward pass. If it is the update's last, the exchange of gradients overlaps with it."""

    def synchronise(self) -> None:
        """Finish the exchange after the last backward pass: each rank then has the summed gradients."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank. It is exact if at most one rank's value is not zero."""
        return tensor

    def gather(self, value: Any, background: bool = False) -> list[Any]:
        """Gather a small picklable value from every rank, on every rank, in rank order.

        Args:
            value: this rank's value.
            background: True in the thread that writes checkpoints; it uses a process group of its own.
        """
        return [value]

    def agree(self, request: int) -> int:
        """Return the maximum of all ranks' requests from the previous call; every rank gets the same answer.

        The answer is one call late, so that no rank waits for it.
        """
        return request

    def another_store(self) -> Any:
        """Open a separate connection to the ranks' shared store, for use in another thread."""
        raise NotImplementedError("a single rank shares no store")

    def leave(self) -> None:
        """Leave the process group."""


class TorchRanks(SingleRank):
    """Ranks of torch.distributed, one process per rank."""

    def __init__(self, kind: str, rank: int, size: int, local_rank: int) -> None:
        """Join the other ranks, which the environment describes as torchrun does.

        Raises:
            RunError: not all ranks joined in time.
        """
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.part, self.parts = rank, size
        self.store = _rendezvous(rank, size)
        if kind == "cuda":
            torch.cuda.set_device(local_rank)
        backend = {"cuda": "cpu:gloo,cuda:nccl", "tpu": "cpu:gloo,tpu:tpu_dist"}.get(kind, "gloo")
        dist.init_process_group(backend, store=dist.PrefixStore("ranks", self.store), rank=rank, world_size=size)
        # Checkpoint messages are small, on the host, and must not wait behind gradients.
        self.side: Any = dist.new_group(backend="gloo")
        self.background = dist.new_group(backend="gloo")
        self._sums: GradientSums | None = None
        self._pending_vote: tuple[Tensor, Any] | None = None

    def attach(self, model: nn.Module) -> None:
        """See :class:`SingleRank`."""
        self._sums = GradientSums(model, self.size)

    def add_gradients(self, last: bool) -> None:
        """See :class:`SingleRank`."""
        if self._sums:
            self._sums.armed = last

    def synchronise(self) -> None:
        """See :class:`SingleRank`."""
        if self._sums:
            self._sums.finish()

    def sum(self, tensor: Tensor) -> Tensor:
        """See :class:`SingleRank`."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any, background: bool = False) -> list[Any]:
        """See :class:`SingleRank`."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.background if background else self.side)
        return values

    def agree(self, request: int) -> int:
        """See :class:`SingleRank`."""
        answer = 0
        if self._pending_vote:
            votes, work = self._pending_vote
            work.wait()
            answer = int(votes.item())
        votes = torch.tensor([request])
        self._pending_vote = votes, dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.side, async_op=True)
        return answer

    def another_store(self) -> Any:
        """See :class:`SingleRank`."""
        return dist.PrefixStore("watchdog", self.store.clone())  # type: ignore[attr-defined]

    def leave(self) -> None:
        """See :class:`SingleRank`."""
        with contextlib.suppress(RuntimeError):  # another rank is gone, which the launcher reports
            if self._pending_vote:
                self._pending_vote[1].wait()
            dist.destroy_process_group()


class SpmdRanks(TorchRanks):
    """Machines that run one program over all their devices (SPMD): each machine plans the whole of every update.

    The compiler divides the computation and inserts the communication (:mod:`xlnet.training.xla`).
    """

    def __init__(self, kind: str, rank: int, size: int, local_rank: int) -> None:
        """See :class:`TorchRanks`."""
        super().__init__(kind, rank, size, local_rank)
        self.part, self.parts = 0, 1

    def attach(self, model: nn.Module) -> None:
        """See :class:`SingleRank`. Every machine already has the summed gradients."""

    def sum(self, tensor: Tensor) -> Tensor:
        """See :class:`SingleRank`. Every machine already has the sum."""
        return tensor


class GradientSums:
    """Sums a model's gradients over all ranks in fixed buckets, overlapping with the backward pass.

    Every sum adds the same terms in the same order in every step of every run.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.armed = False
        self._size = size
        self._tables = [p for p in model.parameters() if p.requires_grad and _is_table(model, p)]
        tables = {id(table) for table in self._tables}
        # A backward pass reaches parameters roughly in reverse order.
        dense = [p for p in reversed(list(model.parameters())) if p.requires_grad and id(p) not in tables]
        self._buckets = list(_buckets(dense))
        self._bucket_of = {id(p): number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._reset()
        for parameter in dense:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[tuple[list[nn.Parameter], Tensor, Any]] = []

    def _ready(self, parameter: Tensor) -> None:
        if not self.armed:
            return
        self._missing[self._bucket_of[id(parameter)]] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        # The recipe decides which parameters have a gradient, so they are the same on every rank.
        present = [p for p in self._buckets[len(self._sent)] if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in present if p.grad is not None]) if present else torch.empty(0)
        work = dist.all_reduce(flat, async_op=True) if present else None
        self._sent.append((present, flat, work))

    def finish(self) -> None:
        """Send the remaining buckets, wait for all of them, and replace the gradients by the sums."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for table in self._tables:
            self._sum_rows(table)
        for parameters, flat, work in self._sent:
            if work is None:
                continue
            work.wait()
            for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = total.view_as(parameter)
        self._reset()

    def _sum_rows(self, table: nn.Parameter) -> None:
        """Exchange the rows that a sparse gradient holds, and add them in rank order."""
        if table.grad is None:
            return
        if not table.grad.is_sparse:
            dist.all_reduce(table.grad)
            return
        gradient = table.grad.coalesce()
        ids, rows = gradient.indices()[0], gradient.values()
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(self._size)]
        dist.all_gather(counts, torch.tensor([len(ids)]))
        most = int(max(counts))
        all_ids = [ids.new_empty(most) for _ in counts]
        all_rows = [rows.new_empty(most, *rows.shape[1:]) for _ in counts]
        dist.all_gather(all_ids, torch.cat([ids, ids.new_zeros(most - len(ids))]))
        dist.all_gather(all_rows, torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]))
        kept = [int(count) for count in counts]
        indices = torch.cat([some[:count] for some, count in zip(all_ids, kept, strict=True)])
        values = torch.cat([some[:count] for some, count in zip(all_rows, kept, strict=True)])
        table.grad = torch.sparse_coo_tensor(indices[None], values, table.shape, check_invariants=False)


def _is_table(model: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether the parameter's gradient may be sparse; a hook cannot read such a gradient before it is complete."""
    return any(parameter is module.weight for module in model.modules() if isinstance(module, nn.Embedding))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _rendezvous(rank: int, size: int) -> dist.Store:
    """Return the store through which ranks find each other, after all ranks have joined."""
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
    seconds = float(os.environ.get("XLNET_JOIN_SECONDS", JOIN_SECONDS))
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself hosts the store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(
            address, int(port), is_master=rank == 0 and not hosted, wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"rank {rank} of {size} cannot reach rank 0 at {address}:{port} ({reason}); start all ranks, "
            "and check MASTER_ADDR and MASTER_PORT"
        ) from None
    met = dist.PrefixStore(f"met-{attempt}", store)
    met.set(f"rank-{rank}", socket.gethostname())
    try:
        met.wait([f"rank-{other}" for other in range(size)], timedelta(seconds=seconds))
    except RuntimeError:  # torch 2.4 and newer raise a subclass of RuntimeError
        missing = [str(other) for other in range(size) if not met.check([f"rank-{other}"])]
        raise RunError(
            f"rank {rank} waited {seconds:g} s for rank {', '.join(missing)} of {size}, which never came: "
            "see that node's log, or start as many as WORLD_SIZE says"
        ) from None
    return store


def join(kind: str) -> SingleRank:
    """Join the ranks that the environment describes.

    Raises:
        UserError: the environment's numbers contradict each other.
        RunError: not all ranks joined in time.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return SingleRank()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be numbers: {error}") from None
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank}; with WORLD_SIZE={size} it is 0 to {size - 1}")
    if size % local_size:
        raise UserError(
            f"WORLD_SIZE {size} is not divisible by {local_size} ranks per node; start the same number on every node"
        )
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {rank} needs GPU {local_rank}, but this node has {torch.cuda.device_count()}; start one rank per GPU"
        )
    if size == 1:
        return SingleRank()
    return (SpmdRanks if kind == "xla" else TorchRanks)(kind, rank, size, local_rank)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a communication error means that another rank is gone."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, dist.DistBackendError) or any(words in str(error) for words in broken)


def check_same_work(ranks: SingleRank, about: dict[str, str]) -> None:
    """Check that all ranks do the same work.

    Args:
        ranks: all ranks.
        about: name → value that must be equal on all ranks.

    Raises:
        RunError: a value differs; the message names it and the rank.
    """
    everyone = ranks.gather(about)
    for rank, other in enumerate(everyone):
        different = [name for name, value in everyone[0].items() if other.get(name) != value]
        if different:
            given = "; ".join(f"{name}: {everyone[0][name]} and {other.get(name)}" for name in different)
            raise RunError(f"rank {rank} does not do the same work as rank 0: {given}; start all from the same inputs")
