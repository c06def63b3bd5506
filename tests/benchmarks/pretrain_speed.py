"""Pretraining speed against transformers' two-stream XLNetLMHeadModel: same weights, same segments, interleaved.

    python tests/benchmarks/pretrain_speed.py                       # CPU: 4 layers of base width, or a GPU: base
    python tests/benchmarks/pretrain_speed.py --memory 0 --reuse 0 --json FILE --plot FILE.png

Segments of WikiText-2 with their targets come from the trainer's own pipeline; the lengths are those of the released
pretraining: segments of 512 tokens, of which 256 are reused, and a memory of 384. ``ours`` is the trainer's own update.
``hf`` is transformers' model as its best user would set it up: ``perm_mask``, ``target_mapping``, labels of the
predicted places alone, memory passed on where there is one, fused AdamW, bfloat16 autocast on a GPU. ``hf compiled``
is the same under torch.compile.

Each contender has a process of its own, and they take turns update by update. Prints what train_speed.py prints.
Useful operations, forward: per query (content and predicted) and layer 24 d^2 linear and 6 K d attention over K keys,
less 4 d^2 for a predicted place, which has no key and value of its own; per predicted place 2 d V in the output layer.
Training is three times that.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_rows import SHARED, VOCABULARY
from torch import Tensor
from torch.nn import functional as F
from train_speed import SHAPES, figures, matrix_rate, peak_of_this_process, plot, table, timed

from xlnet.data.permutation import SegmentBatch, starts_word
from xlnet.data.segments import CorpusSegments
from xlnet.data.shapes import Budget, Share
from xlnet.data.tokenizer import load_tokenizer
from xlnet.evaluation.permuted import moved
from xlnet.model.config import PRETRAIN, XLNetConfig
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.weights import join_qkv, split_qkv
from xlnet.recipe import TrainingRecipe
from xlnet.training.detect import detect
from xlnet.training.device import Device
from xlnet.training.optim import make_optimizer
from xlnet.training.step import optimise
from xlnet.training.tasks import PRETRAINING

RATE = 1e-4
ONE_IN = 6  # K of the paper


@dataclass(frozen=True)
class Corpus:
    """One row of tokens, as :class:`xlnet.data.batches.Rows` has it; only what segments read."""

    tokens: np.ndarray
    lengths: np.ndarray


def updates(arguments: argparse.Namespace, count: int) -> list[Share]:
    """The first updates of a pretraining on WikiText-2; with memory, each continues the one before."""
    path = arguments.folder / "wikitext2" if arguments.folder else SHARED / "wikitext2"
    tokenizer = load_tokenizer("xlnet-base-cased")
    lines = [line for line in (path / "valid.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    tokens = np.concatenate([np.array(ids, np.int32)[:-2] for ids in tokenizer.encode(lines, None, 100_000).input_ids])
    split: Any = Corpus(tokens, np.array([len(tokens)]))
    starts_V = np.array([starts_word(piece) for piece in tokenizer.pieces])
    special = {"pad": 5, "sep": 4, "cls": 3}
    segments = CorpusSegments(arguments.length, arguments.reuse, ONE_IN, 0, special, starts_V)
    size = arguments.rows * arguments.length
    plan = segments.plan(split.lengths, size, 0, 0)[:count]
    return [segments.share(split, rows, Budget(0, 1, size, 0)) for rows in plan]


@dataclass
class Ours:
    """The trainer's own update."""

    config: XLNetConfig
    weights: dict[str, Tensor]
    device: Device
    memory: int
    reuse: int
    rows: int
    model: XLNetLanguageModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = XLNetLanguageModel(self.config)
        self.model.load_state_dict(join_qkv(self.weights))
        self.device.prepare(self.model).train()
        self.model.transformer.sparse_gradient = False
        self.recipe = TrainingRecipe(learning_rate=RATE, clip_norm=1.0)
        self.optimizer = make_optimizer(self.model, self.recipe)
        if self.memory:
            self.model.remember(self.rows, self.memory, self.reuse)

    def step(self, share: Share) -> Tensor:
        """One update; the loss, on the device."""
        (batch,) = share.batches
        loss = PRETRAINING.loss(self.model, batch, share.texts, self.recipe, self.device)
        loss.backward()
        optimise(self.model, self.optimizer, self.recipe)
        return loss.detach()


class HuggingFace:
    """transformers' XLNetLMHeadModel in a plain loop."""

    def __init__(
        self, config: XLNetConfig, weights: dict[str, Tensor], device: Device, memory: int, reuse: int, compiled: bool
    ) -> None:
        from transformers import XLNetConfig as TheirConfig
        from transformers import XLNetLMHeadModel

        shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "d_model", "n_head", "d_inner")}
        recurrence = {"mem_len": memory, "reuse_len": reuse} if memory else {}
        self.model = XLNetLMHeadModel(TheirConfig(**shape, dropout=config.dropout, **recurrence))
        self.model.load_state_dict(weights | {"lm_loss.weight": weights["transformer.word_embedding.weight"]})
        self.model.to(device.torch).train()
        self.device, self.memory, self.mems = device, memory, None
        # Like ours: XLNet's published settings, with weight decay where ours has it.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, eps=1e-6, weight_decay=0.01, fused=True)
        self.call: Any = torch.compile(self.model, dynamic=True) if compiled else self.model

    def step(self, share: Share) -> Tensor:
        """One update; the loss, on the device."""
        (batch,) = share.batches
        with self.device.autocast():
            made = self.call(**self._arguments(batch))
        made.loss.backward()
        self.mems = made.mems if self.memory else None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return made.loss.detach()

    def _arguments(self, batch: SegmentBatch) -> dict[str, Any]:
        text, weights_BP = moved(batch, lambda array: torch.from_numpy(array).to(self.device.torch))
        order_BL = text.order_BL
        own_LL = torch.eye(order_BL.shape[1], dtype=torch.bool, device=self.device.torch)  # the content's is ignored
        zeros = None
        if self.memory and (batch.is_first or self.mems is None):  # memory starts from zeros, as ours does
            shape = (self.memory, len(order_BL), self.model.config.d_model)
            zeros = [torch.zeros(shape, device=self.device.torch) for _ in range(self.model.config.n_layer)]
        return {
            "input_ids": text.input_ids_BL,
            "token_type_ids": text.segment_ids_BL.long(),
            "perm_mask": ((order_BL[:, None, :] > order_BL[:, :, None]) | own_LL).float(),
            "target_mapping": F.one_hot(text.place_BP, order_BL.shape[1]).float(),
            "labels": text.targets_BP.masked_fill(weights_BP == 0, -100),
            "mems": (zeros or self.mems) if self.memory else None,
            "use_mems": bool(self.memory),
        }


KINDS = ("ours", "hf", "hf compiled")


def make(kind: str, config: XLNetConfig, weights: dict[str, Tensor], device: Device, arguments: Any) -> Any:
    """A contender by name."""
    if kind == "ours":
        return Ours(config, weights, device, arguments.memory, arguments.reuse, arguments.rows)
    return HuggingFace(config, weights, device, arguments.memory, arguments.reuse, kind == "hf compiled")


def useful(share: Share, config: XLNetConfig, memory: int) -> float:
    """Floating-point operations of forward and backward that any exact two-stream XLNet needs."""
    width, total = config.d_model, 0.0
    for batch in share.batches:
        texts, length = batch.input_ids_BL.shape
        predicted, keys = batch.place_BP.shape[1], length + memory
        linear = (length + predicted) * 24 * width**2 - predicted * 4 * width**2
        attention = 6 * (length + predicted) * keys * width
        total += texts * (config.n_layer * (linear + attention) + 2 * predicted * width * config.vocab_size)
    return 3.0 * total


def shape_of(arguments: argparse.Namespace, device: Device) -> XLNetConfig:
    """The model."""
    layers, width, heads, inner = SHAPES[arguments.shape]
    layers = arguments.layers or (4 if device.torch.type == "cpu" else layers)
    return XLNetConfig(VOCABULARY, layers, width, heads, 64, inner, task=PRETRAIN)


def serve(orders: Connection, kind: str, arguments: argparse.Namespace) -> None:
    """Run a contender in a process of its own: answer each update with its seconds, and the end with MiB of memory."""
    device = detect(arguments.device)
    config, clock = shape_of(arguments, device), time.process_time if arguments.processor_time else time.perf_counter
    torch.manual_seed(0)
    one = make(kind, config, split_qkv(XLNetLanguageModel(config).state_dict()), device, arguments)
    orders.send("ready")
    while (share := orders.recv()) is not None:
        orders.send(timed(device, lambda share=share: one.step(share), clock))
    orders.send(peak_of_this_process(device))


def rounds(arguments: argparse.Namespace, config: XLNetConfig, device: Device) -> dict[str, Any]:
    """Time every contender on the same updates, one after the other in each round."""
    shares = updates(arguments, arguments.steps)
    running: dict[str, Connection] = {}
    for kind in arguments.contenders:
        running[kind], theirs = multiprocessing.Pipe()
        multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, kind, arguments), daemon=True).start()
        theirs.close()  # so that the end of a contender is noticed
        running[kind].recv()
    tokens = sum(share.tokens for share in shares)
    speeds: dict[str, list[float]] = {kind: [] for kind in running}
    rates: list[float] = []
    clock = time.process_time if arguments.processor_time else time.perf_counter
    for number in range(arguments.rounds + 1):  # the first warms up
        rates.append(matrix_rate(device, clock))
        seconds = dict.fromkeys(running, 0.0)
        for share in shares:  # one update each in turn: a slow moment of the machine meets all of them
            for kind, orders in running.items():
                orders.send(share)
                seconds[kind] += orders.recv()
        for kind in running:
            speeds[kind].append(tokens / seconds[kind])
            print(f"  round {number}: {kind:12} {speeds[kind][-1]:12,.0f} tokens/s", file=sys.stderr, flush=True)
    per_token = sum(useful(share, config, arguments.memory) for share in shares) / tokens
    rate = statistics.median(rates)
    found = {kind: figures(values[1:], speeds["ours"][1:], per_token, rate) for kind, values in speeds.items()}
    for kind, orders in running.items():
        orders.send(None)
        found[kind]["peak_mib"] = orders.recv()
    return found | {"matrix_rate": rate}


def losses(arguments: argparse.Namespace, config: XLNetConfig) -> list[tuple[float, float]]:
    """Ours and theirs without dropout, in float32, on the same updates in the same order."""
    torch.manual_seed(0)
    still = replace(config, dropout=0.0)
    weights = split_qkv(XLNetLanguageModel(still).state_dict())
    device = detect(arguments.device, "float32")
    pair = [make(kind, still, weights, device, arguments) for kind in ("ours", "hf")]
    return [tuple(one.step(share).item() for one in pair) for share in updates(arguments, arguments.compare)]


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=KINDS, default=["ours", "hf"])
    parser.add_argument("--rows", type=int, default=4, help="segments per update")
    parser.add_argument("--length", type=int, default=512, help="tokens of a segment")
    parser.add_argument("--reuse", type=int, default=256, help="tokens of a segment that become memory; 0: no memory")
    parser.add_argument("--memory", type=int, default=384, help="most tokens that memory holds")
    parser.add_argument("--steps", type=int, default=2, help="updates per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--layers", type=int, help="default: 4 on a CPU, all on a GPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compare", type=int, default=5, help="updates whose losses are compared")
    parser.add_argument("--processor-time", action="store_true", help="on a machine that others use: one thread only")
    parser.add_argument("--folder", type=Path, help="a folder that holds wikitext2/valid.txt")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    device = detect(arguments.device)
    config = shape_of(arguments, device)
    memory = f", memory of {arguments.memory}" if arguments.memory else ""
    result: dict[str, Any] = {
        "set": f"WikiText-2 in segments of {arguments.length}{memory}",
        "model": f"{config.n_layer} layers of {arguments.shape}",
        "device": f"{device.name}, {device.precision}",
        "rows_per_update": arguments.rows,
    }
    contenders = rounds(arguments, config, device)
    result["matrix_rate"] = contenders.pop("matrix_rate")
    result["contenders"] = contenders
    result["losses"] = losses(arguments, config)
    print(f"{result['set']}: {result['model']}, {arguments.rows} segments per update, {result['device']}")
    print(f"matrix rate {result['matrix_rate'] / 1e9:,.0f} GFLOP/s")
    print(table(result))
    print("losses, ours and theirs: " + "  ".join(f"{a:.6f} {b:.6f}" for a, b in result["losses"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
