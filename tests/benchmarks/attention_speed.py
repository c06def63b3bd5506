"""Attention alone, forward and backward, over lengths 128 to 4096: ours against transformers' arithmetic.

    python tests/benchmarks/attention_speed.py [--json FILE] [--plot FILE.png]

The same number of tokens at every length. `hf` is transformers' rel_attn_core on the same tensors (its
positions per row, as it makes them). On a GPU also `flash`: torch's flash attention without positions or
segments, the most that could be hoped for. Share: useful operations (6 L d per token forward, three times
that with the backward pass) of the device's matrix rate. Memory: what one forward and backward allocates at
most beyond its inputs (on a CPU: growth of the process's peak, each length in a process of its own).
Interleaved; medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from train_speed import matrix_rate, timed

from xlnet.model.attention import relative_attention
from xlnet.model.dropout import Dropout
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments, split_heads
from xlnet.training.detect import detect
from xlnet.training.device import Device

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
HEADS, WIDTH = 12, 64


class Case:
    """Random tensors of one length, and every contender's work on them."""

    def __init__(self, length: int, tokens: int, dropout: float, device: Device) -> None:
        torch.manual_seed(0)
        self.length, self.rows, self.probability, self.device = length, max(1, tokens // length), dropout, device
        self.tokens = self.rows * length

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device.torch, dtype=device.precision).mul_(0.3).requires_grad_()

        self.qkv = random(self.tokens, 3, HEADS, WIDTH)
        self.r = random(2 * length, HEADS, WIDTH)
        self.biases = [random(HEADS, WIDTH) for _ in range(3)]
        self.embed = random(2, HEADS, WIDTH)
        self.ids = torch.zeros(self.tokens, dtype=torch.int32, device=device.torch)
        self.ids.view(self.rows, length)[:, -1] = 2
        self.layout = Layout.of([length] * self.rows, device.torch)
        self.seed = torch.tensor([7], device=device.torch)
        self.grad = torch.randn(self.tokens, HEADS, WIDTH, device=device.torch, dtype=device.precision)

    def run(self, impl: str) -> None:
        """One forward and backward pass."""
        work = {"hf": self._hf, "flash": self._flash}.get(impl, lambda: self._ours(impl))
        work().backward(self.grad)

    def _ours(self, impl: str) -> torch.Tensor:
        content, position, segment = self.biases
        dropout = Dropout.seeded(self.probability, self.seed) if self.probability else None
        segments = Segments(self.ids, segment, self.embed)
        positions = Positions(self.r, content, position)
        return relative_attention(*split_heads(self.qkv), positions, segments, self.layout, dropout, impl)

    def _hf(self) -> torch.Tensor:
        from transformers import XLNetConfig
        from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

        config = XLNetConfig(d_model=HEADS * WIDTH, n_head=HEADS, dropout=self.probability)
        theirs = XLNetRelativeAttention(config).to(self.device.torch, self.device.precision).train()
        content, position, segment = self.biases
        for name, tensor in zip(("r_w_bias", "r_r_bias", "r_s_bias"), (content, position, segment), strict=True):
            delattr(theirs, name)
            setattr(theirs, name, tensor)
        del theirs.seg_embed
        theirs.seg_embed = self.embed
        q, k, v = (x.view(self.rows, self.length, HEADS, WIDTH).transpose(0, 1) for x in self.qkv.unbind(1))
        r = self.r[:, None].expand(-1, self.rows, -1, -1)
        ids = self.ids.view(self.rows, self.length).t()
        differs = F.one_hot((ids[:, None] != ids[None, :]).long(), 2).to(q.dtype)
        out = theirs.rel_attn_core(q, k, v, r, seg_mat=differs)
        return out.transpose(0, 1).reshape(self.tokens, HEADS, WIDTH)

    def _flash(self) -> torch.Tensor:
        q, k, v = (x.view(self.rows, self.length, HEADS, WIDTH).transpose(1, 2) for x in self.qkv.unbind(1))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.probability)
        return out.transpose(1, 2).reshape(self.tokens, HEADS, WIDTH)


def measure(length: int, arguments: argparse.Namespace, device: Device) -> dict[str, Any]:
    """Milliseconds, ratio to ours and share of the matrix rate, per contender."""
    case = Case(length, arguments.tokens, arguments.dropout, device)
    times: dict[str, list[float]] = {name: [] for name in arguments.contenders}
    rates = []
    for number in range(arguments.rounds + 1):
        rates.append(matrix_rate(device))
        for name in times:
            seconds = timed(device, lambda name=name: case.run(name))
            if number:
                times[name].append(seconds)
    work = 3 * 6 * length * HEADS * WIDTH * case.tokens
    best = times[arguments.contenders[0]]
    return {
        name: {
            "milliseconds": 1000 * statistics.median(values),
            "ours_is_times_faster": statistics.median(b / a for a, b in zip(best, values, strict=True)),
            "share_of_matrix_rate": work / statistics.median(values) / statistics.median(rates),
            "memory_mib": memory(name, length, arguments, device),
        }
        for name, values in times.items()
    }


def memory(name: str, length: int, arguments: argparse.Namespace, device: Device) -> float:
    """MiB that a pass takes beyond its inputs."""
    if device.torch.type == "cuda":
        case = Case(length, arguments.tokens, arguments.dropout, device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run(name)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    options = ["--peak", name, "--lengths", str(length), "--tokens", str(arguments.tokens)]
    command = [sys.executable, __file__, *options, "--dropout", str(arguments.dropout)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _high_water() -> float:
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Print a table; write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tokens", type=int, help="per pass; default 4,096 on a CPU, 32,768 on a GPU")
    parser.add_argument("--contenders", nargs="+", help="the first is ours; default: auto hf, on a GPU also flash")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = detect()
    on_gpu = device.torch.type == "cuda"
    arguments.tokens = arguments.tokens or (32_768 if on_gpu else 4_096)
    arguments.contenders = arguments.contenders or ["auto", "hf", *(["flash"] if on_gpu else [])]
    if arguments.peak:
        case = Case(arguments.lengths[0], arguments.tokens, arguments.dropout, device)
        before = _high_water()
        case.run(arguments.peak)
        print(_high_water() - before)
        return
    print(f"{device.name}, {device.precision}, {arguments.tokens:,} tokens, dropout {arguments.dropout}")
    print(f"{'length':>6} {'':10} {'ms':>9} {'ours is … times faster':>23} {'of matrix rate':>15} {'MiB':>7}")
    results = {}
    for length in arguments.lengths:
        results[length] = measure(length, arguments, device)
        for name, row in results[length].items():
            print(
                f"{length:6} {name:10} {row['milliseconds']:9.2f} {row['ours_is_times_faster']:23.2f} "
                f"{row['share_of_matrix_rate']:15.0%} {row['memory_mib']:7,.0f}",
                flush=True,
            )
    if arguments.json:
        content = {"device": device.name, "precision": str(device.precision), "lengths": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(results, arguments.plot, device.name)


def plot(results: dict[int, Any], path: Path, title: str) -> None:
    """Time and memory over length, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, key, label in zip(panels, ("milliseconds", "memory_mib"), ("milliseconds", "MiB"), strict=True):
        for name in next(iter(results.values())):
            values = [row[name][key] for row in results.values()]
            axes.plot(list(results), values, marker="o", label="ours" if name == "auto" else name)
        axes.set(xscale="log", yscale="log", xlabel="length", ylabel=label)
        axes.set_xticks(list(results), [str(length) for length in results])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
