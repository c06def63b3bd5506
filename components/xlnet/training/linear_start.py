"""Starts a classifier or a regression from a linear model of its train rows' tokens.

A transformer from scratch needs most of a few thousand rows to find out which words matter; a linear model finds that
out in seconds. So a linear model of the token counts is fitted first (:mod:`xlnet.training.linear_model`) and written
into the network's weights. The untrained network then scores what the linear model scores, and training goes on from
there.

Dimensions 0 to K - 1 of the token embeddings hold each token's weights. The first head of the first layer starts by
attending to all tokens alike and copies these dimensions, so it averages them into the final ``<cls>`` token. Nothing
else writes to them, layer norms scale them by a positive number, and the summary and the head read them. In a
pretrained network these dimensions and that head are cleared first, and the rest stays as it was learnt.

Shapes: V tokens of the vocabulary, C outputs, K directions of the outputs, D model width.
"""

import math
from itertools import islice

import torch
from torch import Tensor

from xlnet.data.batches import Rows
from xlnet.data.dataset import Dataset
from xlnet.data.tokenizer import load_tokenizer
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe
from xlnet.training import objective
from xlnet.training.device import Device
from xlnet.training.linear_model import LinearModel, Spellings, fit

DEVIATION = 0.2  # deviation of the embeddings: ten times the usual one, so updates change a tenth as much of them
SIGNAL = 2.0  # root mean square of the linear answers within the network, where layer norm makes the whole 1
SLOPE = 0.25  # factor before the summary's tanh, which is nearly linear up to SLOPE * SIGNAL
CONFIDENCE = 1.0  # root mean square of the first logits; the linear model's own are too confident on its train rows
BATCH_TOKENS, CALIBRATION_BATCHES = 8192, 4  # of train rows, on which a pretrained network is calibrated


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
        classes = len(data.classes)
        found = fit(split, Spellings.of(pieces, config.vocab_size, classes), classes, weights_C, most)
    linear: LinearModel | None = device.ranks.gather(found)[0]
    if linear and is_pretrained:
        write_beside(model, linear)
        _calibrate(model, split, device, 2 * len(linear.spread_K))
    elif linear:
        write(model, linear)


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
