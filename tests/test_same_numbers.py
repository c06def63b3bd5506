"""Speed changes nothing: the same losses and gradients as transformers' XLNet, packed or not."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import XLNetConfig as TheirConfig
from transformers import XLNetForSequenceClassification

from xlnet.data.batches import Batch
from xlnet.errors import UserError
from xlnet.model.config import XLNetConfig
from xlnet.model.layout import Layout
from xlnet.model.weights import join_qkv, split_qkv
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training.device import Device
from xlnet.training.optim import make_optimizer
from xlnet.training.step import forward, optimise

CONFIG = XLNetConfig(90, 2, 64, 4, 16, 128, dropout=0.0, summary_last_dropout=0.0, classes=("a", "b"))
RECIPE = TrainingRecipe(learning_rate=3e-4, clip_norm=1.0, weight_decay=0.01)


def rows(count, seed, longest=40):
    """Token ids ending in <sep> <cls>, and labels that depend on them."""
    generator = np.random.default_rng(seed)
    texts = [np.append(generator.integers(10, 90, generator.integers(1, longest - 2)), [4, 3]) for _ in range(count)]
    return texts, np.array([int(text[0] % 2) for text in texts])


def packed(texts, labels):
    lengths = np.array([len(text) for text in texts])
    segments = np.concatenate([[0] * (n - 1) + [2] for n in lengths]).astype(np.int32)
    return Batch(
        np.concatenate(texts), segments, lengths, labels, np.arange(len(texts)), np.ones(len(texts), np.float32)
    )


def left_padded(texts, labels):
    longest = max(map(len, texts))
    ids, segments = torch.full((len(texts), longest), 5), torch.full((len(texts), longest), 3)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.from_numpy(text)
        segments[row, longest - len(text) : -1] = 0
        segments[row, -1] = 2
    mask = (segments < 3).float()
    return {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask, "labels": torch.from_numpy(labels)}


def pair(config=CONFIG, seed=0):
    """Ours and theirs with the same weights, in training mode."""
    torch.manual_seed(seed)
    ours = XLNetClassifier(config).train()
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "d_model", "n_head", "d_inner")}
    theirs = XLNetForSequenceClassification(TheirConfig(**shape, dropout=0.0, summary_last_dropout=0.0, num_labels=2))
    theirs.load_state_dict(split_qkv(ours.state_dict()))
    return ours, theirs.train()


def test_two_hundred_steps_have_transformers_losses():
    """float32, no dropout, same rows in the same order: within 1e-4 relative at every step."""
    ours, theirs = pair()
    device = Device("float32")
    optimizer = make_optimizer(device.prepare(ours), RECIPE)
    decayed = [p for name, p in theirs.named_parameters() if not (name.endswith("bias") or "layer_norm" in name)]
    kept = [p for name, p in theirs.named_parameters() if name.endswith("bias") or "layer_norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    their_optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.999), eps=1e-6)
    losses = []
    for step in range(200):
        texts, labels = rows(12, seed=step % 40)
        loss = forward(ours, device.move(packed(texts, labels)), len(texts), RECIPE, device)
        loss.backward()
        optimise(ours, optimizer, RECIPE)
        their_loss = theirs(**left_padded(texts, labels), use_mems=False).loss
        their_loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_optimizer.step()
        their_optimizer.zero_grad()
        losses.append((loss.item(), their_loss.item()))
    mine, their = np.array(losses).T
    assert np.abs(mine / their - 1).max() <= 1e-4
    assert mine[-40:].mean() < 0.9 * mine[:40].mean(), "it did learn"


def logits_of(model, texts):
    batch = packed(texts, np.zeros(len(texts), np.int64))
    ids, segments = torch.from_numpy(batch.input_ids_T), torch.from_numpy(batch.segment_ids_T)
    return model(ids, segments, Layout.of(batch.lengths_S))


@pytest.mark.parametrize("impl", ["reference", "sdpa", "native"])
def test_packed_together_or_alone_is_the_same(impl):
    ours, _ = pair()
    ours.transformer.impl = impl
    texts, _ = rows(9, seed=3)
    together = logits_of(ours, texts)
    alone = torch.cat([logits_of(ours, [text]) for text in texts])
    assert (together - alone).abs().max() <= 1e-6
    backwards = logits_of(ours, texts[::-1]).flip(0)
    assert (together - backwards).abs().max() <= 1e-6


def test_padded_to_one_length_is_the_same_as_packed():
    """The way of devices that compile every shape anew; also its gradients."""
    ours, _ = pair()
    texts, labels = rows(6, seed=4)
    padded = left_padded(texts, labels)
    real = padded["attention_mask"].bool()
    layout = Layout.padded(real.flatten(), real.shape[1])
    ids, segments = padded["input_ids"].flatten(), padded["token_type_ids"].flatten().int()
    found = [logits_of(ours, texts), ours(ids, segments, layout)]
    assert (found[0] - found[1]).abs().max() <= 1e-6
    packed_gradients, padded_gradients = (gradients(ours, logits.square().sum()) for logits in found)
    for name, value in packed_gradients.items():
        assert (value - padded_gradients[name]).abs().max() <= 1e-5 * max(1.0, value.abs().max().item()), name
    ours.transformer.impl = "native"
    with pytest.raises(UserError, match="'native' takes packed texts, not padded ones"):
        ours(ids, segments, layout)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return split_qkv(named)


def test_bfloat16_is_no_coarser_than_transformers():
    """Relative error of the whole gradient against float32, ours under autocast and theirs."""
    ours, theirs = pair(dataclasses.replace(CONFIG, n_layer=3), seed=1)
    texts, labels = rows(16, seed=5)
    target = torch.from_numpy(labels)

    def our_gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(logits_of(ours, texts).float(), target)
        return gradients(ours, loss)

    def their_gradients():
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(theirs, theirs(**left_padded(texts, labels), use_mems=False).loss)

    exact, mine, their = our_gradients(False), our_gradients(True), their_gradients()

    def error(found):
        wrong = sum(((found[name].float() - exact[name]) ** 2).sum() for name in exact if name in found)
        return (wrong / sum((value**2).sum() for value in exact.values())).sqrt().item()

    assert error(mine) <= error(their) * 1.05, (error(mine), error(their))


def test_recomputed_layers_have_the_same_gradients_with_dropout_on():
    config = dataclasses.replace(CONFIG, dropout=0.2, summary_last_dropout=0.2)
    model = XLNetClassifier(config).train()
    texts, _ = rows(7, seed=2)
    found = []
    for recompute in (False, True):
        model.transformer.recompute = recompute
        torch.manual_seed(11)
        found.append(gradients(model, logits_of(model, texts).square().sum()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_survive_the_way_to_transformers_and_back():
    ours, _ = pair()
    state = ours.state_dict()
    again = join_qkv(split_qkv(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
