"""The preprocess step: streams rows into token ids, and writes a dataset artifact with its card and rejects."""

import contextlib
import errno
import gc
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
from xlnet.data import processes, remarks, seen, shard_tokens, split_files, surveyed, unknown
from xlnet.data import survey as surveys
from xlnet.data.processes import Processes
from xlnet.data.remarks import counted, say
from xlnet.data.shards import Runner, Shards, refuse_unusable
from xlnet.data.snapshot import SPLITS, Snapshot, of, snapshot_node
from xlnet.data.split_files import Pool, SplitWriter
from xlnet.data.survey import Survey
from xlnet.data.surveyed import Surveyed
from xlnet.data.tokenise import CHARACTERS_PER_SECOND, Tokenise
from xlnet.data.tokenizer import Tokenizer, load_tokenizer
from xlnet.data.vocabulary import make_tokenizer, rows_with_a_split
from xlnet.errors import RunError, warn
from xlnet.provenance import Made
from xlnet.recipe import DataRecipe, Recipe

SECONDS_BETWEEN_LINES = 5.0


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
    pool_for = spread(work or f"{out.rstrip('/')}.shards", run)
    with _artifact(whole, out, started) as made:
        made.metadata = _write(made.directory, found, whole.data, out, pool_for)
        made.inputs = [snapshot_node(found, started)]
    return {**made.metadata, "dataset_digest": made.digest}


def join(recipe_json: str, survey: str, tokens: list[str], out: str) -> dict[str, Any]:
    """Write the dataset that :func:`preprocess` writes, byte for byte, from shards that are tokenised.

    Args:
        recipe_json: JSON of a recipe, or of its ``data`` section.
        survey: directory of the survey.
        tokens: directory of each shard's result, in any order.
        out: directory of the artifact to be written.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the vocabulary does not suit the text.
        RunError: a shard is missing, or the disk is full.
    """
    whole = recipes.from_json(recipe_json)
    found = surveyed.load(survey, whole.data)
    with _artifact(whole, out) as made:
        made.metadata = _joined(made.directory, found, tokens, out)
        made.inputs = [shard_tokens.node(tokens)]
    return {**made.metadata, "dataset_digest": made.digest}


@contextlib.contextmanager
def _artifact(whole: Recipe, out: str, started: str = "") -> Iterator[Made]:
    """Yield a dataset to be filled, and then record its recipe and lineage."""
    try:
        with provenance.making(out, "dataset", "preprocess", started) as made, _no_cycle_search():
            yield made
            part = whole.part("data")
            (made.directory / "recipe.json").write_text(part, encoding="utf-8")
            made.parameters = json.loads(part)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"no space left for the dataset at '{out}'; free some and run again") from None
        raise


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
    progress = RowProgress()
    with surveys.rejects_kept(directory / surveyed.REJECTS, out):
        survey, splits = surveys.look(snapshot, recipe, directory / surveyed.REJECTS)
    say(f"read {counted(len(splits), 'row')}, {survey.rejects.total():,} rejected, {progress.seconds():.1f} s")
    tokenizer = make_tokenizer(directory, survey, splits)
    tokenise = Tokenise(str(tokenizer.directory), recipe.task, recipe.max_length, recipe.text_pair is not None)
    with pool_for(tokenise, survey.characters) as pool:
        writers = _writers(directory, survey, lambda: pool)
        for row, source, split in rows_with_a_split(survey, splits):
            writers[split].add(row, source)
            progress.tell("tokenised", 1, len(splits))
        split_files.close(writers, pool)
    return _finish(directory, survey, splits, writers, out, progress)


def _joined(directory: Path, found: Surveyed, tokens: list[str], out: str) -> dict[str, Any]:
    progress = RowProgress()
    survey, splits, recipe = found.survey, found.splits, found.survey.recipe
    shutil.copytree(found.vocabulary, directory / surveyed.VOCABULARY)
    shutil.copyfile(found.directory / surveyed.REJECTS, directory / surveyed.REJECTS)
    tokenise = Tokenise(str(found.vocabulary), recipe.task, recipe.max_length, recipe.text_pair is not None)
    pools = [shard_tokens.Ready(tokenise) for _ in SPLITS]
    waiting = iter(pools)
    writers = _writers(directory, survey, lambda: next(waiting))
    for first, source, batch in shard_tokens.read(found, tokens):
        given = splits[first : first + len(batch)]
        for split, (pool, writer) in enumerate(zip(pools, writers, strict=True)):
            if len(chosen := np.flatnonzero(given == split)):
                rows, ready = shard_tokens.of_split(batch, chosen)
                pool.add(ready)
                for row in rows:
                    writer.add(row, source)
        progress.tell("joined", len(batch), len(splits))
    for writer, pool in zip(writers, pools, strict=True):
        split_files.close([writer], pool)
    return _finish(directory, survey, splits, writers, out, progress)


def _writers(directory: Path, survey: Survey, pool: Callable[[], Pool]) -> list[SplitWriter]:
    recipe = survey.recipe
    classes = survey.classes if recipe.task == "classification" else []
    return [SplitWriter(directory / name, recipe.task, classes, pool()) for name in SPLITS]


class RowProgress:
    """Counts rows, and says every few seconds how many are done."""

    def __init__(self) -> None:
        self.done = 0
        self._begun = self._said = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._begun

    def tell(self, verb: str, rows: int, total: int) -> None:
        """Count rows."""
        self.done += rows
        if self.done % 1024 < rows and time.perf_counter() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.perf_counter()
            say(f"{verb} {self.done:,} of {total:,} rows, {self.done / self.seconds():,.0f} rows/s")


def _finish(
    directory: Path, survey: Survey, splits: np.ndarray, writers: list[SplitWriter], out: str, progress: RowProgress
) -> dict[str, Any]:
    """Write what is left when the splits are there: the hashes of the rows that are trained on, and the card."""
    if remark := unknown.remark({writer.name: writer.counts.unknown for writer in writers}, survey.recipe):
        warn(remark)
    trained = (splits == surveys.TRAIN) | (splits == surveys.VALIDATION)
    seen.write(directory / seen.FILE, np.asarray(survey.hashes)[trained])
    card = _card(survey, splits, load_tokenizer(directory / surveyed.VOCABULARY), writers)
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (directory / "card.json").write_text(text + "\n", encoding="utf-8")
    for remark in remarks.of_card(card, out):
        warn(remark)
    facts = _facts(card)
    seconds, done = progress.seconds(), progress.done
    print(
        f"{counted(done, 'row')}, {facts['tokens']:,} tokens in {seconds:.1f} s ({done / seconds:,.0f} rows/s); "
        f"{card['rejects']['total']:,} rejected, {card['duplicates']['train_test']:,} test rows also in train"
    )
    return facts


def _card(survey: Survey, splits: np.ndarray, tokenizer: Tokenizer, writers: list[SplitWriter]) -> dict[str, Any]:
    return {
        "task": survey.recipe.task,
        "classes": survey.classes if survey.recipe.task == "classification" else [],
        "vocab_size": tokenizer.vocab_size,
        "max_length": survey.recipe.max_length,
        "special_ids": tokenizer.special_ids,
        "files": [file.facts() for file in survey.snapshot.files],
        "splits": {writer.name: writer.facts() for writer in writers},
        "rejects": {"total": survey.rejects.total(), "by_reason": dict(survey.rejects.most_common())},
        "duplicates": surveys.duplicates(survey, splits),
        "snapshot": survey.snapshot.digest,
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
