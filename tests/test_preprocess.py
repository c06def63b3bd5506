"""Preprocess: splits, classes, duplicates and rejects, all counted; nothing half-written."""

import csv
import json
import os
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from transformers import AutoTokenizer

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import survey as surveys
from xlnet.data.dataset import open_dataset
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import Snapshot, take
from xlnet.errors import RunError, UserError


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def rows_of(count, classes=("no", "yes"), start=0):
    return [(f"sentence number {start + i}", classes[i % len(classes)]) for i in range(count)]


def run(out, **data):
    recipe = recipes.Recipe().replace(data=data).part("data", "model")
    facts = preprocess(recipe, take(recipe).digest, str(out))
    return facts, open_dataset(out)


def test_a_dataset_is_whole_and_says_what_it_holds(tmp_path):
    facts, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows_of(200))])
    assert provenance.verify(tmp_path / "out") == facts["dataset_digest"]
    assert data.card["classes"] == ["no", "yes"]
    parts = data.card["splits"]
    assert [parts[name]["rows"] for name in ("train", "validation", "test")] == [160, 20, 20]
    assert parts["test"]["classes"] == {"no": 10, "yes": 10}, "stratified"
    test = data.split("test").table().to_pylist()
    assert all((row["line"] - 2) % 2 == row["label"] for row in test), "line numbers lead back to the file"
    assert [len(row["input_ids"]) for row in test] == data.split("test").lengths.tolist()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert theirs([row["text"] for row in test])["input_ids"] == [row["input_ids"] for row in test]
    snapshot = provenance.read(tmp_path / "out")["inputs"][0]["artifact"]
    assert snapshot["type"] == "snapshot"
    assert snapshot["metadata"]["files"][0]["checksum"] == provenance.digest_file(tmp_path / "a.csv")


def test_equal_work_gives_equal_bytes_and_order_does_not_move_rows_between_splits(tmp_path):
    rows = rows_of(300)
    first, data = run(tmp_path / "one", train=[write(tmp_path / "a.csv", rows)])
    second, _ = run(tmp_path / "two", train=[str(tmp_path / "a.csv")])
    assert first["dataset_digest"] == second["dataset_digest"]
    random.Random(0).shuffle(rows)
    _, shuffled = run(tmp_path / "three", train=[write(tmp_path / "b.csv", rows)])
    for name in ("validation", "test"):
        texts = [set(one.split(name).table()["text"].to_pylist()) for one in (data, shuffled)]
        assert texts[0] == texts[1]
    _, seeded = run(tmp_path / "four", train=[str(tmp_path / "a.csv")], split_seed=1)
    assert set(seeded.split("test").table()["text"].to_pylist()) != texts[0]


def test_equal_texts_stay_in_one_split(tmp_path):
    rows = [(f"sentence {i // 4}", ("a", "b")[i // 4 % 2]) for i in range(400)]
    _, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows)])
    assert data.card["duplicates"] == {
        "train_test": 0,
        "train_validation": 0,
        "train": data.card["splits"]["train"]["rows"] * 3 // 4,
    }


def test_rows_are_sorted_in_parts_of_any_size(tmp_path, monkeypatch):
    rows = [(f"sentence {i // 3}", "abc"[i % 3]) for i in range(300)]
    path = write(tmp_path / "a.csv", [(*row, i // 2) for i, row in enumerate(rows)], ("text", "label", "id"))
    given = {"train": [path], "id": "id", "max_rejects": 0.9}
    whole, data = run(tmp_path / "whole", **given)
    monkeypatch.setattr(surveys, "ROWS_AT_ONCE", 7)
    parts, _ = run(tmp_path / "parts", **given)
    assert parts["dataset_digest"] == whole["dataset_digest"]
    assert data.card["rejects"]["total"] == 150
    assert data.card["duplicates"]["train"] > 0


@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_a_row_takes_few_bytes_while_splits_are_assigned(monkeypatch, fraction):
    rows = 50_000
    monkeypatch.setattr(surveys, "ROWS_AT_ONCE", 1000)
    recipe = recipes.DataRecipe(test_fraction=fraction)
    survey = surveys.Survey(Snapshot(()), recipe)
    survey.hashes.extend(np.random.default_rng(0).integers(-(2**63), 2**63, rows).tolist())
    survey.labels.extend(i % 2 for i in range(rows))
    survey.given.frombytes(bytes(rows))
    tracemalloc.start()
    splits = surveys.assign(survey, survey.snapshot, recipe, np.zeros(rows, bool))
    surveys.duplicates(survey, splits)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.bincount(splits).tolist() == [rows * (0.9 - fraction), rows * 0.1, rows * fraction]
    assert most / rows < 20, "beside the 13 that the survey keeps"


def test_given_files_keep_their_rows_and_leaks_are_counted(tmp_path):
    train, test = rows_of(100), [*rows_of(20, start=1000), *rows_of(7)]
    facts, data = run(
        tmp_path / "out", train=[write(tmp_path / "a.csv", train)], test=[write(tmp_path / "b.csv", test)]
    )
    assert (facts["test_rows"], facts["train_rows"] + facts["validation_rows"]) == (27, 100)
    assert 0 < data.card["duplicates"]["train_test"] <= 7
    assert data.split("test").table()["text"].to_pylist() == [text for text, _ in test], "in order"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["10", "9", "-1"], ["-1", "9", "10"]), (["b", "a", "10"], ["10", "a", "b"]), (["1.0", "0.0"], ["0.0", "1.0"])],
)
def test_classes_are_sorted_and_stay_as_written(tmp_path, labels, classes):
    _, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows_of(90, labels))])
    assert data.classes == classes
    by_text = {f"sentence number {i}": labels[i % len(labels)] for i in range(90)}
    test = data.split("test").table().to_pylist()
    assert all(classes[row["label"]] == by_text[row["text"]] for row in test)


def test_regression_keeps_values(tmp_path):
    rows = [(f"sentence {i}", i / 7) for i in range(100)] + [("bad", "much"), ("worse", "nan")]
    _, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows)], task="regression")
    assert data.classes == []
    test = data.split("test")
    assert test.labels.dtype == np.float32
    assert [round(float(label) * 7) for label in test.labels] == [
        int(t.split()[1]) for t in test.table()["text"].to_pylist()
    ]
    assert data.card["rejects"]["total"] == 2


def test_pairs_have_two_segments(tmp_path):
    rows = [(f"first {i}", f"second {i}", "ab"[i % 2]) for i in range(60)]
    _, data = run(
        tmp_path / "out", train=[write(tmp_path / "a.csv", rows, ("x", "y", "label"))], text="x", text_pair="y"
    )
    split = data.split("train")
    sep = data.card["special_ids"]["sep"]
    for i in range(len(split)):
        ids = split.tokens[split.offsets[i] : split.offsets[i + 1]].tolist()
        assert ids[split.boundaries[i] - 1] == sep
        assert ids.count(sep) == 2


def test_rejects_are_listed_and_counted(tmp_path):
    path = tmp_path / "a.csv"
    write(path, [*rows_of(200), ("", "yes"), ("nul \0", "yes")])
    with path.open("ab") as file:
        file.write(b"bad \xff,yes\r\n")
    facts, data = run(tmp_path / "out", train=[str(path)])
    assert facts["rejects"] == 3
    assert data.card["rejects"]["by_reason"] == {"empty text": 1, "NUL byte": 1, "not UTF-8": 1}
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [202, 203, 204]
    assert all(reject["file"] == str(path) for reject in rejects)
    assert sum(part["rows"] for part in data.card["splits"].values()) == 200


def test_duplicate_ids_are_rejects(tmp_path):
    rows = [(f"sentence {i}", "ab"[i % 2], i if i != 50 else 49) for i in range(100)]
    _, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows, ("text", "label", "id"))], id="id")
    assert data.card["rejects"]["by_reason"] == {"duplicate id": 1}
    ids = [i for name in ("validation", "test") for i in data.split(name).table()["id"].to_pylist()]
    assert len(ids) == 20
    assert json.loads((tmp_path / "out" / "rejects.jsonl").read_text())["line"] == 52


def test_a_giant_and_a_foreign_text(tmp_path):
    rows = [*rows_of(50), ("word " * 1_000_000, "yes"), ("很好 👍🏽", "no")]
    facts, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows)], max_length=32)
    assert facts["truncated"] == 1
    assert max(data.split(name).lengths.max() for name in ("train", "validation", "test")) == 32


def test_a_vocabulary_of_ones_own(tmp_path):
    rows = [
        (f"{'Häuser' if i % 3 else 'Straße'} größer {i} weiß schönes Wetter {i * 7919}", "ab"[i % 2])
        for i in range(400)
    ]
    train = [write(tmp_path / "a.csv", rows)]
    facts, data = run(tmp_path / "out", train=train, tokenizer="train", vocab_size=64)
    assert data.card["vocab_size"] == 64 == facts["vocab_size"]
    assert not (tmp_path / "out" / "tokenizer" / "corpus.txt").exists()


MISTAKES = {
    "one class only": (rows_of(50, ["x"]), {}, "one class only, 'x'"),
    "empty file": (None, {}, "is empty; give a file with rows"),
    "header only": ([], {}, "has no rows"),
    "numbers": ([(f"s {i}", i / 7) for i in range(100)], {}, "all numbers, such as .*set data.task to 'regression'"),
    "equal numbers": (rows_of(50, ["1", "1.0", "0"]), {}, "has both '1' and '1.0' as classes"),
    "text as label": ([(f"s {i}", f"t {i}") for i in range(1200)], {}, "1,200 classes.*Is it the right column"),
    "no test rows": (rows_of(50), {"test_fraction": 0.0}, "test split has no rows; raise data.test_fraction"),
    "too few rows": (rows_of(4), {}, "split has no rows"),
    "many rejects": (
        [*rows_of(50), *[("", "yes")] * 10],
        {},
        r"10 of 60 rows cannot be used: empty text \(10\); first",
    ),
    "unknown vocabulary": (rows_of(50), {"tokenizer": "bert"}, "data.tokenizer is 'bert'; allowed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line_and_leave_nothing(tmp_path, name):
    rows, data, message = MISTAKES[name]
    path = tmp_path / "a.csv"
    path.write_text("") if rows is None else write(path, rows)
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "out", train=[str(path)], **data)
    assert "\n" not in str(caught.value)
    left = ["a.csv", "out.rejects.jsonl"] if name == "many rejects" else ["a.csv"]
    assert sorted(file.name for file in tmp_path.iterdir()) == left


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        ([*rows_of(50), *[("", "yes")] * 10], {}),
        ([*rows_of(50), *[(f"no class {i}", "") for i in range(10)]], {}),
        ([*rows_of(50, ["yes"]), ("", "no")], {}),  # what is left is one class
        ([("", "yes")] * 3, {"max_rejects": 1.0}),
    ],
)
def test_the_rejects_of_a_run_that_fails_are_kept_and_named(tmp_path, rows, data):
    path = write(tmp_path / "a.csv", rows)
    kept = tmp_path / "made" / "out.rejects.jsonl"
    with pytest.raises(UserError, match=f"; every reject is listed in {kept}$"):
        run(tmp_path / "made" / "out", train=[path], **data)
    bad = [number for number, (text, label) in enumerate(rows, 2) if not text or not label]
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == bad
    write(tmp_path / "a.csv", rows_of(60))
    run(tmp_path / "made" / "out", train=[path])
    assert not kept.exists(), "they are told of a run that is over"


def test_a_class_that_train_lacks(tmp_path):
    train = [write(tmp_path / "a.csv", rows_of(50))]
    test = [write(tmp_path / "b.csv", rows_of(30, ["yes", "no", "maybe"]))]
    with pytest.raises(UserError, match="test has classes that train lacks: 'maybe'"):
        run(tmp_path / "out", train=train, test=test)


def test_input_that_changes_after_the_snapshot_is_refused(tmp_path):
    recipe = recipes.Recipe().replace(data={"train": [write(tmp_path / "a.csv", rows_of(50))]}).part("data", "model")
    digest = take(recipe).digest
    write(tmp_path / "a.csv", rows_of(51))
    with pytest.raises(RunError, match="changed after the snapshot"):
        preprocess(recipe, digest, str(tmp_path / "out"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A real one: a process that may not write files larger than a few kilobytes."""
    recipe = recipes.Recipe().replace(data={"train": [write(tmp_path / "a.csv", rows_of(5000))]}).part("data")
    code = (
        "import resource, signal, sys, errno\n"
        "import xlnet.data.preprocess as p\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "p.errno.EDQUOT = errno.EFBIG\n"  # the limit's own error number stands for the quota's
        "try: p.preprocess(sys.argv[1], '', sys.argv[2])\n"
        "except p.RunError as error: print(error); sys.exit(1)\n"
    )
    command = [sys.executable, "-c", code, recipe, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no space left for the dataset" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_rows_too_many_for_memory_are_read_again_to_the_same_result(tmp_path, monkeypatch):
    train = [write(tmp_path / "a.csv", [*rows_of(300), ("", "yes"), *rows_of(3)])]
    first, _ = run(tmp_path / "one", train=train)
    monkeypatch.setattr("xlnet.data.survey.KEPT_CHARACTERS", 100)
    second, _ = run(tmp_path / "two", train=train)
    assert first["dataset_digest"] == second["dataset_digest"]
    values = [(f"sentence {i}", "much" if i == 7 else i / 7) for i in range(100)]
    _, data = run(tmp_path / "three", train=[write(tmp_path / "b.csv", values)], task="regression")
    assert data.card["rejects"]["by_reason"] == {"label is not a number": 1}


def test_ids_may_start_anew_in_each_split_and_may_be_missing(tmp_path):
    def lines(start):
        rows = [{"text": f"sentence {start + i}", "label": "ab"[i % 2], "id": None if i == 3 else i} for i in range(60)]
        return "".join(json.dumps(row) + "\n" for row in rows)

    for name, start in (("a.jsonl", 0), ("b.jsonl", 1000)):
        (tmp_path / name).write_text(lines(start))
    _, data = run(tmp_path / "out", train=[str(tmp_path / "a.jsonl")], test=[str(tmp_path / "b.jsonl")], id="id")
    assert data.card["rejects"]["total"] == 0


def test_many_batches_and_shards_keep_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("xlnet.data.split_files.BATCH_ROWS", 16)
    monkeypatch.setattr("xlnet.data.split_files.FILE_ROWS", 64)
    facts, data = run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows_of(1000))])
    assert len(list((tmp_path / "out" / "train").iterdir())) == facts["train_rows"] // 64 + 1
    assert data.split("train").table()["row"].to_pylist() == list(range(800))
    assert data.split("train").table().num_rows == 800


def test_real_sets(tmp_path, shared_data):
    """Bare quotes in TSV (sst2, rte), quoted newlines in CSV (imdb), pairs, gzip, different headers."""
    facts, _ = run(
        tmp_path / "sst2",
        train=[str(shared_data / "sst2" / "dev.tsv")],
        test=[str(shared_data / "sst2" / "train.tsv.gz")],
        text=1,
        label=0,
        header="yes",
    )
    assert (facts["train_rows"] + facts["validation_rows"], facts["test_rows"], facts["rejects"]) == (872, 67349, 0)
    facts, data = run(
        tmp_path / "rte",
        train=[str(shared_data / "rte" / "train.tsv")],
        test=[str(shared_data / "rte" / "dev.tsv")],
        text="sentence1",
        text_pair="sentence2",
        label="label",
    )
    assert (facts["train_rows"] + facts["validation_rows"], facts["test_rows"], facts["rejects"]) == (2490, 277, 0)
    assert len(data.classes) == 2


@pytest.mark.slow
def test_gigabytes_pass_in_less_memory(tmp_path):
    """10 GB, or ``XLNET_TEST_GIGABYTES``, by processes and by shards: each process stays below 1 GiB; equal bytes.

    pytest -m slow tests/test_preprocess.py: hours on a few cores.
    """
    words = [f"word{i}" for i in range(5000)]
    generator = random.Random(0)
    lines = [" ".join(generator.choices(words, k=600)) for _ in range(2000)]
    path = tmp_path / "big.tsv"
    with path.open("w") as file:
        file.write("text\tlabel\n")
        number = 0
        while file.tell() < float(os.environ.get("XLNET_TEST_GIGABYTES", 10)) * 1e9:
            file.write(f"{number} {lines[number % len(lines)]}\t{number % 2}\n")
            number += 1
    recipe = recipes.Recipe().replace(data={"train": [str(path)]}).part("data", "model")
    code = (
        "import resource, sys\n"
        "from xlnet.data.preprocess import preprocess\n"
        "from xlnet.data.processes import Processes, number\n"
        "def run(function, names):\n"
        "    with Processes(function, number(1000)) as pool:\n"
        "        for name in names: pool.do(name, lambda _: None)\n"
        "        pool.finish()\n"
        "facts = preprocess(sys.argv[1], '', sys.argv[2], '', run if sys.argv[3] == 'shards' else None)\n"
        "print(facts['dataset_digest'])\n"
        "for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):\n"
        "    used = resource.getrusage(who)\n"
        "    print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)\n"
    )
    digests = set()
    for runner in ("processes", "shards"):
        command = [sys.executable, "-c", code, recipe, str(tmp_path / "out"), runner]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout)
        *_, digest, own, others = done.stdout.splitlines()
        digests.add(digest)
        assert all(int(line.split()[0]) < 1 << 30 for line in (own, others))
    assert len(digests) == 1


def warnings_of(capsys):
    return [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines() if "warning" in line]


def test_what_is_lost_cut_or_twice_is_said(tmp_path, capsys):
    rows = [*rows_of(180), *rows_of(20), *[("word " * 200, "yes")] * 3, ("", "yes"), ("", "no"), ("nul \0", "yes")]
    train = write(tmp_path / "a.csv", rows)
    test = write(tmp_path / "b.csv", [*rows_of(30), *rows_of(70, start=1000)])
    run(tmp_path / "out", train=[train], test=[test], max_length=32)
    said = warnings_of(capsys)
    assert said[0] == (
        "3 of 306 (1%) rows are rejected, most often: empty text (2); "
        f"each is listed in {tmp_path / 'out'}/rejects.jsonl"
    )
    assert said[1].startswith("3 of 303 (1%) texts are longer than data.max_length = 32 tokens and lose their ends")
    assert any(
        "test rows have a text that is also in train: the score is better than it should be" in one for one in said
    )
    assert said[-1].endswith("train rows repeat the text of another")
    run(tmp_path / "clean", train=[write(tmp_path / "c.csv", rows_of(100))])
    assert warnings_of(capsys) == []


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["Pos", "pos"], "classes 'Pos' (45) and 'pos' (45): they differ in upper and lower case alone"),
        (["schön", "scho\u0308n"], "classes 'schön' (45) and 'scho\\u0308n' (45): they differ in their Unicode form"),
        (["so so", "so  so"], "classes 'so so' (45) and 'so  so' (45): they differ in spaces alone"),
        (["ａ", "a"], "(45): they look alike"),
        (["true", "1"], "classes 'true' (45) and '1' (45): are booleans and numbers the same label?"),
        (["False", "0", "x"], "classes 'False' (30) and '0' (30): are booleans and numbers the same label?"),
        (["a", "b", "\ufeffa"], r"label '\ufeffa' counts as class 'a': spaces and marks around a label are taken off"),
        (["a", "b", " a"], "label ' a' counts as class 'a': spaces"),
        (["a", "nan", "b"], "class 'nan' has 30 rows: is it a missing label?"),
        (["-1", "1", "0"], ""),
        (["good", "goods"], ""),
    ],
)
def test_labels_that_may_be_one_are_named(tmp_path, capsys, labels, says):
    run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows_of(90, labels))])
    said = warnings_of(capsys)
    assert len(said) == bool(says)
    assert not says or says in said[0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["--1", "5", "b"], ["--1", "5", "b"]),
        (["9" * 5000, "-" + "8" * 4999, "7"], ["-" + "8" * 4999, "7", "9" * 5000]),
        (["-10", "-9", "10", "9", "0"], ["-10", "-9", "0", "9", "10"]),
        (
            ["9223372036854775807", "9223372036854775806", "9007199254740993"],
            ["9007199254740993", "9223372036854775806", "9223372036854775807"],
        ),
        (["²", "1", "3"], ["1", "3", "²"]),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_class_ids_are_compared_digit_by_digit(tmp_path, labels, classes, form):
    rows = rows_of(90, labels)
    if form == "csv":
        path = write(tmp_path / "a.csv", rows)
    else:
        path = str(tmp_path / "a.jsonl")
        whole = [
            label if label.lstrip("-").isdecimal() and label[:2] != "--" else json.dumps(label) for _, label in rows
        ]
        lines = [
            f'{{"text": {json.dumps(text)}, "label": {label}}}\n' for (text, _), label in zip(rows, whole, strict=True)
        ]
        (tmp_path / "a.jsonl").write_text("".join(lines))
    _, data = run(tmp_path / "out", train=[path])
    assert data.classes == classes


@pytest.mark.parametrize(
    "labels", [["1", "1.0", "0"], ["007", "7"], ["1e3", "1000", "x"], ["-0", "0", "1"], ["+5", "5"]]
)
def test_equal_numbers_written_differently_are_refused(tmp_path, labels):
    with pytest.raises(UserError, match=r"data.label has both '.*' and '.*' as classes; write equal numbers equally"):
        run(tmp_path / "out", train=[write(tmp_path / "a.csv", rows_of(90, labels))])
