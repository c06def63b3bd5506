"""What pretraining predicts: targets, orders, segments, and the loss over a large vocabulary."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from xlnet.data.permutation import choose, starts_word
from xlnet.data.segments import NEVER, CorpusSegments
from xlnet.data.shapes import Budget
from xlnet.errors import UserError
from xlnet.model import token_loss as losses

SPECIAL = {"sep": 4, "cls": 3, "pad": 5}


class Corpus:
    """Documents in memory."""

    def __init__(self, tokens, documents=3):
        self.tokens = np.random.default_rng(0).integers(10, 90, tokens).astype(np.int32)
        self.lengths = np.array([tokens - 10 * (documents - 1), *[10] * (documents - 1)])


def segments(length=32, reuse=0, one_in=6, seed=0, both=False):
    return CorpusSegments(length, reuse, one_in, seed, SPECIAL, np.arange(100) % 3 != 0, both)


def whole(rank=0, ranks=1, micro=0):
    return Budget(rank, ranks, 256, micro)


@pytest.mark.parametrize("parts", [(60,), (61,), (31, 30), (7, 6)])
def test_targets_are_as_many_as_asked_for_and_orders_are_consistent(parts):
    length = sum(parts)
    functional = np.zeros(length, bool)
    functional[[-1, -2]] = True
    starts = np.random.default_rng(1).random(length) < 0.7
    for seed in range(50):
        found = choose(starts, functional, parts, 6, np.random.default_rng(seed))
        assert len(found.place_P) == sum(part // 6 for part in parts)
        assert not functional[found.place_P].any()
        order, first = found.order_L, 0
        predicted = np.zeros(length, bool)
        predicted[found.place_P] = True
        for part in parts:
            here = slice(first, first + part)
            ranked = order[here][predicted[here] | functional[here]]
            known = order[here][~predicted[here] & ~functional[here]]
            assert len(set(ranked.tolist())) == len(ranked)  # a permutation among themselves
            assert len(set(known.tolist())) == 1  # all else is seen by all of this part
            assert known[0] < ranked.min()
            if first:
                assert known[0] > order[:first].max()  # the second part sees the first, never the other way
            first += part


def test_targets_come_in_spans_of_whole_words():
    starts = np.arange(600) % 3 == 0  # each word has three pieces
    functional = np.zeros(600, bool)
    sizes = []
    for seed in range(40):
        place = choose(starts, functional, (600,), 6, np.random.default_rng(seed)).place_P
        spans = np.split(place, np.flatnonzero(np.diff(place) > 1) + 1)
        whole_words = [len(span) for span in spans if starts[span[0]] and len(span) % 3 == 0]
        assert sum(whole_words) > 0.8 * len(place)
        sizes += [words // 3 for words in whole_words]
    counts = np.bincount(sizes, minlength=6)[1:6] / len(sizes)
    assert counts[0] > counts[1] > counts[2] > counts[4]  # in proportion to 1/n
    assert 0.35 < counts[0] < 0.55


def test_word_starts():
    assert [starts_word(piece) for piece in ("▁the", "ing", "<eod>", ".", "▁")] == [True, False, True, True, True]


def test_sampled_orders_are_uniform():
    """All six orders of three predicted tokens are equally likely."""
    counts = {}
    for seed in range(3000):
        order = choose(np.ones(3, bool), np.zeros(3, bool), (3,), 1, np.random.default_rng(seed)).order_L
        counts[tuple(order.tolist())] = counts.get(tuple(order.tolist()), 0) + 1
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.parametrize("reuse", [0, 12, 13])
def test_every_token_is_read_once_and_resampled_in_each_epoch(reuse):
    corpus, shape = Corpus(1001), segments(reuse=reuse)
    for epoch in (0, 1):
        plan = shape.plan(corpus.lengths, 256, 0, epoch)
        rows = np.concatenate(plan)
        assert sorted(rows.tolist()) == list(range(2 * epoch * len(rows), (2 * epoch + 1) * len(rows)))
    update = shape.plan(corpus.lengths, 256, 0, 0)[0]
    first, second = (shape.share(corpus, update + shift, whole()) for shift in (0, 2 * len(rows)))
    (one,), (other,) = first.batches, second.batches
    same = max(1, reuse)  # where A ends, and what B is, is drawn again too
    assert (one.input_ids_BL[:, :same] == other.input_ids_BL[:, :same]).all()
    assert (one.place_BP != other.place_BP).any()
    again = shape.share(corpus, update, whole())
    assert all((getattr(one, name) == getattr(again.batches[0], name)).all() for name in ("input_ids_BL", "order_BL"))


def test_memory_continues_the_segments_of_the_update_before():
    corpus, shape = Corpus(1003), segments(reuse=12)
    plan = shape.plan(corpus.lengths, 256, 0, 0)
    assert len(plan[-1]) < len(plan[0])  # a shorter last update
    for number, (before, after) in enumerate(itertools.pairwise(plan)):
        assert (before[: len(after)] + 1 == after).all(), number
        assert shape.share(corpus, after, whole()).batches[0].is_first is False
    assert shape.share(corpus, plan[0], whole()).batches[0].is_first


def test_a_segment_that_ends_early_is_padded_and_sees_no_padding():
    corpus, shape = Corpus(70), segments()
    last = shape.share(corpus, np.array([2]), whole()).batches[0]
    real = last.tokens
    assert real == 70 - 2 * 29 + 3
    assert (last.input_ids_BL[0, real:] == SPECIAL["pad"]).all()
    assert (last.order_BL[0, real:] == NEVER).all()
    assert last.weights_BP.sum() == real // 6


@pytest.mark.parametrize(("ranks", "micro"), [(2, 0), (1, 64), (3, 40)])
def test_shares_add_up_to_the_update(ranks, micro):
    corpus, shape = Corpus(1001), segments()
    rows = shape.plan(corpus.lengths, 256, 0, 0)[0]
    (full,) = shape.share(corpus, rows, whole()).batches
    shares = [shape.share(corpus, rows, whole(rank, ranks, micro)) for rank in range(ranks)]
    batches = [batch for share in shares for batch in share.batches if batch.weights_BP.any()]
    assert (np.concatenate([batch.order_BL for batch in batches]) == full.order_BL).all()
    assert sum(batch.weights_BP.sum() for batch in batches) == shares[0].texts == full.weights_BP.sum()
    assert [batch.first_text for batch in batches] == np.cumsum([0, *[len(b.order_BL) for b in batches[:-1]]]).tolist()


def test_a_corpus_shorter_than_a_segment_is_refused():
    with pytest.raises(UserError, match=r"31 tokens in a split, fewer than the 32 of one segment"):
        segments().plan(Corpus(31, 1).lengths, 256, 0, 0)


@pytest.mark.parametrize("tokens", [1003, 70, 33, 61, 4000])
@pytest.mark.parametrize("reuse", [12, 13])
def test_half_of_an_update_with_memory_reads_backward(tokens, reuse):
    """Both directions together read every token of an epoch, but for one stretch; the next epoch turns them round."""
    corpus, shape = Corpus(tokens), segments(reuse=reuse, both=True)
    corpus.tokens = np.arange(tokens, dtype=np.int32) + 10  # so that a token says where it comes from
    shape = dataclasses.replace(shape, starts_V=np.ones(tokens + 10, bool))
    turned = []
    for epoch in range(2):
        read = {False: set(), True: set()}
        last = {}
        for number, rows in enumerate(shape.plan(corpus.lengths, 256, 0, epoch)):
            batches = shape.share(corpus, rows, whole()).batches
            assert {batch.is_first for batch in batches} == {number == 0}
            for batch in batches:
                for slot, ids in enumerate(batch.input_ids_BL[:, :reuse], batch.first_text):
                    known = ids[ids >= 10].astype(int)
                    step = -1 if batch.backward else 1
                    assert (np.diff(known) == step).all()
                    if slot in last:  # memory of the same slot holds what was read just before
                        assert last[slot] == (known[0] - step, batch.backward)
                    last[slot] = (known[-1], batch.backward)
                    read[batch.backward] |= set(known - 10)
        assert len(read[False] | read[True]) > tokens - reuse
        assert len(read[False] & read[True]) <= 2 * reuse  # the two grids of stretches begin at either end
        turned.append(read)
    if tokens > 200:
        assert 0.3 * tokens < len(turned[0][True]) < 0.6 * tokens
        assert len(turned[0][True] & turned[1][True]) < 0.2 * tokens


def test_spans_of_reversed_tokens_are_whole_words():
    starts = np.arange(600) % 3 == 2  # reversed words of three pieces: the beginning comes last
    place = choose(starts, np.zeros(600, bool), (600,), 6, np.random.default_rng(0), backward=True).place_P
    spans = np.split(place, np.flatnonzero(np.diff(place) > 1) + 1)
    assert sum(len(span) for span in spans if starts[span[-1]] and len(span) % 3 == 0) > 0.7 * len(place)


def test_a_ends_where_a_document_ends():
    """Of a segment that holds ends of documents; elsewhere A ends anywhere."""
    corpus, shape = Corpus(1000), segments()
    corpus.lengths = np.array([500, *[10] * 50])
    (batch,) = shape.share(corpus, np.arange(20, 28), whole()).batches
    for begin, row in zip(range(20 * 29, 28 * 29, 29), batch.input_ids_BL, strict=True):
        assert (begin + int(np.flatnonzero(row == SPECIAL["sep"])[0])) % 10 == 0
    (batch,) = shape.share(corpus, np.arange(8), whole()).batches
    cuts = {int(np.flatnonzero(row == SPECIAL["sep"])[0]) for row in batch.input_ids_BL}
    assert len(cuts) > 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float64, 41), (torch.float32, 41), (torch.float32, 64)])
def test_the_chunked_loss_equals_torchs(dtype, vocabulary, chunk, smoothing, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    exact = [torch.randn(size, dtype=torch.float64).mul(2).requires_grad_() for size in ((23, 8), (vocabulary, 8))]
    exact.append(torch.randn(vocabulary, dtype=torch.float64, requires_grad=True))
    hidden, weight, bias = exact
    target, factor = torch.randint(vocabulary, (23,)), (torch.arange(23) % 3).double()
    expected = F.cross_entropy(hidden @ weight.T + bias, target, reduction="none", label_smoothing=smoothing)
    (expected * factor).sum().mul(3).backward()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for scale in (1, 3):  # a loss that is not scaled takes a short cut
        mine = [x.detach().to(dtype).requires_grad_() for x in exact]
        found = losses.token_loss(*mine, target, factor.to(dtype), smoothing)
        assert found.item() == pytest.approx((expected * factor).sum().item(), rel=tolerance)
        (found * scale).backward()
        for x, theirs in zip(mine, exact, strict=True):
            assert torch.allclose(x.grad.double() * 3 / scale, theirs.grad, rtol=tolerance, atol=3 * tolerance)
    if not smoothing:
        assert torch.allclose(losses.token_losses(*mine, target).double(), expected, atol=1e-4)


def test_the_loss_never_holds_all_logits(monkeypatch):
    shapes, whole = [], losses.cross_entropy
    monkeypatch.setattr(losses, "CHUNK", 200)
    monkeypatch.setattr(losses, "cross_entropy", lambda x, *rest: (shapes.append(tuple(x.shape)), whole(x, *rest))[1])
    hidden = torch.randn(23, 8, requires_grad=True)
    losses.token_loss(hidden, torch.randn(41, 8), torch.randn(41), torch.arange(23), torch.ones(23)).backward()
    assert shapes == [(4, 41)] * 5 + [(3, 41)]
    nothing = losses.token_loss(hidden[:0], torch.randn(41, 8), torch.randn(41), torch.arange(0), torch.ones(0))
    assert nothing.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 40])
def test_a_loss_of_what_is_not_finite_is_not_finite(bad, place):
    bias = torch.zeros(41)
    bias[place] = bad
    hidden, weight = torch.randn(3, 8), torch.randn(41, 8)
    assert not losses.token_loss(hidden, weight, bias, torch.tensor([1, 2, 3]), torch.ones(3)).isfinite()
