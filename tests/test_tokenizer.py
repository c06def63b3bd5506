"""Tokens: the same ids as transformers' XLNet tokenizer, at any length, for any script."""

import pytest
from transformers import AutoTokenizer

from xlnet.data.tokenizer import PREFIX_CHARACTERS, load_tokenizer, train_tokenizer
from xlnet.errors import UserError

TEXTS = [
    "Wow... Loved this place.",
    "naïve café, ``quoted'' and ''so''",
    "  leading,   inner\tand trailing  ",
    "很好的电影，我喜欢。 good",
    "emoji 👍🏽 and \u200bzero width, Ａｂｃ full width",
    "a<sep>b <cls> <mask> </s>",
    "x",
    "1,234.56 $9.99 #tag @name http://example.org/?q=1",
    "word " * 300,
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    tokenizer = load_tokenizer("xlnet-base-cased")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def assert_same(ours, theirs, texts, pairs, max_length):
    got = ours.encode(texts, pairs, max_length)
    expected = theirs(texts, pairs, truncation=True, max_length=max_length, return_token_type_ids=True)
    assert got.input_ids == expected["input_ids"]
    for ids, boundary, segments in zip(got.input_ids, got.boundaries, expected["token_type_ids"], strict=True):
        assert segments == [0] * boundary + [1] * (len(ids) - 1 - boundary) + [2]


@pytest.mark.parametrize("max_length", [4, 7, 32, 512])
def test_single_texts_equal_transformers(shipped, max_length):
    assert_same(*shipped, TEXTS, None, max_length)


@pytest.mark.parametrize("max_length", [4, 5, 8, 33, 64, 512])
def test_pairs_equal_transformers(shipped, max_length):
    firsts = [a for a in TEXTS for _ in TEXTS]
    seconds = [b for _ in TEXTS for b in TEXTS]
    assert_same(*shipped, firsts, seconds, max_length)


def test_real_rows_equal_transformers(shipped, shared_data):
    lines = (shared_data / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert_same(*shipped, [line.split("\t")[1] for line in lines], None, 64)
    rte = [line.split("\t") for line in (shared_data / "rte" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert_same(*shipped, [row[0] for row in rte], [row[1] for row in rte], 96)


GIANTS = {
    "words": "An unremarkable sentence, again. " * 20_000,
    "one word": "abcdefgh" * 60_000,
    "accents that vanish": "\u0301" * 300_000 + " tail " * 2000,
    "white space": " " * 500_000 + "end",
}


@pytest.mark.parametrize("name", GIANTS)
def test_a_giant_text_has_the_tokens_of_the_whole(shipped, name):
    ours, theirs = shipped
    text = GIANTS[name]
    assert len(text) > PREFIX_CHARACTERS * 16
    assert ours.encode([text], None, 16).input_ids == theirs([text], truncation=True, max_length=16)["input_ids"]


def test_special_ids_are_the_published_ones(shipped):
    assert shipped[0].special_ids == {"pad": 5, "sep": 4, "cls": 3, "unk": 0, "mask": 6}
    assert shipped[0].vocab_size == 32000
    assert shipped[1].padding_side == "left"


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    stems = ["Häus", "Straß", "Mädch", "geh", "schön", "weiß", "Bröt", "größ", "fünf", "lauf", "Kind", "Baum"]
    endings = ["er", "e", "chen", "en", "lich", "ung", "heit", "s"]
    words = [stem + ending for stem in stems for ending in endings]
    texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) for i in range(500)]
    folder = tmp_path_factory.mktemp("trained")
    return texts, folder, train_tokenizer(texts, 64, folder)


def test_a_trained_vocabulary_has_xlnets_special_tokens_and_loads_in_transformers(german, tmp_path):
    texts, _, tokenizer = german
    assert tokenizer.vocab_size == 64
    assert tokenizer.special_ids == {"pad": 5, "sep": 4, "cls": 3, "unk": 0, "mask": 6}
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(tokenizer, theirs, texts[:50], None, 24)
    assert 0 not in tokenizer.encode(texts, None, 512).input_ids[0]


def test_training_twice_gives_the_same_bytes(german, tmp_path):
    texts, folder, _ = german
    train_tokenizer(texts, 64, tmp_path)
    for name in ("spiece.model", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_sentencepiece_model_alone_is_enough(german, tmp_path):
    texts, folder, tokenizer = german
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    again = load_tokenizer(tmp_path)
    assert again.encode(texts, None, 32) == tokenizer.encode(texts, None, 32)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"data.tokenizer is 'bert'; allowed: xlnet-base-cased, train, or a directory"):
        load_tokenizer("bert")
    with pytest.raises(UserError, match=r"has neither tokenizer.json nor spiece.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(
        UserError, match="data.vocab_size is 30000, more than the training text has .* to [0-9]+ or less"
    ):
        train_tokenizer(["a few words only"] * 10, 30_000, tmp_path)
