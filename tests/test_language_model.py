"""The permutation language model against transformers' two streams: same weights, same logits, loss and gradients."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import XLNetConfig as TheirConfig
from transformers import XLNetLMHeadModel

from xlnet.data.permutation import choose
from xlnet.errors import UserError
from xlnet.model.language_model import Text
from xlnet.model.scoring import in_orders, left_to_right
from xlnet.model.visibility import NEVER
from xlnet.model.weights import load_language_model, save_model

VOCABULARY, LAYERS, WIDTH = 61, 2, 32
# texts, content tokens, predicted positions, memory: odd lengths, no memory, more memory than content
SHAPES = [(2, 8, 3, 0), (3, 7, 2, 5), (1, 5, 5, 11), (2, 1, 1, 3), (2, 33, 6, 17)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A language model that transformers wrote, and ours, loaded from its file."""
    torch.manual_seed(0)
    config = TheirConfig(vocab_size=VOCABULARY, d_model=WIDTH, n_layer=LAYERS, n_head=2, d_inner=64, dropout=0.0)
    theirs = XLNetLMHeadModel(config).train()  # in training mode memory is detached as ours is
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, load_language_model(folder)


def drawn(shape, seed=0, hide_last=False):
    """A rectangle of texts with drawn orders, targets, segments and memory."""
    texts, length, predicted, memory = shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(texts)]).int()
    place = torch.stack([torch.randperm(length, generator=generator)[:predicted] for _ in range(texts)])
    ids = torch.randint(VOCABULARY, (texts, length), generator=generator)
    segments = torch.randint(3, (texts, length), generator=generator).int()
    kept = torch.randn(LAYERS, texts, memory, WIDTH, generator=generator) if memory else None
    return Text(ids, segments, order, place, kept)


def their_arguments(text):
    """The same as perm_mask (1: not visible), target_mapping and mems of transformers."""
    order = text.order_BL
    perm_mask = (order[:, None, :] >= order[:, :, None]).float()
    mapping = F.one_hot(text.place_BP, text.input_ids_BL.shape[1]).float()
    mems = None if text.memory is None else [one.transpose(0, 1) for one in text.memory]
    return {
        "input_ids": text.input_ids_BL,
        "token_type_ids": None if text.segment_ids_BL is None else text.segment_ids_BL.long(),
        "perm_mask": perm_mask,
        "target_mapping": mapping,
        "mems": mems,
    }


@pytest.mark.parametrize("impl", ["reference", "dense", "native"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_loss_and_gradients_equal_transformers(pair, shape, impl):
    theirs, ours = pair
    text = drawn(shape)
    theirs.config.mem_len, theirs.config.reuse_len = 9, 0
    theirs.transformer.mem_len, theirs.transformer.reuse_len = 9, 0
    expected = theirs(**their_arguments(text), labels=text.targets_BP, use_mems=True)
    ours.train().zero_grad()
    ours.transformer.impl = impl
    hidden, memory = ours(text, keep=9)
    logits = ours.logits(hidden)
    loss = F.cross_entropy(logits.flatten(0, 1), text.targets_BP.flatten())
    assert (logits - expected.logits).abs().max() <= 1e-5
    assert abs(loss.item() - expected.loss.item()) <= 1e-5
    for mine, other in zip(memory, expected.mems, strict=True):
        assert torch.allclose(mine.transpose(0, 1), other, atol=1e-5)
    theirs.zero_grad()
    expected.loss.backward()
    loss.backward()
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        stem, _, letter = name.rpartition(".")
        is_part = letter in ("q", "k", "v")
        mine = own[f"{stem}.qkv"].grad[:, "qkv".index(letter)] if is_part else own[name].grad
        error = (mine - parameter.grad).abs().max() / parameter.grad.abs().max().clamp(min=1e-3)
        assert error <= 1e-4, f"{name}: {error:.1e}"


def test_a_model_without_segments_equals_transformers(pair):
    theirs, ours = pair
    drawn_text = drawn((2, 6, 2, 3))
    text = Text(drawn_text.input_ids_BL, None, drawn_text.order_BL, drawn_text.place_BP, drawn_text.memory)
    with torch.no_grad():
        expected = theirs(**their_arguments(text)).logits
        assert (ours.logits(ours(text)[0]) - expected).abs().max() <= 1e-5


def test_transformers_loads_what_we_write(pair, tmp_path):
    theirs, ours = pair
    save_model(ours.state_dict(), ours.config, tmp_path)
    again = XLNetLMHeadModel.from_pretrained(tmp_path)
    text = drawn((2, 8, 3, 4))
    with torch.no_grad():
        expected = theirs(**their_arguments(text)).logits
        assert torch.allclose(again.eval()(**their_arguments(text)).logits, expected, atol=1e-6)
    copy = load_language_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), copy.parameters(), strict=True))


def test_weights_without_its_head_are_not_a_language_model(pair, tmp_path):
    _, ours = pair
    weights = {name: value for name, value in ours.state_dict().items() if name != "lm_loss.bias"}
    save_model(weights, ours.config, tmp_path)
    with pytest.raises(UserError, match=r"is not a language model: it lacks lm_loss\.bias"):
        load_language_model(tmp_path)


def test_sampled_orders_have_the_mean_of_all_orders(pair):
    """The loss of a 5-token text: its mean over many drawn orders is the exact mean over all 120."""
    _, ours = pair
    orders = list(itertools.permutations(range(5)))
    by_order = in_orders(ours.eval(), [3, 14, 15, 9, 26], orders)
    numbers = {order: row for row, order in enumerate(orders)}
    every, none = np.ones(5, bool), np.zeros(5, bool)
    drawn_orders = (choose(every, none, (5,), 1, np.random.default_rng(seed)).order_L for seed in range(4000))
    draws = by_order[[numbers[tuple(order.tolist())] for order in drawn_orders]]
    assert abs(draws.mean() - by_order.mean()) < 4 * by_order.std() / 4000**0.5


def test_a_text_is_scored_in_a_given_order(pair):
    """Left to right is one of the orders; what is not a permutation is refused."""
    _, ours = pair
    text = [3, 14, 15, 9]
    given = in_orders(ours.eval(), [7, *text], [range(5)])
    first = in_orders(ours, [7], [[0]])
    assert given[0] - first[0] == pytest.approx(left_to_right(ours, [np.array(text)], 8, 7)[0], rel=1e-4)
    for order in ([0, 2, 2, 3], [0, 1, 2], [1, 2, 3, 4]):
        with pytest.raises(UserError, match=r"is not a permutation of 0 to 3; name each"):
            in_orders(ours, text, [range(4), order])


@pytest.mark.parametrize("memory", [0, 5])
def test_a_reversed_text_equals_transformers_second_half_of_bidirectional_data(pair, memory):
    """With ``bi_data`` the distances of a batch's second half, which stands in reverse, have the other sign."""
    theirs, ours = pair
    text = drawn((2, 7, 3, memory), seed=2)
    arguments = their_arguments(text)
    theirs.transformer.bi_data = True
    try:
        with torch.no_grad():
            expected = theirs(**arguments).logits
    finally:
        theirs.transformer.bi_data = False
    with torch.no_grad():
        for row, backward in enumerate((False, True)):
            part = slice(row, row + 1)
            kept = None if text.memory is None else text.memory[:, part]
            arrays = (text.input_ids_BL, text.segment_ids_BL, text.order_BL, text.place_BP)
            one = Text(*(array[part] for array in arrays), kept, backward=backward)
            assert (ours.logits(ours.eval()(one)[0]) - expected[part]).abs().max() <= 1e-5


def test_what_a_query_does_not_see_cannot_change_it(pair):
    """Neither its own token, nor later ones in the order, nor padding."""
    _, ours = pair
    order = torch.tensor([[2, 0, 1, 3, NEVER]]).int()
    place = torch.tensor([[0, 3]])
    with torch.no_grad():
        first = ours(Text(torch.tensor([[7, 8, 9, 10, 5]]), None, order, place))[0]
        own = ours(Text(torch.tensor([[50, 8, 9, 11, 6]]), None, order, place))[0]
        seen = ours(Text(torch.tensor([[7, 8, 30, 10, 5]]), None, order, place))[0]
    assert torch.equal(first[0, 0], own[0, 0])
    assert not torch.allclose(first[0, 1], own[0, 1])  # the last in the order sees the first token
    assert not torch.allclose(first[0, 0], seen[0, 0])
