"""What the defaults reach: each set beside the project, in several sizes and seeds, with TF-IDF beside each.

    python tests/benchmarks/defaults.py                      # all that is not yet in the results; hours on two cores
    python tests/benchmarks/defaults.py --only sst2-2000 rte # some sets
    python tests/benchmarks/defaults.py --table              # write docs/defaults.md from the results

Each training is a line of the results file, so that what a killed run has found is kept. Settings given with --set are
trials: they go into the file with their settings, and not into the table.
"""

import argparse
import csv
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.evaluation.evaluate import evaluate
from xlnet.training.launch import train

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT.parent / "shared" / "data"
PAGE, RESULTS = CHECKOUT / "docs" / "defaults.md", Path(__file__).with_name("defaults.jsonl")
SETS = {
    "uci": ("uci_sentences", 0), "sst2-500": ("sst2", 500), "sst2-2000": ("sst2", 2000), "sst2-8000": ("sst2", 8000),
    "sst2": ("sst2", 0), "imdb-500": ("imdb", 500), "imdb-2000": ("imdb", 2000), "imdb-8000": ("imdb", 8000),
    "imdb": ("imdb", 0),
    "rte": ("rte", 0), "similarity": ("rte", 0),
}  # fmt: skip


def sst2(split: str) -> Iterator[dict[str, str]]:
    path = DATA / "sst2" / ("train.tsv.gz" if split == "train" else "dev.tsv")
    lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode().splitlines()
    for label, text in (line.split("\t", 1) for line in lines[1:]):
        yield {"text": text, "label": label}


def imdb(split: str) -> Iterator[dict[str, str]]:
    with gzip.open(DATA / "imdb" / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield {"text": row["review"], "label": row["sentiment"]}


def rte(split: str) -> Iterator[dict[str, str]]:
    with (DATA / "rte" / ("train.tsv" if split == "train" else "dev.tsv")).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {"text": row["sentence1"], "text_pair": row["sentence2"], "label": row["label"]}


def similarity(split: str) -> Iterator[dict[str, object]]:
    """Pairs of a hypothesis and a version of it with a share of its words replaced: that share is the value."""
    draw = random.Random(split)
    texts = [row["text_pair"] for row in rte(split)]
    words = [word for text in texts for word in text.split()]
    for text in texts:
        kept = draw.random()
        other = [word if draw.random() < kept else draw.choice(words) for word in text.split()]
        yield {"text": text, "text_pair": " ".join(other), "label": round(5 * kept, 2)}


def uci(_: str) -> Iterator[dict[str, str]]:
    for path in sorted((DATA / "uci_sentences").glob("*_labelled.txt")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if "\t" in line:
                text, label = line.rsplit("\t", 1)
                yield {"text": text, "label": label}


READERS = {"sst2": sst2, "imdb": imdb, "rte": rte, "uci": uci, "similarity": similarity}


def measure(name: str, preset: str, seed: int, settings: list[str], folder: Path) -> dict[str, object]:
    """Preprocess, train and evaluate once; return a line of the results."""
    kind, rows = name.split("-")[0], SETS[name][1]
    given = list(READERS[kind]("train"))
    if rows:
        random.Random(0).shuffle(given)
        given = given[:rows]
    changes: dict[str, dict[str, object]] = {"data": {"train": [_write(folder / "train.jsonl", given)]}}
    if kind != "uci":
        tests = list(READERS[kind]("test"))
        random.Random(0).shuffle(tests)
        changes["data"]["test"] = [_write(folder / "test.jsonl", tests[:5000])]
    if kind in ("rte", "similarity"):
        changes["data"]["text_pair"] = "text_pair"
    if kind == "similarity":
        changes["data"]["task"] = "regression"
    recipe = recipes.load(settings=[f"model.preset={preset}", *settings])
    recipe = recipe.replace(**{**changes, "training": {"seed": seed}})
    text, (data, model, out) = recipe.to_json(), [str(folder / one) for one in ("dataset", "model", "evaluation")]
    preprocess(recipe.part("data"), "", data)
    begun = time.perf_counter()
    facts = train(text, data, model)
    minutes = (time.perf_counter() - begun) / 60
    evaluate(text, data, model, out)
    found = json.loads(Path(out, "metrics.json").read_text())
    primary, base = found["primary"], found["baseline"]
    return {
        "set": name, "preset": preset, "seed": seed, "settings": settings, "metric": primary,
        "rows": base["train_rows"], "test_rows": found["rows"], "minutes": round(minutes, 1),
        "validation": facts.get(f"validation_{primary}"), **_rounded("", found["metrics"][primary]),
        **_rounded("tfidf_", base["metrics"][primary]), **_rounded("difference_", base["difference"]),
        "budget": facts.get("budget", ""),
    }  # fmt: skip


def _rounded(prefix: str, figure: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": round(figure[name], 4) for name in ("value", "low", "high")}


def _write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(lines: list[dict]) -> str:
    """The page: mean and range of the seeds, one row for each set and preset."""
    found: dict[tuple[str, str], list[dict]] = {}
    for line in lines:
        if not line["settings"]:
            found.setdefault((line["set"], line["preset"]), []).append(line)
    page = [
        "| set | rows | preset | seeds | metric | model, mean (range) | interval, first seed | TF-IDF | "
        "difference, first seed | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, preset), runs in sorted(found.items(), key=lambda item: (list(SETS).index(item[0][0]), item[0][1])):
        values, one = [run["value"] for run in runs], runs[0]
        page.append(
            f"| {name} | {one['rows']:,} | {preset} | {len(runs)} | {one['metric']} | {statistics.mean(values):.3f} "
            f"({min(values):.3f} to {max(values):.3f}) | {one['low']:.3f} to {one['high']:.3f} | "
            f"{one['tfidf_value']:.3f} | {one['difference_value']:+.3f} [{one['difference_low']:+.3f}, "
            f"{one['difference_high']:+.3f}] | {statistics.mean(run['minutes'] for run in runs):.1f} |"
        )
    return "\n".join(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--presets", nargs="+", default=["tiny"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="a trial: section.field=value")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the page from the results, and end")
    given = parser.parse_args()
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    if not given.table:
        done = {(one["set"], one["preset"], one["seed"], tuple(one["settings"])) for one in known}
        wanted = [(n, p, s) for s in given.seeds for n in given.only for p in given.presets]
        for name, preset, seed in wanted:
            if (name, preset, seed, tuple(given.set)) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = measure(name, preset, seed, given.set, Path(folder))
            known.append(line)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    if given.results == RESULTS:
        head, mark, _ = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
        PAGE.write_text(f"{head}{mark}\n{table(known)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
