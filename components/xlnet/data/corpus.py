"""The corpus of the pretrain step: a dataset of documents, with the tokenizer of the dataset to train on.

Its documents are files of text or the train rows' texts, never those of validation or test rows.
"""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import processes, seen, split_files
from xlnet.data import snapshot as snapshots
from xlnet.data.columns import Reject, Row
from xlnet.data.dataset import Dataset, open_dataset
from xlnet.data.documents import rows_of
from xlnet.data.processes import Processes
from xlnet.data.readers import file_format
from xlnet.data.remarks import counted, say
from xlnet.data.snapshot import PRETRAINED, SourceFile
from xlnet.data.split_files import SplitWriter
from xlnet.data.storage import Source
from xlnet.data.tokenise import CHARACTERS_PER_SECOND, Tokenise
from xlnet.data.tokenizer import load_tokenizer
from xlnet.errors import RunError, UserError, warn
from xlnet.recipe import OWN_ROWS, DataRecipe, Recipe
from xlnet.recipe.checks import BEFORE_TRAINING, segment_length

CHARACTERS_PER_TOKEN = 4
VALIDATION_SHARE = 10  # one document in so many goes to the validation split
SPLITS = ("train", "validation")
READING = (  # fields of data that say how a corpus is read, too
    "text",
    "text_pair",
    "encoding",
    "delimiter",
    "quoting",
    "quote",
    "tokenizer",
    "max_rejects",
    "max_record_lines",
    "max_record_bytes",
)
Documents = Iterator[tuple[Row | Reject, int]]  # each with the index of its file; -1: a row of the training


def write(dataset: str, given: Recipe, data: DataRecipe, pretrained: str, directory: Path) -> None:
    """Write a corpus as a dataset.

    Args:
        dataset: directory of the dataset artifact to train on.
        given: the recipe; ``pretraining.corpus`` names the corpus.
        data: how the corpus is read.
        pretrained: digest of corpus and pretrained weights in the snapshot; empty accepts any.
        directory: an empty directory.

    Raises:
        UserError: there is too little text, or too much of it cannot be read.
        RunError: the corpus changed after the snapshot.
    """
    started = provenance.now()
    own = open_dataset(dataset)
    remarks: list[str] = []
    files = snapshots.corpus_files(given, [], remarks)
    _refuse_changed(given, files, pretrained)
    for remark in remarks:
        warn(remark)
    shutil.copytree(own.path / "tokenizer", directory / "tokenizer")
    tokenizer = load_tokenizer(directory / "tokenizer")
    rejects: Counter[str] = Counter()
    keys: list[int] = []
    tokenise = Tokenise(str(tokenizer.directory), data.task, data.max_length, data.text_pair is not None)
    characters = sum(file.size for file in files)
    if OWN_ROWS in given.pretraining.corpus:
        characters += CHARACTERS_PER_TOKEN * own.card["splits"]["train"]["tokens"]
    with Processes(tokenise, processes.number(characters / CHARACTERS_PER_SECOND)) as pool:
        writers = [SplitWriter(directory / name, data.task, [], pool) for name in SPLITS]
        for row, number in _documents(own, given, data, files):
            if isinstance(row, Reject):
                rejects[row.reason.partition(": ")[0]] += 1
                continue
            key = seen.key(row.text, row.text_pair)
            keys.append(key)
            writers[key % VALIDATION_SHARE == 0].add(row, number)
        split_files.close(writers, pool)
    _refuse_rejects(rejects, len(keys), data)
    _refuse_short([writer.counts.tokens for writer in writers], data.max_length)
    seen.write(directory / seen.FILE, np.array(keys, np.int64))
    card = {
        "task": "pretrain",
        "classes": [],
        "vocab_size": tokenizer.vocab_size,
        "max_length": data.max_length,
        "special_ids": tokenizer.special_ids,
        "files": [file.facts() for file in files],
        "splits": {writer.name: writer.facts() for writer in writers},
        "rejects": {"total": rejects.total(), "by_reason": dict(rejects.most_common())},
        "snapshot": own.card["snapshot"],
    }
    facts = {f"{writer.name}_rows": writer.counts.rows for writer in writers}
    facts |= {"tokens": sum(writer.counts.tokens for writer in writers), "rejects": rejects.total()}
    say(f"corpus of {counted(len(keys), 'document')}, {facts['tokens']:,} tokens, {rejects.total():,} rejected")
    _record(directory, card, facts, data, [provenance.read(dataset), *_nodes(files, started)], started)


def _record(
    directory: Path,
    card: dict[str, Any],
    facts: dict[str, Any],
    data: DataRecipe,
    inputs: list[dict[str, Any]],
    started: str,
) -> None:
    """Write the dataset's card, recipe and lineage."""
    (directory / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part = Recipe(data=data).part("data")
    (directory / "recipe.json").write_text(part, encoding="utf-8")
    provenance.record(
        directory,
        type="dataset",
        step="pretrain",
        started=started,
        parameters=json.loads(part),
        metadata=facts,
        inputs=inputs,
    )


def _documents(own: Dataset, given: Recipe, data: DataRecipe, files: list[SourceFile]) -> Documents:
    if OWN_ROWS in given.pretraining.corpus:
        table = own.split("train").table()
        texts = zip(table["text"].to_pylist(), table["text_pair"].to_pylist(), strict=True)
        for number, (text, pair) in enumerate(texts):
            yield Row(text, pair, "", None, number + 1), -1
    for number, file in enumerate(files):
        yield from ((row, number) for row in first_documents(file.source, data))


def _nodes(files: list[SourceFile], started: str) -> list[dict[str, Any]]:
    """Return the lineage of the corpus's files as one snapshot; an empty list if there are no files."""
    if not files:
        return []
    facts = [file.facts() for file in files]
    digest = provenance.digest_json(facts)
    found = {"files": facts}
    return [
        provenance.node(type="snapshot", digest=digest, step="snapshot", started=started, parameters={}, metadata=found)
    ]


def _refuse_changed(recipe: Recipe, files: list[SourceFile], pretrained: str) -> None:
    name = recipe.model.pretrained
    weights = snapshots.directory(name) if name and Path(name).is_dir() else []
    facts = [*(SourceFile(PRETRAINED, source).facts() for source in weights), *(file.facts() for file in files)]
    if pretrained and provenance.digest_json(facts) != pretrained:
        raise RunError("the corpus, or the pretrained weights, changed after the snapshot was taken; run again")


def _refuse_rejects(rejects: Counter[str], rows: int, data: DataRecipe) -> None:
    total = rejects.total()
    if total and total / (total + rows) > data.max_rejects:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in rejects.most_common(3))
        raise UserError(
            f"{total:,} of {counted(total + rows, 'document')} of pretraining.corpus cannot be used: {reasons}; "
            "correct them, or raise data.max_rejects"
        )


def _refuse_short(tokens: list[int], length: int) -> None:
    if min(tokens) < length:
        held = f"{tokens[1]:,} of them, those held back to validate on, are"
        what = "they are" if tokens[0] < length else held
        raise UserError(
            f"pretraining.corpus has {sum(tokens):,} tokens; {what} fewer than the {length} of one segment; "
            "give more text, or lower pretraining.max_length"
        )


def reading(recipe: Recipe) -> DataRecipe:
    """Return the settings with which a run's corpus is read: the recipe's for data, without labels."""
    own = {name: getattr(recipe.data, name) for name in READING}
    return Recipe().replace(data={**own, "task": "pretrain", "max_length": segment_length(recipe)}).data


def first_documents(source: Source, data: DataRecipe, limit: int = 0) -> Iterator[Row | Reject]:
    """Read a file of a corpus, or its first ``limit`` documents; plain text has no pairs."""
    is_text = file_format(source, data) == "text"
    rows = rows_of(source, replace(data, text_pair=None) if is_text else data, warn)
    return itertools.islice(rows, limit or None)


def recipe_of(given: Recipe, dataset: str) -> Recipe:
    """Return the recipe of a pretrain step: how its corpus is read, and how long it trains.

    Args:
        given: with the sections ``model`` and ``pretraining`` of the run's recipe.
        dataset: directory of the training's dataset artifact, whose recipe says how files are read.
    """
    data = recipes.of_artifact(dataset).data
    return step_recipe(Recipe(data=data, model=given.model, pretraining=given.pretraining))


def step_recipe(run: Recipe) -> Recipe:
    """Return the recipe of the pretrain step of a run."""
    step = run.pretraining
    budget = {name: getattr(step, name) for name in BEFORE_TRAINING if name != "max_length"}
    return recipes.tiny().replace(
        data=vars(reading(run)),
        model=dict(vars(run.model)),
        training=budget,
        pretraining={name: getattr(step, name) for name in ("one_in", "reuse_len", "mem_len", "bidirectional")},
    )
