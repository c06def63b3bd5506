"""Products of float32 matrices on AMX: exact to float32, equal with any number of threads, and replaced elsewhere."""

import pytest
import torch
from torch.nn import functional as F

from xlnet import processor
from xlnet.model import linear
from xlnet.model.kernels import native_amx

here = pytest.mark.skipif(bool(native_amx.obstacle()), reason=native_amx.obstacle() or "it can run")
SHAPES = [(64, 16, 32), (65, 48, 64), (97, 784, 288), (300, 768, 96), (64, 800, 800)]


def _factors(rows: int, depth: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((rows, depth), (width, depth), (width,))
    x, weight, bias = (torch.randn(*size, generator=generator) for size in sizes)
    return x, weight, bias


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@here
@pytest.mark.parametrize(("rows", "depth", "width"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_products_are_as_exact_as_those_of_float32(rows: int, depth: int, width: int, gelu: bool) -> None:
    x, weight, bias = _factors(rows, depth, width)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert native_amx.fits(x, weight.t())
    found = native_amx.product(x, weight.t(), bias, gelu)
    assert _error(found, F.gelu(exact) if gelu else exact) < 3e-7
    # The weights may be stored either way, and the rows may be a part of a wider matrix.
    wider = torch.cat([x, x], 1)[:, :depth]
    assert torch.equal(native_amx.product(wider, weight.t().contiguous(), bias, gelu), found)


@here
@pytest.mark.parametrize(("rows", "depth", "width"), [(65, 48, 64), (300, 768, 96)])
def test_gradients_are_those_of_float64(rows: int, depth: int, width: int) -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in _factors(rows, depth, width))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    slope = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    linear.linear(x, weight, bias).backward(slope)
    F.linear(*exact).backward(slope.double())
    for found, wanted in zip((x, weight, bias), exact, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert _error(found.grad, wanted.grad) < 3e-7


@here
@pytest.mark.parametrize("rows", [64, 1100])
def test_the_number_of_threads_and_the_other_rows_change_no_bit(rows: int) -> None:
    x, weight, bias = _factors(rows, 784, 288)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(native_amx.product(x, weight.t(), bias))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(native_amx.product(torch.cat([x, x]), weight.t(), bias)[rows:], found[0])


@here
def test_bfloat16_products_before_and_after_are_right() -> None:
    x, weight, bias = _factors(64, 64, 64)
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    before = F.linear(*half)
    native_amx.product(x, weight.t(), bias)
    assert torch.equal(F.linear(*half), before)


@here
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_spoils_its_row_only(value: float) -> None:
    x, weight, bias = _factors(70, 64, 64)
    right = native_amx.product(x, weight.t(), bias)
    x[3, 5] = value
    found = native_amx.product(x, weight.t(), bias)
    assert not found[3].isfinite().any()
    found[3] = right[3]
    assert torch.equal(found, right)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(63, 64), torch.ones(64, 64)),  # few rows
        (torch.ones(64, 40), torch.ones(64, 40)),  # no whole vectors
        (torch.ones(64, 64), torch.ones(40, 64)),  # no whole blocks
        (torch.ones(64, 128)[:, ::2], torch.ones(64, 64)),  # no dimension is contiguous
        (torch.ones(64, 64).double(), torch.ones(64, 64).double()),
    ],
)
def test_products_that_do_not_fit_are_left_to_torch(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert not native_amx.fits(x, weight.t())
    assert torch.equal(linear.linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("intel", [True, False])
def test_a_processor_without_amx_takes_other_products(rows: int, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    native_amx.obstacle.cache_clear()
    monkeypatch.setattr(processor, "features", lambda: frozenset({"amx_tile", "avx512f"}))
    monkeypatch.setattr(linear, "_is_intel", lambda: intel)
    try:
        assert native_amx.obstacle() == "the processor lacks amx_bf16"
        x, weight, bias = _factors(rows, 64, 64)
        assert not native_amx.fits(x, weight.t())
        expected = F.linear(x, weight, bias)
        torch.testing.assert_close(linear.linear(x, weight, bias), expected)
        torch.testing.assert_close(linear.multiply_gelu(x, weight, bias), F.gelu(expected))
        torch.testing.assert_close(linear.project(x, weight), x @ weight)
    finally:
        native_amx.obstacle.cache_clear()
