"""What checkpoints by time cost a training: the same training with and without them, in turns.

    python tests/benchmarks/checkpoint_cost.py [SECONDS_BETWEEN_CHECKPOINTS] [TURNS]

Prints the tokens a second of each turn, the ratio of the medians, and the digest of each model, which is the same.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.training.launch import train

STEPS = 60


def main(every: str = "2", turns: str = "3") -> None:
    """Measure and print."""
    recipe = recipes.tiny().replace(data={"train": "demo:uci_sentences", "text": 0, "label": 1, "header": "no"})
    text = recipe.replace(training={"steps": STEPS}).to_json()
    speeds: dict[str, list[float]] = {"0": [], every: []}
    with tempfile.TemporaryDirectory() as folder:
        preprocess(text, take(text).digest, f"{folder}/dataset")
        for turn in range(int(turns)):
            for seconds, found in speeds.items():
                os.environ["XLNET_CHECKPOINT_SECONDS"] = seconds
                os.environ["XLNET_CHECKPOINTS"] = f"{folder}/checkpoints-{turn}-{seconds}"
                model = Path(folder, f"model-{turn}-{seconds}")
                train(text, f"{folder}/dataset", str(model))
                lineage = json.loads((model / provenance.LINEAGE).read_text())
                found.append(float(lineage["artifact"]["metadata"]["tokens_per_second"]))
                print(f"every {seconds} s: {found[-1]:,.0f} tokens/s, {lineage['artifact']['digest'][:19]}", flush=True)
    ratio = statistics.median(speeds[every]) / statistics.median(speeds["0"])
    print(f"with checkpoints every {every} s: {ratio:.3f} of the speed without")


if __name__ == "__main__":
    main(*sys.argv[1:])
