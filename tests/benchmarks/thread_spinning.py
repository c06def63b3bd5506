"""How long OpenMP's threads should spin before they sleep: training's speed alone and beside other work.

Each setting trains in a process of its own, in turn, several rounds over; the table gives medians against libgomp's
default. Busy means one burning process per processor beside the training.

    python tests/benchmarks/thread_spinning.py --rounds 5
    python tests/benchmarks/thread_spinning.py --rounds 5 --busy

Medians on two processors (Xeon with AVX-512), against libgomp's default of 300,000 spins: idle 1.03 with 20,000 and
0.92 with 5,000; busy (load 2.9) 1.48 with both.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys

DEFAULT = "300000"  # libgomp's own
COUNTS = ("20000", "5000", "1000", "0")


def child(seconds: float) -> None:
    """Train the demo's network on rows of sentence length; print tokens a second."""
    import time

    import numpy as np
    import torch

    from xlnet.data.batches import Batch
    from xlnet.model.config import XLNetConfig
    from xlnet.model.xlnet import XLNetClassifier
    from xlnet.recipe import TrainingRecipe
    from xlnet.training.device import Device
    from xlnet.training.optim import make_optimizer
    from xlnet.training.step import forward, optimise

    torch.manual_seed(0)
    recipe, device = TrainingRecipe(), Device("float32")
    model = XLNetClassifier(XLNetConfig(8000, 2, 128, 4, 32, 512, 0.1, 0.1, classes=("a", "b"))).train()
    optimizer = make_optimizer(device.prepare(model), recipe)
    draw = np.random.default_rng(0)
    lengths = draw.integers(8, 60, 64)
    segments = np.concatenate([[0] * (n - 1) + [2] for n in lengths]).astype(np.int32)
    ids = draw.integers(10, 8000, lengths.sum())
    batch = Batch(ids, segments, lengths, draw.integers(0, 2, 64), np.arange(64), np.ones(64, np.float32))

    def update() -> None:
        forward(model, device.move(batch), 64, recipe, device).backward()
        optimise(model, optimizer, recipe)

    for _ in range(5):
        update()
    started, updates = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        update()
        updates += 1
    print(updates * int(lengths.sum()) / (time.perf_counter() - started))


def burn() -> None:
    """Another user's work."""
    while True:
        sum(i * i for i in range(10_000))


def speed(spins: str, seconds: float) -> float:
    """Tokens a second with this GOMP_SPINCOUNT."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, __file__, "--child", str(seconds)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--child", type=float)
    given = parser.parse_args()
    if given.child:
        return child(given.child)
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range((os.cpu_count() or 1) * given.busy)]
    for burner in burners:
        burner.start()
    found: dict[str, list[float]] = {name: [] for name in (DEFAULT, *COUNTS)}
    for _ in range(given.rounds):
        for name, speeds in found.items():
            speeds.append(speed(name, given.seconds))
            print(f"{name:>18}  {speeds[-1]:9,.0f} tokens/s", file=sys.stderr, flush=True)
    for burner in burners:
        burner.terminate()
    base = found[DEFAULT]
    print(f"load of the machine meanwhile: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, speeds in found.items():
        ratio = statistics.median(a / b for a, b in zip(speeds, base, strict=True))
        print(f"{name:>18}  {statistics.median(speeds):9,.0f} tokens/s  {ratio:5.2f}")
    return None


if __name__ == "__main__":
    main()
