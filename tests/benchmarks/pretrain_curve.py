"""Draws the losses of pretrainings against the tokens that they read.

    python tests/benchmarks/pretrain_curve.py docs/images/pretraining.svg "with neighbours=MODEL" "without=MODEL"

MODEL is the directory of a pretrained model. Its history holds the mean loss of each stretch of updates.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    given = parser.parse_args()
    matplotlib.rcParams.update({"svg.hashsalt": "xlnet", "font.family": "sans-serif"})
    figure, axes = pyplot.subplots(figsize=(6.4, 3.0), layout="constrained", facecolor="white")
    for name, folder in (one.split("=", 1) for one in given.models):
        lines = (Path(folder) / "history.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(json.loads, lines) if "loss" in record]
        axes.plot([one["tokens"] / 1e6 for one in records], [one["loss"] for one in records], label=name)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(given.out, metadata={"Date": None}, dpi=150)


if __name__ == "__main__":
    main()
