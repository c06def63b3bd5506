"""The fused element-wise kernels against torch's operators with the same mask: values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from xlnet.model import dropout as plain
from xlnet.model import fused
from xlnet.model.dropout import Dropout
from xlnet.training.optim import AdamW

ROWS = [1, 7, 65]


def noise(probability):
    return Dropout.seeded(probability, torch.tensor([4242])) if probability else None


def gradients(work, *tensors):
    """The output and the gradients of every tensor, for a fixed gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = work(*leaves)
    out.backward(torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape))
    return [out.detach(), *(x.grad for x in leaves)]


def assert_equal(got, expected, tolerance=2e-6):
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [16, 80, 1024])
def test_gelu_dropout(rows, width, probability):
    torch.manual_seed(0)
    x = torch.randn(rows, width) * 4
    expected = gradients(lambda x: plain.dropout(F.gelu(x), noise(probability)), x.double())
    assert_equal(gradients(lambda x: fused.gelu_dropout(x, noise(probability)), x), expected)


def test_gelu_is_exact_far_out():
    x = torch.linspace(-12, 12, 16 * 400).view(-1, 16)
    expected = gradients(F.gelu, x.double())
    assert_equal(gradients(lambda x: fused.gelu_dropout(x, None), x), expected)


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [16, 80, 768])
def test_dropout_add_norm(rows, width, probability):
    torch.manual_seed(0)
    given = [torch.randn(rows, width), torch.randn(rows, width), torch.randn(width), torch.randn(width)]

    def exact(x, residual, weight, bias):
        return F.layer_norm(residual + plain.dropout(x, noise(probability)), (width,), weight, bias, 1e-12)

    expected = gradients(exact, *(x.double() for x in given))
    got = gradients(lambda *tensors: fused.dropout_add_norm(*tensors, 1e-12, noise(probability)), *given)
    assert_equal(got, expected, 1e-5)


ROWS_THAT_HURT = {
    "a constant row": lambda width: torch.full((3, width), 0.1),
    "a large constant row": lambda width: torch.full((3, width), 12345.678),
    "zeros": lambda width: torch.zeros(3, width),
    "negative zeros": lambda width: torch.full((3, width), -0.0),
    "denormals": lambda width: torch.full((3, width), 1e-41),
    "one outlier": lambda width: torch.cat([torch.full((3, 1), 1e4), torch.zeros(3, width - 1)], 1),
    "a large mean": lambda width: 1000 + torch.linspace(-1, 1, 3 * width).view(3, width),
}


@pytest.mark.parametrize("name", ROWS_THAT_HURT)
@pytest.mark.parametrize("width", [20, 48, 768])
def test_norm_of_rows_that_hurt(width, name):
    """Equal values have no spread: the result is the bias, and nothing becomes of their rounding errors."""
    torch.manual_seed(0)
    given = [torch.zeros(3, width), ROWS_THAT_HURT[name](width), torch.randn(width), torch.randn(width)]
    expected = gradients(lambda x, r, w, b: F.layer_norm(x + r, (width,), w, b, 1e-12), *(x.double() for x in given))
    got = gradients(lambda *tensors: fused.dropout_add_norm(*tensors, 1e-12, None), *given)
    assert all(torch.isfinite(x).all() for x in got)
    assert_equal(got, expected, 1e-3 if name == "a large mean" else 2e-4)
    if "outlier" not in name and "mean" not in name:
        assert torch.equal(got[0], given[3].expand(3, width))


@pytest.mark.parametrize("probability", [1e-11, 1e-9, 0.99, 1 - 1e-12])
@pytest.mark.parametrize("width", [20, 48])
def test_dropout_of_almost_nothing_and_almost_everything(width, probability):
    torch.manual_seed(0)
    given = [torch.randn(9, width), torch.randn(9, width), torch.randn(width), torch.randn(width)]

    def exact(x, residual, weight, bias):
        return F.layer_norm(residual + plain.dropout(x, noise(probability)), (width,), weight, bias, 1e-12)

    expected = gradients(exact, *(x.double() for x in given))
    assert_equal(gradients(lambda *x: fused.dropout_add_norm(*x, 1e-12, noise(probability)), *given), expected, 1e-4)
    expected = gradients(lambda x: plain.dropout(F.gelu(x), noise(probability)), given[0].double())
    assert_equal(gradients(lambda x: fused.gelu_dropout(x, noise(probability)), given[0]), expected, 1e-4)
    expected = gradients(lambda x: plain.dropout(x, noise(probability)), given[0].double())
    assert_equal(gradients(lambda x: fused.dropout(x, noise(probability)), given[0]), expected, 1e-5)


def test_values_near_the_end_of_bfloat16():
    """3e38 fits, its square does not: what reaches the kernels is float32 with float64's answer or infinite alike."""
    x = torch.tensor([[3e38, -3e38] * 8, [1e-38, -1e-38] * 8], dtype=torch.bfloat16)
    expected = gradients(F.gelu, x.double())
    got = gradients(lambda x: fused.gelu_dropout(x, None), x)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.isfinite(mine).all()
        assert (mine.double() - theirs).abs().max() <= 0.01 * theirs.abs().max()


def test_dropout_keeps_share_mean_and_mask():
    x = torch.ones(500, 512)
    out, grad = gradients(lambda x: fused.dropout(x, noise(0.25)), x)
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=5e-3)
    assert out.mean().item() == pytest.approx(1.0, abs=1e-2)
    assert torch.equal(out, plain.dropout(x, noise(0.25)))
    assert torch.equal(grad == 0, out == 0)


def test_widths_that_are_no_whole_vectors_take_the_plain_way():
    x = torch.randn(5, 20)
    assert torch.equal(fused.gelu_dropout(x, noise(0.5)), plain.dropout(F.gelu(x), noise(0.5)))


def test_sums_over_rows_do_not_depend_on_the_threads():
    torch.manual_seed(0)
    given = [torch.randn(1000, 64), torch.randn(1000, 64), torch.randn(64), torch.randn(64)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(lambda *x: fused.dropout_add_norm(*x, 1e-12, noise(0.1)), *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sparse_rows_get_the_dense_update(decay):
    """Tokens come, go and never come; the optimizer's state survives being saved."""
    torch.manual_seed(0)
    start = torch.randn(50, 32)
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": decay, "fused": True}
    tables = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [torch.optim.AdamW([tables[0]], **options), AdamW([tables[1]], **options)]
    for step in range(25):
        ids, weights = torch.randint(0, 20 if step % 2 else 35, (17,)), torch.randn(17, 32)
        for table, optimizer, sparse in zip(tables, optimizers, (False, True), strict=True):
            (F.embedding(ids, table, sparse=sparse) * weights).sum().backward()
            if sparse:
                table.grad = table.grad.coalesce()
            optimizer.grad_scale = torch.tensor(1.5)
            optimizer.step()
            optimizer.zero_grad()
        if step == 12:
            kept = optimizers[1].state_dict()
            optimizers[1] = AdamW([tables[1]], **options)
            optimizers[1].load_state_dict(kept)
        if step == 18:  # as a device leaves it that updates the whole table
            del optimizers[1].state[tables[1]]["seen"]
    assert (tables[0] - tables[1]).abs().max() <= 1e-5
    if not decay:
        assert torch.equal(tables[1][35:], start[35:])


def test_the_update_without_a_fused_kernel_clips_and_starts_as_that_with_one():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.ones(5, 4)) for _ in range(2)]
    optimizers = [
        AdamW([p], lr=1e-2, weight_decay=0.1, fused=fused) for p, fused in zip(parameters, (1, 0), strict=True)
    ]
    optimizers[1].start()
    for _ in range(4):
        gradient = torch.randn(5, 4)
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad, optimizer.grad_scale = gradient.clone(), torch.tensor(3.0)
            optimizer.step()
    assert torch.allclose(*parameters, rtol=1e-6, atol=0)
