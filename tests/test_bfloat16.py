"""bfloat16 products on a CPU: their gradients, float32's losses, the same bits again, and when `auto` takes them."""

import numpy as np
import pytest
import torch
from test_same_numbers import CONFIG, RECIPE, packed, rows
from torch.utils._python_dispatch import TorchDispatchMode

from xlnet import processor
from xlnet.errors import UserError
from xlnet.model import fused
from xlnet.model.dropout import Dropout
from xlnet.model.kernels import build, native, native_fused
from xlnet.model.linear import linear, project
from xlnet.model.xlnet import XLNetClassifier
from xlnet.training import device, precision
from xlnet.training.device import Device
from xlnet.training.optim import make_optimizer
from xlnet.training.step import forward, optimise

COARSE = 2.0**-7  # bfloat16 has eight bits; sums of rounded values may be a little coarser


def close(found: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool((found.double() - exact).norm() <= COARSE * exact.norm())


@pytest.mark.parametrize("tokens", [1, 7, 33, 70])
@pytest.mark.parametrize(("layout", "bias"), [("linear", True), ("linear", False), ("project", False)])
def test_products_have_the_gradients_of_float64(tokens: int, layout: str, bias: bool) -> None:
    torch.manual_seed(0)
    sizes = (40, 24) if layout == "linear" else (24, 40)
    given = [torch.randn(tokens, 24), torch.randn(sizes), *([torch.randn(40)] if bias else [])]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        tensors = tuple(x.clone().requires_grad_() for x in tensors)
        with torch.autocast("cpu", torch.bfloat16, enabled=tensors[0].dtype == torch.float32):
            out = linear(*tensors) if layout == "linear" else project(*tensors)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        (out.double() * weights).sum().backward()
        return [out.detach(), *(x.grad for x in tensors)]

    exact, found, again = run(*(x.double() for x in given)), run(*given), run(*given)
    assert found[0].dtype == torch.bfloat16
    assert {x.dtype for x in found[1:]} == {torch.float32}, "gradients of weights are kept in float32"
    assert all(close(mine, theirs) for mine, theirs in zip(found, exact, strict=True))
    assert all(torch.equal(mine, same) for mine, same in zip(found, again, strict=True))


class Products(TorchDispatchMode):
    """Collects the shapes of products of bfloat16 matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and args[-1].dtype == torch.bfloat16:
            self.shapes.add((*args[-2].shape, args[-1].shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(bool(native.obstacle("cpu", "torch.bfloat16", native.LANES)), reason="no compiled kernels here")
def test_updates_of_other_sizes_repeat_the_shapes_of_products() -> None:
    """For each new shape oneDNN writes new machine code, for long; texts, tokens and distances differ every time."""
    torch.manual_seed(0)
    device, products = Device("bfloat16"), Products()
    model = device.prepare(XLNetClassifier(CONFIG)).train()
    sizes = set()
    for seed in range(4):
        texts, labels = rows(30 + seed % 4, seed)
        sizes.add((len(texts), sum(map(len, texts))))
        with products:
            forward(model, device.move(packed(texts, labels)), len(texts), RECIPE, device).backward()
    assert len(sizes) == 4
    assert not [shape for shape in products.shapes if any(size % 16 for size in shape)], "texts, distances, classes"


@pytest.mark.parametrize("shape", [(1, 16), (31, 33), (32, 64), (65, 100)])
def test_transposing_is_exact_and_sums_columns(shape: tuple[int, int]) -> None:
    x = torch.randn(shape).bfloat16()
    out, sums = native_fused.transpose(x, with_sums=True)
    assert torch.equal(out, x.t())
    assert sums is not None
    assert torch.allclose(sums, x.float().sum(0), atol=1e-5)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_what_lies_between_products_reads_and_writes_bfloat16(probability: float) -> None:
    torch.manual_seed(0)
    x, residual, weight, bias = torch.randn(9, 48).bfloat16(), torch.randn(9, 48), torch.randn(48), torch.randn(48)
    noise = Dropout(probability, torch.tensor([5])) if probability else None

    def run(kind: torch.dtype) -> list[torch.Tensor]:
        tensors = [x.to(kind), *(one.to(torch.promote_types(kind, torch.float32)) for one in (residual, weight, bias))]
        tensors = [one.clone().requires_grad_() for one in tensors]
        inner, normal = fused.gelu_dropout(tensors[0], noise), fused.dropout_add_norm(*tensors, 1e-12, noise)
        (inner.to(normal.dtype) * normal).sum().backward()
        return [inner.detach(), normal.detach(), *(one.grad for one in tensors)]

    found, exact = run(torch.bfloat16), run(torch.float64)
    assert [one.dtype for one in found[:3]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert all(close(mine, theirs) for mine, theirs in zip(found, exact, strict=True))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3.3895e38, -3.3895e38, -0.0, 1e-40])
def test_rounding_keeps_what_is_not_finite(value: float) -> None:
    """A loss that became nan must stay nan, and the largest numbers stay numbers."""
    x = torch.full((1, 16), value).bfloat16()
    exact = fused.gelu_dropout(x.float(), None).bfloat16()
    assert torch.equal(fused.gelu_dropout(x, None).nan_to_num(7.0), exact.nan_to_num(7.0))


def losses(kind: str, steps: int, hidden: torch.dtype | None = None) -> list[float]:
    torch.manual_seed(0)
    device = Device(kind)
    model = device.prepare(XLNetClassifier(CONFIG)).train()
    model.transformer.hidden_type = hidden
    optimizer, found = make_optimizer(model, RECIPE), []
    for step in range(steps):
        texts, labels = rows(12, seed=step % 6)
        loss = forward(model, device.move(packed(texts, labels)), len(texts), RECIPE, device)
        loss.backward()
        optimise(model, optimizer, RECIPE)
        found.append(loss.item())
    return found


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Float32's losses, each the mean of ten updates."""
    return np.array(losses("float32", 80)).reshape(-1, 10).mean(1)


def test_updates_follow_float32_and_repeat_bit_for_bit(expected: np.ndarray) -> None:
    """The mean loss of every ten updates is within 3 %, and the model learns as well."""
    found = losses("bfloat16", 80)
    assert found[:10] == losses("bfloat16", 10)
    smooth = np.array(found).reshape(-1, 10).mean(1)
    assert np.abs(smooth / expected - 1).max() <= 0.03
    assert smooth[-3:].mean() < 0.95 * smooth[:3].mean()


def test_hidden_states_in_bfloat16_follow_float32_as_closely(expected: np.ndarray, monkeypatch) -> None:
    """As a GPU keeps them, in torch's operators: within the band of bfloat16 products, learning as well, same bits."""
    between = losses("bfloat16", 10)
    monkeypatch.setattr(fused, "_kernels", lambda *_: None)  # the compiled ones keep hidden states in float32
    found = losses("bfloat16", 80, torch.bfloat16)
    assert found[:10] == losses("bfloat16", 10, torch.bfloat16)
    assert found[:10] != between
    smooth = np.array(found).reshape(-1, 10).mean(1)
    assert np.abs(smooth / expected - 1).max() <= 0.03
    assert smooth[-3:].mean() < 0.95 * smooth[:3].mean()


def test_without_autocast_hidden_states_have_the_weights_type() -> None:
    model = XLNetClassifier(CONFIG).eval()
    batch = Device("float32").move(packed(*rows(3, seed=0)))
    usual = model(batch.input_ids_T, batch.segment_ids_T, batch.layout)
    model.transformer.hidden_type = torch.bfloat16
    assert torch.equal(model(batch.input_ids_T, batch.segment_ids_T, batch.layout), usual)


@pytest.mark.parametrize(("asked", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_the_environment_decides_on_hidden_states(monkeypatch, asked, expected) -> None:
    monkeypatch.setenv("XLNET_HIDDEN_STATES", asked)
    assert device._hidden_type(torch.bfloat16) == expected
    assert device._hidden_type(torch.float32) == torch.float32
    monkeypatch.setenv("XLNET_HIDDEN_STATES", "float16")
    with pytest.raises(UserError, match="XLNET_HIDDEN_STATES is 'float16'; allowed: auto, float32"):
        device._hidden_type(torch.bfloat16)


@pytest.mark.parametrize(
    ("flags", "asked", "task", "width", "chosen"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", "auto", "classification", 256, "bfloat16"),
        ("avx512_bf16 amx_bf16 amx_tile", "auto", "regression", 768, "bfloat16"),
        ("avx512_bf16 amx_bf16 amx_tile", "auto", "classification", 128, "float32"),
        ("avx512_bf16 amx_bf16 amx_tile", "auto", "pretrain", 768, "float32"),
        ("avx512_bf16 amx_bf16 amx_tile", "float32", "classification", 768, "float32"),
        ("avx512_bf16", "auto", "classification", 768, "float32"),
        ("avx2 fma", "auto", "classification", 768, "float32"),
        ("avx2 fma", "bfloat16", "classification", 768, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_it_was_measured_to_be_faster(
    flags, asked, task, width, chosen, tmp_path, monkeypatch
):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    processor.CPUINFO.write_text(f"processor: 0\nflags: fpu {flags}\n")
    processor.features.cache_clear()
    try:
        assert precision.on_cpu(asked, task, width) == chosen
    finally:
        processor.features.cache_clear()


def test_instruction_sets_can_stay_unused(tmp_path, monkeypatch):
    everything = " ".join(sorted(set().union(*build.LEVELS.values())))
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    processor.CPUINFO.write_text(f"flags: {everything} amx_tile amx_bf16\n")
    found = []
    try:
        for without in ("", "amx_tile,amx_bf16", "avx512f,amx_bf16", "avx512f,avx2,amx_bf16"):
            monkeypatch.setenv("XLNET_PROCESSOR_WITHOUT", without)
            processor.features.cache_clear()
            found.append((build.level(), precision.has_amx()))
    finally:
        processor.features.cache_clear()
    assert found == [("x86-64-v4", True), ("x86-64-v4", False), ("x86-64-v3", False), ("x86-64", False)]


def test_a_device_chooses_again_for_each_model(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    device = Device()
    assert device.prepare(XLNetClassifier(CONFIG)) is not None
    assert device.precision == torch.float32, "too narrow"
    monkeypatch.setattr(precision, "NARROWEST", CONFIG.d_model)
    device.prepare(XLNetClassifier(CONFIG))
    assert device.precision == torch.bfloat16
    asked = Device("float32")
    asked.prepare(XLNetClassifier(CONFIG))
    assert asked.precision == torch.float32
