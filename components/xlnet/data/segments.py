"""Segments of a corpus for pretraining: what an update sees, as a function of (seed, epoch, place) alone.

A split's documents are one row of tokens, which is cut into stretches of ``step`` tokens. A segment is
``reused A <sep> B <sep> <cls>``: a stretch, and a look ahead at the ones after it. Without memory nothing is reused,
and stretches are in another order in each epoch. With memory, an update continues the segments of the update before.

Source: Yang et al. 2019 (XLNet), sections 2.4 and 2.5, and the released code: B follows A, or comes from elsewhere in
the split, each with probability one half.

Shapes: B segments of L tokens, P predicted places.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
EVALUATION = 2**31  # in place of an epoch: targets that are the same at every evaluation


@dataclass(frozen=True)
class Segments:
    """How a corpus becomes updates; see :class:`xlnet.data.shapes.Shapes`.

    Attributes:
        length: L.
        reuse: tokens of each segment that become memory; 0: there is no memory.
        one_in: one token in so many is predicted.
        seed: of targets, orders and shuffling.
        special: token ids of ``sep``, ``cls`` and ``pad``.
        starts_V: for each token, whether it begins a word.
    """

    length: int
    reuse: int
    one_in: int
    seed: int
    special: dict[str, int]
    starts_V: np.ndarray

    def __post_init__(self) -> None:
        if self.length <= self.reuse + SPECIAL + 1:
            raise UserError(
                f"data.max_length is {self.length}, too few for pretraining.reuse_len = {self.reuse} and the rest of a "
                f"segment; allowed: {self.reuse + SPECIAL + 2} or more"
            )
        permutation.goal(self.reuse or self.length, self.one_in)
        permutation.goal(self.length - self.reuse, self.one_in)

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
        """Return the segments of each update: ``epoch * stretches + stretch``."""
        count = self.stretches(lengths)
        texts = self.at_once(lengths, batch_tokens)
        if not self.reuse:
            order = np.random.default_rng([seed, epoch]).permutation(count)
            return np.split(order + epoch * count, range(texts, count, texts))
        run = -(-count // texts)  # each text of an update reads a run of neighbours
        starts = np.arange(0, count, run)
        updates = [starts + step for step in range(run)]
        return [rows[rows < np.minimum(starts + run, count)] + epoch * count for rows in updates]

    def share(self, split: Rows, rows: np.ndarray, budget: Budget) -> Share:
        """One rank's share of an update's segments; its ``texts`` are predicted tokens."""
        count = self.stretches(split.lengths)
        whole = self._collate(split, rows % count, int(rows[0] // count), 0)
        pieces = budget.ranks * budget.rounds(len(rows) * self.length)
        size = -(-len(rows) // pieces)
        rounds = pieces // budget.ranks
        mine = range(budget.rank * rounds, (budget.rank + 1) * rounds)
        parts = [slice(one * size, (one + 1) * size) for one in mine]
        if budget.ranks == 1:  # otherwise each rank computes as many parts, even if there is nothing left for one
            parts = [part for part in parts if part.start < len(rows)]
        batches = tuple(_cut(whole, part) for part in parts)
        return Share(batches, int(whole.weights_BP.sum()), whole.tokens)

    def evaluation(self, split: Rows, batch_tokens: int) -> Iterator[SegmentBatch]:
        """Every stretch once, with targets that are the same each time."""
        count = self.stretches(split.lengths)
        for rows in (
            self.plan(split.lengths, batch_tokens, self.seed, 0) if self.reuse else self._in_order(count, batch_tokens)
        ):
            yield self._collate(split, rows, EVALUATION, 0)

    def _in_order(self, count: int, batch_tokens: int) -> list[np.ndarray]:
        texts = max(1, batch_tokens // self.length)
        return np.split(np.arange(count), range(texts, count, texts))

    def _collate(self, split: Rows, stretches: np.ndarray, epoch: int, first_text: int) -> SegmentBatch:
        made = [self._segment(split.tokens, int(one), epoch) for one in stretches]
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
            bool(stretches[0] == 0),
            sum(map(len, ids)),
            first_text,
        )

    def _segment(
        self, tokens: np.ndarray, stretch: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Make one segment: its token ids, segment ids, order and places."""
        generator = np.random.default_rng([self.seed, epoch, stretch])
        begin = stretch * self.step
        reused = tokens[begin : begin + self.reuse]
        ahead = tokens[begin + self.reuse : begin + self.length - SPECIAL]
        cut = int(generator.integers(1, len(ahead))) if len(ahead) > 1 else len(ahead)
        first, second = ahead[:cut], ahead[cut:]
        if len(second) and generator.random() < 0.5:
            start = int(generator.integers(max(1, len(tokens) - len(second))))
            second = tokens[start : start + len(second)]
        sep, cls = [self.special["sep"]], [self.special["cls"]]
        ids = np.concatenate([reused, first, sep, second, sep, cls])
        sizes = [len(reused) + len(first) + 1, len(second) + 1, 1]
        parts = (len(reused), len(ids) - len(reused)) if self.reuse else (len(ids),)
        functional = np.isin(ids, [*sep, *cls])
        targets = permutation.choose(self.starts_V[ids], functional, parts, self.one_in, generator)
        return ids, np.repeat([0, 1, 2], sizes), targets.order_L, targets.place_P


def _rectangle(rows: tuple[np.ndarray, ...], width: int, fill: int, kind: type) -> np.ndarray:
    full: np.ndarray = np.full((len(rows), width), fill, kind)
    for to, row in zip(full, rows, strict=True):
        to[: len(row)] = row
    return full


def _cut(whole: SegmentBatch, part: slice) -> SegmentBatch:
    """Return some of a batch's segments; none become the first one with weight 0."""
    count = len(whole.index_B)
    weight = 1.0 if part.start < count else 0.0
    part = part if weight else slice(0, 1)
    return SegmentBatch(
        whole.input_ids_BL[part],
        whole.segment_ids_BL[part],
        whole.order_BL[part],
        whole.place_BP[part],
        whole.weights_BP[part] * np.float32(weight),
        whole.index_B[part],
        whole.is_first,
        whole.tokens,
        part.start,
    )


def segments_of(data: Dataset, recipe: Recipe) -> Segments:
    """Return the segments that a recipe makes of a corpus.

    Raises:
        UserError: the recipe's numbers do not fit together.
    """
    tokenizer = load_tokenizer(data.path / "tokenizer")
    starts_V = np.array([starts_word(piece) for piece in tokenizer.pieces])
    given = recipe.pretraining
    return Segments(
        recipe.data.max_length, given.reuse_len, given.one_in, recipe.training.seed, data.card["special_ids"], starts_V
    )
