"""Classifiers prepared for prediction: float32 as in training, bfloat16 and int8 close to it, and what refuses them."""

import numpy as np
import pytest
import torch
from transformers import XLNetConfig as TheirConfig
from transformers import XLNetForSequenceClassification

from xlnet import processor
from xlnet.__main__ import main
from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.model import precision as precisions
from xlnet.model import prepared
from xlnet.model.config import XLNetConfig
from xlnet.model.layout import Layout
from xlnet.model.precision import choose, obstacle
from xlnet.model.prepared import PreparedClassifier
from xlnet.model.weights import join_qkv
from xlnet.model.xlnet import XLNetClassifier

CONFIG = XLNetConfig(97, 3, 64, 4, 16, 128, classes=("a", "b", "c"))
LOW = [
    pytest.param(name, marks=pytest.mark.skipif(bool(obstacle(name)), reason=obstacle(name) or "it can run"))
    for name in ("bfloat16", "int8")
]
BATCHES = {"one": [7], "shortest": [1], "mixed": [30, 1, 9, 9, 64, 2], "longer than kept": [5, 150]}


@pytest.fixture(scope="module")
def pair():
    """A model of transformers with weights far from those at the start, and ours with the same."""
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 128, "num_labels": 3}
    theirs = XLNetForSequenceClassification(TheirConfig(**shape)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = XLNetClassifier(CONFIG)
    ours.load_state_dict(join_qkv(theirs.state_dict()))
    return theirs, ours.eval()


def texts(lengths):
    """Random tokens, with a second segment and the segment of <cls>, packed."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids_T = torch.randint(10, 97, (sum(lengths),), generator=generator)
    segments = [2 if i == n - 1 else int(i > n // 2) for n in lengths for i in range(n)]
    return ids_T, torch.tensor(segments, dtype=torch.int32), Layout.of(np.array(lengths))


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("has_segments", [True, False])
def test_float32_gives_the_logits_of_the_model_and_of_transformers(pair, lengths, impl, has_segments, monkeypatch):
    monkeypatch.setattr(prepared, "KEPT", 100)
    theirs, ours = pair
    monkeypatch.setattr(ours.transformer, "impl", impl)
    ids_T, segments_T, layout = texts(lengths)
    given = segments_T if has_segments else None
    found = PreparedClassifier(ours.train())(ids_T, given, layout)  # training mode: still nothing is dropped
    with torch.no_grad():
        assert torch.allclose(found, ours.eval()(ids_T, given, layout), atol=1e-6)
        for (first, stop), logits in zip(layout.spans, found, strict=True):
            row = {"token_type_ids": segments_T[None, first:stop].long()} if has_segments else {}
            assert torch.allclose(logits, theirs(ids_T[None, first:stop], **row).logits[0], atol=1e-5)


def test_the_kept_table_of_distances_grows_and_serves_shorter_texts(pair):
    model = PreparedClassifier(pair[1])
    answers = [model(*texts([length])) for length in (3, 200, 3, 70)]
    assert torch.equal(answers[0], answers[2])
    assert torch.allclose(answers[3], PreparedClassifier(pair[1])(*texts([70])), atol=1e-6)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("impl", ["auto", "reference", "sdpa"])
def test_low_precision_is_close_to_float32(pair, precision, lengths, impl, monkeypatch):
    monkeypatch.setattr(pair[1].transformer, "impl", impl)
    exact, found = (PreparedClassifier(pair[1], name)(*texts(lengths)) for name in ("float32", precision))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("compiled", [True, False])
def test_low_precision_products_are_close_and_keep_zeros_finite(precision, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(precisions, "_has_kernels", lambda x: False)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(5, 32)
    x[1], x[2] = 0, x[2] * 1e6
    for given in (bias, None):
        exact = torch.nn.functional.linear(x, weight, given)
        product = precisions.prepare(precision, weight, given)
        largest = exact.abs().amax(1)
        assert ((product(x).float() - exact).abs().amax(1) <= 0.02 * largest).all()
        spoiled = x.index_fill(0, torch.tensor([3]), float("inf"))
        assert product(spoiled).isfinite().all(1).tolist() == [True, True, True, False, True]
        activated = torch.nn.functional.gelu(exact)
        assert ((product(x, gelu=True).float() - activated).abs().amax(1) <= 0.02 * largest).all()


@pytest.mark.parametrize("precision", LOW)
def test_the_command_line_predicts_in_low_precision(trained, capsys, precision):
    (exact,) = predict(trained.model, [("what a lovely film", None)])
    assert main(["predict", str(trained.model), "what a lovely film", "--precision", precision]) == 0
    assert exact["label"] in capsys.readouterr().out
    (found,) = predict(Predictor(trained.model, precision), [("what a lovely film", None)])
    assert found["probabilities"] == pytest.approx(exact["probabilities"], abs=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("words", [["predict", "MODEL", "a film"], ["serve", "MODEL", "--port", "0"]])
def test_a_processor_without_the_products_is_said_in_one_line(trained, capsys, monkeypatch, precision, words):
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx2", "fma"}))
    assert main([str(trained.model) if word == "MODEL" else word for word in words] + ["--precision", precision]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: precision '{precision}' cannot be used here: the processor has none of ")
    assert error.endswith("; take 'float32'\n")
    assert error.count("\n") == 1


def test_auto_is_float32_everywhere_and_an_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setattr(processor, "features", frozenset)
    assert choose("auto") == choose("float32") == "float32"
    with pytest.raises(precisions.UserError, match="'float16'; allowed: auto, float32, bfloat16, int8"):
        choose("float16")
