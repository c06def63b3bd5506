"""Counted dropout: a fair coin per element, the same for the same seed, and another for another."""

import pytest
import torch

from xlnet.model.dropout import Dropout, Dropouts, KeyBuffers, dropout


def noise(probability, seed=7):
    return Dropout.seeded(probability, torch.tensor([seed]))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_mean(probability):
    y = dropout(torch.ones(1001, 997), noise(probability))
    assert (y == 0).float().mean().item() == pytest.approx(probability, abs=2e-3)
    assert y.mean().item() == pytest.approx(1.0, abs=5e-3)
    assert len(y.unique()) == 2


@pytest.mark.parametrize("shift", [(0, 1), (0, 2), (1, 0), (1, 1), (7, 3)])
def test_neighbours_are_independent(shift):
    kept = (dropout(torch.ones(1500, 1500), noise(0.5)) > 0).double() * 2 - 1
    moved = kept.roll(shift, (0, 1))
    assert abs((kept * moved).mean().item()) < 4e-3


def test_rows_and_columns_have_equal_shares():
    """No row or column is dropped more often than chance allows (6 standard deviations)."""
    kept = (dropout(torch.ones(2000, 2000), noise(0.3)) > 0).double()
    for axis in (0, 1):
        assert (kept.mean(axis) - 0.7).abs().max() < 6 * (0.21 / 2000) ** 0.5


def test_seeds_give_unrelated_masks():
    first, second = (dropout(torch.ones(1000, 1000), noise(0.5, seed)) > 0 for seed in (1, 2))
    assert (first == second).double().mean().item() == pytest.approx(0.5, abs=3e-3)


def test_the_gradient_has_the_same_mask():
    x = torch.ones(10, 100, requires_grad=True)
    y = dropout(x, noise(0.3))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_places_draw_from_torchs_generator():
    device = torch.device("cpu")
    torch.manual_seed(3)
    first = [Dropouts(2, device, True).next(0.1) for _ in range(2)]
    torch.manual_seed(3)
    again = Dropouts(2, device, True).next(0.1)
    assert torch.equal(first[0].key, again.key)
    assert not torch.equal(first[0].key, first[1].key)


def test_off_is_the_identity():
    x = torch.randn(7, 11)
    assert Dropouts(1, x.device, False).next(0.5) is None
    assert Dropouts(1, x.device, True).next(0.0) is None
    assert dropout(x, None) is x


def test_keys_in_buffers_are_those_that_would_have_been_drawn():
    """A graph is recorded with the keys of one step and replayed with those of another."""
    device, buffers = torch.device("cpu"), KeyBuffers()

    def draw(seed):
        torch.manual_seed(seed)
        return [Dropouts(2, device, True).next(0.1).key for _ in range(3)]

    expected = draw(5)
    with buffers:
        recorded = draw(4)
    with buffers:
        again = draw(0)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(recorded, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(recorded, expected, strict=True))
    torch.manual_seed(5)
    buffers.refill()
    assert all(torch.equal(a, b) for a, b in zip(recorded, expected, strict=True))
