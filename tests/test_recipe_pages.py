"""The recipes in docs/how-to/recipes.md work: check, preprocess, a few updates and an evaluation of each."""

import csv
import json
import re
import tomllib
from pathlib import Path

import openpyxl
import pytest

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.evaluation.evaluate import evaluate
from xlnet.training.launch import train
from xlnet_pipeline.cli import main

PAGE = (Path(__file__).resolve().parent.parent / "docs/how-to/recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n.*?```toml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
TINY = {"n_layer": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}


def text_of(i):
    return f"{('dull', 'fine', 'odd')[i % 3]} words about {('trains', 'cheese')[i % 2]}, number {i}"


def mails(path):
    kinds = ["complaint" if i % 20 == 0 else ("praise", "question")[i % 2] for i in range(240)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("body", "kind"), *((text_of(i), kind) for i, kind in enumerate(kinds))])


def recensioni(path):
    rows = [f"È {'bellissimo' if i % 2 else 'noioso'}, perché è così: {i}\t{i % 2}\n" for i in range(120)]
    path.write_bytes(("testo\tvoto\n" + "".join(rows)).encode("cp1252"))


def pairs(path):
    rows = [{"question": f"{text_of(i)}?", "answer": text_of(i + i % 2), "fits": i % 2 == 0} for i in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(path):
    book = openpyxl.Workbook()
    for row in [("comment", "stars"), *((text_of(i), i % 5 + 0.5) for i in range(120))]:
        book.active.append(row)
    book.create_sheet("Sheet2")
    book.save(path)


def reports(path):
    path.write_text("".join(f"{text_of(i)} {'and so on ' * 40}\n" for i in range(60)))
    (path.parent / "topics.txt").write_text("".join(f"{('trains', 'cheese')[i % 2]}\n" for i in range(60)))


FILES = {
    "Three classes, one of them rare": mails,
    "Another language": recensioni,
    "Pairs of texts": pairs,
    "A number instead of a class": scores,
    "Long documents": reports,
}


def test_every_recipe_has_its_rows_here():
    assert list(SECTIONS) == list(FILES)


@pytest.mark.parametrize("title", FILES)
def test_a_recipe_of_the_page_works(tmp_path, monkeypatch, capsys, title):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "code_fingerprint", lambda *_: "sha256:0")
    FILES[title](tmp_path / tomllib.loads(SECTIONS[title])["data"]["train"])
    Path("recipe.toml").write_text(SECTIONS[title])
    assert main(["check", "recipe.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[1].strip()
    recipe = recipes.load("recipe.toml").replace(
        model=TINY, training={"steps": 2}, evaluation={"resamples": 100, "baseline": "none"}
    )
    preprocess(recipe.part("data"), "", "dataset")
    train(recipe.part("model", "training"), "dataset", "model")
    evaluate(recipe.part("evaluation"), "dataset", "model", "evaluation")
    metrics = json.loads(Path("evaluation/metrics.json").read_text())
    wanted = recipe.evaluation.metric
    assert metrics["primary"] == wanted if wanted != "auto" else metrics["primary"] == "accuracy"
    assert metrics["rows"] > 5
    assert metrics["primary"] in metrics["metrics"]
