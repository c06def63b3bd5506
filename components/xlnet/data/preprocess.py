"""The preprocess step: streams rows into token ids, and writes a dataset artifact with its card and rejects."""

import contextlib
import errno
import gc
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import objects, processes, remarks, seen, split_files, unknown
from xlnet.data import survey as surveys
from xlnet.data.processes import Processes
from xlnet.data.readers import Row
from xlnet.data.remarks import counted, say, warn
from xlnet.data.shards import Runner, Shards, refuse_unusable
from xlnet.data.snapshot import SPLITS, Snapshot, of
from xlnet.data.split_files import Pool, SplitWriter
from xlnet.data.survey import Survey
from xlnet.data.tokenise import Tokenise
from xlnet.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xlnet.data.unigram import TRAINING_SENTENCES
from xlnet.errors import RunError, UserError
from xlnet.recipe import DataRecipe, Recipe

SECONDS_BETWEEN_LINES = 5.0
CHARACTERS_PER_SECOND = 1_000_000  # that one process tokenises


def preprocess(recipe_json: str, snapshot: str, out: str, work: str = "", run: Runner | None = None) -> dict[str, Any]:
    """Turn the input into a dataset artifact.

    Args:
        recipe_json: JSON of a recipe, or of its ``data`` section.
        snapshot: digest that the input must have, as the snapshot step found it; empty: whatever it has.
        out: directory of the artifact to be written.
        work: directory, or address in a bucket, for the shards that other machines tokenise; empty: beside ``out``.
        run: what has them tokenised there; None: processes of this machine tokenise. The bytes are equal.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the input cannot be used as the recipe says.
        RunError: the input changed after the snapshot, or the disk is full.
    """
    started = provenance.now()
    whole = recipes.from_json(recipe_json)
    found = of(Recipe(data=whole.data, model=whole.model))
    if snapshot and found.digest != snapshot:
        raise RunError("the input changed after the snapshot was taken; run again")
    try:
        with provenance.writing(out, "dataset") as directory, _no_cycle_search():
            facts = _write(directory, found, whole.data, out, spread(work or f"{out.rstrip('/')}.shards", run))
            (directory / "recipe.json").write_text(whole.part("data"), encoding="utf-8")
            facts["snapshot_digest"] = found.digest
            lineage = provenance.record(
                directory,
                type="dataset",
                step="preprocess",
                started=started,
                parameters=json.loads(whole.part("data")),
                metadata=facts,
                inputs=[_snapshot_node(found, started)],
            )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"no space left for the dataset at '{out}'; free some and run again") from None
        raise
    return {**facts, "dataset_digest": lineage["artifact"]["digest"]}


@contextlib.contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Turn off the search for reference cycles: millions of rows have none, and searching takes a tenth of the step."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _snapshot_node(snapshot: Snapshot, started: str) -> dict[str, Any]:
    return provenance.node(
        type="snapshot",
        digest=snapshot.digest,
        step="snapshot",
        started=started,
        parameters={},
        metadata={"files": [file.facts() for file in snapshot.files]},
    )


def spread(work: str, run: Runner | None) -> Callable[[Tokenise, int], AbstractContextManager[Pool]]:
    """Return what makes a pool for so many characters of text: processes of this machine, or shards for others."""
    if run:
        refuse_unusable(work)
        return lambda tokenise, characters: Shards(tokenise, work, run)
    return lambda tokenise, characters: Processes(tokenise, processes.number(characters / CHARACTERS_PER_SECOND))


def _write(
    directory: Path,
    snapshot: Snapshot,
    recipe: DataRecipe,
    out: str,
    pool_for: Callable[[Tokenise, int], AbstractContextManager[Pool]],
) -> dict[str, Any]:
    begun = time.perf_counter()
    with _rejects_kept(directory / "rejects.jsonl", out):
        survey, splits = surveys.look(snapshot, recipe, directory / "rejects.jsonl")
    seconds = time.perf_counter() - begun
    say(f"read {counted(len(splits), 'row')}, {survey.rejects.total():,} rejected, {seconds:.1f} s")
    tokenizer = make_tokenizer(directory, survey, splits)
    classes = survey.classes if recipe.task == "classification" else []
    progress = time.perf_counter()
    done = 0
    tokenise = Tokenise(str(tokenizer.directory), recipe.task, recipe.max_length, recipe.text_pair is not None)
    with pool_for(tokenise, survey.characters) as pool:
        writers = [SplitWriter(directory / name, recipe.task, classes, pool) for name in SPLITS]
        for row, source, split in rows_with_a_split(survey, splits):
            writers[split].add(row, source)
            done += 1
            if done % 1024 == 0 and time.perf_counter() - progress > SECONDS_BETWEEN_LINES:
                progress = time.perf_counter()
                say(f"tokenised {done:,} of {len(splits):,} rows, {done / (progress - begun):,.0f} rows/s")
        split_files.close(writers, pool)
    if remark := unknown.remark({writer.name: writer.counts.unknown for writer in writers}, recipe):
        warn(remark)
    trained = (splits == surveys.TRAIN) | (splits == surveys.VALIDATION)
    seen.write(directory / seen.FILE, np.array(survey.hashes, np.int64)[trained])
    card = _card(snapshot, recipe, survey, splits, tokenizer, classes, writers)
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (directory / "card.json").write_text(text + "\n", encoding="utf-8")
    seconds = time.perf_counter() - begun
    for remark in remarks.of_card(card, out):
        warn(remark)
    facts = _facts(card)
    print(
        f"{counted(done, 'row')}, {facts['tokens']:,} tokens in {seconds:.1f} s ({done / seconds:,.0f} rows/s); "
        f"{card['rejects']['total']:,} rejected, {card['duplicates']['train_test']:,} test rows also in train"
    )
    return facts


@contextlib.contextmanager
def _rejects_kept(rejects: Path, out: str) -> Iterator[None]:
    """If the rows cannot be used, keep the list of rejects beside the dataset's path, and name it in the error."""
    kept = Path(f"{out.rstrip('/')}.rejects.jsonl")
    kept.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        if not rejects.is_file() or not rejects.stat().st_size:
            raise
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rejects, kept)
        raise UserError(f"{error}; every reject is listed in {objects.address(str(kept))}") from None


def make_tokenizer(directory: Path, survey: Survey, splits: np.ndarray) -> Tokenizer:
    """The dataset's tokenizer, in ``tokenizer/`` below ``directory``: learnt from the train rows, or copied.

    Raises:
        UserError: there is none, or the text does not support the vocabulary that was asked for.
    """
    recipe = survey.recipe
    folder = directory / "tokenizer"
    if recipe.tokenizer == "train":
        size = f"{recipe.vocab_size:,}" if recipe.vocab_size else "as many"
        say(f"training a vocabulary of {size} tokens{'' if recipe.vocab_size else ' as the text supports'}")
        # Every k-th row, so that a sample of bounded size covers the whole input.
        every = -(-int((splits == surveys.TRAIN).sum()) // TRAINING_SENTENCES)
        rows = (row for row, _, split in rows_with_a_split(survey, splits) if split == surveys.TRAIN)
        texts = (text for row in itertools.islice(rows, 0, None, every) for text in (row.text, row.text_pair) if text)
        train_tokenizer(texts, recipe.vocab_size, folder).save(folder)
    else:
        load_tokenizer(recipe.tokenizer).save(folder)
    return load_tokenizer(folder)


def rows_with_a_split(survey: Survey, splits: np.ndarray) -> Iterator[tuple[Row, int, int]]:
    """Yield every row that has a split, in reading order, as (row, index of its file, split)."""
    for (row, number), split in zip(survey.rows(), splits.tolist(), strict=True):
        if split >= 0:
            yield row, number, split


def _card(
    snapshot: Snapshot,
    recipe: DataRecipe,
    survey: Survey,
    splits: np.ndarray,
    tokenizer: Tokenizer,
    classes: list[str],
    writers: list[SplitWriter],
) -> dict[str, Any]:
    return {
        "task": recipe.task,
        "classes": classes,
        "vocab_size": tokenizer.vocab_size,
        "max_length": recipe.max_length,
        "special_ids": tokenizer.special_ids,
        "files": [file.facts() for file in snapshot.files],
        "splits": {writer.name: writer.facts() for writer in writers},
        "rejects": {"total": survey.rejects.total(), "by_reason": dict(survey.rejects.most_common())},
        "duplicates": surveys.duplicates(survey, splits),
        "snapshot": snapshot.digest,
    }


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    splits = card["splits"]
    return {
        **{f"{name}_rows": part["rows"] for name, part in splits.items()},
        "tokens": sum(part["tokens"] for part in splits.values()),
        "truncated": sum(part["truncated"] for part in splits.values()),
        "classes": len(card["classes"]),
        "vocab_size": card["vocab_size"],
        "rejects": card["rejects"]["total"],
        "duplicates_train_test": card["duplicates"]["train_test"],
        "test_digest": splits["test"]["digest"],
        **provenance.code_facts(),
    }
