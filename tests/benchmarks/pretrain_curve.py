"""Draws the validation losses of pretrainings against their updates.

python tests/benchmarks/pretrain_curve.py docs/images/pretraining.svg "with neighbours=MODEL" "without=MODEL"
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main(out, *named):
    """Draw a line for each NAME=MODEL, a model artifact's directory."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "xlnet", "font.family": "sans-serif"})
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    for one in named:
        name, folder = one.split("=", 1)
        records = map(json.loads, (Path(folder) / "history.jsonl").read_text(encoding="utf-8").splitlines())
        points = [(one["step"], one["validation_loss"]) for one in records if "validation_loss" in one]
        axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.set_xlabel("updates of 1,024 tokens")
    axes.set_ylabel("validation loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
