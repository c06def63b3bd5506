"""Starts a classifier or a regression from a linear model of its train rows' tokens.

A transformer from scratch needs most of a few thousand rows to find out which words matter; a linear model finds that
out in seconds. So a linear model of the token counts is fitted first and written into the network's weights: ridge
regression for values; for classes the mean of two logistic regressions, one on counts times inverse document
frequencies, one on counts times naive Bayes' log ratios. Tokens that differ only in case or in the mark of a word's
start are also counted together, because a few thousand rows hold most spellings too seldom. The untrained network then
scores what the linear model scores, and training goes on from there.

Dimensions 0 to K - 1 of the token embeddings hold each token's weights. The first head of the first layer starts by
attending to all tokens alike and copies these dimensions, so it averages them into the final ``<cls>`` token. Nothing
else writes to them, layer norms scale them by a positive number, and the summary and the head read them. In a
pretrained network these dimensions and that head are cleared first, and the rest stays as it was learnt.

Shapes: S rows, T tokens of all rows, V tokens of the vocabulary, G groups of tokens that are spelt alike, F = V + G
features, C outputs, K directions of the outputs (at most C - 1 for classes, 1 for values), D model width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet.data.batches import Rows
from xlnet.data.dataset import Dataset
from xlnet.data.tokenizer import load_tokenizer
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe
from xlnet.training import objective
from xlnet.training.device import Device

# C of the regressions, on rows of about unit length, chosen on held-out train rows. A token's count is multiplied with
# its inverse document frequency, or with the logarithm of how much more often a class has it (naive Bayes).
BY_FREQUENCY, BY_CLASS = 0.075, 5.0
ITERATIONS = 100  # maximum number of L-BFGS iterations
MOST_COUNTS = 30_000_000  # tokens × outputs to fit on, about 40 s on two cores; larger sets are thinned out
CLS_SCALE = 3.0  # value of the feature that is the same in every row; its weight is the intercept
DEVIATION = 0.2  # deviation of the embeddings: ten times the usual one, so updates change a tenth as much of them
SIGNAL = 2.0  # root mean square of the linear answers within the network, where layer norm makes the whole 1
SLOPE = 0.25  # factor before the summary's tanh, which is nearly linear up to SLOPE * SIGNAL
CONFIDENCE = 1.0  # root mean square of the first logits; the linear model's own are too confident on its train rows
BATCH_TOKENS, CALIBRATION_BATCHES = 8192, 4  # of train rows, on which a pretrained network is calibrated


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


def begin(model: XLNetClassifier, device: Device, data: Dataset, recipe: Recipe) -> None:
    """Start the model from a linear one if the recipe asks for it. Rank 0 fits it for all ranks."""
    if recipe.training.initialisation != "linear":
        return
    split, config = data.split("train"), model.config
    weights_C = objective.class_weights(recipe.training, split.labels, data.classes)
    is_pretrained = bool(recipe.model.pretrained)
    most = min(config.d_head, config.d_model // 4) // (1 + is_pretrained)
    found = None
    if device.ranks.rank == 0:
        pieces = load_tokenizer(str(data.path / "tokenizer")).pieces
        found = fit(split, alike(pieces, config.vocab_size), len(data.classes), weights_C, most)
    linear: LinearModel | None = device.ranks.gather(found)[0]
    if linear and is_pretrained:
        write_beside(model, linear)
        _calibrate(model, split, device, 2 * len(linear.spread_K))
    elif linear:
        write(model, linear)


def alike(pieces: list[str], vocabulary: int) -> Tensor:
    """Number the groups of tokens that differ only in case or in the mark of a word's start: [V]."""
    groups: dict[str, int] = {}
    spellings = [piece.lower().removeprefix("▁") for piece in pieces]
    spellings += [f"<{token}>" for token in range(len(pieces), vocabulary)]  # rows of the table without a token
    return torch.tensor([groups.setdefault(spelling, len(groups)) for spelling in spellings[:vocabulary]])


def fit(
    split: Rows, alike_V: Tensor, classes: int, class_weights: np.ndarray | None = None, most: int = 32
) -> LinearModel | None:
    """Fit a linear model to train rows: logistic regression for classes, ridge regression for values.

    Args:
        split: the train rows.
        alike_V: the group of each token, from :func:`alike`.
        classes: number of classes; 0 if the labels are values.
        class_weights: weight of each class in the loss, [C]; None: 1 each.
        most: most directions to keep, K.

    Returns:
        The model; None if all labels are equal.
    """
    if not len(split.labels) or np.ptp(split.labels) == 0:
        return None
    every = math.ceil(len(split.tokens) * max(1, classes) / MOST_COUNTS)
    bags = _Bags.of(split, np.arange(0, len(split.labels), every), alike_V)
    labels_S = split.labels[::every]
    shift = 0.0 if classes else float(labels_S.mean())
    spread = 1.0 if classes else float(labels_S.std()) or 1.0
    if classes:
        weights = None if class_weights is None else torch.from_numpy(class_weights)
        targets_S = torch.from_numpy(labels_S.astype(np.int64))
        loss = partial(F.cross_entropy, target=targets_S, weight=weights)
        counts = bags.rows_with(targets_S, classes)
        scales = (bags.by_frequency(counts), BY_FREQUENCY), (bags.by_class(counts), BY_CLASS)
        # The two together are better than either, on every set that was tried.
        tables_2VC = torch.stack([_minimise(bags, scale, penalty, loss, classes) for scale, penalty in scales])
        tables_2VC -= tables_2VC.mean(2, keepdim=True)  # the same for every class changes no answer
        spread_2 = torch.stack([bags.answers(table_VC).square().mean().sqrt() for table_VC in tables_2VC])
        shares_2 = spread_2.mean() / 2 / spread_2.clamp(min=1e-12)
        table_VC = (tables_2VC * shares_2[:, None, None]).sum(0)
    else:
        targets_S1 = torch.from_numpy((labels_S.astype(np.float32) - shift) / spread)[:, None]
        loss = partial(F.mse_loss, target=targets_S1)
        counts = bags.rows_with(torch.zeros(len(labels_S), dtype=torch.long), 1)
        table_VC = _minimise(bags, bags.by_frequency(counts), BY_FREQUENCY, loss, 1) * spread
    answers_SC = bags.answers(table_VC).double()
    moments_C, directions_CC = torch.linalg.eigh(answers_SC.T @ answers_SC / len(answers_SC))
    directions_KC = directions_CC.T.flip(0)[: min(most, max(1, classes - 1))].float()  # eigenvalues ascend
    spread_K = moments_C.flip(0)[: len(directions_KC)].clamp(min=0).sqrt().float()
    return LinearModel(table_VC @ directions_KC.T, directions_KC, spread_K, shift)


@torch.no_grad()
def write_beside(model: XLNetClassifier, linear: LinearModel) -> None:
    """Write a linear model into a pretrained network, where it replaces some dimensions and one head.

    Each answer is written once more with the other sign, and the head reads the difference: the layer norms of a
    pretrained network subtract a mean that is not 0, which would disturb a single one.
    """
    table_VK, directions_KC, spread_K = linear.table_VK, linear.directions_KC, linear.spread_K
    twice = LinearModel(
        torch.cat([table_VK, -table_VK], 1),
        torch.cat([directions_KC, -directions_KC]) / 2,
        spread_K.repeat(2),
        linear.shift,
    )
    _write(model, twice, float(model.transformer.word_embedding.weight.std()))


def _make_room(model: XLNetClassifier, count: int) -> None:
    """Clear the first ``count`` dimensions of a network, and let the first layer's first head attend uniformly."""
    for layer in model.transformer.layers():
        attention, ff = layer.rel_attn, layer.ff
        attention.qkv[:count] = 0.0
        ff.layer_1.weight[:, :count] = 0.0
        for written in (attention.o, ff.layer_2.weight, ff.layer_2.bias):
            written[:count] = 0.0
        for norm in (attention.layer_norm, ff.layer_norm):
            norm.weight[:count] = norm.weight[count:].mean()
            norm.bias[:count] = 0.0
    first = model.transformer.layers()[0].rel_attn
    first.qkv[:, 0, 0] = 0.0
    for bias in (first.r_w_bias, first.r_r_bias, first.r_s_bias):
        bias[0] = 0.0


@torch.no_grad()
def _calibrate(model: XLNetClassifier, split: Rows, device: Device, count: int) -> None:
    """Scale the summary so that it reads the linear answers with the root mean square :data:`SIGNAL`."""
    arrived: list[Tensor] = []
    hook = model.sequence_summary.register_forward_pre_hook(lambda _, given: arrived.append(given[0][:, :count]))
    model.eval()
    try:
        for batch in islice(device.shapes.evaluation(split, BATCH_TOKENS), CALIBRATION_BATCHES):
            inputs = device.move(batch)
            model(inputs.input_ids_T, inputs.segment_ids_T, inputs.layout)
    finally:
        hook.remove()
        model.train()
    size = float(torch.cat(arrived).float().square().mean(0).sqrt().max())
    model.sequence_summary.summary.weight[:count] *= SIGNAL / size


@torch.no_grad()
def write(model: XLNetClassifier, linear: LinearModel) -> None:
    """Write a linear model into a new network, which then gives about the same answers."""
    model.transformer.word_embedding.weight.mul_(DEVIATION / model.config.initializer_range)
    model.logits_proj.weight.zero_()
    _write(model, linear, DEVIATION)


def _write(model: XLNetClassifier, linear: LinearModel, deviation: float) -> None:
    """Write a linear model into the first K dimensions of a network, whose embeddings have this deviation."""
    count, device = len(linear.spread_K), model.logits_proj.weight.device
    dims, largest = torch.arange(count, device=device), float(linear.spread_K.max())
    _make_room(model, count)
    table_VD = model.transformer.word_embedding.weight
    table_VD[:, :count] = (linear.table_VK * (SIGNAL * deviation / largest)).to(table_VD)
    first = model.transformer.layers()[0].rel_attn
    first.qkv[:, 2, 0, :count] = 0.0
    first.qkv[dims, 2, 0, dims] = 1.0
    first.o[:, 0, :count] = 0.0
    first.o[dims, 0, dims] = 1.0
    summary, head = model.sequence_summary.summary, model.logits_proj
    summary.weight[:count] = 0.0
    summary.weight[dims, dims] = SLOPE
    mean, unit = model.config.value_mean, model.config.value_deviation  # in which the head counts values
    spread = min(largest, CONFIDENCE) if model.config.task == "classification" else largest / unit
    head.weight[:, :count] = (linear.directions_KC.T * (spread / math.tanh(SLOPE * SIGNAL))).to(head.weight)
    head.bias.fill_((linear.shift - mean) / unit)


@dataclass(frozen=True)
class _Bags:
    """Rows as bags of tokens.

    Attributes:
        ids_T: the tokens of all rows.
        rows_T: the row of each.
        offsets_S: each row's first token.
        shares_T: one over the number of tokens in the token's row.
        cls: the token that every row has once more.
        alike_V: the group of each token.
    """

    ids_T: Tensor
    rows_T: Tensor
    offsets_S: Tensor
    shares_T: Tensor
    cls: int
    alike_V: Tensor

    @staticmethod
    def of(split: Rows, rows: np.ndarray, alike_V: Tensor) -> "_Bags":
        """Gather the tokens of these rows."""
        lengths_S = split.lengths[rows]
        starts_S = np.cumsum(lengths_S) - lengths_S
        place_T = np.repeat(split.offsets[rows] - starts_S, lengths_S) + np.arange(lengths_S.sum())
        ids_T = torch.from_numpy(split.tokens[place_T].astype(np.int64))
        rows_T = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths_S))
        shares_T = torch.from_numpy((1.0 / np.repeat(lengths_S, lengths_S)).astype(np.float32))
        return _Bags(ids_T, rows_T, torch.from_numpy(starts_S), shares_T, int(ids_T[-1]), alike_V)

    def answers(self, table_VC: Tensor) -> Tensor:
        """Return each row's answer, if these are the tokens' weights: [S, C]."""
        return table_VC[self.cls] + F.embedding_bag(
            self.ids_T, table_VC, self.offsets_S, mode="sum", per_sample_weights=self.shares_T
        )

    def weights(self, of_features_FC: Tensor) -> Tensor:
        """Add to each token's weights those of its group: [V, C]."""
        tokens = len(self.alike_V)
        return of_features_FC[:tokens] + of_features_FC[tokens:][self.alike_V]

    def rows_with(self, classes_S: Tensor, classes: int) -> list[Tensor]:
        """Count the rows of each class that have a token, [V, C], and that have a token of a group, [G, C]."""
        counts = []
        for ids_T, size in (
            (self.ids_T, len(self.alike_V)),
            (self.alike_V[self.ids_T], int(self.alike_V.max()) + 1),
        ):
            pairs_P = torch.unique(self.rows_T * size + ids_T)
            place_P = pairs_P % size * classes + classes_S[pairs_P // size]
            counts.append(torch.bincount(place_P, minlength=size * classes).view(-1, classes).float())
        return counts

    def by_frequency(self, counts: list[Tensor]) -> Tensor:
        """Return each feature's inverse document frequency, 0 for one that no row has: [F, 1].

        Args:
            counts: from :meth:`rows_with`.
        """
        rows = len(self.offsets_S)
        seen_F1 = torch.cat(counts).sum(1, keepdim=True)
        return self._scaled(torch.where(seen_F1 > 0, torch.log((1 + rows) / (1 + seen_F1)) + 1, 0.0))

    def by_class(self, counts: list[Tensor]) -> Tensor:
        """Return each feature's evidence for each class, 0 for features that no row has: [F, C].

        It is the logarithm of the feature's share among the class's rows over that among the others, as in Wang and
        Manning 2012 (Baselines and bigrams), section 2.1.

        Args:
            counts: from :meth:`rows_with`.
        """
        evidence = []
        for with_C in counts:
            seen = with_C.sum(1, keepdim=True)
            ours_C, others_C = 1 + with_C, 1 + seen - with_C
            ratios_C = torch.log(ours_C / ours_C.sum(0) * others_C.sum(0) / others_C)
            evidence.append(torch.where(seen > 0, ratios_C, 0.0))
        return self._scaled(torch.cat(evidence))

    def _scaled(self, factors_FC: Tensor) -> Tensor:
        """Scale so that rows have a length of about 1, and give ``<cls>`` its weight."""
        factors_FC = factors_FC * math.sqrt(len(self.ids_T) / len(self.offsets_S))
        factors_FC[self.cls] = CLS_SCALE
        factors_FC[len(self.alike_V) + self.alike_V[self.cls]] = CLS_SCALE
        return factors_FC


def _minimise(
    bags: _Bags, scale_FC: Tensor, inverse_penalty: float, loss: Callable[[Tensor], Tensor], outputs: int
) -> Tensor:
    """Return the tokens' weights that minimise the mean loss of the answers plus the penalty, [V, C].

    Args:
        bags: the rows.
        scale_FC: factor of each feature's count; the penalty is on the weights before scaling.
        inverse_penalty: C of the regression.
        loss: of the answers [S, C].
        outputs: number of answers of a row, C.
    """
    weights_FC = torch.zeros(len(scale_FC), outputs, requires_grad=True)
    penalty = 1.0 / (2 * inverse_penalty * len(bags.offsets_S))
    search = torch.optim.LBFGS([weights_FC], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(bags.answers(bags.weights(weights_FC * scale_FC))) + penalty * weights_FC.square().sum()
        value.backward()
        return value

    search.step(closure)
    return bags.weights(weights_FC.detach() * scale_FC)
