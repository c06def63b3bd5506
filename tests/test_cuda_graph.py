"""What a CUDA graph has capacity for; capturing one needs a GPU (tests/test_gpu.py)."""

import numpy as np
import pytest
import torch

from xlnet.data.batches import epoch_plan
from xlnet.model.layout import Capacity, Layout
from xlnet.recipe import TrainingRecipe
from xlnet.training import cuda_graph


@pytest.mark.parametrize(("median", "batch_tokens"), [(15, 2048), (250, 16_384)])
def test_the_room_holds_the_updates_of_every_epoch(median, batch_tokens):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(median), 0.6, 20_000).astype(int), 3, 512)
    capacity = cuda_graph.capacity(lengths, TrainingRecipe(batch_tokens=batch_tokens))
    assert capacity.tokens <= batch_tokens
    assert capacity.longest == lengths.max()
    for epoch in range(4):
        for rows in epoch_plan(lengths, batch_tokens, 0, epoch):
            assert cuda_graph.fits(Layout.of(lengths[rows]), capacity)


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
    layout.replace(np.array([40, 3, 17]))
    assert [x.data_ptr() for x in (layout.offsets_S1, *layout.blocks(16), layout.squares(64)[0])] == before
    assert layout.offsets_S1.tolist() == [0, 40, 43, 60, 60, 60, 60]
    assert (layout.tokens, layout.texts, layout.longest) == (100, 6, 60)
    assert [(text, start) for text, start in zip(*map(torch.Tensor.tolist, blocks), strict=True) if text < 5] == [
        (0, 0), (0, 16), (0, 32), (1, 0), (2, 0), (2, 16)
    ]  # fmt: skip
    assert set(blocks[0].tolist()[6:]) == {5}, "what is not there lies in a text that is empty"
    assert squares.tolist() == [0, 40 * 64, 43 * 64, *[60 * 64] * 3]
    assert whole == 100 * 64
    layout.replace(np.array([60]))
    assert layout.offsets_S1.tolist() == [0, *[60] * 6]
    assert blocks[1].tolist()[:4] == [0, 16, 32, 48]
