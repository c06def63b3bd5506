"""Fits a linear model of token counts: ridge regression for values, the mean of two logistic regressions for classes.

The two see different features: counts times inverse document frequencies, and counts times naive Bayes' log ratios.
A few thousand rows hold most words too seldom, so words with parts in common share parts of their weights: besides each
token, its spelling without case and mark is counted, and each run of 3 to 5 characters in it. Since all of these follow
from the token, the model is a weight for each token in the end.

Shapes: S rows, T tokens of all rows, V tokens of the vocabulary, G spellings and runs of characters, F = V + G
features, C outputs, K directions of the outputs (at most C - 1 for classes, 1 for values).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.data.batches import Rows, cut_by_tokens

# C of the regressions, on rows of about unit length, chosen on held-out train rows. A token's count is multiplied with
# its inverse document frequency, or with the logarithm of how much more often a class has it (naive Bayes).
BY_FREQUENCY, BY_CLASS = 0.025, 1.6
SHORTEST, LONGEST = 3, 5  # characters of a run
ITERATIONS = 100  # maximum number of L-BFGS iterations
HISTORY = 10  # of their steps, each as large as the weights: many classes would need gigabytes for more
MOST_COUNTS = 30_000_000  # tokens × outputs to fit on, about 40 s on two cores; larger sets are thinned out
MOST_CLASSES = 200  # with more, runs of characters would need gigabytes, and are not counted
AT_ONCE = 100_000  # tokens whose spellings are counted at once
CLS_SCALE = 3.0  # value of the feature that is the same in every row; its weight is the intercept


@dataclass(frozen=True)
class LinearModel:
    """A linear model of token counts. A row's answer is the mean of its tokens' weights, plus the weights of ``<cls>``.

    Attributes:
        table_VK: each token's weights along the directions.
        directions_KC: orthonormal directions of the answers, the one with the largest spread first.
        spread_K: root mean square of the train rows' answers along each direction.
        shift: added to the answer: the mean of the values; 0 for classes.
    """

    table_VK: Tensor
    directions_KC: Tensor
    spread_K: Tensor
    shift: float


class Spellings:
    """What is counted of each token besides itself: its spelling, then the runs of characters in it.

    Attributes:
        count: G.
        features_N: the features of all tokens, those of the first token first.
        lengths_V: how many of them each token has.
        offsets_V: each token's first feature, which is its spelling.
    """

    def __init__(self, features_N: np.ndarray, lengths_V: np.ndarray, count: int) -> None:
        """Keep the features of all tokens; ``lengths_V`` says how many each token has."""
        self.features_N, self.lengths_V, self.count = features_N, lengths_V, count
        self.offsets_V = np.cumsum(lengths_V) - lengths_V

    @staticmethod
    def of(pieces: Sequence[str], vocabulary: int, classes: int = 0) -> "Spellings":
        """Find the features of tokens.

        Args:
            pieces: the text of each token.
            vocabulary: V; rows of the table after the last piece stand alone.
            classes: number of classes that are told apart.
        """
        numbers: dict[tuple[bool, str], int] = {}
        features_of = []
        for token in range(vocabulary):
            piece = pieces[token] if token < len(pieces) else f"<{token}>"
            spelling = piece.lower().removeprefix("▁")
            names = [(True, spelling)]
            is_word = not (piece.startswith("<") and piece.endswith(">"))  # the runs of "<cls>" mean nothing
            if is_word and classes <= MOST_CLASSES:
                marked = "▁" * piece.startswith("▁") + spelling
                starts = range(len(marked) - SHORTEST + 1)
                runs = {marked[start : start + size] for size in range(SHORTEST, LONGEST + 1) for start in starts}
                names += [(False, run) for run in sorted(runs) if len(run) >= SHORTEST]
            features_of.append([numbers.setdefault(name, len(numbers)) for name in names])
        lengths_V = np.array([len(features) for features in features_of], np.int64)
        return Spellings(np.array([one for features in features_of for one in features]), lengths_V, len(numbers))

    def only(self, tokens_U: np.ndarray) -> tuple["Spellings", np.ndarray]:
        """Return the spellings of some tokens, numbered anew, and the present numbers of their features."""
        kept_G, features_N = np.unique(self.features_N[self.place(tokens_U)], return_inverse=True)
        return Spellings(features_N, self.lengths_V[tokens_U], len(kept_G)), kept_G

    def sums(self, weights_GC: Tensor) -> Tensor:
        """Sum the weights of each token's features: [V, C]."""
        features_N, offsets_V = torch.from_numpy(self.features_N), torch.from_numpy(self.offsets_V)
        return F.embedding_bag(features_N, weights_GC, offsets_V, mode="sum")

    def place(self, tokens_P: np.ndarray) -> np.ndarray:
        """Return where in ``features_N`` the features of these tokens are, those of the first token first."""
        return _runs(self.offsets_V[tokens_P], self.lengths_V[tokens_P])


def fit(
    split: Rows, spellings: Spellings, classes: int, class_weights: np.ndarray | None = None, most: int = 32
) -> LinearModel | None:
    """Fit a linear model to train rows: logistic regression for classes, ridge regression for values.

    Args:
        split: the train rows.
        spellings: the spellings of the vocabulary.
        classes: number of classes; 0 if the labels are values.
        class_weights: weight of each class in the loss, [C]; None: 1 each.
        most: most directions to keep, K.

    Returns:
        The model; None if all labels are equal.
    """
    if not len(split.labels) or np.ptp(split.labels) == 0:
        return None
    every = math.ceil(len(split.tokens) * max(1, classes) / MOST_COUNTS)
    bags, labels_S = _Bags.of(split, np.arange(0, len(split.labels), every), spellings), split.labels[::every]
    shift = 0.0 if classes else float(labels_S.mean())
    if classes:
        weights_FC = _of_classes(bags, torch.from_numpy(labels_S.astype(np.int64)), classes, class_weights)
    else:
        weights_FC = _of_values(bags, torch.from_numpy(labels_S.astype(np.float32) - shift))
    answers_SC = bags.answers(weights_FC).double()
    moments_C, directions_CC = torch.linalg.eigh(answers_SC.T @ answers_SC / len(answers_SC))
    directions_KC = directions_CC.T.flip(0)[: min(most, max(1, classes - 1))].float()  # eigenvalues ascend
    spread_K = moments_C.flip(0)[: len(directions_KC)].clamp(min=0).sqrt().float()
    return LinearModel(bags.table(weights_FC, spellings) @ directions_KC.T, directions_KC, spread_K, shift)


def _of_classes(bags: "_Bags", classes_S: Tensor, classes: int, class_weights: np.ndarray | None) -> Tensor:
    """Return the features' weights: the mean of two logistic regressions, better than either on every set tried."""
    weights_C = None if class_weights is None else torch.from_numpy(class_weights)
    loss = partial(F.cross_entropy, target=classes_S, weight=weights_C)
    counts_FC = bags.rows_with(classes_S, classes)
    scales = (bags.by_frequency(counts_FC), BY_FREQUENCY), (bags.by_class(counts_FC), BY_CLASS)
    found = [_minimise(bags, scale_FC, inverse_penalty, loss, classes) for scale_FC, inverse_penalty in scales]
    found = [weights_FC - weights_FC.mean(1, keepdim=True) for weights_FC in found]  # this changes no answer
    spread_2 = torch.stack([bags.answers(weights_FC).square().mean().sqrt() for weights_FC in found])
    shares_2 = spread_2.mean() / 2 / spread_2.clamp(min=1e-12)
    return found[0] * shares_2[0] + found[1] * shares_2[1]


def _of_values(bags: "_Bags", values_S: Tensor) -> Tensor:
    """Return the features' weights of a ridge regression; the mean of the values is 0."""
    spread = values_S.std(correction=0) if len(values_S) > 1 else values_S.new_ones(())
    spread = spread if spread > 0 else values_S.new_ones(())
    loss = partial(F.mse_loss, target=values_S[:, None] / spread)
    counts_F1 = bags.rows_with(torch.zeros(len(values_S), dtype=torch.long), 1)
    return _minimise(bags, bags.by_frequency(counts_F1), BY_FREQUENCY, loss, 1) * spread


@dataclass(frozen=True)
class _Bags:
    """Rows as bags of the U tokens that they have; here, V is U, and F and G count only what these tokens have.

    Attributes:
        tokens_U: the tokens, ascending.
        ids_T: the place of each token of all rows among them.
        offsets_S: each row's first token.
        shares_T: one over the number of tokens in the token's row.
        cls: the place of the token that every row has once more.
        spellings: the spellings of the tokens.
        kept_G: the numbers of their features in the whole vocabulary.
    """

    tokens_U: np.ndarray
    ids_T: Tensor
    offsets_S: Tensor
    shares_T: Tensor
    cls: int
    spellings: Spellings
    kept_G: np.ndarray

    @staticmethod
    def of(split: Rows, rows: np.ndarray, spellings: Spellings) -> "_Bags":
        """Gather the tokens of these rows."""
        lengths_S = split.lengths[rows]
        starts_S = np.cumsum(lengths_S) - lengths_S
        tokens_U, ids_T = np.unique(split.tokens[_runs(split.offsets[rows], lengths_S)], return_inverse=True)
        few, kept_G = spellings.only(tokens_U)
        shares_T = torch.from_numpy((1.0 / np.repeat(lengths_S, lengths_S)).astype(np.float32))
        ids, offsets_S = torch.from_numpy(ids_T), torch.from_numpy(starts_S)
        return _Bags(tokens_U, ids, offsets_S, shares_T, int(ids_T[-1]), few, kept_G)

    def answers(self, weights_FC: Tensor) -> Tensor:
        """Return each row's answer, if these are the features' weights: [S, C]."""
        tokens = len(self.tokens_U)
        table_VC = weights_FC[:tokens] + self.spellings.sums(weights_FC[tokens:])
        return table_VC[self.cls] + F.embedding_bag(
            self.ids_T, table_VC, self.offsets_S, mode="sum", per_sample_weights=self.shares_T
        )

    def table(self, weights_FC: Tensor, spellings: Spellings) -> Tensor:
        """Return the weights of all tokens of a vocabulary, those that no row has by their spellings: [V, C]."""
        tokens = len(self.tokens_U)
        table_VC = weights_FC.new_zeros(len(spellings.offsets_V), weights_FC.shape[1])
        table_VC[torch.from_numpy(self.tokens_U).long()] = weights_FC[:tokens]
        weights_GC = weights_FC.new_zeros(spellings.count, weights_FC.shape[1])
        weights_GC[torch.from_numpy(self.kept_G)] = weights_FC[tokens:]
        return table_VC + spellings.sums(weights_GC)

    def rows_with(self, of_rows: Tensor, classes: int) -> Tensor:
        """Count the rows of each class that have a feature, [F, C]; ``of_rows`` holds the rows' classes, [S]."""
        tokens, count, classes_S = len(self.tokens_U), self.spellings.count, of_rows.numpy()
        ends_S = np.append(self.offsets_S.numpy(), len(self.ids_T))
        counts_FC = np.zeros((tokens + count, classes), np.float32)
        for rows in cut_by_tokens(np.arange(len(classes_S)), np.diff(ends_S), AT_ONCE):
            ids_T = self.ids_T[ends_S[rows[0]] : ends_S[rows[-1] + 1]].numpy()
            row_P, token_P = _once(np.repeat(np.arange(len(rows)), np.diff(ends_S)[rows]), ids_T, tokens)
            found = self.spellings.features_N[self.spellings.place(token_P)]
            row_Q, feature_Q = _once(np.repeat(row_P, self.spellings.lengths_V[token_P]), found, count)
            for row, feature, part in (
                (row_P, token_P, counts_FC[:tokens]),
                (row_Q, feature_Q, counts_FC[tokens:]),
            ):
                each = np.bincount(feature * classes + classes_S[rows[row]], minlength=part.size)
                part += each.reshape(part.shape)
        return torch.from_numpy(counts_FC)

    def by_frequency(self, counts_FC: Tensor) -> Tensor:
        """Return each feature's inverse document frequency, 0 for one that no row has: [F, 1].

        Args:
            counts_FC: from :meth:`rows_with`.
        """
        rows = len(self.offsets_S)
        seen_F1 = counts_FC.sum(1, keepdim=True)
        return self._scaled(torch.where(seen_F1 > 0, torch.log((1 + rows) / (1 + seen_F1)) + 1, 0.0))

    def by_class(self, counts_FC: Tensor) -> Tensor:
        """Return each feature's evidence for each class, 0 for features that no row has: [F, C].

        It is the logarithm of the feature's share among the class's rows over that among the others, as in Wang and
        Manning 2012 (Baselines and bigrams), section 2.1.

        Args:
            counts_FC: from :meth:`rows_with`.
        """
        tokens = len(self.tokens_U)
        evidence = []
        for with_C in (counts_FC[:tokens], counts_FC[tokens:]):
            seen = with_C.sum(1, keepdim=True)
            ours_C, others_C = 1 + with_C, 1 + seen - with_C
            ratios_C = torch.log(ours_C / ours_C.sum(0) * others_C.sum(0) / others_C)
            evidence.append(torch.where(seen > 0, ratios_C, 0.0))
        return self._scaled(torch.cat(evidence))

    def _scaled(self, factors_FC: Tensor) -> Tensor:
        """Scale so that rows have a length of about 1, and give ``<cls>`` its weight."""
        factors_FC = factors_FC * math.sqrt(len(self.ids_T) / len(self.offsets_S))
        factors_FC[self.cls] = CLS_SCALE
        its_spelling = self.spellings.features_N[self.spellings.offsets_V[self.cls]]
        factors_FC[len(self.tokens_U) + its_spelling] = CLS_SCALE
        return factors_FC


def _minimise(
    bags: _Bags, scale_FC: Tensor, inverse_penalty: float, loss: Callable[[Tensor], Tensor], outputs: int
) -> Tensor:
    """Return the features' weights that minimise the mean loss of the answers plus the penalty, [F, C].

    Args:
        bags: the rows.
        scale_FC: factor of each feature's count; the penalty is on the weights before scaling.
        inverse_penalty: C of the regression.
        loss: of the answers [S, C].
        outputs: number of answers of a row, C.
    """
    weights_FC = torch.zeros(len(scale_FC), outputs, requires_grad=True)
    penalty = 1.0 / (2 * inverse_penalty * len(bags.offsets_S))
    search = torch.optim.LBFGS([weights_FC], max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(bags.answers(weights_FC * scale_FC)) + penalty * weights_FC.square().sum()
        value.backward()
        return value

    search.step(closure)
    return weights_FC.detach() * scale_FC


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Join runs of consecutive numbers: the first is ``starts[0]``, ``starts[0] + 1``, … of ``lengths[0]`` numbers."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _once(rows_P: np.ndarray, features_P: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair of a row and one of ``count`` features once."""
    return np.divmod(np.unique(rows_P * count + features_P), count)
