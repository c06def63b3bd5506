"""The permutation objective: which tokens of a segment are predicted, and in which order.

Source: Yang et al. 2019 (XLNet), sections 2.2 and 2.3 and the released code. Only one token in K is predicted. Targets
are spans of one to five whole words, each within K times as much context. A segment has two parts, and the first
becomes memory. Each part is permuted on its own, and the first part sees nothing of the second.

Shapes: L tokens of a segment, P predicted places.
"""

from dataclasses import dataclass

import numpy as np

LONGEST_SPAN = 5  # words, as in the released code
PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~')


@dataclass(frozen=True)
class Targets:
    """A segment's places to predict, ascending, and the order: int64 [P] and int32 [L]."""

    place_P: np.ndarray
    order_L: np.ndarray


@dataclass(frozen=True)
class SegmentBatch:
    """Segments with their targets, padded at the end to equally many tokens and targets."""

    input_ids_BL: np.ndarray  # int64
    segment_ids_BL: np.ndarray  # int32: 0 reused and A, 1 B, 2 <cls>
    order_BL: np.ndarray  # int32: the factorisation order
    place_BP: np.ndarray  # int64: what is predicted
    weights_BP: np.ndarray  # float32: 1 for places that count
    index_B: np.ndarray  # int64: stretches
    is_first: bool  # nothing comes before these segments: memory is empty
    tokens: int
    first_text: int = 0
    backward: bool = False  # the tokens are reversed, and distances change their sign


def starts_word(piece: str) -> bool:
    """Whether a piece begins a word: it begins with the mark of a space, or it is punctuation or a special token."""
    return piece.startswith(("▁", "<")) or piece in PUNCTUATION


def choose(
    starts_L: np.ndarray,
    functional_L: np.ndarray,
    parts: tuple[int, ...],
    one_in: int,
    generator: np.random.Generator,
    backward: bool = False,
) -> Targets:
    """Draw a segment's targets and order.

    Args:
        starts_L: whether each token begins a word: bool.
        functional_L: whether each token is ``<sep>`` or ``<cls>``, which are never predicted: bool.
        parts: tokens of each part; they add up to L.
        one_in: K.
        generator: where the random numbers come from.
        backward: whether the tokens are reversed, so that words end where they otherwise begin.

    Returns:
        The targets. Tokens that are not predicted see each other, whatever the order, and no target.
    """
    order_L = np.empty(len(starts_L), np.int32)
    places: list[np.ndarray] = []
    first = 0
    for number, length in enumerate(parts):
        part = slice(first, first + length)
        turn = slice(None, None, -1 if backward else 1)
        given = (starts_L[part][turn], functional_L[part][turn])
        chosen_L = _spans(*given, length // one_in, one_in, generator)[turn]
        # Known tokens share the number ``lowest``, others get distinct ones above it; earlier parts have lower ones.
        lowest = first + number - 1
        known_L = ~chosen_L & ~functional_L[part]
        order_L[part] = np.where(known_L, lowest, lowest + 1 + generator.permutation(length))
        places.append(first + np.flatnonzero(chosen_L))
        first += length
    return Targets(np.concatenate(places), order_L)


def _spans(
    starts_L: np.ndarray, functional_L: np.ndarray, wanted: int, one_in: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw spans of whole words until enough tokens are chosen, then single tokens: bool [L]."""
    length = len(starts_L)
    chosen_L = np.zeros(length, bool)
    wanted = min(wanted, int((~functional_L).sum()))
    sizes = np.arange(1, LONGEST_SPAN + 1)
    likely = 1 / sizes / (1 / sizes).sum()
    words = np.append(np.flatnonzero(starts_L | functional_L), length)  # where words begin, and the end
    place, count = 0, 0
    while count < wanted and place < length:
        size = min(int(generator.choice(sizes, p=likely)), wanted - count)
        context = size * one_in
        before = int(generator.integers(context))
        word = int(np.searchsorted(words, place + before))
        if word + size >= len(words):
            break
        begin, end = int(words[word]), int(words[word + size])
        chosen_L[begin:end] = ~functional_L[begin:end]
        count = int(chosen_L.sum())
        place = end + context - before
    free = np.flatnonzero(~chosen_L & ~functional_L)
    if count < wanted:
        chosen_L[generator.choice(free, wanted - count, replace=False)] = True
    elif count > wanted:  # the last word was longer than what was left
        chosen_L[np.flatnonzero(chosen_L)[wanted - count :]] = False
    return chosen_L
