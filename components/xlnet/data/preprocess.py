"""The preprocess step: streams rows into token ids, and writes a dataset artifact with its card and rejects."""

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import objects, remarks, seen, unknown
from xlnet.data import survey as surveys
from xlnet.data.dataset import schema
from xlnet.data.readers import Row
from xlnet.data.remarks import counted, say, warn
from xlnet.data.snapshot import SPLITS, Snapshot, of
from xlnet.data.survey import Survey
from xlnet.data.tokenizer import Encoded, Tokenizer, load_tokenizer, train_tokenizer
from xlnet.data.unigram import TRAINING_SENTENCES
from xlnet.errors import RunError, UserError
from xlnet.recipe import DataRecipe, Recipe

BATCH_ROWS = 2048  # rows tokenised and written at once
BATCH_CHARACTERS = 8_000_000  # or fewer, where texts are long
SHARD_ROWS = 131_072
SECONDS_BETWEEN_LINES = 5.0
HISTOGRAM = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 20)


def preprocess(recipe_json: str, snapshot: str, out: str) -> dict[str, Any]:
    """Turn the input into a dataset artifact.

    Args:
        recipe_json: JSON of a recipe, or of its ``data`` section.
        snapshot: digest that the input must have, as the snapshot step found it; empty: whatever it has.
        out: directory of the artifact to be written.

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
            facts = _write(directory, found, whole.data, out)
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


def _write(directory: Path, snapshot: Snapshot, recipe: DataRecipe, out: str) -> dict[str, Any]:
    begun = time.perf_counter()
    with _rejects_kept(directory / "rejects.jsonl", out):
        survey, splits = surveys.look(snapshot, recipe, directory / "rejects.jsonl")
    seconds = time.perf_counter() - begun
    say(f"read {counted(len(splits), 'row')}, {survey.rejects.total():,} rejected, {seconds:.1f} s")
    tokenizer = make_tokenizer(directory, survey, splits)
    classes = survey.classes if recipe.task == "classification" else []
    progress = time.perf_counter()
    done = 0
    with WriteQueue() as queue:
        writers = [SplitWriter(directory / name, name, recipe, tokenizer, classes, queue) for name in SPLITS]
        for row, source, split in rows_with_a_split(survey, splits):
            writers[split].add(row, source)
            done += 1
            if done % 1024 == 0 and time.perf_counter() - progress > SECONDS_BETWEEN_LINES:
                progress = time.perf_counter()
                say(f"tokenised {done:,} of {len(splits):,} rows, {done / (progress - begun):,.0f} rows/s")
        for writer in writers:
            writer.close()
    if remark := unknown.remark({writer.name: writer.unknown for writer in writers}, recipe):
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


class WriteQueue:
    """Tokenises and writes batches in two threads, in order, while the reader goes on."""

    def __init__(self) -> None:
        self.tokenising, self.writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "WriteQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self.tokenising.shutdown(cancel_futures=True)
        self.writing.shutdown(cancel_futures=True)

    def do(self, tokenise: Callable[[], Encoded], write: Callable[[Encoded], None]) -> None:
        """Queue a batch, of which at most three wait; raises what an earlier one raised."""
        while len(self.waiting) >= 3:
            self.waiting.popleft().result()
        encoded = self.tokenising.submit(tokenise)
        self.waiting.append(self.writing.submit(lambda: write(encoded.result())))

    def finish(self) -> None:
        """Wait for all of them."""
        while self.waiting:
            self.waiting.popleft().result()


@dataclass
class SplitWriter:
    """One split: tokenises in batches and writes Arrow shards."""

    directory: Path
    name: str
    recipe: DataRecipe
    tokenizer: Tokenizer
    classes: list[str]
    queue: WriteQueue
    rows: list[tuple[Row, int]] = field(default_factory=list)
    characters: int = 0
    written: int = 0
    tokens: int = 0
    truncated: int = 0
    shard: int = 0

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.schema = schema(self.recipe.task)
        self.index = {name: i for i, name in enumerate(self.classes)}
        self.counts: Counter[str] = Counter()
        self.histogram = np.zeros(len(HISTOGRAM), np.int64)
        self.unknown = unknown.Unknown()
        self.content = hashlib.sha256()
        self.file: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, row: Row, source: int) -> None:
        """Take one row; memory holds at most a batch of them."""
        self.rows.append((row, source))
        self.characters += len(row.text) + len(row.text_pair or "")
        if len(self.rows) >= BATCH_ROWS or self.characters >= BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self.queue.finish()
        if self.file is not None:
            self.file.close()

    def _flush(self) -> None:
        if self.rows:
            batch, self.rows, self.characters = self.rows, [], 0
            self.queue.do(lambda: self._tokenise(batch), lambda encoded: self._write(batch, encoded))

    def _tokenise(self, batch: list[tuple[Row, int]]) -> Encoded:
        pairs = [row.text_pair for row, _ in batch] if self.recipe.text_pair is not None else None
        texts = [row.text for row, _ in batch]
        if self.recipe.task == "pretrain":
            return self.tokenizer.encode_documents(texts, pairs)
        return self.tokenizer.encode(texts, pairs, self.recipe.max_length)

    def _write(self, batch: list[tuple[Row, int]], encoded: Encoded) -> None:
        rows = [row for row, _ in batch]
        lengths = np.fromiter(map(len, encoded.input_ids), np.int64, len(rows))
        flat = np.fromiter(itertools.chain.from_iterable(encoded.input_ids), np.int32, int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns: dict[str, Any] = {
            "input_ids": pa.ListArray.from_arrays(offsets, flat),
            "boundary": encoded.boundaries,
            "label": self._labels(rows),
            "row": range(self.written, self.written + len(rows)),
            "source": [source for _, source in batch],
            "line": [row.line for row in rows],
        }
        columns |= {"text": [row.text for row in rows], "text_pair": [row.text_pair for row in rows]}
        columns["id"] = [row.id for row in rows]
        arrays = [
            value if isinstance(value, pa.Array) else pa.array(value, self.schema.field(name).type)
            for name, value in columns.items()
        ]
        self._shard().write_batch(pa.record_batch(arrays, schema=self.schema))
        self.unknown.add(flat, lengths, self.tokenizer)
        self._count(rows, lengths, encoded.truncated)

    def _labels(self, rows: list[Row]) -> list[Any]:
        if self.recipe.task == "regression":
            return [float(row.label) for row in rows]
        if self.recipe.task == "pretrain":
            return [0] * len(rows)
        return [self.index[row.label] for row in rows]

    def _shard(self) -> pa.ipc.RecordBatchFileWriter:
        number = self.written // SHARD_ROWS
        if self.file is None or number != self.shard:
            if self.file is not None:
                self.file.close()
            self.shard = number
            self.file = pa.ipc.new_file(str(self.directory / f"{number:05}.arrow"), self.schema)
        return self.file

    def _count(self, rows: list[Row], lengths: np.ndarray, truncated: list[bool]) -> None:
        self.written += len(rows)
        self.tokens += int(lengths.sum())
        self.truncated += sum(truncated)
        self.histogram += np.bincount(np.searchsorted(HISTOGRAM, lengths), minlength=len(HISTOGRAM))
        if self.recipe.task == "classification":
            self.counts.update(row.label for row in rows)
        # No text holds a NUL: the reader rejects it.
        fields = (f"{row.text}\0{row.text_pair or ''}\0{row.label}\0" for row in rows)
        self.content.update("".join(fields).encode())

    def facts(self) -> dict[str, Any]:
        """The split's part of the card."""
        used = int(np.flatnonzero(self.histogram).max()) + 1 if self.written else 0
        return {
            "rows": self.written,
            "tokens": self.tokens,
            "classes": {name: self.counts[name] for name in self.classes},
            "length_histogram": [[HISTOGRAM[i], int(self.histogram[i])] for i in range(used)],
            "truncated": self.truncated,
            "unknown_tokens": self.unknown.unknown_tokens,
            "digest": "sha256:" + self.content.hexdigest(),
        }


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
