"""The tokenise step: tokenises one shard of a survey, on whatever machine; and what reads its result.

The result depends on the shard's rows and on the vocabulary, not on splits, classes or other shards.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import processes, seen, surveyed
from xlnet.data.documents import rows_of
from xlnet.data.processes import Processes
from xlnet.data.readers import Row
from xlnet.data.split_files import BATCH_CHARACTERS, BATCH_ROWS
from xlnet.data.surveyed import Shard, Surveyed
from xlnet.data.tokenise import CHARACTERS_PER_SECOND, TOKENS, TRUNCATED, Tokenise, Tokenised, joined
from xlnet.errors import CorruptArtifact, RunError
from xlnet.recipe import DataRecipe

FILE = "tokens.arrow"
TEXTS = pa.schema([(name, pa.string()) for name in ("text", "text_pair", "label", "id")] + [("line", pa.int64())])


def tokenise(recipe_json: str, shard: str, survey: str, out: str) -> dict[str, Any]:
    """Tokenise one shard, with all cores of this machine.

    Args:
        recipe_json: JSON of a recipe, or of its ``data`` section.
        shard: the shard's key.
        survey: directory of the survey.
        out: directory of the artifact to be written.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: the survey has no such shard.
        RunError: the input changed after the survey.
    """
    recipe = recipes.from_json(recipe_json).data
    found = surveyed.load(survey, recipe)
    part = found.shard(shard)
    with provenance.making(out, "tokens", "tokenise") as made:
        with pa.OSFile(str(made.directory / FILE), "wb") as file:
            tokens = _write(file, _rows(found, part), part.rows, _work(found, recipe))
        facts = {"shard": shard, "rows": part.rows, "tokens": tokens}
        made.parameters, made.metadata, made.inputs = {"shard": shard}, facts, [provenance.read(survey)]
    print(f"{part.rows:,} rows, {tokens:,} tokens")
    return facts


def _rows(found: Surveyed, shard: Shard) -> Iterator[Row]:
    """Yield a shard's rows; RunError if they are not those of the survey."""
    hashes = found.survey.hashes[shard.first : shard.first + shard.rows]
    number = 0
    for piece in shard.pieces:
        source = found.survey.snapshot.files[piece.file].source
        rows = (row for row in rows_of(source, found.survey.recipe) if isinstance(row, Row))
        for row in itertools.islice(rows, piece.first, piece.stop):
            if seen.key(row.text, row.text_pair) != hashes[number]:
                raise RunError(f"'{source.uri}' changed after the survey; run again")
            number += 1
            yield row
    if number != shard.rows:
        raise RunError(f"the input has {shard.rows - number:,} rows less than at the survey; run again")


def _work(found: Surveyed, recipe: DataRecipe) -> Tokenise:
    return Tokenise(str(found.vocabulary), recipe.task, recipe.max_length, recipe.text_pair is not None)


def _write(file: Any, rows: Iterator[Row], number: int, work: Tokenise) -> int:
    """Write so many rows with their tokens; return the number of tokens."""
    batches = _batches(rows)
    first = list(itertools.islice(batches, 1))
    characters = sum(len(text) * number / len(batch) for batch in first for text in batch.column("text").to_pylist())
    written: list[int] = []
    stream: pa.ipc.RecordBatchStreamWriter | None = None

    def write(texts: pa.RecordBatch, tokens: pa.RecordBatch) -> None:
        nonlocal stream
        columns = [*texts.columns, *tokens.columns]
        whole = pa.record_batch(columns, names=[*texts.schema.names, *tokens.schema.names])
        stream = stream or pa.ipc.new_stream(file, whole.schema)
        stream.write_batch(whole)
        written.append(len(tokens.column(TOKENS[0]).flatten()))

    with Processes(work.tokens, processes.number(characters / CHARACTERS_PER_SECOND)) as pool:
        for batch in itertools.chain(first, batches):
            pool.do(batch, partial(write, batch))
        pool.finish()
    if stream is not None:
        stream.close()
    return sum(written)


def _batches(rows: Iterator[Row]) -> Iterator[pa.RecordBatch]:
    """Yield batches in the schema TEXTS; memory holds a few of them."""
    held: list[Row] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += len(row.text) + len(row.text_pair or "")
        if len(held) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield _batch(held)
            held, characters = [], 0
    if held:
        yield _batch(held)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    columns = [pa.array([getattr(row, one.name) for row in rows], one.type) for one in TEXTS]
    return pa.record_batch(columns, schema=TEXTS)


class Ready:
    """Stands for the pool of a split's writer where the rows come with their tokens."""

    def __init__(self, tokenise: Tokenise) -> None:
        self._tokenise = tokenise
        self._tokens: deque[pa.RecordBatch] = deque()

    def add(self, tokens: pa.RecordBatch) -> None:
        """Take the tokens of the next rows."""
        self._tokens.append(tokens)

    def do(self, rows: pa.RecordBatch, then: Callable[[Tokenised], None]) -> None:
        """Put rows and their tokens together, and call ``then`` with both."""
        parts: list[pa.RecordBatch] = []
        left = len(rows)
        while left:
            head = self._tokens.popleft()
            if len(head) > left:
                self._tokens.appendleft(head.slice(left))
                head = head.slice(0, left)
            parts.append(head)
            left -= len(head)
        then(self._tokenise.finished(rows, joined(parts)))

    def finish(self) -> None:
        """Return at once, because every batch is done."""


def read(found: Surveyed, directories: list[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Yield (index of the first row, index of the file, rows with their tokens) in reading order.

    Raises:
        RunError: a shard is missing, or a directory does not hold a result of this survey.
        CorruptArtifact: a result cannot be read.
    """
    places = {str(provenance.read(one)["artifact"]["metadata"]["shard"]): one for one in directories}
    lacking = [shard.key for shard in found.shards if shard.key not in places]
    if lacking:
        raise RunError(
            f"{len(lacking)} of {len(found.shards)} shards are not tokenised, such as {lacking[0]}; run again"
        )
    for shard in found.shards:
        file = Path(places[shard.key], FILE)
        row = shard.first
        ends = [(piece.stop - piece.first, piece.file) for piece in shard.pieces]
        try:
            for batch in _stream(file) if shard.rows else ():
                while len(batch):
                    left, source = ends[0]
                    part = batch.slice(0, left)
                    yield row, source, part
                    row, batch = row + len(part), batch.slice(len(part))
                    ends[0] = (left - len(part), source)
                    ends = ends[not ends[0][0] :]
        except (pa.ArrowException, OSError, IndexError) as error:
            raise CorruptArtifact(f"the shard '{file}' is damaged ({error}); remove it, and run again") from None
        if ends:
            raise CorruptArtifact(f"the shard '{file}' is damaged (rows are missing); remove it, and run again")


def node(directories: list[str]) -> dict[str, Any]:
    """Return one node of the lineage graph for all shards: a graph with a node for each would hide the rest."""
    shards = [provenance.read(one) for one in dict.fromkeys(directories)]
    digests = sorted(one["artifact"]["digest"] for one in shards)
    facts = [one["artifact"]["metadata"] for one in shards]
    counts = {name: sum(one[name] for one in facts) for name in ("rows", "tokens")}
    metadata = {"shards": len(shards), **counts}
    artifact = {"type": "tokens", "digest": provenance.digest_json(digests), "metadata": metadata}
    times = [(one["execution"]["started"], one["execution"]["ended"]) for one in shards]
    execution = shards[0]["execution"] | {
        "parameters": {"shards": digests},
        "started": min(started for started, _ in times),
        "ended": max(ended for _, ended in times),
    }
    return {**shards[0], "artifact": artifact, "execution": execution}


def _stream(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(file), "rb") as opened, pa.ipc.open_stream(opened) as stream:
        yield from stream


def of_split(batch: pa.RecordBatch, chosen: np.ndarray) -> tuple[list[Row], pa.RecordBatch]:
    """Return the rows at these indices of a batch, and the columns of their tokens."""
    part = batch if len(chosen) == len(batch) else batch.take(pa.array(chosen))
    columns = (part.column(name).to_pylist() for name in ("text", "text_pair", "label", "id", "line"))
    return [Row(*fields) for fields in zip(*columns, strict=True)], part.select([*TOKENS, TRUNCATED])
