"""Our XLNet against Hugging Face's: same weights, same inputs, same logits and gradients."""

import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import XLNetConfig as TheirConfig
from transformers import XLNetForSequenceClassification

from xlnet.data.tokenizer import SHIPPED
from xlnet.errors import CorruptArtifact, UserError
from xlnet.model.layout import Layout
from xlnet.model.positions import by_key
from xlnet.model.weights import load_classifier, load_pretrained, save_model, split_qkv

VOCABULARY = 97


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A transformers model with random weights, and ours loaded from the file it wrote."""
    torch.manual_seed(0)
    theirs = XLNetForSequenceClassification(
        TheirConfig(vocab_size=VOCABULARY, d_model=64, n_layer=3, n_head=4, d_inner=128, num_labels=3)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # far from initialisation: biases and norms matter too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, load_classifier(folder)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A dataset's tokenizer with as many tokens as the models of these tests."""
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces = [(f"piece{i}", 0.0) for i in range(VOCABULARY)]
    Tokenizer(models.Unigram(pieces, unk_id=0)).save(str(folder / "tokenizer.json"))
    return folder


def batch(lengths, pairs=False, seed=0):
    """Left-padded ids, segments (0, 1, 2; padding 3) and mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(10, VOCABULARY, (len(lengths), longest), generator=generator)
    segments = torch.zeros_like(ids)
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        if pairs:
            segments[row, longest - length // 2 :] = 1
        segments[row, -1] = 2
        mask[row, : longest - length] = False
        segments[row, : longest - length] = 3
    ids[~mask] = 5
    return ids, segments, mask


def packed(ids, segments, mask):
    """The same rows as ours takes them: no padding, one behind the other."""
    return ids[mask], segments[mask].int(), Layout.of(mask.sum(1).numpy())


CASES = {
    "one token": ([1], False),
    "seven": ([7, 7], False),
    "padded": ([7, 3, 1, 12], False),
    "pairs": ([9, 14, 5], True),
    "128": ([128, 90], True),
    "513": ([513, 200], True),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers(pair, case):
    theirs, ours = pair
    ids, segments, mask = batch(*CASES[case])
    labels = torch.arange(len(ids)) % 3
    expected = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.float(), use_mems=False).logits
    logits = ours(*packed(ids, segments, mask))
    assert (logits - expected).abs().max() <= 1e-5

    for model, output in ((theirs, expected), (ours, logits)):
        model.zero_grad()
        torch.nn.functional.cross_entropy(output, labels).backward()
    gradients = split_qkv({name: value.grad for name, value in ours.named_parameters() if value.grad is not None})
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert name not in gradients or gradients[name].abs().max() == 0, name
            continue
        # A gradient that is zero but for rounding is compared against the layer's usual size.
        scale = max(parameter.grad.abs().max().item(), 1e-4)
        assert (gradients[name] - parameter.grad).abs().max().item() / scale <= 1e-4, name
        compared += 1
    assert compared > 40


def test_transformers_loads_our_directory(pair, tmp_path):
    _, ours = pair
    save_model(ours.state_dict(), ours.config, tmp_path)
    theirs = XLNetForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, segments, mask = batch([6, 11])
    expected = ours(*packed(ids, segments, mask))
    got = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.float(), use_mems=False).logits
    assert (got - expected).abs().max() <= 1e-5


def test_equal_weights_give_equal_bytes(pair, tmp_path):
    _, ours = pair
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_model(ours.state_dict(), ours.config, tmp_path / name)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_pretrained_takes_the_body_and_makes_a_new_head(pair, vocabulary, tmp_path):
    theirs, _ = pair
    theirs.transformer.save_pretrained(tmp_path)  # a bare XLNetModel, as published language models are
    model = load_pretrained(str(tmp_path), vocabulary, "classification", ["a", "b", "c", "d"])
    assert model.logits_proj.weight.shape == (4, 64)
    ours, their = model.transformer.layer[2].rel_attn, theirs.transformer.layer[2].rel_attn
    assert all(torch.equal(ours.qkv[:, i], getattr(their, name)) for i, name in enumerate("qkv"))


def test_pretrained_errors_name_what_to_do(pair, vocabulary, tmp_path):
    theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"97 tokens, the dataset's tokenizer 32000; set data\.tokenizer"):
        load_pretrained(str(tmp_path), SHIPPED / "xlnet-base-cased", "classification", ["a", "b"])
    with pytest.raises(UserError, match=r"no such directory"):
        load_pretrained(str(tmp_path / "nothing"), vocabulary, "classification", ["a", "b"])
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        load_pretrained(str(tmp_path), vocabulary, "classification", ["a", "b"])


def test_loading_and_predicting_load_no_compiler(pair, tmp_path):
    """torch's compiler and sympy take longer to import than a small model takes to answer."""
    save_model(pair[1].state_dict(), pair[1].config, tmp_path)
    code = (
        "import sys, torch; from xlnet.model.layout import Layout; from xlnet.model.weights import load_classifier\n"
        f"model = load_classifier({str(tmp_path)!r})\n"
        "ids, segments = torch.ones(3, dtype=torch.long), torch.zeros(3, dtype=torch.int32)\n"
        "with torch.no_grad(): model(ids, segments, Layout.of([3]))\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_language_model_is_no_classifier(pair, tmp_path):
    theirs, _ = pair
    theirs.transformer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not a trained classifier; to fine-tune it, name it in model\.pretrained"):
        load_classifier(tmp_path)


def test_by_key_reads_the_right_distance():
    length = 5
    scores = torch.arange(length * 2 * length).view(length, 2 * length)
    skewed = by_key(scores)
    for i in range(length):
        for j in range(length):
            assert skewed[i, j] == scores[i, length + j - i]
    assert skewed.data_ptr() == scores[0, length:].data_ptr()


CONFIGS = {
    "{": "is not JSON",
    '{"model_type": "bert"}': "describes a 'bert' model; allowed: 'xlnet'",
    '{"model_type": "xlnet", "vocab_size": 9}': "has no whole number 'n_layer'",
    '{"model_type": "xlnet", "vocab_size": 9, "n_layer": 1, "d_model": 4, "n_head": 1, "d_inner": 4,'
    ' "untie_r": false}': ("sets untie_r = False; allowed: True"),
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_that_is_not_ours_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=CONFIGS[text]):
        load_classifier(tmp_path)
