"""Divides a corpus into segments for pretraining. Each depends only on the seed, the epoch and its place.

The documents of a split form one row of tokens, which is cut into stretches of ``step`` tokens. A segment is
``reused A <sep> B <sep> <cls>``: a stretch, and tokens of the ones after it. Without memory no token is reused, and
each epoch shuffles the stretches. With memory, an update continues the segments of the update before. Half of its
texts then read the row from its end, with all tokens reversed, so their memory holds what comes later in the text.

Source: Yang et al. 2019 (XLNet), sections 2.4, 2.5 and 3.1, and the released code: A ends where a document does, if
one ends there; B follows A, or comes from elsewhere in the split, each with probability one half.

Shapes: B segments of L tokens, P predicted places.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from xlnet.data import permutation
from xlnet.data.batches import Rows
from xlnet.data.dataset import Dataset
from xlnet.data.permutation import SegmentBatch, starts_word
from xlnet.data.shapes import Budget, Share
from xlnet.data.tokenizer import load_tokenizer
from xlnet.errors import UserError
from xlnet.recipe import Recipe

SPECIAL = 3  # <sep>, <sep>, <cls>
NEVER = 2**30  # the order of padding, see xlnet.model.streams
EVALUATION = 2**31  # replaces the epoch, so that targets are the same at every evaluation


@dataclass(frozen=True)
class CorpusSegments:
    """How a corpus becomes updates; see :class:`xlnet.data.shapes.Shapes`."""

    length: int  # tokens of a segment: L
    reuse: int  # tokens of each segment that become memory; 0: there is no memory
    one_in: int  # one token in so many is predicted
    seed: int  # seed of targets, orders and shuffling
    special: dict[str, int]  # token ids of ``sep``, ``cls`` and ``pad``
    starts_V: np.ndarray  # for each token, whether it begins a word
    bidirectional: bool = False  # whether half of an update with memory reads backwards

    def __str__(self) -> str:
        return f"segments of {self.length}"

    @property
    def step(self) -> int:
        """Tokens of a stretch."""
        return self.reuse or self.length - SPECIAL

    @property
    def parts(self) -> tuple[int, ...]:
        """Tokens of a segment's parts, each permuted on its own."""
        return (self.reuse, self.length - self.reuse) if self.reuse else (self.length,)

    def stretches(self, lengths: np.ndarray) -> int:
        """Return how many stretches documents of these lengths have.

        Raises:
            UserError: they are fewer tokens than a segment.
        """
        tokens = int(lengths.sum())
        if tokens < self.length:
            raise UserError(
                f"the corpus has {tokens:,} tokens in a split, fewer than the {self.length} of one segment; give more "
                "text, or lower data.max_length"
            )
        return -(-tokens // self.step)

    def at_once(self, lengths: np.ndarray, batch_tokens: int) -> int:
        """Return how many segments an update has at most."""
        return min(self.stretches(lengths), max(1, batch_tokens // self.length))

    def plan(self, lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the segments of each update: ``(epoch * 2 + direction) * stretches + stretch``."""
        count = self.stretches(lengths)
        texts = self.at_once(lengths, batch_tokens)
        if not self.reuse:
            order = np.random.default_rng([seed, epoch]).permutation(count)
            return np.split(order + 2 * epoch * count, range(texts, count, texts))
        ahead, back = (_steps(run) for run in self._runs(count, texts, epoch))
        empty = np.empty(0, np.int64)
        pairs = itertools.zip_longest(ahead, back, fillvalue=empty)
        return [np.concatenate([one, other + count]) + 2 * epoch * count for one, other in pairs]

    def _runs(self, count: int, texts: int, epoch: int) -> tuple["_Runs", "_Runs"]:
        """Divide the stretches among an update's texts: those that read forward, and those that read backward.

        In even epochs the first stretches are read forward and the others backward, in odd epochs vice versa.
        Backward, stretches are counted from the end, so that where the two meet one stretch may be missed.
        """
        run = -(-count // texts)  # each text of an update reads a run of neighbours
        backward = min(count, texts // 2 * run) if self.bidirectional else 0
        if epoch % 2 == 0:
            return _Runs(0, count - backward, run), _Runs(0, backward, run)
        return _Runs(backward, count, run), _Runs(count - backward, count, run)

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """Return one rank's share of an update's segments; its ``texts`` counts predicted tokens."""
        count = self.stretches(split.lengths)
        epoch, stretches, backward = int(rows[0] // (2 * count)), rows % count, rows // count % 2 == 1
        ahead, _ = self._runs(count, self.at_once(split.lengths, budget.batch_tokens), epoch)
        batches: list[SegmentBatch] = []
        predicted = tokens = 0
        for is_backward, first_text in ((False, 0), (True, len(ahead.starts))):
            if (mine := stretches[backward == is_backward]).size:
                whole = self._collate(split, mine, epoch, is_backward, first_text)
                batches += _divided(whole, budget, self.length)
                predicted, tokens = predicted + int(whole.weights_BP.sum()), tokens + whole.tokens
        if self.reuse:
            is_first = bool(not backward[0] and stretches[0] == ahead.first)
            batches = [replace(batch, is_first=is_first) for batch in batches]
        return Share(tuple(batches), predicted, tokens)

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[SegmentBatch]:
        """Yield every stretch once, forward, with the same targets at every evaluation."""
        count = self.stretches(split.lengths)
        if self.reuse:
            texts = self.at_once(split.lengths, batch_tokens)
            updates = list(_steps(_Runs(0, count, -(-count // texts))))
        else:
            texts = max(1, batch_tokens // self.length)
            updates = np.split(np.arange(count), range(texts, count, texts))
        for rows in updates:
            yield replace(self._collate(split, rows, EVALUATION), is_first=bool(rows[0] == 0))

    def _collate(
        self, split: Rows, stretches: np.ndarray, epoch: int, backward: bool = False, first_text: int = 0
    ) -> SegmentBatch:
        tokens, ends = split.tokens, np.cumsum(split.lengths)
        if backward:
            tokens, ends = tokens[::-1], (ends[-1] - ends)[::-1][1:]
        made = [self._segment(tokens, ends, int(one), epoch, backward) for one in stretches]
        most = sum(part // self.one_in for part in self.parts)
        ids, segments, orders, places = zip(*made, strict=True)
        weights_BP = np.array([np.arange(most) < len(place) for place in places], np.float32)
        return SegmentBatch(
            _rectangle(ids, self.length, self.special["pad"], np.int64),
            _rectangle(segments, self.length, 0, np.int32),
            _rectangle(orders, self.length, NEVER, np.int32),
            _rectangle(places, most, 0, np.int64),
            weights_BP,
            stretches,
            True,
            sum(map(len, ids)),
            first_text,
            backward,
        )

    def _segment(
        self, tokens: np.ndarray, ends: np.ndarray, stretch: int, epoch: int, backward: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Make one segment: its token ids, segment ids, order and places."""
        generator = np.random.default_rng([self.seed, epoch, stretch, *[1] * backward])
        begin = stretch * self.step
        reused = tokens[begin : begin + self.reuse]
        ahead = tokens[begin + self.reuse : begin + self.length - SPECIAL]
        cut = _cut_point(ends, begin + len(reused), len(ahead), generator)
        first, second = ahead[:cut], ahead[cut:]
        if len(second) and generator.random() < 0.5:
            start = int(generator.integers(max(1, len(tokens) - len(second))))
            second = tokens[start : start + len(second)]
        sep, cls = [self.special["sep"]], [self.special["cls"]]
        ids = np.concatenate([reused, first, sep, second, sep, cls])
        sizes = [len(reused) + len(first) + 1, len(second) + 1, 1]
        parts = (len(reused), len(ids) - len(reused)) if self.reuse else (len(ids),)
        functional = np.isin(ids, [*sep, *cls])
        targets = permutation.choose(self.starts_V[ids], functional, parts, self.one_in, generator, backward)
        return ids, np.repeat([0, 1, 2], sizes), targets.order_L, targets.place_P


@dataclass(frozen=True)
class _Runs:
    """Cuts the stretches ``first`` to ``end - 1`` into runs of ``run`` consecutive ones.

    Each text of a batch reads one run, a stretch in each update, so that memory carries over.
    """

    first: int
    end: int
    run: int

    @property
    def starts(self) -> np.ndarray:
        """Return the number of each run's first stretch."""
        return np.arange(self.first, self.end, self.run)


def _steps(runs: _Runs) -> Iterator[np.ndarray]:
    """Yield the stretches of each update: one of each run that has not ended."""
    starts = runs.starts
    for step in range(min(runs.run, runs.end - runs.first)):
        rows = starts + step
        yield rows[rows < np.minimum(starts + runs.run, runs.end)]


def _divided(whole: SegmentBatch, budget: Budget, length: int) -> list[SegmentBatch]:
    """Return one rank's parts of a batch."""
    texts = len(whole.index_B)
    pieces = budget.ranks * budget.rounds(texts * length)
    size = -(-texts // pieces)
    rounds = pieces // budget.ranks
    parts = [slice(one * size, (one + 1) * size) for one in range(budget.rank * rounds, (budget.rank + 1) * rounds)]
    if budget.ranks == 1:  # otherwise each rank computes as many parts, even if there is nothing left for one
        parts = [part for part in parts if part.start < texts]
    return [_cut(whole, part) for part in parts]


def _cut_point(ends: np.ndarray, begin: int, length: int, generator: np.random.Generator) -> int:
    """Draw where A ends within ``length`` tokens: at a document's end if there is one, else anywhere."""
    if length < 2:
        return length
    inside = ends[np.searchsorted(ends, begin, "right") : np.searchsorted(ends, begin + length)] - begin
    return int(generator.choice(inside)) if len(inside) else int(generator.integers(1, length))


def _rectangle(rows: tuple[np.ndarray, ...], width: int, fill: int, kind: type) -> np.ndarray:
    full: np.ndarray = np.full((len(rows), width), fill, kind)
    for to, row in zip(full, rows, strict=True):
        to[: len(row)] = row
    return full


def _cut(whole: SegmentBatch, part: slice) -> SegmentBatch:
    """Return some of a batch's segments. An empty part becomes the first segment with weight 0."""
    count = len(whole.index_B)
    weight = 1.0 if part.start < count else 0.0
    part = part if weight else slice(0, 1)
    return replace(
        whole,
        input_ids_BL=whole.input_ids_BL[part],
        segment_ids_BL=whole.segment_ids_BL[part],
        order_BL=whole.order_BL[part],
        place_BP=whole.place_BP[part],
        weights_BP=whole.weights_BP[part] * np.float32(weight),
        index_B=whole.index_B[part],
        first_text=whole.first_text + part.start,
    )


def segments_of(data: Dataset, recipe: Recipe) -> CorpusSegments:
    """Return the segments that a recipe makes of a corpus."""
    tokenizer = load_tokenizer(data.path / "tokenizer")
    starts_V = np.array([starts_word(piece) for piece in tokenizer.pieces])
    given = recipe.pretraining
    return CorpusSegments(
        recipe.data.max_length,
        given.reuse_len,
        given.one_in,
        recipe.training.seed,
        data.card["special_ids"],
        starts_V,
        given.bidirectional,
    )
