"""The cheap CPU dropout is a dropout."""

import pytest
import torch

from xlnet.model.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_mean(probability):
    torch.manual_seed(0)
    x = torch.ones(1001, 997)
    y = dropout(x, probability, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(probability, abs=2e-3)
    assert y.mean().item() == pytest.approx(1.0, abs=5e-3)
    assert len(y.unique()) == 2


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4_000_000), 0.5, training=True) > 0).double() * 2 - 1
    for shift in (1, 2, 3, 4, 5):
        assert abs((kept[shift:] * kept[:-shift]).mean().item()) < 3e-3


def test_the_gradient_has_the_same_mask():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.3, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_same_seed_same_mask_and_off_is_the_identity():
    x = torch.randn(77)
    torch.manual_seed(3)
    first = dropout(x, 0.2, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.2, training=True))
    assert dropout(x, 0.2, training=False) is x
    assert dropout(x, 0.0, training=True) is x
