"""Whether pretraining on a task's own rows pays: the same fine-tuning with and without it, at equal CPU time as well.

    python tests/benchmarks/pretraining_pays.py                      # all that is not yet in the results
    python tests/benchmarks/pretraining_pays.py --only sst2-2000 --seeds 0
    python tests/benchmarks/pretraining_pays.py --only imdb-unlabelled --seeds 0 --presets small   # hours: see the page
    python tests/benchmarks/pretraining_pays.py --table              # write the table of docs/pretraining.md

Three trainings for each set and seed: from scratch; pretrained on the train rows, then tuned with the numbers of the
first; and from scratch with as many epochs as take the CPU time of the second. All three start from a linear model
where the defaults do. Each is a line of the results, with its answers, so that a killed run loses one training.
Differences have a 95 % bootstrap interval over test rows and seeds.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from defaults import DATA, READERS, _write

from xlnet import recipe as recipes
from xlnet.data.dataset import open_dataset
from xlnet.data.preprocess import preprocess
from xlnet.evaluation.evaluate import evaluate
from xlnet.recipe import Recipe, budget
from xlnet.training.launch import train
from xlnet.training.pretraining import continuing, pretrain

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = CHECKOUT / "docs" / "pretraining.md", Path(__file__).with_name("pretraining_pays.jsonl")
SETS = {  # reader, rows (0: all), and corpus
    "uci": ("uci", 0, "train"),
    "sst2-2000": ("sst2", 2000, "train"),
    "rte": ("rte", 0, "train"),
    "imdb-2000": ("imdb", 2000, "train"),
    "imdb": ("imdb", 0, "train"),
    "imdb-unlabelled": ("imdb", 0, ["train", str(DATA / "imdb" / "unsup.txt.gz")]),
}
ARMS = ("scratch", "pretrained", "scratch, equal CPU time")


def recipes_of(name: str, preset: str, seed: int, epochs: str, folder: Path) -> tuple[Recipe, Recipe]:
    """The recipes of a set without and with pretraining, with the same numbers; its rows are written to a folder."""
    kind, rows, corpus = SETS[name]
    given = list(READERS[kind]("train"))
    if rows:
        random.Random(0).shuffle(given)
        given = given[:rows]
    data: dict[str, object] = {"train": [_write(folder / "train.jsonl", given)], "tokenizer": "train"}
    if kind != "uci":
        tests = list(READERS[kind]("test"))
        random.Random(0).shuffle(tests)
        data["test"] = [_write(folder / "test.jsonl", tests[:5000])]
    if kind == "rte":
        data["text_pair"] = "text_pair"
    recipe = recipes.load(settings=[f"model.preset={preset}"])
    pretraining = {"corpus": corpus, "epochs": epochs if epochs == "auto" else float(epochs), "seed": seed}
    recipe = recipe.replace(data=data, evaluation={"baseline": "none"})
    preprocess(recipe.part("data"), "", str(folder / "dataset"))
    lengths = open_dataset(folder / "dataset").split("train").lengths
    size = budget.Size(len(lengths), int(lengths.sum()), int(lengths.max()))
    scratch = budget.decide(recipe.replace(training={"seed": seed}), size)
    start = "random" if scratch.training.initialisation == "matching" else scratch.training.initialisation
    return scratch, scratch.replace(training={"initialisation": start}, pretraining=pretraining)


def measure(name: str, preset: str, seed: int, epochs: str, folder: Path) -> Iterator[dict[str, object]]:
    """Run the three trainings; yield a line of the results for each."""
    scratch, recipe = recipes_of(name, preset, seed, epochs, folder)
    data, base = str(folder / "dataset"), str(folder / "base")
    begun = time.process_time()
    pretrain(recipe.to_json(), "", data, base)
    before = time.process_time() - begun
    spent: dict[str, float] = {}
    for arm in ARMS:
        model = str(folder / f"model-{len(spent)}")
        text = continuing(recipe.to_json(), base) if arm == "pretrained" else scratch.to_json()
        if arm == ARMS[2]:
            factor = spent["pretrained"] / spent["scratch"]
            text = scratch.replace(training={"epochs": scratch.training.epochs * factor, "patience": 0}).to_json()
        begun = time.process_time()
        facts = train(text, data, model)
        spent[arm] = time.process_time() - begun + (before if arm == "pretrained" else 0.0)
        out = f"{model}-evaluation"
        evaluate(scratch.to_json(), data, model, out)
        found = json.loads(Path(out, "metrics.json").read_text())
        table = pq.read_table(Path(out, "predictions.parquet"))
        right = [int(a == b) for a, b in zip(table["label"].to_pylist(), table["prediction"].to_pylist(), strict=True)]
        yield {
            "set": name, "preset": preset, "seed": seed, "epochs": epochs, "arm": arm, "steps": facts["global_step"],
            "value": round(found["metrics"]["accuracy"]["value"], 4), "cpu_minutes": round(spent[arm] / 60, 2),
            "right": "".join(map(str, right)),
        }  # fmt: skip


def difference(pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    """Mean difference in accuracy, and its interval: seeds and test rows are drawn with replacement (Efron 1979)."""
    apart = np.array([[int(a) - int(b) for a, b in zip(one, other, strict=True)] for one, other in pairs], float)
    draw = np.random.default_rng(0)
    seeds, rows = apart.shape
    means = [apart[draw.integers(seeds, size=seeds)][:, draw.integers(rows, size=rows)].mean() for _ in range(2000)]
    return (float(apart.mean()), *map(float, np.quantile(means, [0.025, 0.975])))


def table(lines: list[dict]) -> str:
    """One row for each set and preset: the mean over seeds of each arm, and how far the pretrained one is ahead."""
    page = [
        f"| set | preset | seeds | {' | '.join(ARMS)} | against scratch | against equal CPU time | CPU minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, preset in sorted(
        {(one["set"], one["preset"]) for one in lines}, key=lambda k: (list(SETS).index(k[0]), k[1])
    ):
        arms = {
            arm: {one["seed"]: one for one in lines if (one["set"], one["preset"], one["arm"]) == (name, preset, arm)}
            for arm in ARMS
        }
        seeds = sorted(set.intersection(*map(set, arms.values())))
        if not seeds:
            continue
        means = [f"{statistics.mean(arms[arm][seed]['value'] for seed in seeds):.3f}" for arm in ARMS]
        ahead = []
        for other in (ARMS[0], ARMS[2]):
            value, low, high = difference([(arms["pretrained"][s]["right"], arms[other][s]["right"]) for s in seeds])
            ahead.append(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]")
        minutes = " / ".join(f"{statistics.mean(arms[arm][s]['cpu_minutes'] for s in seeds):.1f}" for arm in ARMS)
        page.append(f"| {name} | {preset} | {len(seeds)} | {' | '.join([*means, *ahead])} | {minutes} |")
    return "\n".join(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS)[:3])
    parser.add_argument("--presets", nargs="+", default=["tiny"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", default="auto", help="of the pretraining")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table from the results, and end")
    given = parser.parse_args()
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    done = {(one["set"], one["preset"], one["seed"]) for one in known if one["arm"] == ARMS[2]}
    wanted = [(name, preset, seed) for seed in given.seeds for name in given.only for preset in given.presets]
    for name, preset, seed in [] if given.table else [one for one in wanted if one not in done]:
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(name, preset, seed, given.epochs, Path(folder)):
                known.append(line)
                with given.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print({key: value for key, value in line.items() if key != "right"}, flush=True)
    if given.results == RESULTS:
        head, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
        end = "<!-- end of table -->"
        PAGE.write_text(f"{head}{mark}\n{table(known)}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
