"""CUDA graphs: their capacity, and that replaying them computes the same. Capturing needs a GPU (tests/test_gpu.py)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from graph_recorder import Recorder
from test_same_numbers import CONFIG, rows

from xlnet.data.batches import cut_evenly, epoch_plan
from xlnet.data.shapes import Budget, Packed
from xlnet.errors import RunError
from xlnet.model import fused, linear, xlnet
from xlnet.model.layout import Capacity, Layout
from xlnet.model.xlnet import Transformer, XLNetClassifier
from xlnet.recipe import TrainingRecipe
from xlnet.training import cuda_graph, distributed
from xlnet.training.device import Cuda, Device
from xlnet.training.distributed import GradientSums, SingleRank
from xlnet.training.optim import make_optimizer
from xlnet.training.step import forward, optimise


@pytest.mark.parametrize(("median", "batch_tokens"), [(15, 2048), (250, 16_384)])
def test_the_room_holds_the_updates_of_every_epoch(median, batch_tokens):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(median), 0.6, 20_000).astype(int), 3, 512)
    capacity = cuda_graph.capacity(lengths, TrainingRecipe(batch_tokens=batch_tokens))
    assert capacity.tokens <= batch_tokens
    assert capacity.longest == lengths.max()
    for epoch in range(4):
        for chosen in epoch_plan(lengths, batch_tokens, 0, epoch):
            assert cuda_graph.fits(Layout.of(lengths[chosen]), capacity)


@pytest.mark.parametrize(("ranks", "micro_batch_tokens"), [(1, 500), (4, 0), (2, 300)])
def test_the_room_holds_the_parts_of_updates(ranks, micro_batch_tokens):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(20), 0.6, 20_000).astype(int), 3, 512)
    recipe = TrainingRecipe(batch_tokens=2048, micro_batch_tokens=micro_batch_tokens)
    capacity = cuda_graph.capacity(lengths, recipe, ranks)
    assert capacity.is_part
    assert capacity.tokens <= (micro_batch_tokens or 2048 // ranks) + lengths.max()
    budget = Budget(0, ranks, 2048, micro_batch_tokens)
    fitting = []
    for chosen in epoch_plan(lengths, 2048, 0, 1):
        update = lengths[chosen]
        for part in cut_evenly(update, ranks * budget.rounds(int(update.sum()))):
            fitting.append(not len(update[part]) or cuda_graph.fits(Layout.of(update[part]), capacity))
    assert np.mean(fitting) > 0.99


def test_what_is_larger_does_not_fit():
    capacity = Capacity(tokens=100, texts=4, longest=60)
    assert cuda_graph.fits(Layout.of([60, 30, 10]), capacity)
    for lengths in ([60, 41], [61], [10, 10, 10, 10]):
        assert not cuda_graph.fits(Layout.of(lengths), capacity)


def test_a_layout_keeps_its_tensors_and_takes_other_texts():
    capacity = Capacity(tokens=100, texts=6, longest=60)
    layout = Layout.with_capacity(capacity, torch.device("cpu"))
    blocks, (squares, whole) = layout.blocks(16), layout.squares(64)
    before = [x.data_ptr() for x in (layout.offsets_S1, *blocks, squares)]
    layout.refill(Layout.of([40, 3, 17]))
    assert [x.data_ptr() for x in (layout.offsets_S1, *layout.blocks(16), layout.squares(64)[0])] == before
    assert layout.offsets_S1.tolist() == [0, 40, 43, 60, 60, 60, 60]
    assert (layout.tokens, layout.texts, layout.longest) == (100, 6, 60)
    assert [(text, start) for text, start in zip(*map(torch.Tensor.tolist, blocks), strict=True) if text < 5] == [
        (0, 0), (0, 16), (0, 32), (1, 0), (2, 0), (2, 16)
    ]  # fmt: skip
    assert set(blocks[0].tolist()[6:]) == {5}, "what is not there lies in a text that is empty"
    assert squares.tolist() == [0, 40 * 64, 43 * 64, *[60 * 64] * 3]
    assert whole == 100 * 64
    layout.refill(Layout.of([60]))
    assert layout.offsets_S1.tolist() == [0, *[60] * 6]
    assert blocks[1].tolist()[:4] == [0, 16, 32, 48]


def test_a_layout_takes_a_part_of_a_batch_only_if_it_was_made_for_parts():
    part = Layout.of([5, 4], first_token=30, first_text=2)
    whole, divided = (Layout.with_capacity(Capacity(20, 4, 9, is_part), torch.device("cpu")) for is_part in (0, 1))
    divided.refill(part)
    assert (divided.first_token.tolist(), divided.first_text.tolist()) == ([30], [2])
    with pytest.raises(RunError, match="for whole batches"):
        whole.refill(part)


class PretendedCuda(Cuda):
    """The CUDA device's decisions, on a CPU."""

    def __init__(self, ranks=None):
        super().__init__("float32", ranks)
        self.workers = 0

    def _torch_device(self):
        return torch.device("cpu")

    def _device_name(self):
        return "a CPU that stands for a GPU"

    def tensor(self, array):
        return torch.from_numpy(array)


def attention(q, k, v, positions, segments, layout, dropout, impl):
    """Relative attention that reads the texts' places from the device only, as the Triton kernels do."""
    token, longest = torch.arange(len(q)), len(positions.r_RNH) // 2
    text = torch.searchsorted(layout.offsets_S1[1:].contiguous(), token, right=True)
    row = (longest + token[None] - token[:, None]).clamp(0, 2 * longest - 1)
    scores = torch.einsum("inh,jnh->nij", q + positions.content_bias_NH, k)
    scores = scores + torch.einsum("inh,ijnh->nij", q + positions.position_bias_NH, positions.r_RNH[row])
    by_segment = torch.einsum("inh,snh->nis", q + segments.bias_NH, segments.embed_2NH)
    differs = (segments.ids_T[:, None] != segments.ids_T[None]).long()
    scores = scores + by_segment.gather(2, differs[None].expand(len(scores), -1, -1))
    scores = scores / q.shape[-1] ** 0.5
    weights = scores.masked_fill(text[:, None] != text[None], float("-inf")).softmax(-1)
    if dropout is not None:
        heads, begins = q.shape[1], torch.cat([layout.offsets_S1, layout.offsets_S1[-1:]]).long()
        rows = token[None, :, None] * heads + torch.arange(heads)[:, None, None]
        weights = torch.where(dropout.keep(rows, token - begins[text]), weights * dropout.scale, 0.0)
    return torch.einsum("nij,jnh->inh", weights, v)


@pytest.fixture
def recorders(monkeypatch):
    """Where CUDA graphs would be recorded, record torch's operators; return the recorders that were made."""
    made = []
    monkeypatch.setattr(cuda_graph, "Recorder", lambda: made.append(Recorder()) or made[-1])
    monkeypatch.setattr(Transformer, "attention_name", lambda self: "triton")
    monkeypatch.setattr(xlnet, "relative_attention", attention)
    monkeypatch.setattr(xlnet, "takes_last_queries", lambda *_: False)
    monkeypatch.setattr(fused, "_kernels", lambda *_: None)  # torch's operators only, which alone are recorded
    monkeypatch.setattr(linear, "_multiply_for", lambda *_: None)
    return made


def noisy_model():
    torch.manual_seed(0)
    return XLNetClassifier(CONFIG.__class__(**{**CONFIG.__dict__, "dropout": 0.2, "summary_last_dropout": 0.2}))


def texts(count=40):
    given, labels = rows(count, seed=1)
    lengths = np.array([len(text) for text in given])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SimpleNamespace(
        tokens=np.concatenate(given),
        lengths=lengths,
        offsets=offsets,
        boundaries=lengths - 2,
        labels=labels.astype(np.int32),
    )


def trained(recipe, devices, split, updates=5):
    """Losses and weights after a few updates; the devices compute their parts one after the other."""
    model = noisy_model()
    for device in devices:
        device.prepare(model, recipe.recompute).train()
    optimizer, found = make_optimizer(model, recipe), []
    plan = Packed().plan(split.lengths, recipe.batch_tokens, 0, 0)
    for step, chosen in enumerate((plan * updates)[:updates]):
        total, parts = 0.0, []
        for rank, device in enumerate(devices):
            budget = Budget(rank, len(devices), recipe.batch_tokens, recipe.micro_batch_tokens)
            share = Packed().share(split, chosen, budget)
            for batch in share.batches:
                device.seed(0, step)
                loss = forward(model, device.move(batch), share.texts, recipe, device)
                loss.backward()
                total += loss.item()
            parts.append([parameter.grad for parameter in model.parameters()])
            model.zero_grad()
        for parameter, *gradients in zip(model.parameters(), *parts, strict=True):
            parameter.grad = sum(gradients[1:], gradients[0])
        optimise(model, optimizer, recipe)
        found.append(total)
    return found, [parameter.detach() for parameter in model.parameters()]


RECIPE = TrainingRecipe(learning_rate=1e-3, batch_tokens=150, token_dropout=0.1, clip_norm=1.0)


@pytest.mark.parametrize(
    ("change", "ranks", "graphs"),
    [
        ({}, 1, 2),
        ({"recompute": True}, 1, 2),
        ({"micro_batch_tokens": 70}, 1, 3),
        ({"micro_batch_tokens": 50, "recompute": True}, 1, 3),
        ({}, 2, 2),
        ({"micro_batch_tokens": 40}, 2, 3),
    ],
    ids=str,
)
def test_replayed_updates_are_those_of_the_operators(recorders, change, ranks, graphs):
    """Dropout and hidden tokens included: a part's rows of the masks are those of the whole update."""
    recipe, split = RECIPE.__class__(**{**RECIPE.__dict__, **change}), texts()
    devices = [PretendedCuda() for _ in range(ranks)]
    for device in devices:
        device.capacity, device.adds = cuda_graph.capacity(split.lengths, recipe, ranks), graphs == 3
    losses, weights = trained(recipe, devices, split)
    expected, others = trained(RECIPE, [Device("float32")], split)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert all(torch.allclose(mine, theirs, atol=2e-5) for mine, theirs in zip(weights, others, strict=True))
    assert [len(recorder.recordings) for recorder in recorders] == [graphs] * ranks
    for forwards, *backwards in (recorder.recordings for recorder in recorders):
        assert forwards.replays == sum(one.replays for one in backwards) > 1


def test_batches_that_do_not_fit_and_batches_that_do_add_up(recorders):
    """Gradients of one micro-batch come from a graph, those of the next from the operators, in both orders."""
    recipe, split = TrainingRecipe(**{**RECIPE.__dict__, "micro_batch_tokens": 60}), texts()
    device = PretendedCuda()
    whole = cuda_graph.capacity(split.lengths, recipe)
    sizes = [
        batch.tokens
        for chosen in Packed().plan(split.lengths, 150, 0, 0)
        for batch in Packed().share(split, chosen, Budget(0, 1, 150, 60)).batches
    ]
    device.capacity, device.adds = whole._replace(tokens=int(np.median(sizes))), True
    losses, weights = trained(recipe, [device], split, updates=8)
    expected, others = trained(RECIPE, [Device("float32")], split, updates=8)
    replays = [recording.replays for recording in recorders[0].recordings]
    assert 0 < replays[0] < len(sizes) * 8
    assert replays[0] == replays[1] + replays[2]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert all(torch.allclose(mine, theirs, atol=2e-5) for mine, theirs in zip(weights, others, strict=True))


class OneRankOfMany(SingleRank):
    """A rank whose sums over all ranks double every gradient, as if another one had computed the same."""

    size = 2

    def __init__(self, monkeypatch):
        self.sent = []
        monkeypatch.setattr(distributed, "BUCKET", 20_000)
        monkeypatch.setattr(dist, "all_reduce", self._double)

    def _double(self, tensor, async_op=False):
        tensor.mul_(2)
        self.sent.append(tensor.numel())
        return SimpleNamespace(wait=lambda: None)

    def attach(self, model):
        self.sums = GradientSums(model, 2)

    def add_gradients(self, last):
        self.sums.armed = last

    def synchronise(self):
        self.sums.finish()


@pytest.mark.parametrize("micro_batch_tokens", [0, 60])
def test_ranks_exchange_replayed_gradients_once_an_update(recorders, monkeypatch, micro_batch_tokens):
    """Recording exchanges nothing, a replay only its result; every rank sends the same buckets in the same order."""
    recipe, split = TrainingRecipe(**{**RECIPE.__dict__, "micro_batch_tokens": micro_batch_tokens}), texts()
    found = []
    for replays in (True, False):
        ranks = OneRankOfMany(monkeypatch)
        device, model = PretendedCuda(ranks), noisy_model()
        device.capacity = cuda_graph.capacity(split.lengths, recipe) if replays else None
        device.adds = micro_batch_tokens > 0
        device.prepare(model).train()
        ranks.attach(model)
        optimizer = make_optimizer(model, recipe)
        (chosen, *_) = Packed().plan(split.lengths, recipe.batch_tokens, 0, 0)
        share = Packed().share(split, chosen, Budget(0, 1, recipe.batch_tokens, micro_batch_tokens))
        norms = []
        for step in range(3):
            for batch in share.batches:
                device.seed(0, step)
                ranks.add_gradients(last=batch is share.batches[-1])
                forward(model, device.move(batch), share.texts, recipe, device).backward()
            ranks.synchronise()
            norms.append(optimise(model, optimizer, recipe).item())
        found.append((norms, ranks.sent))
    (norms, sent), (expected, plainly) = found
    assert recorders
    assert len(sent) > 3 * 2
    assert sent == plainly
    assert norms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("training", "ranks", "records"),
    [
        ({}, 1, True),
        ({"recompute": True}, 1, True),
        ({"micro_batch_tokens": 60}, 1, True),
        ({}, 4, True),
        ({"shard_weights": True}, 1, True),
        ({"shard_weights": True}, 4, False),
    ],
    ids=str,
)
def test_which_trainings_record_graphs(monkeypatch, training, ranks, records):
    device = PretendedCuda(SimpleNamespace(size=ranks, parts=ranks, local_rank=0))
    data = SimpleNamespace(split=lambda name: texts())
    recipe = TrainingRecipe(batch_tokens=150, **training)
    device.choose_shapes(data, recipe)
    assert (device.capacity is not None) == records
    assert device.adds == ("micro_batch_tokens" in training)
    device.capacity = None
    monkeypatch.setenv("XLNET_CUDA_GRAPHS", "0")
    device.choose_shapes(data, recipe)
    assert device.capacity is None


@pytest.mark.parametrize(
    ("tokens", "width", "ranks", "pays"),
    [(100_000, 1024, 1, True), (4_096, 768, 8, True), (32_768, 768, 8, False), (4_096, 256, 8, True)],
)
def test_several_ranks_record_graphs_where_launching_takes_longer_than_computing(tokens, width, ranks, pays):
    assert cuda_graph.pays(tokens, width, ranks) == pays
