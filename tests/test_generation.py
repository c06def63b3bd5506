"""Generation: transformers' tokens from the same weights, sampling, infilling from both sides, and bad input."""

import functools
import io
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from language_models import FIRST, SECOND, WORDS, sentences, write_random, write_toy
from transformers import XLNetLMHeadModel

from xlnet.errors import UserError
from xlnet.generation.decoder import Decoder, KeptLayer
from xlnet.generation.drafts import Guesses, continued
from xlnet.generation.request import request_of
from xlnet.generation.sampling import Sampling, probability
from xlnet.generation.weights import DecoderWeights
from xlnet.generation.writer import Writer
from xlnet.model.config import XLNetConfig
from xlnet.model.kernels import native_decode
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.precision import quantised
from xlnet.model.weights import load_language_model, save_model
from xlnet_pipeline.cli import main

NEW = 40


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_random(folder)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder)
    return folder


@pytest.fixture
def said(capsysbinary, monkeypatch):
    """What the command line prints, its errors and its exit status, in this process."""

    def run(model, *words, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(["generate", str(model), *words])
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return out.decode(), err.decode(), status

    return run


# ---- the same tokens as transformers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "prompt", "memory"),
    [
        ({}, 12, 1000),
        ({}, 1, 1000),
        ({}, 2, 1000),
        ({"mem_len": 16}, 9, 16),
        ({"mem_len": 5}, 5, 5),
        ({"clamp_len": 7}, 6, 99),
    ],
    ids=str,
)
def test_greedy_equals_transformers(changes, prompt, memory, tmp_path):
    """The logits of every place agree, also where old tokens fall out of memory."""
    theirs = write_random(tmp_path, layers=3, **changes)
    ids = torch.randint(9, theirs.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(prompt))
    settings = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    found = theirs.generate(ids, max_new_tokens=NEW, **settings)
    decoder = Decoder(DecoderWeights(load_language_model(tmp_path)), prompt + NEW, memory)
    text = ids[0].tolist()
    for number in range(NEW):
        unread = 2 if number else prompt
        known = len(text)
        logits = decoder.predict(text[-unread:], range(known - unread, known), known)
        torch.testing.assert_close(logits, found.logits[number][0], rtol=1e-4, atol=1e-4)
        text.append(int(logits.argmax()))
    assert text == found.sequences[0].tolist()
    assert len(set(text[prompt:])) > 1, "a text of one token shows little"


def test_the_command_prints_what_transformers_writes(random, said):
    tokenizer = Writer(random).tokenizer
    prompt = torch.tensor([tokenizer.encode_part("the film was")])
    out, err, status = said(random, "the film was", "--tokens", "30", "--past-end")
    theirs = XLNetLMHeadModel.from_pretrained(random)
    expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert (out, err, status) == (tokenizer.decode(expected[0].tolist()) + "\n", "", 0)


def test_our_own_files_give_transformers_the_same_text(toy, said):
    theirs = XLNetLMHeadModel.from_pretrained(toy)
    prompt = torch.tensor([Writer(toy).tokenizer.encode_part("ann")])
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False)
    records = [json.loads(line) for line in said(toy, "ann", "--tokens", "20", "--json")[0].splitlines()]
    assert [one["id"] for one in records[:-1]] == expected[0, 1:].tolist()[: len(records) - 1]


def test_a_token_costs_as_many_rows_late_as_early(random, monkeypatch):
    rows = []
    monkeypatch.setattr(native_decode, "obstacle", lambda *widths: "not in this test")
    monkeypatch.setattr(KeptLayer, "rows", _counted(KeptLayer.rows, rows))
    list(Writer(random).write(request_of({"prompt": WORDS, "tokens": 50, "past_end": True})))
    assert set(rows[2:]) == {3}


def _counted(method, rows):
    def counted(self, x_QD, view):
        rows.append(len(x_QD))
        return method(self, x_QD, view)

    return counted


# Widths of all kinds, a vocabulary that is no multiple of four, heads of several vectors.
KERNEL_SHAPES = [(32, 2, 16, 64, 61, 1), (48, 3, 48, 80, 40, 2), (64, 1, 64, 32, 33, 3)]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_precision_changes_probabilities_a_little(random, said, precision):
    usual, other = (
        [
            json.loads(line)
            for line in said(random, WORDS, "--tokens", "8", "--json", "--precision", one)[0].splitlines()
        ]
        for one in ("auto", precision)
    )
    assert usual[:-1] != other[:-1]
    for expected, found in zip(usual[:-1], other[:-1], strict=True):
        assert found["probability"] == pytest.approx(expected["probability"], rel=0.03)
        if found["id"] != expected["id"]:
            break


def test_a_precision_needs_the_compiled_kernel(random, said, monkeypatch):
    monkeypatch.setattr(native_decode, "obstacle", lambda *widths: "there is no compiler")
    out, err, status = said(random, WORDS, "--precision", "int8")
    assert (out, status) == ("", 2)
    assert "precision 'int8' cannot be used here: there is no compiler; take 'float32'" in err


MATRICES = ("word_embedding.weight", "rel_attn.qkv", "rel_attn.o", "layer_1.weight", "layer_2.weight")


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_the_compiled_kernel_equals_torchs_operators(shape, precision, gap, monkeypatch):
    width, heads, head, inner, vocabulary, layers = shape
    torch.manual_seed(sum(shape))
    config = XLNetConfig(vocabulary, layers, width, heads, head, inner, initializer_range=0.3, task="pretrain")
    model = XLNetLanguageModel(config).eval()
    _round(model, precision)
    if reason := native_decode.obstacle("cpu", "torch.float32", [width], head):
        pytest.skip(reason)
    compiled = Decoder(DecoderWeights(model, precision), 60, 40)
    monkeypatch.setattr(native_decode, "obstacle", lambda *widths: "not in this test")
    plain = Decoder(DecoderWeights(model), 60, 40)
    assert compiled._compiled is not None
    assert plain._compiled is None
    first, rest = ([0, 1, 2, 8, 9], [3, 7, 5, 4]) if gap else (range(9), range(9, 55))
    passes = [([number % vocabulary for number in first], first, rest[0])]
    for place, query in itertools.pairwise(rest):
        read = [place] if gap else [place - 1, place]
        passes.append(([7 * one % vocabulary for one in read], read, query))
    for ids, places, query in passes:
        found, expected = compiled.predict(ids, places, query), plain.predict(ids, places, query)
        assert (found - expected).abs().max() <= 2e-5 * max(expected.abs().max().item(), 1.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("likeliest", [1, 5, 1000])
def test_the_likeliest_tokens_are_found_in_the_coarse_output(likeliest, precision):
    """Their logits are the exact ones, bit for bit, whether words are easily told apart, nearly equal, or huge."""
    torch.manual_seed(likeliest)
    config = XLNetConfig(300, 1, 64, 2, 32, 64, initializer_range=0.3, task="pretrain")
    model = XLNetLanguageModel(config).eval()
    if reason := native_decode.obstacle("cpu", "torch.float32", [64], 32):
        pytest.skip(reason)
    table_VD = model.transformer.word_embedding.weight.data
    table_VD[100:200] = table_VD[7] + 1e-4 * torch.randn(100, 64)  # closer than int8 can tell
    table_VD[150:160] = table_VD[7]
    table_VD[200:210] *= 1e6
    left_out = 0
    for number in range(12):
        model.lm_loss.bias.data.normal_(0, number)
        weights = DecoderWeights(model, precision)
        exact, found = (Decoder(weights, 9, 9).predict(range(number, number + 2), (0, 1), 2, n) for n in (0, likeliest))
        wanted = exact.topk(min(likeliest, len(exact))).values
        assert torch.equal(found.topk(len(wanted)).values, wanted)
        assert int(found.argmax()) == int(exact.argmax())
        assert torch.equal(found[found > -math.inf], exact[found > -math.inf])
        left_out += int((found == -math.inf).sum())
    assert (left_out > 0) == (likeliest < 300)


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 1e38])
def test_spoiled_weights_are_not_hidden_by_the_coarse_output(spoil):
    torch.manual_seed(0)
    model = XLNetLanguageModel(XLNetConfig(70, 1, 32, 2, 16, 64, task="pretrain")).eval()
    model.transformer.word_embedding.weight.data[5, 3] = spoil
    weights = DecoderWeights(model)
    exact, found = (Decoder(weights, 9, 9).predict((1, 2), (0, 1), 2, likeliest) for likeliest in (0, 1))
    assert int(found.argmax()) == int(exact.argmax())


def _round(model, precision):
    """Give a model's matrices values that this precision keeps."""
    for name, weight in model.named_parameters():
        if not name.endswith(MATRICES):
            continue
        rows = weight.data.flatten(1).T if name.endswith("qkv") else weight.data.flatten(1)
        if precision == "int8":
            rounded, scale = quantised(rows)
            rows = rounded * scale[:, None]
        elif precision == "bfloat16":
            rows = rows.bfloat16().float()
        weight.data = (rows.T if name.endswith("qkv") else rows).reshape(weight.shape).contiguous()


# ---- drafts -----------------------------------------------------------------------------------------


def _model(**changes):
    torch.manual_seed(0)
    config = XLNetConfig(61, 3, 32, 2, 16, 64, initializer_range=0.3, task="pretrain", **changes)
    return XLNetLanguageModel(config).eval()


def _written(monkeypatch, weights, sampling, memory, likeliest, drafts=None, prompt=(7, 8, 9)):
    """New tokens with their logits, and how many drafts each pass checked. ``drafts`` replaces the guesses."""
    checked = []
    with monkeypatch.context() as patch:
        if drafts:
            patch.setattr(Guesses, "drafts", drafts)
        patch.setattr(Decoder, "follow", _noted(Decoder.follow, checked))
        decoder, generator = Decoder(weights, len(prompt) + 60, memory), sampling.generator()
        found = list(continued(decoder, prompt, 60, lambda logits: sampling.choose(logits, generator), likeliest))
    return found, checked


def _noted(method, checked):
    def noted(self, ids, start, drafts, likeliest):
        checked.append(len(drafts))
        return method(self, ids, start, drafts, likeliest)

    return noted


SAMPLINGS = [{}, {"temperature": 1.0}, {"top_k": 4}, {"top_p": 0.6}, {"temperature": 0.4, "top_k": 20, "top_p": 0.9}]


def _guessed(text, start, falsify):
    """Replaces guesses: by the tokens of this text, which begins at this place, each falsified or not."""

    def drafts(guesses, most):
        first = len(guesses._text) - start
        return [falsify(first + number, token) for number, token in enumerate(text[first : first + most])]

    return drafts


NONE, RIGHT = _guessed([], 0, None), lambda number, token: token
WRONG, MIXED = lambda number, token: (token + 1) % 61, lambda number, token: token if number % 5 else (token + 1) % 61


@pytest.mark.parametrize(
    ("precision", "memory"),
    [("float32", 2), ("float32", 5), ("float32", 16), ("float32", 1000), ("bfloat16", 16), ("int8", 16)],
)
@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
def test_drafts_change_no_token_and_no_logit(precision, settings, memory, monkeypatch):
    """Whether they are our own guesses, always right, always wrong, or right at times."""
    if reason := native_decode.obstacle("cpu", "torch.float32", [32], 16):
        pytest.skip(reason)
    weights, sampling = DecoderWeights(_model(), precision), Sampling(**settings, seed=3)
    write = functools.partial(_written, monkeypatch, weights, sampling, memory, sampling.likeliest)
    expected, checked = write(NONE)
    assert checked == [0] * 60
    text = [token for token, _ in expected]
    passes = {RIGHT: range(9, 11), WRONG: range(60, 61), MIXED: range(12, 30), None: range(9, 61)}
    for falsify, allowed in passes.items():
        found, checked = write(falsify and _guessed(text, 3, falsify))
        assert [token for token, _ in found] == text
        pairs = zip(found, expected, strict=True)
        assert all(torch.equal(ours[1], other[1]) for ours, other in pairs)
        assert len(checked) in allowed


@pytest.mark.parametrize("prompt", [(7,), (7, 8), tuple(range(20))], ids=len)
def test_drafts_follow_prompts_of_any_length(prompt, monkeypatch):
    weights, ways = DecoderWeights(_model()), (None, NONE)
    (found, _), (expected, _) = (_written(monkeypatch, weights, Sampling(), 99, 1, way, prompt) for way in ways)
    assert [one[0] for one in found] == [one[0] for one in expected]


def test_a_text_that_repeats_itself_takes_few_passes(monkeypatch):
    model = _model()
    model.lm_loss.bias.data[5] = 1e4
    found, checked = _written(monkeypatch, DecoderWeights(model), Sampling(), 99, 1)
    assert [token for token, _ in found] == [5] * 60
    assert len(checked) == 60 - sum(checked)
    assert len(checked) <= (16 if Decoder(DecoderWeights(model), 9, 9).most_drafts else 60)


def test_guesses_repeat_what_followed_the_same_tokens():
    guesses = Guesses([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert guesses.drafts(7) == []  # no guess has been right yet
    guesses.append(4)
    guesses.append(5)
    assert guesses.drafts(7) == [6]
    guesses.append(6)
    guesses.append(1)
    assert guesses.drafts(7) == [2, 3, 4]
    assert guesses.drafts(2) == [2, 3]
    assert guesses.drafts(0) == []
    guesses.append(9)
    assert guesses.drafts(7) == []
    for token in [9] * 12:
        guesses.append(token)
    assert guesses.drafts(7) == [9] * 7


def test_a_stop_token_among_drafts_ends_the_text(random, monkeypatch):
    request = request_of({"prompt": WORDS, "tokens": 40, "temperature": 9.0, "seed": 4, "past_end": True})
    writer = Writer(random)
    known, text = len(writer.tokenizer.encode_part(WORDS)), [token.id for token in writer.write(request)]
    monkeypatch.setattr(type(writer.tokenizer), "end_ids", {text[12]})
    monkeypatch.setattr(Guesses, "drafts", _guessed(text, known, RIGHT))
    assert [token.id for token in writer.write(replace(request, past_end=False))] == text[: text.index(text[12]) + 1]
    assert [token.id for token in writer.write(replace(request, tokens=7))] == text[:7]


# ---- choosing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 1}, {3: 1.0}),
        ({"top_k": 2}, {3: 0.5 / 0.8, 1: 0.3 / 0.8}),
        ({"top_p": 0.5}, {3: 1.0}),
        ({"top_p": 0.6}, {3: 0.5 / 0.8, 1: 0.3 / 0.8}),
        ({"top_p": 1e-9}, {3: 1.0}),
        ({"top_p": 1.0}, {3: 0.5, 1: 0.3, 0: 0.15, 2: 0.05}),
        ({"temperature": 0.5}, {3: 0.25 / 0.365, 1: 0.09 / 0.365, 0: 0.0225 / 0.365, 2: 0.0025 / 0.365}),
        ({"temperature": 2.0, "top_k": 2}, {3: 0.5**0.5 / (0.5**0.5 + 0.3**0.5), 1: 0.3**0.5 / (0.5**0.5 + 0.3**0.5)}),
        ({"temperature": 1e-300}, {3: 1.0}),
        ({"temperature": 0.0, "top_k": 3}, {3: 1.0}),
        ({}, {3: 1.0}),
    ],
    ids=str,
)
def test_draws_have_the_probabilities_that_were_asked_for(settings, allowed):
    logits = torch.tensor([0.15, 0.3, 0.05, 0.5]).log() + 7
    sampling = Sampling(**settings, seed=5)
    generator, count = sampling.generator(), 2000 if len(allowed) > 1 else 20
    drawn = [sampling.choose(logits, generator) for _ in range(count)]
    assert set(drawn) <= allowed.keys()
    for token, share in allowed.items():
        found = drawn.count(token) / count
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert probability(logits, 3) == pytest.approx(0.5)


def test_a_seed_repeats_a_text(random, said):
    words = ("the film was", "--tokens", "25", "--temperature", "1.5", "--top-k", "30")
    first = said(random, *words, "--seed", "3")
    assert first == said(random, *words, "--seed", "3")
    assert first[1] == "seed 3\n"
    assert first[0] != said(random, *words, "--seed", "4")[0]
    _, told, _ = said(random, *words)
    seed = re.fullmatch(r"seed (\d+)\n", told).group(1)
    assert seed != re.fullmatch(r"seed (\d+)\n", said(random, *words)[1]).group(1)


def test_tokens_come_one_by_one_and_the_text_is_their_sum(random, said):
    out, _, status = said(random, "-", "--tokens", "12", "--json", stdin=b" the film was\n")
    *tokens, whole = map(json.loads, out.splitlines())
    assert status == 0
    assert whole["text"] == " the film was" + "".join(one["token"] for one in tokens)
    assert whole["tokens"] == len(tokens)
    assert [one["place"] for one in tokens] == list(range(len(tokens)))
    assert all(0 < one["probability"] <= 1 for one in tokens)
    plain, _, _ = said(random, "-", "--tokens", "12", stdin=b" the film was\n")
    assert plain == whole["text"] + "\n"


def test_it_ends_where_the_model_ends_the_text(random, tmp_path, said):
    model = load_language_model(random)
    with torch.no_grad():
        model.lm_loss.bias[7] = 1e4  # <eod>
    save_model(model.state_dict(), model.config, tmp_path)
    Writer(random).tokenizer.save(tmp_path)
    (token, whole) = map(json.loads, said(tmp_path, "the film", "--json")[0].splitlines())
    assert (token["id"], token["token"]) == (7, "")
    assert whole == {"text": "the film", "tokens": 1, "ended": "end of text"}
    assert len(said(tmp_path, "the film", "--json", "--past-end", "--tokens", "3")[0].splitlines()) == 4


# ---- infilling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(), ("--order", "1,0"), ("--order", "0,1")], ids=str)
def test_a_gap_is_filled_from_both_sides(toy, said, order):
    """Only both sides together determine the gap, whichever of its tokens is filled first."""
    for sentence in sentences():
        left, *_, right = sentence.split()
        out, _, status = said(toy, f"{left} ___ {right}", "--infill", "--tokens", "2", *order)
        assert (out, status) == (sentence + "\n", 0)


def test_a_gap_sampled_and_marked_otherwise(toy, said):
    words = ("bob [gap] figs", "--infill", "--tokens", "2", "--marker", "[gap]", "--top-p", "0.5", "--seed", "1")
    assert said(toy, *words) == (f"bob {FIRST[3]} {SECOND[3]} figs\n", "seed 1\n", 0)
    out, _, _ = said(toy, "bob ___ figs", "--infill", "--order", "1,0", "--json")
    assert [json.loads(line).get("place") for line in out.splitlines()] == [1, 0, None]


@pytest.mark.parametrize("prompt", ["ann ___", "___ ham"])
def test_a_gap_at_an_end_is_filled_as_well(toy, said, prompt):
    out, _, status = said(toy, prompt, "--infill", "--tokens", "1")
    assert (len(out.split()), status) == (2, 0)


def test_infilling_writes_no_end_of_text(random, tmp_path, said):
    model = load_language_model(random)
    with torch.no_grad():
        model.lm_loss.bias[:9] = 1e4
    save_model(model.state_dict(), model.config, tmp_path)
    Writer(random).tokenizer.save(tmp_path)
    out, _, _ = said(tmp_path, "the ___, and it", "--infill", "--tokens", "3", "--json")
    *tokens, whole = map(json.loads, out.splitlines())
    assert min(one["id"] for one in tokens) > 8
    assert whole["text"].endswith(", and it")


# ---- bad input --------------------------------------------------------------------------------------

BAD = [
    (("",), "the prompt cannot be used: it is empty"),
    ((" \n ",), "the prompt cannot be used: it is empty"),
    (("a\0b",), "NUL byte"),
    (("x", "--top-p", "0"), "top_p is 0.0; allowed: above 0, at most 1"),
    (("x", "--top-p", "1.01"), "top_p is 1.01; allowed: above 0, at most 1"),
    (("x", "--top-p", "nan"), "top_p is nan; allowed"),
    (("x", "--temperature", "-0.5"), "temperature is -0.5; allowed: 0 (the likeliest token) or more"),
    (("x", "--temperature", "inf"), "temperature is inf; allowed"),
    (("x", "--temperature", "hot"), "--temperature is 'hot', which is not a number"),
    (("x", "--top-k", "0"), "top_k is 0; allowed: a whole number from 1 on"),
    (("x", "--top-k", "1.5"), "--top-k is '1.5', which is not a whole number"),
    (("x", "--tokens", "0"), "tokens is 0; allowed: whole numbers from 1 to 100,000"),
    (("x", "--seed", "-1"), "seed is -1; allowed"),
    (("x", "--memory", "1"), "memory is 1; allowed: whole numbers from 2 to 16,384"),
    (
        ("the film was lovely", "--memory", "3"),
        r"the prompt has \d+ tokens, and memory holds 3; shorten it or raise memory",
    ),
    (("x", "--infill"), "the gap's mark '___' is not in the prompt"),
    (("a ___ b ___ c", "--infill"), "the gap's mark '___' is in the prompt 2 times"),
    (("___", "--infill"), "the prompt has no token"),
    (("a ___ b", "--infill", "--marker", " "), "marker is ' '; allowed"),
    (("a ___ b", "--infill", "--order", "0,2"), r"the order \[0, 2\] is not a permutation of 0 to 1"),
    (("a ___ b", "--infill", "--order", "0,0"), r"is not a permutation of 0 to 1"),
    (("a ___ b", "--infill", "--order", "0,x"), r"order is '0,x'; allowed: whole numbers"),
    (("a ___ b", "--infill", "--order", "0,1", "--tokens", "3"), "the order names 2 places, and tokens is 3"),
    (("a ___ b", "--infill", "--tokens", "600"), "tokens is 600; allowed: whole numbers from 1 to 512"),
    (("a", "--order", "0,1"), "order is given without infill"),
    (("a", "--marker", "_"), "marker is given without infill"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=str)
def test_bad_input_is_refused_in_one_line(random, said, words, message):
    out, err, status = said(random, *words)
    assert (out, status, err.count("\n")) == ("", 2, 1)
    assert re.search(message.replace("(the likeliest token)", r"\(the likeliest token\)"), err), err


def test_standard_input_that_is_no_text(random, said):
    assert "not UTF-8: byte 0xff" in said(random, "-", stdin=b"a\xff")[1]
    assert "it is empty" in said(random, "-")[1]


def test_models_that_cannot_write(random, trained, tmp_path, said, capsysbinary):
    assert "is not a language model: it is a classifier" in said(trained.model, "x")[1]
    assert main(["predict", str(random), "x"]) == 2
    assert "is a language model, not a trained classifier" in capsysbinary.readouterr().err.decode()
    model = load_language_model(random)
    save_model(model.state_dict(), model.config, tmp_path)
    assert "has no tokenizer" in said(tmp_path, "x")[1]
    Writer(trained.model).tokenizer.save(tmp_path)
    assert re.search(r"tokenizer of [\d]+ tokens and weights for \d+; take both", said(tmp_path, "x")[1])


def test_a_field_that_nobody_knows():
    with pytest.raises(UserError, match="unknown field 'topp'; did you mean 'top_p'"):
        request_of({"prompt": "x", "topp": 0.5})
