"""The same update of the weights on every path: implementation × recompute × dropout × accumulation."""

import dataclasses

import numpy as np
import pytest
import torch
from test_same_numbers import CONFIG, rows

from xlnet.model.config import PRETRAIN, XLNetConfig
from xlnet.model.language_model import Text, XLNetLanguageModel
from xlnet.model.layout import Layout
from xlnet.model.token_loss import token_loss
from xlnet.model.xlnet import XLNetClassifier

LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 1])


def texts_of(kind):
    texts, _ = rows(7, seed=2)
    return {
        "mixed": texts,
        "one token each": [text[-1:] for text in texts],
        "all equal": [texts[0]] * 7,
        "one long": [*texts[:6], np.append(np.arange(130) % 80 + 10, [4, 3])],
    }[kind]


def gradients(model, texts, parts, dtype=torch.float32):
    """Of the mean loss of all texts, computed in so many parts."""
    model.zero_grad()
    total = 0.0
    for part in np.array_split(np.arange(len(texts)), parts):
        torch.manual_seed(11)  # an update's seed: every part of it draws the same keys
        lengths = np.array([len(texts[i]) for i in part])
        before = sum(len(text) for text in texts[: part[0]])
        ids = torch.from_numpy(np.concatenate([texts[i] for i in part]))
        segments = torch.from_numpy(np.concatenate([[0] * (n - 1) + [2] for n in lengths]).astype(np.int32))
        logits = model(ids, segments, Layout.of(lengths, "cpu", before, int(part[0])))
        loss = torch.nn.functional.cross_entropy(logits, LABELS[part], reduction="sum") / len(texts)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected, path):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / max(value.norm().item(), 1e-3)
        assert error < 2e-3, f"{path}: {name} is {error:.1e} off"


def build(config):
    torch.manual_seed(0)
    model = XLNetClassifier(config).train()
    for parameter in model.parameters():  # as large as after a training, so that attention is not level
        parameter.data.mul_(4)
    return model


@pytest.mark.parametrize(
    ("probability", "kind"),
    [
        *((p, "mixed") for p in (0.0, 1e-11, 0.3, 0.99)),
        *((0.3, k) for k in ("one token each", "all equal", "one long")),
    ],
)
def test_every_path_gives_the_readable_ones_gradients(probability, kind):
    config = dataclasses.replace(CONFIG, dropout=probability, summary_last_dropout=min(probability, 0.3))
    model, texts = build(config), texts_of(kind)
    model.transformer.impl = "reference"
    loss, expected = gradients(model.double(), texts, 1)
    model.float()
    for impl in ("reference", "sdpa", "native"):
        for recompute in (False, True):
            for parts in (1, 3):
                model.transformer.impl, model.transformer.recompute = impl, recompute
                found_loss, found = gradients(model, texts, parts)
                path = f"{impl}, recompute {recompute}, {parts} parts"
                assert found_loss == pytest.approx(loss, rel=1e-4), path
                assert_close(found, expected, path)


@pytest.mark.parametrize("impl", ["reference", "sdpa", "native"])
@pytest.mark.parametrize("shape", [(18, 1, 16, 24), (48, 3, 16, 40), (34, 2, 16, 17)])
def test_odd_widths_with_everything_on(shape, impl):
    """Hidden sizes that are no whole vectors take torch's own operators, with the same masks."""
    width, heads, head_width, inner = shape
    config = XLNetConfig(90, 2, width, heads, head_width, inner, 0.2, 0.2, classes=("a", "b"))
    model, texts = build(config), texts_of("mixed")
    model.transformer.impl = "reference"
    _, expected = gradients(model.double(), texts, 1)
    model.float()
    model.transformer.impl, model.transformer.recompute = impl, True
    _, found = gradients(model, texts, 2)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2e-3 * max(value.norm().item(), 1e-3), name


def language_gradients(model, text, parts):
    """Of the mean loss of all predicted places, computed in so many parts."""
    model.zero_grad()
    total = 0.0
    for part in np.array_split(np.arange(len(text.place_BP)), parts):
        torch.manual_seed(11)
        rows, memory = slice(part[0], part[-1] + 1), text.memory
        kept = None if memory is None else memory[:, rows].to(model.lm_loss.bias.dtype)
        tensors = (text.input_ids_BL, text.segment_ids_BL, text.order_BL, text.place_BP)
        one = Text(*(x[rows] for x in tensors), kept, int(part[0]))
        hidden, _ = model(one, 9, 5)
        table, bias, targets = model.transformer.word_embedding.weight, model.lm_loss.bias, one.targets_BP.flatten()
        factors = torch.full(targets.shape, 1 / text.place_BP.numel(), dtype=table.dtype)
        loss = token_loss(hidden.flatten(0, 1), table, bias, targets, factors)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("memory", [0, 7])
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.99])
def test_every_path_of_both_streams_gives_the_readable_ones_gradients(probability, memory):
    """Implementation × recompute × accumulation, with dropout and memory."""
    config = dataclasses.replace(CONFIG, dropout=probability, task=PRETRAIN, classes=())
    torch.manual_seed(0)
    model = XLNetLanguageModel(config).train()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    order = torch.stack([torch.randperm(21) for _ in range(5)]).int()
    place = torch.stack([torch.randperm(21)[:4] for _ in range(5)])
    kept = torch.randn(2, 5, memory, 64) if memory else None
    text = Text(torch.randint(90, (5, 21)), torch.randint(3, (5, 21)).int(), order, place, kept)
    model.transformer.impl = "reference"
    loss, expected = language_gradients(model.double(), text, 1)
    model.float()
    for impl in ("reference", "dense", "native"):
        bits = []
        for recompute in (False, True):
            for parts in (1, 3):
                model.transformer.impl, model.transformer.recompute = impl, recompute
                found_loss, found = language_gradients(model, text, parts)
                path = f"{impl}, recompute {recompute}, {parts} parts"
                assert found_loss == pytest.approx(loss, rel=1e-4), path
                assert_close(found, expected, path)
                bits.append(found)
        assert all(torch.equal(bits[0][name], bits[2][name]) for name in expected), f"{impl}: recomputed bits differ"
