"""Tokenises rows in shards on any machines: writes shards to a folder, and reads the results in order.

A shard is a file of batches of rows. Its result is another file, which appears whole and marks the shard as done. Both
names are digests of everything that the result depends on. So an interrupted run goes on where it stopped, and never
takes another run's result for its own.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from xlnet import provenance
from xlnet.data import objects
from xlnet.data.tokenise import TokenCounts, Tokenise, Tokenised
from xlnet.errors import CorruptArtifact, Missing, RunError, UserError

SHARD_BYTES = 64 << 20  # bytes of rows in a shard
COUNTS = b"counts"
# Calls a function with each of the items, in any order and on any machine, and returns when all are done.
Runner = Callable[[Callable[[str], None], list[str]], None]


class Shards:
    """Replaces :class:`xlnet.data.processes.Processes` if other machines tokenise the rows.

    Args:
        tokenise: what each batch needs.
        folder: directory, or address in a bucket, that all machines reach.
        run: what spreads the work.
    """

    def __init__(self, tokenise: Tokenise, folder: str, run: Runner) -> None:
        self._folder, self._run = folder.rstrip("/"), run
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._names: list[str] = []
        self._sizes: list[int] = []  # batches of each shard
        self._waiting: list[Callable[[Tokenised], None]] = []
        vocabulary = provenance.digest_directory(tokenise.tokenizer)
        self._key = [
            provenance.code_fingerprint("preprocess"),
            vocabulary,
            *vars(replace(tokenise, tokenizer="")).values(),
        ]
        if objects.is_remote(folder):
            place = f"{self._folder}/vocabulary-{vocabulary[7:23]}"
            objects.upload(tokenise.tokenizer, place)
            tokenise = replace(tokenise, tokenizer=place)
        self._tokenise = tokenise

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # otherwise another try goes on with what is done
            for name in self._names:
                _remove(f"{self._folder}/{name}.rows")
                _remove(f"{self._folder}/{name}.tokens")

    def do(self, rows: pa.RecordBatch, then: Callable[[Tokenised], None]) -> None:
        """Add a batch to the shard at hand; ``then`` is called with its result by :meth:`finish`."""
        self._batches.append(rows)
        self._waiting.append(then)
        self._bytes += rows.nbytes
        if self._bytes >= SHARD_BYTES:
            self._close()

    def finish(self) -> None:
        """Have all shards tokenised, and hand over the results in the order of the batches.

        Raises:
            RunError: a shard could not be tokenised.
        """
        self._close()
        todo = [name for name in dict.fromkeys(self._names) if not _exists(f"{self._folder}/{name}.tokens")]
        if todo:
            self._run(functools.partial(tokenise_shard, self._tokenise, self._folder), todo)
        results = (found for shard in zip(self._names, self._sizes, strict=True) for found in self._results(*shard))
        for then, found in zip(self._waiting, results, strict=True):
            then(found)
        self._waiting = []

    def _results(self, name: str, batches: int) -> Iterator[Tokenised]:
        """Yield the batches of a shard that is done."""
        place = f"{self._folder}/{name}.tokens"
        content = _read(place)
        try:
            with pa.ipc.open_stream(content) as stream:
                for _ in range(batches):
                    found = stream.read_next_batch_with_custom_metadata()
                    yield Tokenised(found.batch, TokenCounts.from_dict(json.loads(found.custom_metadata[COUNTS])))
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise CorruptArtifact(f"the shard '{place}' is damaged ({error}); remove it, and run again") from None

    def _close(self) -> None:
        """Write the current shard."""
        if not self._batches:
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._batches[0].schema) as stream:
            for batch in self._batches:
                stream.write_batch(batch)
        content = sink.getvalue().to_pybytes()
        name = provenance.digest_json([*self._key, hashlib.sha256(content).hexdigest()])[7:39]
        if not _exists(f"{self._folder}/{name}.tokens"):
            _write(f"{self._folder}/{name}.rows", content)
        self._names.append(name)
        self._sizes.append(len(self._batches))
        self._batches, self._bytes = [], 0


def tokenise_shard(tokenise: Tokenise, folder: str, name: str) -> None:
    """Tokenise one shard, unless that is done: a function of its file alone, for whatever machine runs it."""
    if _exists(f"{folder}/{name}.tokens"):
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.open_stream(_read(f"{folder}/{name}.rows")) as rows:
        stream: pa.ipc.RecordBatchStreamWriter | None = None
        for batch in rows:
            found = tokenise(batch)
            stream = stream or pa.ipc.new_stream(sink, found.rows.schema)
            stream.write_batch(found.rows, custom_metadata={COUNTS: json.dumps(found.counts.to_dict())})
    if stream is not None:
        stream.close()
    _write(f"{folder}/{name}.tokens", sink.getvalue().to_pybytes())


def refuse_unusable(folder: str) -> None:
    """Raise UserError if a directory for shards cannot be made or written."""
    if not objects.is_remote(folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"'{folder}' cannot be written: {error.strerror}; name another directory") from None


def _exists(place: str) -> bool:
    if objects.is_remote(place):
        return any(one.uri == place for one in objects.listing(place))
    return Path(place).is_file()


def _read(place: str) -> bytes:
    try:
        return objects.read(place) if objects.is_remote(place) else Path(place).read_bytes()
    except (Missing, FileNotFoundError):
        raise RunError(f"the shard '{place}' is gone; run again") from None


def _write(place: str, content: bytes) -> None:
    if objects.is_remote(place):
        objects.write(place, content)
        return
    provenance.replace_file(Path(place), content)


def _remove(place: str) -> None:
    if objects.is_remote(place):
        objects.delete(place)
    else:
        Path(place).unlink(missing_ok=True)
